"""Scores divided by a statistic of their group, so that groups are comparable."""

from __future__ import annotations

from functools import partial

from ..doors import door
from ..types import Criterion, Scores, Stats
from . import normalizer
from .base import wrapped
from .normalizer import Normalizer


@door
def normalized(criterion: Criterion, by: Normalizer = normalizer.mean) -> Criterion:
    """Normalise each group's scores, such as by `normalizer.mean`, `normalizer.max` or `normalizer.quantile(0.5)`.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1))
    >>> model[0].weight.data = torch.tensor([[1.0], [3.0]])
    >>> spec, x = pf.trace(model, (torch.randn(2, 1),)), torch.tensor([[-1.0], [0.0], [1.0]])
    >>> stats = pf.collect_stats(pf.params(model), [x], spec=spec)
    >>> pf.score(stats, criterion=normalized(pf.criteria.variance()))
    {'0': tensor([0.2000, 1.8000], dtype=torch.float64)}
    """
    return wrapped(f"normalized({criterion.name})", partial(_score, criterion=criterion, by=by), criterion)


def _score(stats: Stats, *, criterion: Criterion, by: Normalizer) -> Scores:
    return {g: by(s.double()) for g, s in criterion.score(stats).items()}
