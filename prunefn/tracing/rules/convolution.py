"""Convolutions of every kind: grouped, depthwise, transposed, in one to three dims."""

from __future__ import annotations

from typing import Any

from ...spec.parts import Geometry
from ..axes import ONE, Term, Times
from .base import Axes, Call, Value, rule
from .create import SizeOf


@rule(
    "aten.conv1d",
    "aten.conv2d",
    "aten.conv3d",
    "aten.convolution",
    "aten._convolution",
    "aten.conv_transpose1d",
    "aten.conv_transpose2d",
    "aten.conv_transpose3d",
    "aten.mkldnn_convolution",
    "aten.cudnn_convolution",
)
def convolution(call: Call) -> Axes:
    """Contract the channels of a convolution with weight [(g o), i, …], or [(g i), o, …] if transposed.

    In and out channels are products with the groups.
    """
    x, w, b = call["input"] or call["self"], call["weight"], call["bias"]
    call.layer = True
    transposed = "transpose" in call.op or bool(call["transposed"])
    rank = len(w.axes) - 2
    d = len(x.axes) - rank - 1
    groups = call.alg.size(call["groups"].axis) if isinstance(call["groups"], SizeOf) else call["groups"] or 1
    call.freeze(w.axes[2:], "it is a kernel dim")
    g, inner, out = _channels(call, x.axes[d], w, groups, transposed)
    if b is not None:
        call.unify(out, b.axes[0])
    if groups > 1 and inner != ONE:
        call.mark([g], "groups")
    call.resize("groups", g)
    geometry = _geometry(call, w, rank, transposed)
    axes = (*x.axes[:d], out, *_spatial_axes(call, x.axes[d + 1 :], geometry))
    dims = " ".join(f"k{i}" for i in range(rank))
    pattern = f"(g i) o {dims} -> g o i ({dims})" if transposed else f"(g o) i {dims} -> g o i ({dims})"
    kernel = w.axes[2:]
    depthwise = inner == ONE and groups > 1
    macs = (*x.axes, w.axes[1], *kernel) if transposed else (*axes, w.axes[1], *kernel)
    call.lay_out(w, pattern, g, convolution=not transposed)
    call.contract(
        macs=macs,
        x=x,
        dim=d - len(x.axes),
        weight=w,
        pattern="" if depthwise else pattern,
        groups=g,
        bias=b,
        bias_arg="bias",
        out=out,
        geometry=geometry,
    )
    return axes


@rule("aten.conv_tbc")
def conv_tbc(call: Call) -> Axes:
    """Contract x [steps, batch, in] with weight [kernel, in, out] to [steps, batch, out]."""
    x, w = call["self"], call["weight"]
    call.layer = True
    (steps, batch, channels), (kernel, inner, out) = x.axes, w.axes
    call.freeze(steps, "a convolution runs along it")
    call.freeze(kernel, "it is a kernel dim")
    call.unify(channels, inner)
    call.unify(out, call["bias"].axes[0])
    (new_steps,) = call.frozen(call.shape[:1], "it is a spatial dim")
    call.lay_out(w, "k i o -> 1 o i k")
    call.contract(macs=(new_steps, batch, *w.axes), x=x, weight=w, bias=call["bias"], bias_arg="bias", out=out)
    return (new_steps, batch, out)


def _channels(call: Call, channels: Term, w: Value, groups: int, transposed: bool) -> tuple[Term, Term, Term]:
    """State the equations between channels, and return (groups, inputs per group, out channels)."""
    if groups == 1:
        inner, out = (w.axes[0], w.axes[1]) if transposed else (w.axes[1], w.axes[0])
        return ONE, call.unify(channels, inner), out
    size = call.alg.size
    g, inner = call.alg.split(channels, [groups, size(channels) // groups])
    if transposed:
        call.unify(w.axes[0], channels)
        out = Times((g, w.axes[1]))
    else:
        call.unify(w.axes[1], inner)
        groups_of_weight, _ = call.alg.split(w.axes[0], [groups, size(w.axes[0]) // groups])
        call.unify(groups_of_weight, g)
        out = w.axes[0]
    return g, inner, out


def _spatial_axes(call: Call, axes: Axes, g: Geometry) -> Axes:
    """Return the spatial axes of the result: unchanged where a kernel of size 1 has no effect, else frozen."""
    out = list(axes)
    for i, axis in enumerate(axes):
        if (g.kernel[i], g.stride[i], g.padding[i]) != (1, 1, (0, 0)):
            call.freeze(axis, "a convolution runs along it")
            (out[i],) = call.frozen([call.shape[i - len(axes)]], "it is a spatial dim")
    return tuple(out)


def _geometry(call: Call, w: Value, rank: int, transposed: bool) -> Geometry:
    kernel = tuple(call.alg.size(a) for a in w.axes[2:])
    stride, dilation = _expand_ints(call["stride"], rank, 1), _expand_ints(call["dilation"], rank, 1)
    padding: Any = call["padding"]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in total)
    else:
        pads = tuple((p, p) for p in _expand_ints(0 if padding == "valid" else padding, rank, 0))
    return Geometry(
        kernel, stride, pads, dilation, transposed, _expand_ints(call["output_padding"], rank, 0) if transposed else ()
    )


def _expand_ints(value: Any, rank: int, default: int) -> tuple[int, ...]:
    values = [default] if value is None else [value] if isinstance(value, int) else list(value)
    return tuple((values or [default]) * rank if len(values) <= 1 else values)
