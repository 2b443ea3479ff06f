"""Mean magnitude of a unit's activation: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient
Inference", ICLR 2017, section 2.2, with |x| for x, so that activations below zero count as well."""

from __future__ import annotations

from torch import Tensor

from ..types import Criterion, Moments, Scores, Stats
from .base import mean_positions, measured, over_sites, spec_of


def activation() -> Criterion:
    """Score units by mean |x| at the inputs of the group's consumers, averaged over a unit's positions and over sites.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1))
    >>> model[0].weight.data = torch.tensor([[1.0], [-3.0]])
    >>> spec, x = pf.trace(model, (torch.randn(2, 1),)), torch.tensor([[-2.0], [0.0], [4.0]])
    >>> pf.score(pf.collect_stats(pf.params(model), [x], spec=spec, criterion=activation()), criterion=activation())
    {'0': tensor([2., 6.], dtype=torch.float64)}
    """
    return Criterion("activation", _score, needs=("absolute",))


def _score(stats: Stats) -> Scores:
    spec = spec_of(stats)
    sites = measured(stats, "activation", "activation()", "absolute")
    return over_sites(sites, spec, lambda _, m: _mean_magnitude(m), mean_positions)


def _mean_magnitude(m: Moments) -> Tensor:
    assert m.absolute is not None
    return m.absolute
