"""Random scores: the baseline that every criterion must beat."""

from __future__ import annotations

from functools import partial

import torch

from ..doors import door
from ..types import Criterion, Scores, Stats
from .base import spec_of


@door
def random(seed: int = 0) -> Criterion:
    """Score units by uniform random numbers in [0, 1) from a separate generator; needs no data.

    The same seed gives the same scores.
    """
    return Criterion("random", partial(_score, seed=seed), needs=())


def _score(stats: Stats, *, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return {
        g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in spec_of(stats).groups.values()
    }
