"""Variance of a unit's activation, weighted by the norm of its consumers' weights.

Replacing input k of y = W x by its mean changes y by W[:, k] (x_k − μ_k), whose expected square is ‖W[:, k]‖² σ_k²: VBP
(arXiv 2507.12988) takes σ² alone, Wanda (Sun et al., ICLR 2024, arXiv 2306.11695) takes |w| ‖x‖ for single weights.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..doors import door
from ..spec.parts import Site
from ..types import Criterion, Moments, Scores, Stats
from .base import column_squares, filters, mean_positions, measured, over_sites, spec_of


@door
def weighted_variance(*, producer: bool = False) -> Criterion:
    """Score units by ‖W[:, k]‖₂ σ_k at the inputs of the group's consumers, averaged over a unit's positions and over sites.

    W is the consumer's weight; the norm is over outputs and taps. If the program computes the weight (standardised, folded), W
    is the computed value.

    Args:
        producer: multiply by the L2 norm of the weights that produce the unit; a group that no weight produces has factor 1.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 2))
    >>> model[0].weight.data, model[1].weight.data = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 1.0], [4.0, 0.0]])
    >>> spec, x = pf.trace(model, (torch.randn(2, 1),)), torch.tensor([[-1.0], [0.0], [1.0]])
    >>> pf.score(pf.collect_stats(pf.params(model), [x], spec=spec), criterion=weighted_variance())
    {'0': tensor([5., 2.], dtype=torch.float64)}
    """
    return Criterion("weighted_variance", partial(_score, producer=producer))


def _score(stats: Stats, *, producer: bool) -> Scores:
    spec = spec_of(stats)
    sites = measured(stats, "weighted_variance", f"weighted_variance({'producer=True' if producer else ''})")

    def values(site: Site, m: Moments) -> Tensor:
        return (column_squares(stats, site).to(m.m2.device) * m.variance).sqrt()

    scores = over_sites(sites, spec, values, mean_positions)
    if not producer:
        return scores
    weights = {g: filters(stats, g) for g in scores}
    return {
        g: s if (w := weights[g]) is None else s * torch.linalg.vector_norm(w, dim=1).to(s.device)
        for g, s in scores.items()
    }
