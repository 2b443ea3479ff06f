"""Compensations: values that define how contractions make up for removed inputs."""

from __future__ import annotations

from functools import partial

import torch
from einops import einsum
from torch import Tensor

from .._shapes import Bool, Float
from ..doors import door
from ..errors import PruneError, StatsError
from ..types import Compensation, Inputs, Repair


def none() -> Compensation:
    """Drop removed inputs without compensation."""
    return Compensation("none", None, needs=())


def mean() -> Compensation:
    """Replace removed inputs by their means: b' = b + W[:, P] μ_P, per tap for padded or strided convolutions.

    Berisha et al., "Variance-Based Pruning", ICCV 2025 (arXiv 2507.12988), extended to convolutions of any group count.
    """
    return Compensation("mean", _mean)


@door
def affine(ridge: float = 1e-4, *, fallback: Compensation | None = None) -> Compensation:
    """Replace removed inputs by their best affine estimate from the kept ones: x_P ≈ B x_S + c.

    B = C_PS (C_SS + ridge · mean(diag C_SS) · I)⁻¹ and c = μ_P − B μ_S; W' = W_S + W_P B and b' = b + W_P c, at every tap of a
    convolution. It is the optimal-brain update of a layer's outputs (OBS, OB²C), and CORP (arXiv 2602.05243) with ridge.

    Args:
        ridge: fraction of the mean variance of the kept inputs that is added to each variance; 0 uses the pseudo-inverse.
        fallback: fallback where the weight cannot be rewritten, such as `mean()`; None raises ParamsError there.

    Raises:
        PruneError: the ridge is negative.
    """
    if not ridge >= 0:
        raise PruneError(f"affine's ridge is {ridge}; it must be 0 or more, such as 1e-4")
    return Compensation("affine", partial(_affine, ridge=ridge), ("covariance",), fallback)


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
    kept = x.kept[..., None]
    if x.dense is None:
        return Repair(None, weighted_sum(weight, torch.where(kept, 0.0, x.mean)))
    return Repair(None, weighted_sum(weight, x.dense.mean - torch.where(kept, x.mean, 0.0)))


def _affine(weight: Float[Tensor, "g o i t"], x: Inputs, *, ridge: float) -> Repair:
    assert x.covariance is not None
    cross = x.covariance if x.dense is None or x.dense.cross is None else x.dense.cross
    target = x.mean if x.dense is None else x.dense.mean
    new_weight, lost_mean = torch.zeros_like(weight), torch.zeros_like(x.mean)
    for g, (kept, c, k) in enumerate(zip(x.kept, x.covariance, cross, strict=True)):
        b = _regression(c, k, kept, ridge)
        new_weight[g][:, kept] = einsum(weight[g], b, "o i t, i s -> o s t")
        lost_mean[g] = target[g] - b @ x.mean[g, kept]
    return Repair(new_weight, weighted_sum(weight, lost_mean))


def _regression(
    c: Float[Tensor, "i i"], cross: Float[Tensor, "i i"], kept: Bool[Tensor, " i"], ridge: float
) -> Float[Tensor, "i s"]:
    """Return the coefficients of the regression of all dense inputs on the kept ones.

    The ridge draws the estimate of a kept input to that input, and the estimate of a removed one to zero.

    Args:
        c: covariance of the inputs.
        cross: covariance of the dense inputs (rows) with the inputs (columns).
        kept: which inputs are kept, s of them.
        ridge: as in `affine`.
    """
    identity = torch.eye(len(c), dtype=c.dtype, device=c.device)[:, kept]
    within, missing = c[kept][:, kept], cross[:, kept] - identity @ c[kept][:, kept]
    trace = float(within.diagonal().sum())
    if ridge and trace:
        within = within + torch.eye(len(within), dtype=c.dtype, device=c.device) * (ridge * trace / len(within))
        factor, failed = torch.linalg.cholesky_ex(within)  # rounding can make it fail: then the pseudo-inverse is used
        if not bool(failed):
            return identity + torch.cholesky_solve(missing.mT, factor).mT
    return identity + missing @ torch.linalg.pinv(within, hermitian=True)


def _rescale(weight: Float[Tensor, "g o i t"], x: Inputs) -> Repair:
    kept_weight = weight * x.kept[:, None, :, None]
    covariance = x.covariance if x.dense is None or x.dense.covariance is None else x.dense.covariance
    before, after = output_variance(weight, x._replace(covariance=covariance)), output_variance(kept_weight, x)
    # Outputs whose kept inputs have no variance, up to rounding, are not scaled.
    scale = torch.where(after > 1e-12 * before, (before / after).sqrt(), 1.0)
    scaled = kept_weight * scale[..., None, None]
    target = x.mean if x.dense is None else x.dense.mean
    return Repair(scaled, weighted_sum(weight, target) - weighted_sum(scaled, x.mean))


def output_variance(weight: Float[Tensor, "g o i t"], x: Inputs) -> Float[Tensor, "g o"]:
    """Return the variance of the outputs; the taps of a convolution are taken as uncorrelated."""
    if x.covariance is not None:
        return (einsum(weight, x.covariance, "g o i t, g i j -> g o j t") * weight).sum((-1, -2))
    if x.variance is None:
        raise StatsError("only means were passed, but variances are needed; pass the stats that collect_stats returns")
    return einsum(weight.square(), x.variance, "g o i t, g i -> g o")


def weighted_sum(weight: Float[Tensor, "g o i t"], values: Float[Tensor, "g i t_or_1"]) -> Float[Tensor, "g o"]:
    """Return Σ over inputs and taps of weight times value."""
    weight = weight.sum(-1, keepdim=True) if values.shape[-1] == 1 else weight
    return einsum(weight, values, "g o i t, g i t -> g o")
