"""LAMP: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021 (arXiv 2010.07611), eq. 3, for units."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Criterion, Scores, Stats
from .base import member_sums, spec_of, weight_reader


def lamp() -> Criterion:
    """Score unit i by s_i / Σ_{s_j ≥ s_i} s_j, with s = Σw² over its slices of all effective tensors but biases.

    Effective tensors are those of `magnitude`. The largest unit of each group scores 1, so that a global ranking yields a ratio
    for each group. Equal units have equal scores (the paper orders them by index); units of zeros score 0.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Linear(3, 1))
    >>> model[0].weight.data, model[1].weight.data = torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([[0.0, 0.0, 2.0]])
    >>> spec = pf.trace(model, (torch.randn(2, 1),))
    >>> pf.score(pf.collect_stats(pf.params(model), None, spec=spec), criterion=lamp())
    {'0': tensor([0.1667, 0.1667, 1.0000], dtype=torch.float64)}
    """
    return Criterion("lamp", _score, needs=())


def _score(stats: Stats) -> Scores:
    value = weight_reader(stats)
    squares = member_sums(spec_of(stats), lambda t: value(t).square(), bias=False)
    return {g: lamp_shares(s.sum(0)) for g, s in squares.items()}


def lamp_shares(s: Tensor) -> Tensor:
    """Return s_i / Σ_{s_j ≥ s_i} s_j for values s [units] of zero or more."""
    ordered = s.sort().values
    upper_sums = ordered.flip(0).cumsum(0).flip(0)
    return s / upper_sums[torch.searchsorted(ordered, s)].clamp_min(torch.finfo(s.dtype).tiny)
