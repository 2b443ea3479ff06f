"""Scores that know what units cost: of equal units, those of expensive groups go first.

MAC-aware importance of structured pruning tools, with the sign that makes expensive groups score lower. A group costs the MACs
of one sample in which its units take part (`spec.macs_of`), those of coupled layers included.
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
    """α I / max(1, I_max) + (1 − α)(1 − n), with n = (mac − min) / (max − min) over the scored groups ("Sum").

    I: scores of the criterion, I_max the largest of them; n is .5 where all groups cost the same.

    Args:
        criterion: gives the importance.
        alpha: share of the importance, in [0, 1].

    Raises:
        PruneError: alpha is not in [0, 1].
    """
    check_share("mac_aware", alpha)
    return wrapped(f"mac_aware({criterion.name})", partial(_sum, criterion=criterion, alpha=alpha), criterion)


@door
def mac_aware_product(criterion: Criterion, beta: float = 2.0) -> Criterion:
    """I · (min / mac)^{1/β}, with min over the scored groups that cost anything ("Mul").

    Groups that cost nothing count as the cheapest. Scores below zero are divided by the factor, so that the expensive are lower.

    Args:
        criterion: gives the importance.
        beta: above zero; the larger, the less cost matters.

    Raises:
        PruneError: beta is not above zero.
    """
    if not beta > 0:
        raise PruneError(f"mac_aware_product's beta is {beta}; it must be above 0")
    return wrapped(f"mac_aware_product({criterion.name})", partial(_product, criterion=criterion, beta=beta), criterion)


def _sum(stats: Stats, *, criterion: Criterion, alpha: float) -> Scores:
    scores = criterion.score(stats)
    macs = {g: spec_of(stats).macs_of(g) for g in scores}
    low, high = min(macs.values(), default=0), max(macs.values(), default=0)
    largest = max([1.0, *(float(s.max()) for s in scores.values())])
    n = {g: (m - low) / (high - low) if high > low else 0.5 for g, m in macs.items()}
    return {g: alpha * s / largest + (1 - alpha) * (1 - n[g]) for g, s in scores.items()}


def _product(stats: Stats, *, criterion: Criterion, beta: float) -> Scores:
    scores = criterion.score(stats)
    macs = {g: spec_of(stats).macs_of(g) for g in scores}
    low = min([m for m in macs.values() if m], default=1)
    return {g: _times(s, (low / max(macs[g], low)) ** (1 / beta)) for g, s in scores.items()}


def _times(s: Tensor, factor: float) -> Tensor:
    return s.where(s < 0, s * factor).where(s >= 0, s / factor)
