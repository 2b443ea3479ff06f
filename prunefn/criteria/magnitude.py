"""Magnitude of a unit's weights: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (p = 1); p = 2 by default."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..stats import Stats
from ..trace.expr import leaves
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
    return Criterion("magnitude", partial(_score, p=p, bias=bias), needs=())


def _score(stats: Stats, *, p: float, bias: bool) -> Scores:
    spec = spec_of(stats)
    sums: dict[str, list[Tensor]] = {}
    for tensor, axes in spec.axes.items():
        dims = [d for d, axis in enumerate(axes) if any(leaf in spec.groups for leaf in leaves(axis))]
        if not dims or tensor not in spec.parameters or tensor in spec.tied or (tensor.endswith("bias") and not bias):
            continue
        powers = _power(stats.params[tensor].double(), p)  # once for all dims and groups
        for d in dims:
            slices = powers.sum([other for other in range(powers.ndim) if other != d]) if powers.ndim > 1 else powers
            for group in dict.fromkeys(leaves(axes[d])):
                sums.setdefault(group, []).append(per_unit(slices, axes[d], group, spec).sum(1))
    return {g: torch.stack(sums[g]).mean(0) for g in spec.groups if g in sums}


def _power(w: Tensor, p: float) -> Tensor:
    return w.square() if p == 2 else w.abs() if p == 1 else w.abs().pow(p)
