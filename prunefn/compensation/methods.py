"""Compensations: values that define how contractions make up for removed inputs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .._shapes import Float
from ..doors import door
from ..errors import PruneError, StatsError
from ..types import Compensation, Inputs, Repair
from .error import lacking, weighted_sum
from .least_squares import fit


def none() -> Compensation:
    """Drop removed inputs without compensation."""
    return Compensation("none", None, needs=())


def mean() -> Compensation:
    """Replace removed inputs by their means: b' = b + W[:, P] μ_P, per tap for padded or strided convolutions.

    Berisha et al., "Variance-Based Pruning", ICCV 2025 (arXiv 2507.12988), extended to convolutions of any group count.
    """
    return Compensation("mean", _mean)


@door
def affine(
    ridge: float | None = None, *, intercept: bool | None = None, fallback: Compensation | None = None
) -> Compensation:
    """Replace removed inputs by their best affine estimate from the kept ones, by least squares on the outputs.

    With S kept and y the dense outputs: W' = W_S + (C_yS − W_S C_SS)(C_SS + λ I)⁻¹ and b' = b + E y − W' μ_S. It is the
    optimal-brain update of a layer's outputs (OBS, OB²C), and CORP (arXiv 2602.05243) with ridge. The weight of a convolution:

    * `compensate` and a pipeline that is not sequential know the covariance of channels alone: they solve tap by tap, as if taps
      were uncorrelated.
    * `pipeline(sequential=True)` solves for all taps at once (im2col, one contraction after the other), as in OSSCAR
      (arXiv 2403.12983). The covariance takes 24 · (inputs · taps)² bytes; a convolution whose covariance would not fit is
      solved for some of its inputs at a time, with all their taps, and a warning says so.

    Args:
        ridge: λ as a fraction of the mean variance of the kept inputs; 0 uses the pseudo-inverse. Default: for each contraction,
            the one of 1e-6 … 1 that predicts new samples best: the other half of the samples if the sequential mode measured
            both, else by generalised cross-validation (Golub, Heath and Wahba, 1979). If none of them predicts better than no
            change of the weight, only means are compensated.
        intercept: compensate the mean by a bias; False: least squares without one. Default: without one where it would be a new
            bias of a class that is built from a config, such as those of transformers, so that `save_pretrained` writes a model
            that its library loads.
        fallback: fallback where the weight cannot be rewritten, such as `mean()`; None raises ParamsError there. It creates no bias
            in a class that is built from a config.

    Raises:
        PruneError: the ridge is negative.
    """
    if ridge is not None and not ridge >= 0:
        raise PruneError(
            f"affine's ridge is {ridge}; it must be 0 or more, such as 1e-4, or None to choose it from the data"
        )
    repair = partial(fit, ridge=ridge, intercept=intercept)
    return Compensation("affine", repair, ("covariance",), fallback)


@door
def variance_rescale(*, fallback: Compensation | None = None) -> Compensation:
    """Compensate means, and scale each output's kept weights so that its variance is unchanged.

    s² = wᵀ C w / w_Sᵀ C_SS w_S, with the covariance if it was collected, else with variances; W' = s W_S and
    b' = b + W μ − s W_S μ_S. REPAIR (Jordan et al., ICLR 2023) does the same by normalisation.

    Args:
        fallback: as in `affine`.
    """
    return Compensation("variance_rescale", _rescale, ("moments",), fallback)


def _mean(weight: Float[Tensor, "g o i t"], x: Inputs) -> Repair:
    return Repair(None, lacking(x).mean)


def _rescale(weight: Float[Tensor, "g o i t"], x: Inputs) -> Repair:
    kept = weight * x.kept[:, None, :, None]
    before, after = lacking(x).signal, lacking(x).given
    if x.variance is None:
        raise StatsError("only means were passed, but variances are needed; pass the stats that collect_stats returns")
    # Outputs whose kept inputs have no variance, up to rounding, are not scaled.
    scale = torch.where(after > 1e-12 * before, (before / after).sqrt(), 1.0)
    scaled = kept * scale[..., None, None]
    return Repair(scaled, lacking(x).mean - weighted_sum(scaled - kept, x.mean))
