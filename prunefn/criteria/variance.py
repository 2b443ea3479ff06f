"""Variance of a unit's activation: Berisha, Mehnert, Condurache, "Variance-Based Pruning", ICCV 2025 (arXiv 2507.12988).

Replacing a unit h by its mean μ costs E[(h − μ)²] = σ²: the units of least variance go first.
"""

from __future__ import annotations

import torch

from ..errors import StatsError
from ..stats import Stats
from ..trace.expr import leaves
from ..types import Criterion, Scores
from .base import per_unit, spec_of


def variance() -> Criterion:
    """Unbiased variance at the inputs of the group's consumers, averaged over a unit's positions and over sites."""
    return Criterion("variance", _score)


def _score(stats: Stats) -> Scores:
    spec = spec_of(stats)
    if not stats.sites:
        raise StatsError(
            "criterion 'variance' needs moments: give collect_stats batches, and sites that `where` does not leave out"
        )
    found: dict[str, list[torch.Tensor]] = {}
    for name, moments in stats.sites.items():
        axis = spec.sites[name].axis
        if bool(torch.isnan(moments.m2).any()):
            raise StatsError(f"the moments of site {name!r} contain NaN")
        for group in dict.fromkeys(leaves(axis)):
            if group in spec.groups:
                found.setdefault(group, []).append(per_unit(moments.variance, axis, group, spec).mean(1))
    return {g: torch.stack(found[g]).mean(0) for g in spec.groups if g in found}
