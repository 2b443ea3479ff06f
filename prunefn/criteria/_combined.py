"""Weighted sum of two criteria, each divided by its mean."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..doors import door
from ..errors import PruneError
from ..types import Criterion, Scores, Stats
from .base import wrapped


@door
def combined(a: Criterion, b: Criterion, alpha: float = 0.5) -> Criterion:
    """Combine two criteria to α a + (1 − α) b, such as α‖w‖ + (1 − α)σ, each divided by its mean magnitude over all units.

    One mean for all groups keeps each criterion's ratios between groups; for a mean of each group, pass `normalized(a)` and
    `normalized(b)`. Groups that only one of the criteria scores are left out.

    Args:
        a, b: the criteria.
        alpha: weight of a, in [0, 1].

    Raises:
        PruneError: alpha is not in [0, 1].
    """
    check_share("combined", alpha)
    return wrapped(f"combined({a.name}, {b.name})", partial(_score, a=a, b=b, alpha=alpha), a, b)


def check_share(name: str, alpha: float) -> None:
    """Check that alpha is in [0, 1].

    Raises:
        PruneError: alpha is not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise PruneError(f"{name}'s alpha is {alpha}; it must be in [0, 1]")


def both(a: Criterion, b: Criterion, stats: Stats) -> tuple[Scores, Scores]:
    """Return the scores by both criteria of the groups that both score, on the same devices."""
    x, y = a.score(stats), b.score(stats)
    shared = [g for g in x if g in y]
    return {g: x[g] for g in shared}, {g: y[g].to(x[g].device) for g in shared}


def _score(stats: Stats, *, a: Criterion, b: Criterion, alpha: float) -> Scores:
    x, y = (over_mean(s) for s in both(a, b, stats))
    return {g: alpha * x[g] + (1 - alpha) * y[g] for g in x}


def over_mean(scores: Scores) -> Scores:
    """Divide scores by the mean magnitude of all units; zeros stay zeros."""
    if not scores:
        return {}
    mean = torch.cat([s.double().abs().cpu() for s in scores.values()]).mean()
    divisor: Tensor = mean.clamp_min(torch.finfo(torch.float64).tiny)
    return {g: s / float(divisor) for g, s in scores.items()}
