"""Scores that remember: an exponential moving average over rounds of pruning or steps of training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from ..doors import door
from ..errors import PruneError, StatsError
from ..types import Criterion, Scores, Stats
from .base import wrapped


@door
def smoothed(criterion: Criterion, previous: Mapping[str, Tensor] | None = None, decay: float = 0.9) -> Criterion:
    """decay · previous + (1 − decay) · score: the result is the `previous` of the next round, and the only state.

    Args:
        criterion: whose scores are smoothed.
        previous: scores of the round before; None in the first round. Groups that it lacks take the new scores.
        decay: weight of the past, in [0, 1).

    Raises:
        PruneError: decay is not in [0, 1).
        StatsError: (when scored) a group has another number of units than before: it was pruned in between.
    """
    if not 0 <= decay < 1:
        raise PruneError(f"smoothed's decay is {decay}; it must be in [0, 1)")
    score = partial(_score, criterion=criterion, previous=dict(previous or {}), decay=decay)
    return wrapped(f"smoothed({criterion.name})", score, criterion)


def _score(stats: Stats, *, criterion: Criterion, previous: Scores, decay: float) -> Scores:
    out = {}
    for g, s in criterion.score(stats).items():
        old = previous.get(g)
        if old is not None and old.shape != s.shape:
            raise StatsError(
                f"group {g!r} has {len(s)} units, but the previous scores have {len(old)}: it was pruned since; give "
                f"smoothed the scores of what the mask kept, {{g: s[mask[g]] if g in mask else s for g, s in previous.items()}}"
            )
        out[g] = s if old is None else decay * old.to(s) + (1 - decay) * s
    return out
