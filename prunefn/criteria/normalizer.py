"""Normalisers: make the scores of different groups comparable; Tensor [units] → Tensor [units].

Each of them keeps the order within a group. Divisors are magnitudes, so that scores below zero stay below zero. A group of
zeros gives zeros; so does a group of equal scores where the divisor is their spread.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..doors import door
from ..errors import PruneError

__all__ = ["Normalizer", "max", "mean", "min_max", "none", "quantile", "rank", "sum", "width", "z_score"]


Normalizer = Callable[[Tensor], Tensor]
"""Scores of a group [units] → scores that can be compared with those of other groups [units]."""


@door
def none(scores: Tensor) -> Tensor:
    """Return the scores unchanged.

    >>> none(torch.tensor([1.0, 3.0]))
    tensor([1., 3.])
    """
    return scores


@door
def mean(scores: Tensor) -> Tensor:
    """Divide by the mean magnitude: `s / mean |s|`.

    >>> mean(torch.tensor([1.0, 3.0]))
    tensor([0.5000, 1.5000])
    """
    return _divide(scores, scores.abs().mean())


@door
def sum(scores: Tensor) -> Tensor:
    """Divide by the sum of magnitudes, `s / Σ |s|`: like `mean`, but units of wide groups score less.

    >>> sum(torch.tensor([1.0, 3.0]))
    tensor([0.2500, 0.7500])
    """
    return _divide(scores, scores.abs().sum())


@door
def max(scores: Tensor) -> Tensor:
    """Divide by the largest magnitude: `s / max |s|`.

    >>> max(torch.tensor([1.0, 4.0]))
    tensor([0.2500, 1.0000])
    """
    return _divide(scores, scores.abs().amax())


@door
def min_max(scores: Tensor) -> Tensor:
    """Map the lowest score to 0 and the highest to 1: `(s − min) / (max − min)`. Torch-Pruning calls it "standarization".

    >>> min_max(torch.tensor([1.0, 2.0, 5.0]))
    tensor([0.0000, 0.2500, 1.0000])
    """
    return _divide(scores - scores.amin(), scores.amax() - scores.amin())


@door
def z_score(scores: Tensor) -> Tensor:
    """Divide deviations from the mean by the group's standard deviation (÷ n): `(s − mean) / sd`.

    >>> z_score(torch.tensor([1.0, 3.0]))
    tensor([-1.,  1.])
    """
    spread = scores.amax() - scores.amin()
    # Deviations are in units of the spread, so that squares neither overflow nor underflow.
    deviation = _divide(scores - scores.mean(), spread)
    return _divide(deviation, deviation.square().mean().sqrt()) if bool(spread > 0) else torch.zeros_like(scores)


@door
def rank(scores: Tensor) -> Tensor:
    """Return the fraction of the group's units that score no more, in (0, 1]; equal scores have equal ranks.

    >>> rank(torch.tensor([30.0, 10.0, 10.0, 20.0]))
    tensor([1.0000, 0.5000, 0.5000, 0.7500])
    """
    ordered = scores.sort().values
    return torch.searchsorted(ordered, scores, right=True).to(scores.dtype) / len(scores)


@door
def quantile(q: float = 0.5) -> Normalizer:
    """Return a normaliser that divides by the q-quantile of magnitudes, interpolated linearly; 0.5 is the median.

    If that quantile is zero, it divides by the mean magnitude instead. Torch-Pruning calls this "sentinel".

    Raises:
        PruneError: q is not in [0, 1].

    >>> quantile(0.5)(torch.tensor([1.0, 2.0, 30.0]))
    tensor([ 0.5000,  1.0000, 15.0000])
    """
    if not 0 <= q <= 1:
        raise PruneError(f"normalizer.quantile({q}): q must be in [0, 1], such as 0.5 for the median")

    def normalize(scores: Tensor) -> Tensor:
        position = q * (len(scores) - 1)
        ordered = scores.abs().sort().values  # torch.quantile takes 2²⁴ elements at most
        low, high = ordered[int(position)], ordered[min(int(position) + 1, len(scores) - 1)]
        divisor = low + (high - low) * (position - int(position))
        return _divide(scores, divisor) if bool(divisor > 0) else mean(scores)

    return normalize


@door
def width(scores: Tensor) -> Tensor:
    """Divide by the number of units, `s / units`: at equal scores, wide groups lose units first. `sum` is `mean`, then `width`.

    >>> width(torch.tensor([1.0, 3.0]))
    tensor([0.5000, 1.5000])
    """
    return scores / len(scores)


def _divide(scores: Tensor, divisor: Tensor) -> Tensor:
    """Return the quotient; zeros divided by zero give zeros."""
    return scores / divisor.clamp_min(torch.finfo(scores.dtype).tiny)


def __dir__() -> list[str]:
    return __all__
