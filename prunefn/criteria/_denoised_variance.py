"""Variance without its noise: DVBP (arXiv 2608.17657).

The covariance of pure noise has eigenvalues that follow the Marchenko–Pastur law; eigenvalues above its range are signal.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from .._shapes import Float
from ..doors import door
from ..errors import PruneError
from ..spec.parts import Site
from ..types import Criterion, Moments, Scores, Stats
from .base import mean_positions, measured, over_sites, spec_of

STEPS = 20_000
"""Number of steps of the numerical integral; the median is then exact to 1e-8."""


@door
def denoised_variance(p: float = 0.5) -> Criterion:
    """Score units by (1 − p) σ² + p σ²_denoised, averaged over a unit's positions and over sites.

    With λ = width / samples (images, not tokens or pixels), the noise is σ̂² = median eigenvalue of the covariance / median of
    the Marchenko–Pastur law; σ²_denoised is the variance in the eigenvectors whose eigenvalue is above σ̂² (1 + √λ)². With
    fewer samples than units, most eigenvalues of noise are zero, and both medians are over the non-zero ones.

    Args:
        p: weight of the denoised variance, in [0, 1]; 0 is `variance()`.

    Raises:
        PruneError: p is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise PruneError(f"denoised_variance's p is {p}; it must be in [0, 1]")
    return Criterion("denoised_variance", partial(_score, p=p), needs=("covariance",))


def _score(stats: Stats, *, p: float) -> Scores:
    spec = spec_of(stats)
    sites = measured(stats, "denoised_variance", f"denoised_variance({p})", "covariance")
    variances: dict[int, Tensor] = {}  # sites that read the same value share the covariance

    def values(site: Site, m: Moments) -> Tensor:
        if id(m.scatter) not in variances:
            variances[id(m.scatter)] = (1 - p) * m.variance + p * denoised(m.covariance, len(m.mean) / stats.samples)
        return variances[id(m.scatter)]

    return over_sites(sites, spec, values, mean_positions)


def denoised(c: Float[Tensor, "d d"], aspect: float) -> Float[Tensor, " d"]:
    """Return the part of the variances that lies in eigenvectors above the noise.

    Args:
        c: covariance [d, d].
        aspect: λ, width over samples.
    """
    values, vectors = torch.linalg.eigh(c)
    nonzero = math.ceil(len(values) / max(aspect, 1.0))  # with fewer samples than units, the others are zero
    noise = values[-nonzero:].quantile(0.5) / marchenko_pastur_median(aspect)
    signal = torch.where(values > noise * (1 + aspect**0.5) ** 2, values, 0.0)
    return vectors.square() @ signal.clamp_min(0)


@lru_cache(maxsize=256)
def marchenko_pastur_median(aspect: float) -> float:
    """Return the median of the Marchenko–Pastur law of unit variance, over non-zero eigenvalues of the covariance of noise.

    Args:
        aspect: λ, width over samples.

    >>> round(marchenko_pastur_median(1.0), 3)  # Gavish and Donoho, IEEE Trans. Inf. Theory 2014: (4/√3 / 2.858)²
    0.653
    """
    theta = (np.arange(STEPS) + 0.5) * (np.pi / STEPS)  # x = 1 + λ − 2√λ cos θ takes the square root out of the density
    x = 1 + aspect - 2 * aspect**0.5 * np.cos(theta)
    below = np.cumsum(2 * np.sin(theta) ** 2 / (np.pi * x)) * (np.pi / STEPS)
    middle = np.interp(below[-1] / 2, below, theta + np.pi / (2 * STEPS))
    return float(1 + aspect - 2 * aspect**0.5 * np.cos(middle))
