"""Ops that only rearrange dims: reshape, permute, expand, repeat, shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..axes import ONE, Term, Times
from .base import Axes, Call, replaced, rule
from .create import SizeOf


def regroup(call: Call, axes: Sequence[Term], sizes: Sequence[int]) -> Axes:
    """Assign the factors of `axes` to `sizes`, row-major, with one equation per smallest block of dims with equal element counts."""
    alg, out, i, j = call.alg, list[Term](), 0, 0
    axes = [a for a in axes if alg.size(a) != 1]
    target_sizes = [n for n in sizes if n != 1]
    if target_sizes.count(0) == 1 and [alg.size(a) for a in axes].count(0) == 1:
        return _regroup_around_empty(call, axes, sizes)
    if 0 in target_sizes or prod(target_sizes) != prod(alg.size(a) for a in axes):
        call.freeze(axes, "reshape of an empty tensor")
        return call.frozen(sizes, "reshape of an empty tensor")
    while j < len(target_sizes):
        left, right = [axes[i]], [target_sizes[j]]
        i, j = i + 1, j + 1
        while (a := prod(alg.size(x) for x in left)) != (b := prod(right)):
            if a < b:
                left.append(axes[i])
                i += 1
            else:
                right.append(target_sizes[j])
                j += 1
        if len(left) == len(right) == 1:
            out.append(left[0])
        else:
            out += _regroup_block(call, left, right)
    regrouped = iter(out)
    return tuple(ONE if n == 1 else next(regrouped) for n in sizes)


def _regroup_around_empty(call: Call, axes: Sequence[Term], sizes: Sequence[int]) -> Axes:
    """Regroup around a dim of size 0 (such as no detected boxes): it stays in place, and each side is a separate reshape."""
    alg = call.alg
    i, j = [alg.size(a) for a in axes].index(0), list(sizes).index(0)
    sides = ((axes[:i], sizes[:j]), (axes[i + 1 :], sizes[j + 1 :]))
    if any(prod(alg.size(a) for a in old_axes) != prod(new_sizes) for old_axes, new_sizes in sides):
        call.freeze(axes, "reshape of an empty tensor")
        return call.frozen(sizes, "reshape of an empty tensor")
    before, after = (regroup(call, old_axes, new_sizes) for old_axes, new_sizes in sides)
    return (*before, axes[i], *after)


def _regroup_block(call: Call, left: list[Term], right: list[int]) -> list[Term]:
    if len(right) == 1:
        return [Times(tuple(left))]
    fresh = [call.alg.leaf(n) for n in right]
    call.unify(left[0] if len(left) == 1 else Times(tuple(left)), Times(tuple(fresh)))
    return fresh


@rule("aten.reshape", "aten.view", "aten._unsafe_view", "aten._reshape_copy", "aten.view_copy")
def reshape(call: Call) -> Axes:
    """Regroup the axes row-major; the sizes in the program belong to the axes of the result."""
    x = call["self"]
    if "size" not in call.args and "shape" not in call.args:  # view.dtype
        return freeze_all(call, "the same bytes are read as another type")  # type: ignore[return-value]
    out = regroup(call, x.axes, call.shape)
    call.resize("size" if "size" in call.args else "shape", list(out))
    return out


SQUEEZED = "squeezed"
"""What `Call.resize` says of a squeeze: the dims that it drops."""


@rule(
    "aten.flatten",
    "aten.unflatten",
    "aten.unsqueeze",
    "aten.reshape_as",
    "aten.view_as",
    "aten.ravel",
    "aten.unsqueeze_copy",
    "aten.atleast_1d",
    "aten.atleast_2d",
)
def implied(call: Call) -> Axes | list[Axes]:
    """Regroup the axes by a reshape whose sizes follow from those of the tensor at run time."""
    if call["self"] is None:  # several tensors, each reshaped separately
        return [regroup(call, v.axes, shape) for v, shape in zip(call.tensors(), call.shapes, strict=True)]
    out = regroup(call, call["self"].axes, call.shape)
    if call["other"] is not None:
        for a, b in zip(out, call["other"].axes, strict=True):
            call.unify(a, b)
    if call.args.get("sizes") is not None:
        d = call["dim"] % len(call["self"].axes)
        call.resize("sizes", list(out[d : d + len(call["sizes"])]))
    return out


@rule("aten.squeeze", "aten.squeeze_copy")
def squeeze(call: Call) -> Axes:
    """The dims that have one position now go, for good: a dim that pruning leaves one unit of stays."""
    x = call["self"]
    dims = [] if call["dim"] == [] else call.dims(x, call["dim"])
    ones = [d for d in dims if call.alg.size(x.axes[d]) == 1]
    call.resize(SQUEEZED, ones)
    return tuple(a for d, a in enumerate(x.axes) if d not in ones)


@rule("aten.permute", "aten.permute_copy")
def permute(call: Call) -> Axes:
    """Permute the axes."""
    x = call["self"]
    return tuple(x.axes[d] for d in call["dims"])


@rule("aten.transpose", "aten.transpose_copy", "aten.swapaxes", "aten.swapdims")
def transpose(call: Call) -> Axes:
    """Swap two axes."""
    x = call["self"]
    a, b = (next(call[k] for k in names if call[k] is not None) for names in (("dim0", "axis0"), ("dim1", "axis1")))
    a, b = call.dims(x, [a, b]) if x.axes else (0, 0)
    return replaced(x.axes, {a: x.axes[b], b: x.axes[a]}) if x.axes else x.axes


@rule("aten.numpy_T")
def reversed_dims(call: Call) -> Axes:
    """Reverse the axes."""
    return call["self"].axes[::-1]


@rule("aten.t", "aten.t_copy", "aten.mT", "aten.adjoint", "aten.mH", "aten.matrix_H")
def matrix_transpose(call: Call) -> Axes:
    """Swap the last two axes."""
    x = call["self"]
    return x.axes if len(x.axes) < 2 else (*x.axes[:-2], x.axes[-1], x.axes[-2])


@rule("aten.movedim")
def movedim(call: Call) -> Axes:
    """Move some axes to other places; the others keep their order."""
    x = call["self"]
    source, target = call.dims(x, call["source"]), call.dims(x, call["destination"])
    rest = iter(d for d in range(len(x.axes)) if d not in source)
    order = [source[target.index(d)] if d in target else next(rest) for d in range(len(x.axes))]
    return tuple(x.axes[d] for d in order)


@rule("aten.expand", "aten.expand_as", "aten.expand_copy", "aten.broadcast_to")
def expand(call: Call) -> Axes:
    """Broadcast the axes; a dim of size 1 becomes a free axis, until another op pins it."""
    out = call.broadcast([v for v in call.tensors() if v is not None])
    if "size" in call.args:
        call.resize("size", list(out))
    return out


@rule("aten.repeat", "aten.tile")
def repeat(call: Call) -> Axes:
    """Repeat whole dims: each becomes a product with the count outside."""
    x = call["self"]
    counts = list(call["repeats"] if call["repeats"] is not None else call["dims"])
    counts = [1] * (len(call.shape) - len(counts)) + counts
    axes = (ONE,) * (len(call.shape) - len(x.axes)) + x.axes
    lead = [
        n.axis if isinstance(n, SizeOf) else call.alg.leaf(m // max(call.alg.size(a), 1))
        for n, a, m in zip(counts, axes, call.shape, strict=True)
    ]
    call.resize("repeats" if call["repeats"] is not None else "dims", lead)
    return tuple(_times(n, a) for n, a in zip(lead, axes, strict=True))


@rule("aten.repeat_interleave")
def repeat_interleave(call: Call) -> Axes | list[Axes]:
    """Repeat each position of a dim: it becomes a product with the count inside."""
    x, n = call["self"], call["repeats"]
    if not isinstance(n, int) or x is None:
        return freeze_all(call, "positions are repeated by data")
    if call["dim"] is None:
        out, d = (_times(Times(x.axes), count := call.alg.leaf(n)),), 0
    else:
        (d,) = call.dims(x, call["dim"])
        out = replaced(x.axes, {d: _times(x.axes[d], count := call.alg.leaf(n))})
    call.resize("repeats", count)
    if call["output_size"] is not None:
        call.resize("output_size", out[d])
    return out


def _times(a: Term, b: Term) -> Term:
    return b if a == ONE else a if b == ONE else Times((a, b))


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(call: Call) -> Axes:
    """Turn channels (groups, c) into (c, groups)."""
    x = call["self"]
    n = call.alg.size(x.axes[1])
    g, c = call.alg.split(x.axes[1], [call["groups"], n // call["groups"]])
    call.resize("groups", g)
    return replaced(x.axes, {1: _times(c, g)})


@rule("aten.pixel_shuffle")
def pixel_shuffle(call: Call) -> Axes:
    """Turn (c r r) h w into c (h r) (w r)."""
    x, r = call["self"], call["upscale_factor"]
    *lead, channels, h, w = x.axes
    c, a, b = call.alg.split(channels, [call.alg.size(channels) // (r * r), r, r])
    call.freeze([a, b], "it becomes pixels")
    return (*lead, c, _times(h, a), _times(w, b))


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Axes:
    """Turn c (h r) (w r) into (c r r) h w."""
    x, r = call["self"], call["downscale_factor"]
    *lead, c, height, width = x.axes
    h, a = call.alg.split(height, [call.alg.size(height) // r, r])
    w, b = call.alg.split(width, [call.alg.size(width) // r, r])
    call.freeze([a, b], "it becomes channels")
    return (*lead, Times((c, a, b)), h, w)


@rule("aten.im2col")
def im2col(call: Call) -> Axes:
    """Turn n c h w into n (c kernel) positions."""
    *lead, c, _, _ = call["self"].axes
    call.freeze(call["self"].axes[-2:], "windows are taken along it")
    (k,) = call.frozen([prod(call["kernel_size"])], "kernel positions")
    return (*lead, _times(c, k), *call.frozen(call.shape[-1:], "window positions"))


@rule("aten.col2im")
def col2im(call: Call) -> Axes:
    """Turn n (c kernel) positions into n c h w."""
    *lead, ck, positions = call["self"].axes
    k = prod(call["kernel_size"])
    c, kernel = call.alg.split(ck, [call.alg.size(ck) // k, k])
    call.freeze([kernel, positions], "windows are put back along it")
    return (*lead, c, *call.frozen(call.shape[-2:], "spatial"))


def freeze_all(call: Call, text: str) -> list[Axes]:
    """Freeze all axes of an op's tensors, and return frozen axes for its outputs."""
    for v in call.tensors():
        call.freeze(v.axes, text)
    return [call.frozen(shape, text) for shape in call.shapes]
