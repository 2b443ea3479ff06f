"""Distance to the geometric median: He et al., "Filter Pruning via Geometric Median", CVPR 2019 (arXiv 1811.00250), eq. 5 to 7."""

from __future__ import annotations

import torch

from .._shapes import Float
from ..types import Criterion, Scores, Stats
from .base import CHUNK, filters, spec_of


def fpgm() -> Criterion:
    """Score unit i by Σ_j ‖w_i − w_j‖₂ over the units of the group; needs no data.

    w_i are the signed effective weights (see `magnitude`) that produce unit i, concatenated over several producers (a residual
    stream) and positions (a head). Groups that no weight produces take all their weights of two dims and more; groups without
    those get no score.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    >>> model[0].weight.data = torch.tensor([[0.0, 0.0], [3.0, 4.0], [-3.0, -4.0]])
    >>> spec = pf.trace(model, (torch.randn(2, 2),))
    >>> pf.score(pf.collect_stats(pf.params(model), None, spec=spec), criterion=fpgm())
    {'0': tensor([10., 15., 15.], dtype=torch.float64)}
    """
    return Criterion("fpgm", _score, needs=())


def _score(stats: Stats) -> Scores:
    weights = {g: filters(stats, g) for g in spec_of(stats).groups}
    return {g: _distances(w) for g, w in weights.items() if w is not None}


def _distances(w: Float[torch.Tensor, "units d"]) -> Float[torch.Tensor, " units"]:
    """Return the sum of distances from each unit to all units, a chunk of units at a time."""
    return torch.cat([torch.cdist(part, w).sum(1) for part in w.split(CHUNK)])
