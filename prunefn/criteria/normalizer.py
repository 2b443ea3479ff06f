"""Normalisers: make the scores of different groups comparable; Tensor [units] → Tensor [units].

Each of them keeps the order within a group. Divisors are magnitudes, so that scores below zero stay below zero, and a group
of zeros (or of equal scores, where the spread is divided by) gives zeros.
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
    """The scores as they are.

    >>> none(torch.tensor([1.0, 3.0]))
    tensor([1., 3.])
    """
    return scores


@door
def mean(scores: Tensor) -> Tensor:
    """Over their mean magnitude: `s / mean |s|`.

    >>> mean(torch.tensor([1.0, 3.0]))
    tensor([0.5000, 1.5000])
    """
    return _over(scores, scores.abs().mean())


@door
def sum(scores: Tensor) -> Tensor:
    """Over the sum of their magnitudes, `s / Σ |s|`: as `mean`, and the units of wide groups count less.

    >>> sum(torch.tensor([1.0, 3.0]))
    tensor([0.2500, 0.7500])
    """
    return _over(scores, scores.abs().sum())


@door
def max(scores: Tensor) -> Tensor:
    """Over their largest magnitude: `s / max |s|`.

    >>> max(torch.tensor([1.0, 4.0]))
    tensor([0.2500, 1.0000])
    """
    return _over(scores, scores.abs().amax())


@door
def min_max(scores: Tensor) -> Tensor:
    """From 0 for the lowest to 1 for the highest: `(s − min) / (max − min)`. Torch-Pruning calls it "standarization".

    >>> min_max(torch.tensor([1.0, 2.0, 5.0]))
    tensor([0.0000, 0.2500, 1.0000])
    """
    return _over(scores - scores.amin(), scores.amax() - scores.amin())


@door
def z_score(scores: Tensor) -> Tensor:
    """Deviations from the mean over the standard deviation of the group (÷ n): `(s − mean) / sd`.

    >>> z_score(torch.tensor([1.0, 3.0]))
    tensor([-1.,  1.])
    """
    spread = scores.amax() - scores.amin()
    deviation = _over(
        scores - scores.mean(), spread
    )  # in units of the spread, where squares neither over- nor underflow
    return _over(deviation, deviation.square().mean().sqrt()) if bool(spread > 0) else torch.zeros_like(scores)


@door
def rank(scores: Tensor) -> Tensor:
    """The share of the group's units that score no more, in (0, 1]; equal scores have equal ranks. The scale is lost.

    >>> rank(torch.tensor([30.0, 10.0, 10.0, 20.0]))
    tensor([1.0000, 0.5000, 0.5000, 0.7500])
    """
    ordered = scores.sort().values
    return torch.searchsorted(ordered, scores, right=True).to(scores.dtype) / len(scores)


@door
def quantile(q: float = 0.5) -> Normalizer:
    """Over the q-quantile of their magnitudes, interpolated linearly; at .5, over the median. Torch-Pruning's "sentinel".

    Where that quantile is zero but not all scores are, over the mean magnitude.

    Raises:
        PruneError: q is not in [0, 1].

    >>> quantile(0.5)(torch.tensor([1.0, 2.0, 30.0]))
    tensor([ 0.5000,  1.0000, 15.0000])
    """
    if not 0 <= q <= 1:
        raise PruneError(f"normalizer.quantile({q}): q must be in [0, 1], such as 0.5 for the median")

    def normalize(scores: Tensor) -> Tensor:
        at = q * (len(scores) - 1)
        ordered = scores.abs().sort().values  # torch.quantile takes 2²⁴ elements at most
        low, high = ordered[int(at)], ordered[min(int(at) + 1, len(scores) - 1)]
        divisor = low + (high - low) * (at - int(at))
        return _over(scores, divisor) if bool(divisor > 0) else mean(scores)

    return normalize


@door
def width(scores: Tensor) -> Tensor:
    """Over the number of units, `s / units`: at equal scores, wide groups lose units first. `sum` is `mean`, then `width`.

    >>> width(torch.tensor([1.0, 3.0]))
    tensor([0.5000, 1.5000])
    """
    return scores / len(scores)


def _over(scores: Tensor, divisor: Tensor) -> Tensor:
    """The quotient; of zeros by zero, zeros."""
    return scores / divisor.clamp_min(torch.finfo(scores.dtype).tiny)


def __dir__() -> list[str]:
    return __all__
