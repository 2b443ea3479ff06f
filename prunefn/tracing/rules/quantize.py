"""Quantisation that is simulated in floats, or spelled out: values keep their places, and per-channel scales follow the channels."""

from __future__ import annotations

from torch import fx

from ..axes import ONE, Term
from .base import Axes, Call, Value, rule

ZERO_POINTS = ("zero_point", "zero_points")


def is_zero_point(node: fx.Node) -> bool:
    """Return whether ops read a placeholder only as zero points, so that its integers are values of units and no positions."""
    users = [u for u in node.users if u.op == "call_function"]
    return bool(users) and all(_reads_as_zero_point(u, node) for u in users)


def _reads_as_zero_point(user: fx.Node, node: fx.Node) -> bool:
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return False
    names = [a.name for a in schema.arguments]
    arguments = {**dict(zip(names, user.args, strict=False)), **user.kwargs}
    return all(name in ZERO_POINTS for name, v in arguments.items() if v is node)


def _quantized(call: Call) -> Value:
    return call["self"] if call["self"] is not None else call["input"]


def _follow(call: Call, axis: Term, *names: str) -> None:
    """Unify the axis with the only dim of these arguments, unless they hold one number for all."""
    for v in (call[name] for name in names):
        if isinstance(v, Value) and len(v.axes) == 1 and call.alg.size(v.axes[0]) == call.alg.size(axis) > 1:
            call.unify(axis, v.axes[0])


@rule(
    "aten.fake_quantize_per_tensor_affine",
    "aten.fake_quantize_per_tensor_affine_cachemask",
    "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "aten._fake_quantize_learnable_per_tensor_affine",
    "quantized_decomposed.quantize_per_tensor",
    "quantized_decomposed.dequantize_per_tensor",
    "quantized_decomposed.convert_element_type",
)
def per_tensor(call: Call) -> list[Axes]:
    """Return the axes of the tensor; one scale serves all of it."""
    x, *others = call.tensors()
    for v in others:
        call.freeze(v.axes, "its first number serves the whole tensor")
    return [x.axes for _ in call.shapes]


@rule(
    "aten.fake_quantize_per_channel_affine",
    "aten.fake_quantize_per_channel_affine_cachemask",
    "aten._fake_quantize_learnable_per_channel_affine",
    "quantized_decomposed.fake_quant_per_channel",
    "quantized_decomposed.quantize_per_channel",
    "quantized_decomposed.dequantize_per_channel",
)
def per_channel(call: Call) -> list[Axes]:
    """Unify scales and zero points with the channels."""
    x = _quantized(call)
    _follow(call, x.axes[call["axis"]], "scale", "scales", "zero_point", "zero_points")
    return [x.axes for _ in call.shapes]


@rule("aten._fused_moving_avg_obs_fq_helper_functional", "aten._fused_moving_avg_obs_fq_helper")
def observed(call: Call) -> list[Axes]:
    """Unify scales and ranges with the channels; dims over which ranges are observed are mixed."""
    x, statistics = call["self"], ("running_min", "running_max", "scale", "zero_point")
    channel = call["ch_axis"] % len(x.axes) if call["per_row_fake_quant"] else None
    if channel is not None:
        _follow(call, x.axes[channel], *statistics)
    call.mark([a for d, a in enumerate(x.axes) if d != channel], f"mixed:{call.op}")
    return [x.axes, x.axes, *(call[name].axes for name in statistics)][: len(call.shapes)]


@rule("quantized_decomposed.quantize_per_token", "quantized_decomposed.dequantize_per_token")
def per_token(call: Call) -> Axes:
    """Broadcast scales [..., 1] over the tensor."""
    return call.broadcast([v for v in (call["input"], call["scales"], call["zero_points"]) if v is not None])


@rule("quantized_decomposed.quantize_per_channel_group", "quantized_decomposed.dequantize_per_channel_group")
def per_channel_group(call: Call) -> Axes:
    """Unify scales [channels, blocks] with a matrix [channels, (blocks size)], whose blocks keep their size."""
    x, scales, size = call["input"], call["scales"], call["group_size"]
    blocks, block = call.alg.split(x.axes[-1], [call.alg.size(x.axes[-1]) // size, size])
    call.freeze([block], "it is quantised in blocks of a fixed size")
    for v in (scales, call["zero_points"]):
        if v is not None:
            call.broadcast([v, Value("", (*x.axes[:-1], blocks), True)], [call.alg.size(a) for a in v.axes])
    return x.axes


@rule("quantized_decomposed.choose_qparams", "quantized_decomposed.choose_qparams_symmetric")
def ranges(call: Call) -> list[Axes]:
    """Mark all dims as mixed, since one range is chosen for all of them."""
    call.mark(call["input"].axes, f"mixed:{call.op}")
    return [call.fresh(shape) for shape in call.shapes]


@rule(
    "quantized_decomposed.choose_qparams_per_token",
    "quantized_decomposed.choose_qparams_per_token_asymmetric",
    "quantized_decomposed._choose_qparams_per_token_asymmetric_impl",
)
def ranges_of_tokens(call: Call) -> list[Axes]:
    """Mark the last dim as mixed, since a range is chosen for all of it."""
    *lead, last = call["input"].axes
    call.mark([last], f"mixed:{call.op}")
    return [(*lead, ONE) for _ in call.shapes]
