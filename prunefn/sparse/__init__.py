"""Sparse weights: remove single weights, all but n of each m, blocks or slices, while tensors keep their shapes.

params or stats ─score▶ scores ─select▶ masks ─apply_sparse or reconstruct▶ params with zeros

Weight masks are parameter → bool of its shape, True = kept; an absent parameter is not pruned. `train.train(…, masks=masks)`
holds them in training. Choices are values: `sparse.criteria.wanda()`, `sparse.pattern.n_m(2, 4)`, `sparse.scope.erk()`.

Weights and channels can be pruned in either order. After channels, nothing changes for weights; after weights,
`shrink(masks, mask, spec=spec)` removes the channels from the masks. To select pieces (slices, blocks, groups of m) that are
aligned after the channels are removed, use `select(…, mask=mask)`.
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
