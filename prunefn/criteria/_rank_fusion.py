"""Weighted sum of the ranks under two criteria, independent of their scales."""

from __future__ import annotations

from functools import partial

import torch

from ..doors import door
from ..types import Criterion, Scores, Stats
from . import normalizer
from ._combined import both, check_share
from .base import wrapped


@door
def rank_fusion(a: Criterion, b: Criterion, alpha: float = 0.5) -> Criterion:
    """Combine two criteria to α rank(a) + (1 − α) rank(b), such as magnitude with weighted variance.

    A unit's rank is the fraction of all units of all groups that score no more, in (0, 1]; equal scores have equal ranks.
    Groups that only one of the criteria scores are left out.

    Args:
        a, b: the criteria.
        alpha: weight of a, in [0, 1].

    Raises:
        PruneError: alpha is not in [0, 1].
    """
    check_share("rank_fusion", alpha)
    return wrapped(f"rank_fusion({a.name}, {b.name})", partial(_score, a=a, b=b, alpha=alpha), a, b)


def _score(stats: Stats, *, a: Criterion, b: Criterion, alpha: float) -> Scores:
    x, y = (_ranks(s) for s in both(a, b, stats))
    return {g: alpha * x[g] + (1 - alpha) * y[g] for g in x}


def _ranks(scores: Scores) -> Scores:
    """Return the rank of every unit among the units of all groups, in (0, 1]."""
    if not scores:
        return {}
    ranks = normalizer.rank(torch.cat([s.double().cpu() for s in scores.values()]))
    parts = ranks.split([len(s) for s in scores.values()])
    return {g: r.to(s.device) for (g, s), r in zip(scores.items(), parts, strict=True)}
