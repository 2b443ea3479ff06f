"""Ops that select positions by data or by their order: index, gather, embedding, topk, unfold, triangles."""

from __future__ import annotations

import torch

from ..axes import ONE, Plus, Term, Times
from .base import EXPERTS, Axes, Call, Value, replaced, rule
from .shape import freeze_all

PICKED = "positions of it are picked by an index"
VOCABULARY = "it is a vocabulary"
ONE_DIM = (ONE,)
TAKES, WRITES = ("aten.gather", "aten.take_along_dim"), ("aten.scatter",)


@rule("aten.index", "aten._unsafe_index")
def index(call: Call) -> Axes:
    """Freeze the indexed dims of advanced indexing, and pass the others; the broadcast indices stand at the first indexed dim."""
    x = call["self"]
    dims, indices = _indexed_dims(call)
    if not dims:
        return x.axes
    if (mask := indices[0]).boolean and len(indices) == 1 and (rest := _repeated_last(mask)):
        return _masked(call, x, mask, dims, rest)
    for d, v in zip(dims, _index_of_dims(indices), strict=True):
        call.pick(x.axes[d], v, PICKED)
    call.freeze([a for v in indices for a in v.axes], "it is an index")
    before, after = _passing_dims(x, dims)
    shape = call.shape[len(before) : len(call.shape) - len(after)]
    masked = any(v.boolean for v in indices)
    return (*before, *(call.frozen(shape, PICKED) if masked else call.broadcast(indices, shape)), *after)


def _repeated_last(mask: Value) -> int:
    """Return the number of the last dims along which a mask repeats, at most all but one."""
    return next((k for k in range(len(mask.axes)) if not mask.repeats(-k - 1)), len(mask.axes) - 1)


def _masked(call: Call, x: Value, mask: Value, dims: list[int], rest: int) -> Axes:
    """Pick whole rows by a mask that repeats along its last dims: the result has one dim, which is (rows *last dims)."""
    passing = dims[-rest:]
    for d, a in zip(passing, mask.axes[-rest:], strict=True):
        call.unify(x.axes[d], a)
    call.freeze([*(x.axes[d] for d in dims[:-rest]), *mask.axes[:-rest]], PICKED)
    last = Times(tuple(x.axes[d] for d in passing))
    before, after = _passing_dims(x, dims)
    (rows,) = call.frozen([call.shape[len(before)] // call.alg.size(last)], PICKED)
    return (*before, last if rows == ONE else Times((rows, last)), *after)


@rule("aten.index_put", "aten._unsafe_index_put", "aten._index_put_impl")
def index_put(call: Call) -> Axes:
    """Freeze the dims at whose positions values are written; the values have the dims that reading these would give."""
    x, values = call["self"], call["values"]
    dims, indices = _indexed_dims(call)
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
    before, after = _passing_dims(x, dims)
    full = (*before, *call.broadcast(indices, torch.broadcast_shapes(*sizes)), *after)
    call.broadcast([Value("", full, True), values], [call.alg.size(a) for a in full])
    return x.axes


def _indexed_dims(call: Call) -> tuple[list[int], list[Value]]:
    """Return the indexed dims of x, and their indices; a mask indexes as many dims as it has."""
    dims, indices, d = list[int](), list[Value](), 0
    for v in call["indices"]:
        n = len(v.axes) if v is not None and v.boolean else 1
        if v is not None:
            dims += range(d, d + n)
            indices.append(v)
        d += n
    return dims, indices


def _index_of_dims(indices: list[Value]) -> list[Value]:
    """Return the index of each indexed dim."""
    return [v for v in indices for _ in (v.axes if v.boolean else ONE_DIM)]


def _passing_dims(x: Value, dims: list[int]) -> tuple[Axes, Axes]:
    """Return the dims of x that pass through: those before the result of indexing, and those after it."""
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    first = dims[0] if adjacent else 0  # torch puts the result of indices with a gap between them first
    rest = tuple(a for d, a in enumerate(x.axes) if d not in dims)
    return rest[:first], rest[first:]


@rule("aten.index_select", "aten.embedding")
def index_select(call: Call) -> Axes:
    """Freeze the dim whose positions an integer tensor selects."""
    if call["weight"] is not None:
        w, idx = call["weight"], call["indices"]
        call.layer = True
        call.look_up(w.axes[0], idx, VOCABULARY)
        return (*idx.axes, w.axes[1])
    x, idx = call["self"], call["index"]
    (d,) = call.dims(x, call["dim"])
    call.freeze(x.axes[d], "positions of it are picked by an index")
    return replaced(x.axes, {d: idx.axes[0] if idx.axes else ONE})


@rule("aten.embedding_bag", "aten._embedding_bag", "aten._embedding_bag_forward_only")
def embedding_bag(call: Call) -> list[Axes]:
    """Reduce (sum, mean or maximum) rows of a weight [rows, width] over bags of indices to [bags, width].

    The op also returns three results for the backward pass; for a maximum, the last is the row of each bag and unit.
    """
    weight, offsets = call["weight"], call["offsets"]
    call.look_up(weight.axes[0], call["indices"], VOCABULARY)
    call.freeze([*call["indices"].axes, *offsets.axes], "it is an index")
    if (scales := call["per_sample_weights"]) is not None:
        call.unify(scales.axes[0], call["indices"].axes[0])
    one_offset_per_bag = (
        call.alg.size(offsets.axes[0]) == call.shape[0]
    )  # else the last offset is the end of the last bag
    bags = offsets.axes[0] if one_offset_per_bag else call.frozen(call.shape[:1], "bags of an index")[0]
    rest = call.shapes[1:]
    return [
        (bags, weight.axes[1]),
        *((bags, weight.axes[1]) if len(s) == 2 else call.frozen(s, "it is an index") for s in rest),
    ]


@rule(
    "aten.gather",
    "aten.scatter",
    "aten.scatter_add",
    "aten.scatter_reduce",
    "aten.index_add",
    "aten.index_copy",
    "aten.index_reduce",
    "aten.take_along_dim",
)
def gather(call: Call) -> Axes | list[Axes]:
    """Freeze the dim whose positions data selects; unify other dims, or freeze them if only the first positions are used."""
    x = call["self"]
    vector = call.op.startswith(("aten.index_add", "aten.index_copy", "aten.index_reduce"))  # their index has one dim
    others = [v for v in call.tensors() if not (vector and v is call["index"])]
    if call["dim"] is None or any(len(v.axes) not in (0, len(x.axes)) for v in others):
        return freeze_all(call, PICKED)
    dims = call.dims(x, call["dim"])
    index = next(v for name in ("index", "indices") if (v := call[name]) is not None)
    chosen = all([call.pick(x.axes[d], index, PICKED) for d in dims]) and call.op.startswith(TAKES + WRITES)
    for v in (v for v in call.tensors() if v is not x):
        call.freeze([a for d, a in enumerate(v.axes) if d in dims or len(v.axes) != len(x.axes)], PICKED)
    same_rank = [v for v in call.tensors() if len(v.axes) == len(call.shape)]
    broadcast = {1} if "take_along_dim" in call.op else set()
    for d in (d for d in range(len(call.shape)) if not (chosen and d in dims)):
        if len({call.alg.size(v.axes[d]) for v in same_rank} - broadcast) > 1:
            call.freeze([v.axes[d] for v in same_rank], "the first positions of it meet an index")
    others_broadcast: list[Value] = [v._replace(axes=replaced(v.axes, dict.fromkeys(dims, ONE))) for v in same_rank]
    out = call.broadcast(others_broadcast, replaced(call.shape, dict.fromkeys(dims, 1)))  # type: ignore[arg-type]
    if chosen:  # a scatter has the positions of x, a gather those of the index
        return replaced(out, {d: (x if call.op.startswith(WRITES) else index).axes[d] for d in dims})
    picked: dict[int, Term] = {d: call.frozen([call.shape[d]], "picked by an index")[0] for d in dims}
    return replaced(out, picked)


@rule("aten.topk", "aten.kthvalue", "aten.mode")
def topk(call: Call) -> list[Axes]:
    """Hold the dim whose k largest values are selected, since other ops may look up the positions; freeze it for one value."""
    x = call["self"]
    (d,) = call.dims(x, -1 if call["dim"] is None else call["dim"])
    if call.op.startswith("aten.topk") and isinstance(call["k"], int):
        call.choose(x.axes[d], call["k"], output=1)
    else:
        call.freeze(x.axes[d], "its largest are picked")
    return [
        replaced(x.axes, {d: call.frozen([s[d]], "its largest are picked")[0]})
        if len(s) == len(x.axes)
        else tuple(a for i, a in enumerate(x.axes) if i != d)
        for s in call.shapes
    ]


@rule("aten.unfold", "aten.unfold_copy")
def unfold(call: Call) -> Axes:
    """Freeze the dim along which windows are taken, and add a last dim of positions within a window."""
    x = call["self"]
    (d,) = call.dims(x, call["dimension"])
    call.freeze(x.axes[d], "windows are taken along it")
    return (*replaced(x.axes, {d: call.frozen([call.shape[d]], "windows")[0]}), *call.frozen(call.shape[-1:], "window"))


@rule("aten.tril", "aten.triu")
def triangle(call: Call) -> Axes:
    """Freeze the last two dims, whose positions are compared with each other."""
    x = call["self"]
    call.freeze(x.axes[-2:], "its positions are compared")
    return x.axes


DIAGONAL = "a diagonal is taken"


@rule("aten.diagonal", "aten.diagonal_copy", "aten.trace")
def diagonal(call: Call) -> Axes:
    """Freeze two dims; the diagonal is the last dim of the result, or summed."""
    x = call["self"]
    pair = call.dims(x, [call["dim1"] or 0, 1 if call["dim2"] is None else call["dim2"]])
    call.freeze([x.axes[d] for d in pair], DIAGONAL)
    rest = tuple(a for d, a in enumerate(x.axes) if d not in pair)
    return (*rest, *call.frozen(call.shape[len(rest) :], DIAGONAL))


@rule("aten.diag_embed", "aten.diagonal_scatter")
def diagonal_put(call: Call) -> Axes:
    """Write the last dim of a tensor along the diagonal of two dims, which are frozen."""
    x, src = (call["self"], call["src"]) if call["src"] is not None else (None, call["self"])
    d1, d2 = (d % len(call.shape) for d in (call["dim1"], call["dim2"]))
    call.freeze(src.axes[-1], DIAGONAL)
    rest = iter(src.axes[:-1])
    axes = tuple(call.frozen([n], DIAGONAL)[0] if d in (d1, d2) else next(rest) for d, n in enumerate(call.shape))
    if x is not None:
        call.freeze([x.axes[d1], x.axes[d2]], DIAGONAL)
        axes = tuple(
            call.unify(a, b) if d not in (d1, d2) else a for d, (a, b) in enumerate(zip(x.axes, axes, strict=True))
        )
    return axes


@rule("aten.rot90")
def rot90(call: Call) -> Axes:
    """Freeze the two dims of a plane that is rotated by quarter turns."""
    x = call["self"]
    a, b = call.dims(x, call["dims"])
    call.freeze([x.axes[a], x.axes[b]], "it is rotated")
    return replaced(x.axes, {a: x.axes[b], b: x.axes[a]} if call["k"] % 2 else {})


@rule("aten.take")
def take(call: Call) -> Axes:
    """Freeze all dims of a tensor that is indexed as if it were flat."""
    call.freeze([*call["self"].axes, *call["index"].axes], PICKED)
    return call["index"].axes


@rule("aten.masked_scatter")
def masked_scatter(call: Call) -> Axes:
    """Overwrite the positions of a mask by the values of a source, one after the other.

    Where the mask repeats along the last dims and the source [..., *last dims] has them, whole rows are written: these dims pass.
    """
    x, mask, source = call["self"], call["mask"], call["source"]
    axes, passing = call.broadcast([x, mask]), 0
    for a, b in zip(axes[:0:-1], source.axes[:0:-1], strict=False):
        if not mask.repeats(-passing - 1) or call.alg.size(a) != call.alg.size(b):
            break
        call.unify(a, b)
        passing += 1
    written = (v[: len(v) - passing] for v in (axes, source.axes))
    call.freeze([a for rows in written for a in rows], "positions of it are overwritten by a mask")
    return axes


@rule("aten.segment_reduce")
def segment_reduce(call: Call) -> Axes:
    """Reduce runs of positions of a dim; the dims after it pass."""
    x, axis = call["data"], call["axis"] % len(call["data"].axes)
    call.freeze(
        [*x.axes[: axis + 1], *(a for v in call.tensors() if v is not x for a in v.axes)], "segments of it are reduced"
    )
    return (*call.frozen(call.shape[: axis + 1], "segments"), *x.axes[axis + 1 :])


@rule("aten.embedding_renorm")
def embedding_renorm(call: Call) -> Axes:
    """Scale the rows of a weight [rows, width] that an index picks to a largest norm."""
    rows, width = call["self"].axes
    call.freeze([rows, *call["indices"].axes], PICKED)
    call.mark([width], f"mixed:{call.op}")
    return (rows, width)


@rule("aten.meshgrid")
def meshgrid(call: Call) -> list[Axes]:
    """Return one dim per vector; `xy` indexing swaps the first two."""
    axes = [v.axes[0] if v.axes else ONE for v in call["tensors"]]
    if call["indexing"] == "xy" and len(axes) > 1:
        axes[:2] = axes[1::-1]
    return [tuple(axes) for _ in call.shapes]


@rule("aten.one_hot")
def one_hot(call: Call) -> Axes | list[Axes]:
    """Add a last dim with one position per class."""
    x = call["self"]
    if call["num_classes"] == -1:
        return freeze_all(call, "the number of classes depends on data")
    if call.alg.lenient and x.picks is not None and call.shape[-1] >= (n := call.alg.size(x.picks)):
        call.mark([x.picks], EXPERTS)
        more = call.frozen([call.shape[-1] - n], "classes of a one-hot code") if call.shape[-1] > n else ()
        classes = Plus((x.picks, *more)) if more else x.picks
        call.resize("num_classes", classes)
        return (*x.axes, classes)
    return (*x.axes, *call.frozen(call.shape[-1:], "classes of a one-hot code"))
