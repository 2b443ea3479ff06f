"""Reductions: the dim is removed, or stays with size 1."""

from __future__ import annotations

import torch

from ..axes import ONE
from .base import Axes, Call, rule

RETURNED = "positions along it are returned"


@rule(
    "aten.mean",
    "aten.sum",
    "aten.amax",
    "aten.amin",
    "aten.linalg_vector_norm",
    "aten.norm",
    "aten.var",
    "aten.std",
    "aten.var_mean",
    "aten.std_mean",
    "aten.prod",
    "aten.logsumexp",
    "aten.max",
    "aten.min",
    "aten.any",
    "aten.all",
    "aten.median",
    "aten.nansum",
    "aten.nanmean",
    "aten.count_nonzero",
    "aten.aminmax",
    "aten.frobenius_norm",
    "aten.nanmedian",
    "aten._aminmax",
    "aten._is_all_true",
    "aten._is_any_true",
    "aten.linalg__powsum",
    "aten.hash_tensor",
)
def reduction(call: Call) -> Axes | list[Axes]:
    """Mark the reduced dims as mixed: the contribution of a removed unit is missing, so pruning them is not exact."""
    x = call["self"]
    if call["other"] is not None:  # max(a, b) of two tensors
        return call.broadcast(call.tensors())
    dims = set(call.dims(x, call["dim"]))
    call.mark([x.axes[d] for d in dims], f"mixed:{call.op}")
    if len(call.shape) == len(x.axes):
        out = tuple(ONE if d in dims else a for d, a in enumerate(x.axes))
    else:
        out = tuple(a for d, a in enumerate(x.axes) if d not in dims)
    if len(call.shapes) > 1 and call.op.split(".")[1] in ("max", "min", "median", "nanmedian") and 1 not in call.unused:
        if call.op.startswith("aten.max.dim"):
            call.choose(x.axes[next(iter(dims))], 1, output=1)
        else:
            call.freeze([x.axes[d] for d in dims], RETURNED)
    return out if len(call.shapes) == 1 else [out for _ in call.shapes]


@rule("aten.dist")
def dist(call: Call) -> Axes:
    """Return the norm of a difference."""
    values = call.tensors()
    shape = torch.broadcast_shapes(*([call.alg.size(a) for a in v.axes] for v in values))
    call.mark(call.broadcast(values, shape), f"mixed:{call.op}")
    return ()


@rule("aten.argmax", "aten.argmin", "aten.argsort")
def positions(call: Call) -> Axes:
    """Freeze the dim whose positions are returned; hold it for the largest one, since other ops may look the position up."""
    x = call["self"]
    dims = set(call.dims(x, call["dim"]))
    if call.op.startswith("aten.argmax") and call["dim"] is not None:
        call.choose(x.axes[next(iter(dims))], 1, output=0)
    else:
        call.freeze([x.axes[d] for d in dims], RETURNED)
    if len(call.shape) == len(x.axes):
        return tuple(a if n != 1 else ONE for a, n in zip(x.axes, call.shape, strict=True))
    return tuple(a for d, a in enumerate(x.axes) if d not in dims)


@rule("aten.cdist", "aten._cdist_forward", "aten._euclidean_dist")
def cdist(call: Call) -> Axes:
    """Unify and mark the columns of two matrices, between whose rows distances are computed."""
    a, b = call.tensors()[:2]
    call.unify(a.axes[-1], b.axes[-1])
    call.mark([a.axes[-1]], f"mixed:{call.op}")
    lead = call.broadcast([a._replace(axes=a.axes[:-2]), b._replace(axes=b.axes[:-2])], call.shape[:-2])
    return (*lead, a.axes[-2], b.axes[-2])


@rule("aten.cosine_similarity")
def cosine_similarity(call: Call) -> Axes:
    """Mark the dim along which the angle between vectors is computed, and broadcast the others."""
    a, b = call["x1"], call["x2"]
    shape = torch.broadcast_shapes(*([call.alg.size(t) for t in v.axes] for v in (a, b)))
    axes = list(call.broadcast([a, b], shape))
    reduced = axes.pop((1 if call["dim"] is None else call["dim"]) % len(axes))
    call.mark([reduced], f"mixed:{call.op}")
    return tuple(axes)
