"""One criterion, guided by the rank that another gives within the group."""

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
    """score · (δ + (1 − δ) rank(by)): magnitude guided by weighted variance is `guided(magnitude(), weighted_variance())`.

    The rank is the share of the group's units that score no more under `by`, in (0, 1]: between groups, `criterion` decides.
    Groups that only one of them scores are left out.

    Args:
        criterion: gives the scale; its scores should not be negative.
        by: gives the ranks.
        delta: what the last in rank would keep of its score, in [0, 1]; 1 leaves the scores as they are.

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
