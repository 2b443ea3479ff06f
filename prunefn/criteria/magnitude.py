"""Magnitude of a unit's weights: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (p = 1); p = 2 by default."""

from __future__ import annotations

from functools import partial

import torch

from ..stats import Stats
from ..types import Criterion, Scores
from .base import per_unit, spec_of


def magnitude(p: float = 2.0, *, bias: bool = False) -> Criterion:
    """Σ|w|^p over the unit's slice of every member (rows, columns, norm weights), averaged over members; needs no data.

    Args:
        p: power, above zero.
        bias: count biases, too.

    Raises:
        ValueError: p is not above zero.
    """
    if not p > 0:
        raise ValueError(f"magnitude's p is {p}; it must be above 0")
    return Criterion("magnitude", partial(_score, p=p, bias=bias), data=False)


def _score(stats: Stats, *, p: float, bias: bool) -> Scores:
    spec = spec_of(stats)
    scores: Scores = {}
    for g in spec.groups.values():
        sums = []
        for tensor, dim, _ in g.members:
            if tensor in spec.parameters and tensor not in spec.tied and (bias or not tensor.endswith("bias")):
                w = stats.params[tensor].double().abs().pow(p)
                slices = w.sum([d for d in range(w.ndim) if d != dim]) if w.ndim > 1 else w
                sums.append(per_unit(slices, spec.axes[tensor][dim], g.name, spec).sum(1))
        if sums:
            scores[g.name] = torch.stack(sums).mean(0)
    return scores
