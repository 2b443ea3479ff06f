"""Weights times activations of whole units: Wanda (Sun et al., ICLR 2024, arXiv 2306.11695) summed over the outputs, the baseline
Wanda-sp of FLAP (An et al., AAAI 2024, arXiv 2312.11983)."""

from __future__ import annotations

from torch import Tensor

from ..program.compiled import site_weight
from ..spec.parts import Site
from ..types import Criterion, Moments, Scores, Stats
from .base import mean_positions, measured, over_sites, spec_of


def wanda_sp() -> Criterion:
    """Score units by Σ over outputs of |W[:, k]| √E[x_k²] at the inputs of the group's consumers, averaged over a unit's positions
    and over sites.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 2))
    >>> model[0].weight.data, model[1].weight.data = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 1.0], [-4.0, 0.0]])
    >>> spec, x = pf.trace(model, (torch.randn(2, 1),)), torch.tensor([[1.0], [-1.0]])
    >>> pf.score(pf.collect_stats(pf.params(model), [x], spec=spec), criterion=wanda_sp())
    {'0': tensor([7., 2.], dtype=torch.float64)}
    """
    return Criterion("wanda_sp", _score)


def _score(stats: Stats) -> Scores:
    spec = spec_of(stats)
    sites = measured(stats, "wanda_sp", "wanda_sp()")

    def values(site: Site, m: Moments) -> Tensor:
        sums = site_weight(stats.params, site, spec=spec).abs().sum((1, 3)).flatten()
        return sums.to(m.m2.device) * (m.m2 / m.count + m.mean.square()).sqrt()

    return over_sites(sites, spec, values, mean_positions)
