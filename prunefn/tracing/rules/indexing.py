"""Ops that pick positions by data, or by the order of the positions: index, gather, embedding, topk, unfold, triangles."""

from __future__ import annotations

import torch

from ..axes import ONE, Term
from .base import Axes, Call, Value, replaced, rule
from .shape import freeze_all

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
        call.layer = True
        call.freeze(w.axes[0], "it is a vocabulary")
        return (*idx.axes, w.axes[1])
    x, idx = call["self"], call["index"]
    (d,) = call.dims(x, call["dim"])
    call.freeze(x.axes[d], "positions of it are picked by an index")
    return replaced(x.axes, {d: idx.axes[0] if idx.axes else ONE})


@rule("aten.embedding_bag", "aten._embedding_bag", "aten._embedding_bag_forward_only")
def embedding_bag(call: Call) -> list[Axes]:
    """Rows of a weight [rows, width] are summed, averaged or maximised over bags of indices: [bags, width].

    Beside it come three results for the backward pass; of a maximum, the last is its row for each bag and unit.
    """
    weight, offsets = call["weight"], call["offsets"]
    call.freeze(weight.axes[0], "it is a vocabulary")
    call.freeze([*call["indices"].axes, *offsets.axes], "it is an index")
    if (scales := call["per_sample_weights"]) is not None:
        call.unify(scales.axes[0], call["indices"].axes[0])
    whole = call.alg.size(offsets.axes[0]) == call.shape[0]  # else the last offset is the end of the last bag
    bags = offsets.axes[0] if whole else call.frozen(call.shape[:1], "bags of an index")[0]
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
    "aten.take_along_dim",
)
def gather(call: Call) -> Axes | list[Axes]:
    """Positions along a dim are picked by data; other dims meet, or the first positions of the longer are taken."""
    x = call["self"]
    vector = call.op.startswith(("aten.index_add", "aten.index_copy"))  # their index has one dim
    others = [v for v in call.tensors() if not (vector and v is call["index"])]
    if call["dim"] is None or any(len(v.axes) not in (0, len(x.axes)) for v in others):
        return freeze_all(call, PICKED)
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
def one_hot(call: Call) -> Axes | list[Axes]:
    """A new last dim, one position per class."""
    x = call["self"]
    if call["num_classes"] == -1:
        return freeze_all(call, "the number of classes depends on data")
    return (*x.axes, *call.frozen(call.shape[-1:], "classes of a one-hot code"))
