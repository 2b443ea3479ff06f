"""Exponential moving average of scores over rounds of pruning or steps of training."""

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
    """Smooth scores to decay · previous + (1 − decay) · score.

    The result is the `previous` of the next round; there is no other state.

    Args:
        criterion: that gives the scores.
        previous: scores of the previous round; None in the first. Groups that it lacks get their scores unsmoothed.
        decay: weight of the previous scores, in [0, 1).

    Raises:
        PruneError: decay is not in [0, 1).
        StatsError: (when scored) a group has another number of units than in `previous`: it was pruned in between.
    """
    if not 0 <= decay < 1:
        raise PruneError(f"smoothed's decay is {decay}; it must be in [0, 1)")
    score = partial(_score, criterion=criterion, previous=dict(previous or {}), decay=decay)
    return wrapped(f"smoothed({criterion.name})", score, criterion)


def _score(stats: Stats, *, criterion: Criterion, previous: Scores, decay: float) -> Scores:
    out = {}
    for g, s in criterion.score(stats).items():
        past = previous.get(g)
        if past is not None and past.shape != s.shape:
            raise StatsError(
                f"group {g!r} has {len(s)} units, but the previous scores have {len(past)}: it was pruned since; give "
                f"smoothed the scores of what the mask kept, {{g: s[mask[g]] if g in mask else s for g, s in previous.items()}}"
            )
        out[g] = s if past is None else decay * past.to(s) + (1 - decay) * s
    return out
