"""Sparse weights: single ones, n of each m, blocks or slices go, and the tensors keep their shapes.

params or stats ─score▶ scores ─select▶ masks ─apply_sparse or reconstruct▶ params with zeros

Weight masks are parameter → bool of its shape, True = kept; a parameter that is absent is whole. `train.train(…, masks=masks)`
holds them in training. Choices are values: `sparse.criteria.wanda()`, `sparse.pattern.n_m(2, 4)`, `sparse.scope.erk()`.

With channel pruning in either order: prune channels first, and all else is as ever; or weights first, and `shrink(masks, mask,
spec=spec)` brings the masks along. Pieces (slices, blocks, groups of m) that are to be whole after the channels are gone are
selected with `select(…, mask=mask)`.
"""

from . import criteria, pattern, scope
from .choose import select
from .iterative import renewed, rounds
from .layouts import Masks, Weight, shrink, weights
from .reconstruction import Solver, least_squares, reconstruct, sweep
from .report import counts, masks_of, picture, table
from .scoring import score
from .semi_structured import to_semi_structured, why_dense
from .slicing import apply_sparse, slice_order, slice_scores, slices

__all__ = [
    "Masks",
    "Solver",
    "Weight",
    "apply_sparse",
    "counts",
    "criteria",
    "least_squares",
    "masks_of",
    "pattern",
    "picture",
    "reconstruct",
    "renewed",
    "rounds",
    "scope",
    "score",
    "select",
    "shrink",
    "slice_order",
    "slice_scores",
    "slices",
    "sweep",
    "table",
    "to_semi_structured",
    "weights",
    "why_dense",
]


def __dir__() -> list[str]:
    return __all__
