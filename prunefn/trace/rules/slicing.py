"""Ops that put tensors side by side or take parts of them: cat, stack, split, slice, pad, index."""

from __future__ import annotations

import torch

from ..axes import ONE, Plus, Term
from .base import Axes, Call, Value, replaced, rule
from .shape import freeze_all


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(call: Call) -> Axes:
    """Parts one after the other along a dim; the other dims meet."""
    values = [v for v in call["tensors"] if len(v.axes) == len(call.shape)]  # torch skips empty 1-d tensors
    (d,) = call.dims(values[0], call["dim"] or call["axis"] or 0)
    out = list(
        call.broadcast([v._replace(axes=replaced(v.axes, {d: ONE})) for v in values], replaced(call.shape, {d: 1}))
    )  # type: ignore[arg-type]
    parts = tuple(v.axes[d] for v in values if call.alg.size(v.axes[d]) > 0)
    out[d] = Plus(parts) if len(parts) > 1 else parts[0] if parts else values[0].axes[d]
    return tuple(out)


@rule("aten.stack")
def stack(call: Call) -> Axes:
    """A new dim, one position per tensor."""
    values: list[Value] = call["tensors"]
    d = (call["dim"] or 0) % len(call.shape)
    out = list(call.broadcast(values, [n for i, n in enumerate(call.shape) if i != d]))
    out[d:d] = call.frozen([len(values)], "tensors are stacked along it")
    return tuple(out)


@rule(
    "aten.split_with_sizes",
    "aten.split",
    "aten.chunk",
    "aten.tensor_split",
    "aten.split_with_sizes_copy",
    "aten.unsafe_chunk",
    "aten.unsafe_split",
)
def split(call: Call) -> list[Axes]:
    """A dim is cut into parts; the program is rewritten to name each part's size."""
    x = call["self"]
    (d,) = call.dims(x, call["dim"] or 0)
    sizes = [s[d] for s in call.shapes]
    cut = iter(call.alg.cut(x.axes[d], [n for n in sizes if n]) if any(sizes) else ())
    parts = [next(cut) if n else call.frozen([0], "it is empty")[0] for n in sizes]
    call.resize("split_sizes", parts)
    return [replaced(x.axes, {d: p}) for p in parts]


@rule("aten.unbind", "aten.unbind_copy")
def unbind(call: Call) -> list[Axes]:
    """Each position becomes a tensor of its own."""
    x = call["self"]
    (d,) = call.dims(x, call["dim"] or 0)
    call.freeze(x.axes[d], "its positions are taken apart")
    return [tuple(a for i, a in enumerate(x.axes) if i != d) for _ in call.shapes]


@rule("aten.select", "aten.select_copy")
def select(call: Call) -> Axes:
    x = call["self"]
    (d,) = call.dims(x, call["dim"])
    call.freeze(x.axes[d], "one position of it is taken")
    return tuple(a for i, a in enumerate(x.axes) if i != d)


def window(call: Call, n: int) -> tuple[int, int, int]:
    """Start, end and step of a slice of a dim of size n."""
    start, end = (n if v is None and last else v or 0 for v, last in ((call["start"], False), (call["end"], True)))
    if not all(isinstance(v, int) for v in (start, end)):
        return 0, n, 0  # a size computed from data
    start, end = (min(max(v + n if v < 0 else v, 0), n) for v in (start, end))
    return start, max(start, end), call["step"] or 1


@rule("aten.slice", "aten.slice_copy", "aten.narrow")
def slice_(call: Call) -> Axes:
    """A run of positions: the dim is cut before and after it."""
    x = call["self"]
    (d,) = call.dims(x, call["dim"] or 0)
    n = call.alg.size(x.axes[d])
    if "length" in call.args:
        begin = call["start"] + n if call["start"] < 0 else call["start"]
        start, end, step = begin, begin + call["length"], 1
    else:
        start, end, step = window(call, n)
    if (end - start, step) == (n, 1):
        if "length" in call.args:
            call.resize("length", x.axes[d])
        return x.axes
    frozen = call.alg.is_frozen(x.axes[d])
    if step > 1 and not frozen and n % step == 0 and start < step and end > n - step + start:
        outer, inner = call.alg.split(x.axes[d], [n // step, step])  # (1 2)(1 2)(1 2) → 1 1 1
        call.freeze(inner, "every other position is taken")
        return replaced(x.axes, {d: outer})
    if step != 1 or end == start or frozen:
        call.freeze(x.axes[d], "a slice with a step is taken" if step != 1 else "a slice is taken")
        return replaced(x.axes, dict(zip([d], call.frozen([call.shape[d]], "a slice"), strict=True)))
    sizes = [n for n in (start, end - start, n - end) if n]
    parts = iter(call.alg.cut(x.axes[d], sizes))
    before = [next(parts)] if start else []
    middle = next(parts)
    call.resize("start", before[0] if before else 0)
    call.resize(*(("length", middle) if "length" in call.args else ("end", Plus((*before, middle)))))
    return replaced(x.axes, {d: middle})


@rule("aten.slice_scatter")
def slice_scatter(call: Call) -> Axes:
    """A run of positions is overwritten: outside the run the dim stays what it was, inside both meet."""
    x, src = call["self"], call["src"]
    (d,) = call.dims(x, call["dim"] or 0)
    n = call.alg.size(x.axes[d])
    start, end, step = window(call, n)
    out = call.broadcast(
        [x._replace(axes=replaced(x.axes, {d: ONE})), src._replace(axes=replaced(src.axes, {d: ONE}))],
        replaced(call.shape, {d: 1}),
    )  # type: ignore[arg-type]
    if (start, end, step) == (0, n, 1):
        return replaced(out, {d: call.unify(x.axes[d], src.axes[d])})
    if step != 1 or end == start:
        call.freeze([x.axes[d], src.axes[d]], "positions of it are overwritten")
        return replaced(out, {d: x.axes[d]})
    parts = iter(call.alg.cut(x.axes[d], [m for m in (start, end - start, n - end) if m]))
    before = [next(parts)] if start else []
    middle = call.unify(next(parts), src.axes[d])
    call.resize("start", before[0] if before else 0)
    call.resize("end", Plus((*before, middle)))
    return replaced(out, {d: x.axes[d]})


@rule("aten.select_scatter", "aten.diagonal_scatter")
def select_scatter(call: Call) -> Axes:
    """One position is overwritten."""
    x, src = call["self"], call["src"]
    if call["dim"] is None:
        return freeze_all(call, "a diagonal is overwritten")[0]
    (d,) = call.dims(x, call["dim"])
    call.freeze(x.axes[d], "one position of it is overwritten")
    out = call.broadcast(
        [x._replace(axes=tuple(a for i, a in enumerate(x.axes) if i != d)), src],
        [n for i, n in enumerate(call.shape) if i != d],
    )
    return (*out[:d], x.axes[d], *out[d:])


@rule(
    "aten.pad",
    "aten.constant_pad_nd",
    "aten.reflection_pad1d",
    "aten.reflection_pad2d",
    "aten.replication_pad1d",
    "aten.replication_pad2d",
    "aten.replication_pad3d",
    "aten.reflection_pad3d",
)
def pad(call: Call) -> Axes:
    """Constant padding puts new free positions before and after a dim; other kinds repeat positions, and freeze it."""
    x = call["self"]
    amounts = list(call["pad"] if call["pad"] is not None else call["padding"])
    constant = call.op.startswith("aten.constant") or (call["mode"] in (None, "constant") and "aten.pad" in call.op)
    out = list(x.axes)
    for i in range(len(amounts) // 2):
        low, high = amounts[2 * i : 2 * i + 2]
        d = len(out) - 1 - i
        if (low, high) == (0, 0):
            continue
        if constant and low >= 0 and high >= 0 and not call.alg.is_frozen(out[d]):
            edge = [call.frozen([n], "padding")[0] if n else None for n in (low, high)]
            out[d] = Plus(tuple(e for e in (edge[0], out[d], edge[1]) if e is not None))
        else:
            call.freeze(out[d], "it is padded")
            out[d] = call.frozen([call.shape[d]], "it is padded")[0]
    return tuple(out)


PICKED = "positions of it are picked by an index"


@rule("aten.index", "aten._unsafe_index")
def index(call: Call) -> Axes:
    """Advanced indexing: indexed dims are gathered, the others pass; indices broadcast into the place of the first."""
    x = call["self"]
    dims, indices = _indexed(call)
    if not dims:
        return x.axes
    call.freeze([x.axes[d] for d in dims], PICKED)
    call.freeze([a for v in indices for a in v.axes], "it is an index")
    before, after = _around(x, dims)
    shape = call.shape[len(before) : len(call.shape) - len(after)]
    masked = any(v.boolean for v in indices)
    return (*before, *(call.frozen(shape, PICKED) if masked else call.broadcast(indices, shape)), *after)


@rule("aten.index_put", "aten._unsafe_index_put")
def index_put(call: Call) -> Axes:
    """Positions are overwritten: what is put there has the dims that reading them would give."""
    x, values = call["self"], call["values"]
    dims, indices = _indexed(call)
    sizes = [[call.alg.size(a) for a in v.axes] for v in indices]
    if indices and indices[0].boolean and len(indices) == 1 and all(call.alg.size(a) == 1 for a in values.axes):
        for d, a in zip(dims, indices[0].axes, strict=True):  # one number, where the mask is true
            call.unify(x.axes[d], a)
        return x.axes
    call.freeze([x.axes[d] for d in dims], "positions of it are overwritten by an index")
    call.freeze([a for v in indices for a in v.axes], "it is an index")
    if any(v.boolean for v in indices):
        call.freeze([*x.axes, *values.axes], "positions of it are overwritten by a mask")
        return x.axes
    before, after = _around(x, dims)
    full = (*before, *call.broadcast(indices, torch.broadcast_shapes(*sizes)), *after)
    call.broadcast([Value("", full, True), values], [call.alg.size(a) for a in full])
    return x.axes


def _indexed(call: Call) -> tuple[list[int], list[Value]]:
    """The dims of x that are indexed, and by what; a mask stands for as many dims as it has."""
    dims, indices, d = list[int](), list[Value](), 0
    for v in call["indices"]:
        n = len(v.axes) if v is not None and v.boolean else 1
        if v is not None:
            dims += range(d, d + n)
            indices.append(v)
        d += n
    return dims, indices


def _around(x: Value, dims: list[int]) -> tuple[Axes, Axes]:
    """The dims of x that pass: those before the picked ones, and those after."""
    together = dims == list(range(dims[0], dims[-1] + 1))
    first = dims[0] if together else 0  # indices with a gap between them come first
    rest = tuple(a for d, a in enumerate(x.axes) if d not in dims)
    return rest[:first], rest[first:]


@rule("aten.index_select", "aten.embedding")
def index_select(call: Call) -> Axes:
    """Rows picked by an integer tensor."""
    if call["weight"] is not None:
        w, idx = call["weight"], call["indices"]
        call.freeze(w.axes[0], "it is a vocabulary")
        call.lookup = True
        return (*idx.axes, w.axes[1])
    x, idx = call["self"], call["index"]
    (d,) = call.dims(x, call["dim"])
    call.freeze(x.axes[d], "positions of it are picked by an index")
    return replaced(x.axes, {d: idx.axes[0] if idx.axes else ONE})


@rule(
    "aten.gather",
    "aten.scatter",
    "aten.scatter_add",
    "aten.scatter_reduce",
    "aten.index_add",
    "aten.index_copy",
    "aten.take_along_dim",
)
def gather(call: Call) -> Axes:
    """Positions along a dim are picked by data; other dims meet, or the first positions of the longer are taken."""
    x = call["self"]
    dims = call.dims(x, call["dim"])
    call.freeze([x.axes[d] for d in dims], "positions of it are picked by an index")
    for v in call.tensors():
        call.freeze(
            [a for d, a in enumerate(v.axes) if d in dims or len(v.axes) != len(x.axes)],
            "positions of it are picked by an index",
        )
    same = [v for v in call.tensors() if len(v.axes) == len(call.shape)]
    broadcast = {1} if "take_along_dim" in call.op else set()
    for d in range(len(call.shape)):
        if len({call.alg.size(v.axes[d]) for v in same} - broadcast) > 1:
            call.freeze([v.axes[d] for v in same], "the first positions of it meet an index")
    free: list[Value] = [v._replace(axes=replaced(v.axes, dict.fromkeys(dims, ONE))) for v in same]
    out = call.broadcast(free, replaced(call.shape, dict.fromkeys(dims, 1)))  # type: ignore[arg-type]
    picked: dict[int, Term] = {d: call.frozen([call.shape[d]], "picked by an index")[0] for d in dims}
    return replaced(out, picked)


@rule("aten.topk", "aten.kthvalue", "aten.mode")
def topk(call: Call) -> list[Axes]:
    x = call["self"]
    (d,) = call.dims(x, -1 if call["dim"] is None else call["dim"])
    call.freeze(x.axes[d], "its largest are picked")
    return [
        replaced(x.axes, {d: call.frozen([s[d]], "its largest are picked")[0]})
        if len(s) == len(x.axes)
        else tuple(a for i, a in enumerate(x.axes) if i != d)
        for s in call.shapes
    ]


@rule("aten.unfold")
def unfold(call: Call) -> Axes:
    """Windows along a dim, their positions in a new last dim."""
    x = call["self"]
    (d,) = call.dims(x, call["dimension"])
    call.freeze(x.axes[d], "windows are taken along it")
    return (*replaced(x.axes, {d: call.frozen([call.shape[d]], "windows")[0]}), *call.frozen(call.shape[-1:], "window"))


@rule("aten.tril", "aten.triu", "aten.diagonal", "aten.diag_embed")
def triangle(call: Call) -> list[Axes]:
    """Positions of the last two dims are compared with each other."""
    x = call["self"]
    if len(call.shape) == len(x.axes) and call.op.split(".")[1] in ("tril", "triu"):
        call.freeze(x.axes[-2:], "its positions are compared")
        return [x.axes]
    return freeze_all(call, "a diagonal is taken")


@rule("aten.meshgrid")
def meshgrid(call: Call) -> list[Axes]:
    """One dim per vector; `xy` indexing swaps the first two."""
    axes = [v.axes[0] if v.axes else ONE for v in call["tensors"]]
    if call["indexing"] == "xy" and len(axes) > 1:
        axes[:2] = axes[1::-1]
    return [tuple(axes) for _ in call.shapes]


@rule("aten.one_hot")
def one_hot(call: Call) -> Axes:
    """A new last dim, one position per class."""
    x = call["self"]
    return (*x.axes, *call.frozen(call.shape[-1:], "classes of a one-hot code"))
