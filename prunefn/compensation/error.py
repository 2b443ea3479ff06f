"""What a contraction's outputs lack when inputs are removed, and the error that a repair leaves."""

from __future__ import annotations

import torch
from einops import einsum
from torch import Tensor

from .._shapes import Float
from ..errors import StatsError
from ..types import Inputs, Lacking, Repair, Residual


def weighted_sum(weight: Float[Tensor, "g o i t"], values: Float[Tensor, "g i t_or_1"]) -> Float[Tensor, "g o"]:
    """Return Σ over inputs and taps of weight times value."""
    weight = weight.sum(-1, keepdim=True) if values.shape[-1] == 1 else weight
    return einsum(weight, values, "g o i t, g i t -> g o")


def times_covariance(weight: Float[Tensor, "g o i t"], covariance: Tensor) -> Float[Tensor, "g o i t"]:
    """Return the covariance of the outputs with the inputs, of the form of the weight.

    Args:
        weight: of the contraction.
        covariance: as in `Inputs`.
    """
    if covariance.shape[-1] == weight.shape[2]:
        return einsum(weight, covariance, "g o i t, g i j -> g o j t")
    return (weight.flatten(2) @ covariance).reshape(weight.shape)


def output_variance(weight: Float[Tensor, "g o i t"], x: Inputs) -> Float[Tensor, "g o"]:
    """Return the variance of the outputs; taps, and without a covariance channels, are taken as uncorrelated if unknown.

    Raises:
        StatsError: only means are known.
    """
    if x.covariance is not None:
        return (times_covariance(weight, x.covariance) * weight).sum((-1, -2))
    if x.variance is None:
        raise StatsError("only means were passed, but variances are needed; pass the stats that collect_stats returns")
    if x.variance.shape[-1] == 1:
        return einsum(weight.square(), x.variance[..., 0], "g o i t, g i -> g o")
    return weighted_sum(weight.square(), x.variance)


def with_lacking(weight: Float[Tensor, "g o i t"], x: Inputs) -> Inputs:
    """Return the inputs with what lacks where removed ones are left out, unless it was measured."""
    if x.lacking is not None:
        return x
    kept = x.kept[:, None, :, None]
    gone = weight * ~kept
    mean = weighted_sum(gone, torch.where(x.kept[..., None], 0.0, x.mean))  # that of kept inputs may be unknown
    if x.variance is None:
        unknown = torch.full_like(mean, torch.nan)
        return x._replace(lacking=Lacking(mean, unknown, None, unknown, unknown))
    cross = None if x.covariance is None else times_covariance(gone, x.covariance)
    variance, signal, given = (output_variance(w, x) for w in (gone, weight, weight * kept))
    return x._replace(lacking=Lacking(mean, variance, cross, signal, given))


def lacking(x: Inputs) -> Lacking:
    """Return what the kept inputs do not give."""
    assert x.lacking is not None
    return x.lacking


def residual_of(weight: Float[Tensor, "g o i t"], x: Inputs, repair: Repair) -> Residual:
    """Return the squared error of a contraction's outputs after a repair, and the variance of those to reproduce.

    Without a covariance, changes of the weight are taken as uncorrelated with what lacks.

    Args:
        weight: at hand.
        x: its inputs, `with_lacking`.
        repair: of the contraction.
    """
    lack, error = lacking(x), lacking(x).variance.sum()
    bias = lack.mean if repair.shift is None else lack.mean - repair.shift
    if repair.weight is not None:
        change = (repair.weight - weight) * x.kept[:, None, :, None]
        bias, error = bias - weighted_sum(change, x.mean), error + output_variance(change, x).sum()
        if lack.cross is not None:
            error = error - 2 * (change * lack.cross).sum()
    total = float(error.clamp_min(0) + bias.square().sum())  # rounding can make a small difference negative
    return Residual(total, float(lack.signal.sum()), total if repair.expected is None else repair.expected)
