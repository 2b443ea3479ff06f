"""Normalisations. Norms that average over units mark the axis, since pruning it is then not exact."""

from __future__ import annotations

from ..axes import ONE, Times
from .base import Axes, Call, rule
from .shape import freeze_all


@rule(
    "aten.batch_norm",
    "aten._native_batch_norm_legit_functional",
    "aten._native_batch_norm_legit",
    "aten._native_batch_norm_legit_no_training",
    "aten.native_batch_norm",
    "aten.cudnn_batch_norm",
    "aten._batch_norm_with_update_functional",
    "aten._batch_norm_no_update",
    "aten.instance_norm",
)
def per_channel(call: Call) -> Axes | list[Axes]:
    """Normalise every channel (dim 1) separately, with per-channel weight, bias and running statistics."""
    call.scales += [call["weight"]] if call["weight"] is not None else []
    x = call["input"]
    channel = x.axes[1] if len(x.axes) > 1 else x.axes[0]
    for v in call.tensors():
        if v is not x and v.axes:
            call.unify(channel, v.axes[0])
    if call["training"] or call["use_input_stats"] or "with_update" in call.op:
        # statistics of the input itself, over the other dims
        call.mark([*x.axes[:1], *x.axes[2:]], f"mixed:{call.op}")
    if len(call.shapes) == 1:
        return x.axes
    n = call.alg.size(channel)
    return [
        x.axes if len(s) == len(x.axes) else (channel,) if s == (n,) else call.frozen(s, "saved") for s in call.shapes
    ]


@rule("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def over_last_dims(call: Call) -> Axes | list[Axes]:
    """Normalise over the last dims: mark them as mixed."""
    call.scales += [call["weight"]] if call["weight"] is not None else []
    call.layer = call.op.startswith("aten.layer_norm.")
    x = call["input"]
    n = len(call["normalized_shape"])
    if any(len(v.axes) != n for v in call.tensors() if v is not x):
        return freeze_all(call, "its weight has another rank than what it normalizes")
    last = x.axes[len(x.axes) - n :]
    for v in call.tensors():
        if v is not x:
            for a, b in zip(last, v.axes, strict=True):
                call.unify(a, b)
    call.mark(last, f"mixed:{call.op}")
    call.resize("normalized_shape", list(last))
    if len(call.shapes) == 1:
        return x.axes
    return [x.axes, *((*x.axes[: len(x.axes) - n], *(ONE,) * (len(s) - len(x.axes) + n)) for s in call.shapes[1:])]


@rule("aten.group_norm", "aten.native_group_norm")
def group_norm(call: Call) -> Axes | list[Axes]:
    """Split channels into (groups, c): removing whole groups is exact; mean and variance run over c and the dims after it."""
    call.scales += [call["weight"]] if call["weight"] is not None else []
    x = call["input"]
    if len(x.axes) < 2 or call["C"] not in (None, call.alg.size(x.axes[1])):
        return freeze_all(call, "its channels are laid out in another way")
    key = "num_groups" if call["num_groups"] is not None else "group"
    groups = call[key]
    g, c = call.alg.split(x.axes[1], [groups, call.alg.size(x.axes[1]) // groups])
    for v in call.tensors():
        if v is not x:
            call.unify(x.axes[1], v.axes[0])
    call.mark([g], "groups")
    call.mark([c, *x.axes[2:]], f"mixed:{call.op}")
    call.resize(key, g)
    if len(call.shapes) == 1:
        return x.axes
    call.resize("C", x.axes[1])
    call.resize("HxW", Times(x.axes[2:]))
    call.resize("N", x.axes[0])
    return [x.axes, *((x.axes[0], g) for _ in call.shapes[1:])]


@rule("aten.renorm")
def renorm(call: Call) -> Axes:
    """Scale each position of a dim to a largest norm over all other dims."""
    x = call["self"]
    (kept,) = call.dims(x, call["dim"])
    call.mark([a for d, a in enumerate(x.axes) if d != kept], f"mixed:{call.op}")
    return x.axes


@rule("aten._weight_norm", "aten._weight_norm_interface")
def weight_norm(call: Call) -> Axes | list[Axes]:
    """Divide v [out, in, …] by its norm over all dims but one, and multiply by g [out, 1, …]."""
    v, g = call["v"], call["g"]
    axes = call.broadcast([v, g], call.shapes[0])
    kept_dim = (call["dim"] or 0) % len(v.axes)
    call.mark([a for d, a in enumerate(axes) if d != kept_dim], f"mixed:{call.op}")
    return axes if len(call.shapes) == 1 else [axes, g.axes]
