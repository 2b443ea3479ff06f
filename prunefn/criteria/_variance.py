"""Variance of a unit's activation: Berisha, Mehnert, Condurache, "Variance-Based Pruning", ICCV 2025 (arXiv 2507.12988).

Replacing a unit h by its mean μ costs E[(h − μ)²] = σ²: the units of least variance are removed first.
"""

from __future__ import annotations

from ..types import Criterion, Scores, Stats
from .base import mean_positions, measured, over_sites, spec_of


def variance() -> Criterion:
    """Score units by the unbiased variance at the inputs of the group's consumers, averaged over a unit's positions and over sites."""
    return Criterion("variance", _score)


def _score(stats: Stats) -> Scores:
    spec = spec_of(stats)
    sites = measured(stats, "variance", "variance()")
    return over_sites(sites, spec, lambda _, m: m.variance, mean_positions)
