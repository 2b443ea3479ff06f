"""Norm of a unit's activation: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation" (Minitron),
NeurIPS 2024, arXiv 2407.14679, section 2.2."""

from __future__ import annotations

from ..types import Criterion, Scores, Stats
from .base import mean_positions, measured, over_sites, spec_of


def activation_norm() -> Criterion:
    """Score units by the L2 norm √E[x²] at the inputs of the group's consumers; the mean is over samples, positions of sequences
    and the positions of a unit (a head's width); then over sites.

    The paper aggregates over the batch and over the sequence by norms of its choice; here all tokens count alike, without padding.
    `activation` is the same with |x|.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1))
    >>> model[0].weight.data = torch.tensor([[1.0], [-3.0]])
    >>> spec, x = pf.trace(model, (torch.randn(2, 1),)), torch.tensor([[-3.0], [0.0], [0.0], [5.0], [1.0], [1.0]])
    >>> stats = pf.collect_stats(pf.params(model), [x], spec=spec)
    >>> pf.score(stats, criterion=activation_norm())["0"]  # √(36 / 6)
    tensor([2.4495, 7.3485], dtype=torch.float64)
    """
    return Criterion("activation_norm", _score)


def _score(stats: Stats) -> Scores:
    spec = spec_of(stats)
    sites = measured(stats, "activation_norm", "activation_norm()")
    squares = over_sites(sites, spec, lambda _, m: m.m2 / m.count + m.mean.square(), mean_positions)
    return {g: s.sqrt() for g, s in squares.items()}
