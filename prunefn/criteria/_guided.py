"""Scores of one criterion, scaled by the rank within the group under another."""

from __future__ import annotations

from functools import partial

from ..doors import door
from ..errors import PruneError
from ..types import Criterion, Scores, Stats
from . import normalizer
from ._combined import both
from .base import wrapped


@door
def guided(criterion: Criterion, by: Criterion, delta: float = 0.2) -> Criterion:
    """Multiply the score by δ + (1 − δ) rank(by), such as `guided(magnitude(), weighted_variance())`.

    The rank is the fraction of the group's units that score no more under `by`, in (0, 1]: between groups, `criterion` decides.
    Groups that only one of the criteria scores are left out.

    Args:
        criterion: gives the scale; its scores should not be negative.
        by: gives the ranks.
        delta: factor of the score at rank 0, in [0, 1]; 1 leaves the scores unchanged.

    Raises:
        PruneError: delta is not in [0, 1].
    """
    if not 0 <= delta <= 1:
        raise PruneError(f"guided's delta is {delta}; it must be in [0, 1]")
    score = partial(_score, criterion=criterion, by=by, delta=delta)
    return wrapped(f"guided({criterion.name}, {by.name})", score, criterion, by)


def _score(stats: Stats, *, criterion: Criterion, by: Criterion, delta: float) -> Scores:
    scores, guide = both(criterion, by, stats)
    return {g: s * (delta + (1 - delta) * normalizer.rank(guide[g].double())) for g, s in scores.items()}
