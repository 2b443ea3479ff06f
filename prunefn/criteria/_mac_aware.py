"""Scores that consider the cost of units: of equal units, those of expensive groups are removed first.

This is the MAC-aware importance of structured pruning tools, with the sign that makes expensive groups score lower. A group's
cost is the MACs of one sample in which its units take part (`spec.macs_of`), including those of coupled layers.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..doors import door
from ..errors import PruneError
from ..types import Criterion, Scores, Stats
from ._combined import check_share
from .base import spec_of, wrapped


@door
def mac_aware(criterion: Criterion, alpha: float = 0.9) -> Criterion:
    """Score units by α I / max(1, I_max) + (1 − α)(1 − n), with n = (mac − min) / (max − min) over the scored groups ("Sum").

    I are the scores of the criterion, I_max is the largest of them; n is 0.5 if all groups cost the same.

    Args:
        criterion: that gives the importance I.
        alpha: weight of the importance, in [0, 1].

    Raises:
        PruneError: alpha is not in [0, 1].
    """
    check_share("mac_aware", alpha)
    return wrapped(f"mac_aware({criterion.name})", partial(_score_sum, criterion=criterion, alpha=alpha), criterion)


@door
def mac_aware_product(criterion: Criterion, beta: float = 2.0) -> Criterion:
    """Score units by I · (min / mac)^{1/β}, with min over the scored groups of non-zero cost ("Mul").

    Groups of zero cost count as the cheapest. Scores below zero are divided by the factor, so that expensive groups score lower.

    Args:
        criterion: that gives the importance I.
        beta: above zero; the larger beta, the less the cost matters.

    Raises:
        PruneError: beta is not above zero.
    """
    if not beta > 0:
        raise PruneError(f"mac_aware_product's beta is {beta}; it must be above 0")
    return wrapped(
        f"mac_aware_product({criterion.name})", partial(_score_product, criterion=criterion, beta=beta), criterion
    )


def _score_sum(stats: Stats, *, criterion: Criterion, alpha: float) -> Scores:
    scores = criterion.score(stats)
    macs = {g: spec_of(stats).macs_of(g) for g in scores}
    low, high = min(macs.values(), default=0), max(macs.values(), default=0)
    largest = max([1.0, *(float(s.max()) for s in scores.values())])
    n = {g: (m - low) / (high - low) if high > low else 0.5 for g, m in macs.items()}
    return {g: alpha * s / largest + (1 - alpha) * (1 - n[g]) for g, s in scores.items()}


def _score_product(stats: Stats, *, criterion: Criterion, beta: float) -> Scores:
    scores = criterion.score(stats)
    macs = {g: spec_of(stats).macs_of(g) for g in scores}
    low = min([m for m in macs.values() if m], default=1)
    return {g: _scale(s, (low / max(macs[g], low)) ** (1 / beta)) for g, s in scores.items()}


def _scale(s: Tensor, factor: float) -> Tensor:
    """Return scores times a factor in (0, 1]; negative scores are divided by it, so that they fall, too."""
    return s.where(s < 0, s * factor).where(s >= 0, s / factor)
