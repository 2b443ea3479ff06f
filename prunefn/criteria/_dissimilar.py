"""Similarity discount: a unit scores less if its weights resemble those of another unit."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .._shapes import Float
from ..doors import door
from ..types import Criterion, Scores, Stats
from .base import CHUNK, filters, wrapped


@door
def dissimilar(criterion: Criterion) -> Criterion:
    """Multiply the score by 1 − max_{j≠k} cos(w_k, w_j), with w_k the signed weights that produce unit k, as in `fpgm`.

    Two parallel units both score 0; where that matters, prune in several rounds or compensate by `compensation.affine()`.
    Groups without such weights and groups of a single unit keep their scores; units of zeros are similar to no other.

    Args:
        criterion: that gives the scores; they should not be negative.
    """
    return wrapped(f"dissimilar({criterion.name})", partial(_score, criterion=criterion), criterion)


def _score(stats: Stats, *, criterion: Criterion) -> Scores:
    scores = criterion.score(stats)
    weights = {g: filters(stats, g) for g in scores}
    return {g: s if (w := weights[g]) is None else s * (1 - nearest_cosine(w)).to(s.device) for g, s in scores.items()}


def nearest_cosine(w: Float[Tensor, "units d"]) -> Float[Tensor, " units"]:
    """Return max_{j≠k} cos(w_k, w_j) of each unit k; 0 for a single unit.

    >>> nearest_cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]])).tolist()
    [1.0, 1.0, 0.0]
    """
    if len(w) == 1:
        return w.new_zeros(1)
    unit = torch.nn.functional.normalize(w, dim=1, eps=torch.finfo(w.dtype).tiny)
    highest = []
    for start, part in zip(range(0, len(w), CHUNK), unit.split(CHUNK), strict=True):
        cosines = (part @ unit.mT).clamp(-1, 1)
        cosines.diagonal(start).fill_(-2.0)  # below every cosine: a unit is not compared with itself
        highest.append(cosines.amax(1))
    return torch.cat(highest)
