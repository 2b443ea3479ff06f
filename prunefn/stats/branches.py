"""What is collected of a branch: sums over positions, [4 + channels] in float64."""

from __future__ import annotations

from torch import Tensor

from .._shapes import Float
from ..errors import StatsError
from ..types import Stats

COLLECTED = "branches"
"""Collector in `Stats.sums`."""
COUNT, COSINE, ADDED, STREAM, MEAN = 0, 1, 2, 3, 4
"""Places: positions, Σ cosines of the stream before and after, Σ‖added‖², Σ‖after‖²; from MEAN on: Σ added, [channels]."""


def mean_added(stats: Stats, group: str) -> Float[Tensor, " channels"]:
    """Return the mean of what a branch or layer adds, [channels].

    Raises:
        StatsError: it was not collected.
    """
    sums = stats.sums.get(COLLECTED, {})
    if group not in sums:
        raise StatsError(
            f"{group!r} is removed, but there is no mean of what it adds: collect_stats(…, criterion=criteria.block_influence()) "
            "measures it; or use compensation=compensation.none()"
        )
    return sums[group][MEAN:] / sums[group][COUNT].clamp_min(1)
