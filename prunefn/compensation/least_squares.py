"""Least squares on second moments: the weight on the kept inputs that gives the outputs best, with a ridge chosen from the data."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from .._shapes import Float
from ..types import Inputs, Repair
from .error import lacking, residual_of, weighted_sum

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, inf)
"""Ridges to choose from, as fractions of the mean variance; with the last one, the weight does not change."""


def fit(weight: Float[Tensor, "g o i t"], x: Inputs, *, ridge: float | None, intercept: bool | None) -> Repair:
    """Return the repair of `compensation.affine`, and the squared error that it is expected to have on new samples."""
    intercept = x.may_shift if intercept is None else intercept
    problems, ridges = _problems(weight, x, intercept), RIDGES if ridge is None else (ridge,)
    if x.halves:
        halves = [(half, _problems(weight, half, intercept)) for half in x.halves]
        errors = {r: _held_out_error(weight, halves, r, intercept) for r in ridges}
    else:
        errors = {r: sum(_generalised_error(p, r, float(x.count), intercept) for p in problems) for r in ridges}
    best = min(errors, key=lambda r: errors[r])
    return _repair(weight, x, problems, best, intercept)._replace(expected=errors[best])


class Problem(NamedTuple):
    """Normal equations of one group of a contraction; rows are outputs, or outputs and taps if taps share the covariance."""

    start: Float[Tensor, "r n"]
    """The weight at hand, to which the ridge draws."""
    within: Float[Tensor, "n n"]
    """Second moments of the kept inputs."""
    missing: Float[Tensor, "r n"]
    """Second moments of what the weight at hand lacks with the kept inputs."""
    energy: float
    """Second moment of what the weight at hand lacks, summed over outputs."""
    copies: int
    """Number of rows of an output."""


def solved(p: Problem, ridge: float) -> Float[Tensor, "r n"]:
    """Return the weight of least squared error, with a ridge as a fraction of the mean second moment."""
    if ridge == inf:
        return p.start
    damped = _damped(p.within, ridge)
    factor, failed = torch.linalg.cholesky_ex(damped)  # rounding can make it fail: then the pseudo-inverse is used
    if ridge and not bool(failed):
        return p.start + torch.cholesky_solve(p.missing.mT, factor).mT
    return p.start + p.missing @ torch.linalg.pinv(damped, hermitian=True)


def _damped(within: Float[Tensor, "n n"], ridge: float) -> Float[Tensor, "n n"]:
    n = len(within)
    return within + torch.eye(n, dtype=within.dtype, device=within.device) * (ridge * float(within.trace()) / max(n, 1))


def _problems(weight: Float[Tensor, "g o i t"], x: Inputs, intercept: bool) -> list[Problem]:
    """Return the normal equations of each group."""
    covariance, lack, taps = x.covariance, lacking(x), weight.shape[-1]
    assert covariance is not None and lack.cross is not None
    if not intercept and taps > 1 and _is_shared(weight, covariance):  # means correlate the taps
        each = torch.eye(taps, dtype=covariance.dtype, device=covariance.device)
        covariance = torch.stack([torch.kron(c, each) for c in covariance])
    is_shared = _is_shared(weight, covariance)
    energies, out = lack.variance.sum(1), []
    for g, kept in enumerate(x.kept):
        positions = kept if is_shared else kept.repeat_interleave(taps)
        within, missing, energy = covariance[g][positions][:, positions], lack.cross[g][:, kept], energies[g]
        if not intercept:
            means = x.mean[g, kept].expand(-1, taps)
            within = within + means.flatten()[:, None] * means.flatten()
            missing = missing + lack.mean[g][:, None, None] * means
            energy = energy + lack.mean[g].square().sum()
        start, missing = (
            v.movedim(-1, 1).flatten(0, 1) if is_shared else v.flatten(1) for v in (weight[g][:, kept], missing)
        )
        out.append(Problem(start, within, missing, float(energy), taps if is_shared else 1))
    return out


def _is_shared(weight: Float[Tensor, "g o i t"], covariance: Tensor) -> bool:
    """Return whether all taps share the covariance of the channels."""
    return covariance.shape[-1] == weight.shape[2]


def _repair(
    weight: Float[Tensor, "g o i t"], x: Inputs, problems: list[Problem], ridge: float, intercept: bool
) -> Repair:
    kept_weight, (_, outputs, _, taps) = weight * x.kept[:, None, :, None], weight.shape
    new = torch.zeros_like(weight)
    for g, (kept, p) in enumerate(zip(x.kept, problems, strict=True)):
        rows = solved(p, ridge)
        new[g][:, kept] = rows.reshape(outputs, taps, -1).mT if p.copies == taps else rows.reshape(outputs, -1, taps)
    shift = lacking(x).mean - weighted_sum(new - kept_weight, x.mean)
    return Repair(new, shift if intercept else None)


def _held_out_error(
    weight: Float[Tensor, "g o i t"], halves: list[tuple[Inputs, list[Problem]]], ridge: float, intercept: bool
) -> float:
    """Return the mean squared error on the half of the samples that a weight was not fitted to."""
    total = 0.0
    for (half, problems), (other, _) in zip(halves, halves[1:] + halves[:1], strict=True):
        total += residual_of(weight, other, _repair(weight, half, problems, ridge, intercept)).error
    return total / len(halves)


def _generalised_error(p: Problem, ridge: float, count: float, intercept: bool) -> float:
    """Return the mean squared error on new samples by generalised cross-validation: RSS / (1 − df / n)²."""
    if ridge == inf:
        error, freedom = p.energy, 0.0
    else:
        change = solved(p, ridge) - p.start
        error = p.energy - 2 * float((change * p.missing).sum()) + float(((change @ p.within) * change).sum())
        freedom = p.copies * _degrees_of_freedom(p.within, ridge)
    left = 1 - (freedom + intercept) / count
    return max(error, 0.0) / left**2 if left > 0 else inf


def _degrees_of_freedom(within: Float[Tensor, "n n"], ridge: float) -> float:
    """Return tr(C (C + λ)⁻¹); the rank if λ is zero."""
    damped = _damped(within, ridge)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not ridge or bool(failed):
        return float(torch.linalg.matrix_rank(within, hermitian=True))
    shrunk = ridge * float(within.trace()) / max(len(within), 1)
    return len(within) - shrunk * float(torch.cholesky_inverse(factor).trace())
