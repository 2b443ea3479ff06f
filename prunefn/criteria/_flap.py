"""Weighted fluctuation of a unit's activation: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models"
(FLAP), AAAI 2024, arXiv 2312.11983, equation 4."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec.parts import Site
from ..types import Criterion, Moments, Scores, Stats
from .base import column_squares, mean_positions, measured, over_sites, spec_of


def flap() -> Criterion:
    """Score units by ‖W[:, k]‖² σ_k² at the inputs of the group's consumers, averaged over a unit's positions and over sites.

    This is the square of `weighted_variance` (up to the average over positions), what replacing the unit by its mean costs. The
    paper compares groups by z-scores: `scope.global_(normalize=pf.normalizer.z_score)`, as `recipes.flap` does.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1))
    >>> model[0].weight.data, model[1].weight.data = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 1.0]])
    >>> spec, x = pf.trace(model, (torch.randn(2, 1),)), torch.tensor([[-1.0], [0.0], [1.0]])
    >>> pf.score(pf.collect_stats(pf.params(model), [x], spec=spec), criterion=flap())
    {'0': tensor([9., 4.], dtype=torch.float64)}
    """
    return Criterion("flap", _score)


def _score(stats: Stats) -> Scores:
    spec = spec_of(stats)
    sites = measured(stats, "flap", "flap()")

    def values(site: Site, m: Moments) -> Tensor:
        return torch.mul(column_squares(stats, site).to(m.m2.device), m.variance)

    return over_sites(sites, spec, values, mean_positions)
