"""Moments of one tensor: the statistics of one batch at the input of a site.

Within a batch, sums run in the data's precision about a pivot; the functions return float64, which merges exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..types import Moments

FAR, NEAR = 30.0, 10.0
"""Means further from zero than this many standard deviations are subtracted before the sums (rows: FAR, maps: NEAR)."""

SMALL = 1 << 15
"""Tensors of at most this many elements are summed in float64, which costs next to nothing at this size."""

FEW = 64
"""Number of first rows that the first estimate of the means uses."""

OFF = 8.0
"""The limit in standard deviations for products, whose rounding errors grow with its square."""

ROWS = 1 << 10
"""Number of rows that are added up in the rows' own precision before the partial sums go to float64."""

SAMPLES = 1 << 13
"""Number of samples in one product of a covariance before it is added up in float64."""

LARGE = 1 << 9
"""Maps of at least this many positions are multiplied one by one, without a copy."""

STRIP = 128
"""Number of rows of a covariance that are computed at once; the part above the diagonal is mirrored."""


@torch.fx.wrap
def site_moments(
    x: Tensor,
    dim: int,
    absolute: bool = False,
    covariance: bool = False,
    weights: Tensor | None = None,
) -> Moments:
    """Return moments over all dims but one.

    Args:
        x: [..., d at `dim`, ...], any floating dtype.
        dim: counted from the right.
        absolute: measure the mean of |x|, too.
        covariance: measure the scatter [d, d], too.
        weights: of the positions, of x's shape without `dim`; None: each counts once.
    """
    if weights is not None:
        return _weighted_moments(x, dim, absolute, covariance, weights)
    rows = _rows(x, dim, flat=x.ndim < 3 or x.stride(dim) == 1)
    return _moments_of_rows(rows, rows.numel() // rows.shape[1], absolute, covariance)


def _moments_of_rows(rows: Tensor, count: int, absolute: bool, covariance: bool) -> Moments:
    mean, variance = _stable_mean_variance(rows)
    return Moments(
        count,
        mean,
        variance * count,
        absolute=_absolute_sum(rows) / count if absolute else None,
        scatter=_scatter(rows, mean, variance) if covariance else None,
    )


def _weighted_moments(x: Tensor, dim: int, absolute: bool, covariance: bool, weights: Tensor) -> Moments:
    """Return the moments of the positions with a weight; if each of them counts once, as if the others were not there."""
    w = weights.reshape(-1).to(x.device, torch.float64)
    rows = x.movedim(dim, -1).reshape(-1, x.shape[dim])[w > 0]
    w = w[w > 0]
    d = rows.shape[1]
    if not len(w):
        zero = torch.zeros(d, dtype=torch.float64, device=x.device)
        return Moments(0, zero, zero, None, 0, zero if absolute else None, zero.new_zeros(d, d) if covariance else None)
    if bool((w == 1).all()):
        return _moments_of_rows(_rows(rows, -1, flat=True), len(rows), absolute, covariance)
    count, exact = as_count(w.sum()), rows.double()
    mean = w @ exact / count
    deviations = exact - mean
    return Moments(
        count,
        mean,
        w @ deviations.square(),
        absolute=w @ exact.abs() / count if absolute else None,
        scatter=(w[:, None] * deviations).mT @ deviations if covariance else None,
    )


def _rows(x: Tensor, dim: int, *, flat: bool) -> Tensor:
    """Return x with channels at dim 1, in at least float32 for sums: [n, d] if flat, else maps [n, d, …]."""
    rows = x.movedim(dim, -1).reshape(-1, x.shape[dim]) if flat else x.movedim(dim, 1)
    if rows.numel() <= SMALL:
        return rows.double()
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def _absolute_sum(rows: Tensor) -> Tensor:
    """Return Σ|x| per channel (dim 1), in float64."""
    if rows.ndim > 2:
        return torch.linalg.vector_norm(rows.flatten(2), 1, dim=2).double().sum(0)
    return torch.stack([part.abs().sum(0).double() for part in rows.split(ROWS)]).sum(0)


def _scatter(rows: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return the sum of outer products of deviations from the mean, float64 [d, d].

    Products run in the rows' own precision over `SAMPLES` at a time, one strip of the lower triangle after another, so that
    wide sites need little memory beyond the result.
    """
    d = rows.shape[1]
    out = torch.zeros(d, d, dtype=torch.float64, device=rows.device)
    near, pivot = _subtract_far_means(rows, mean, variance, OFF)
    strips = [(start, min(start + STRIP, d)) for start in range(0, d, STRIP)]
    for columns in _columns(near):
        for start, stop in strips:
            out[start:stop, :stop] += columns[start:stop] @ columns[:stop].mT
    # Products were taken about the pivot: this moves them to the mean.
    out.addr_(mean - pivot, mean - pivot, alpha=-(rows.numel() // d))
    for start, stop in strips:
        out[:start, start:stop] = out[start:stop, :start].mT
        low = out[start:stop, start:stop].tril()
        out[start:stop, start:stop] = low + low.tril(-1).mT
    return out


def cross_scatter(
    a: Tensor, b: Tensor, dim: int, first: Moments, second: Moments, weights: Tensor | None = None
) -> Tensor:
    """Return the sum of outer products of the deviations of two values from their means, float64 [d, d]: rows a, columns b.

    Args:
        a, b: [..., d at `dim`, ...]; of the same shape but for d.
        dim: counted from the right.
        first, second: moments of a and b, with the same weights.
        weights: as for `site_moments`.
    """
    if weights is not None:
        w = weights.reshape(-1, 1).to(a.device, torch.float64)
        rows, others = (v.movedim(dim, -1).reshape(-1, v.shape[dim]).double() for v in (a, b))
        return (w * (rows - first.mean)).mT @ (others - second.mean)
    flat = a.ndim < 3 or a.stride(dim) == 1
    (x, p), (y, q) = (
        _subtract_far_means(_rows(v, dim, flat=flat), m.mean, m.m2 / m.count, OFF) for v, m in ((a, first), (b, second))
    )
    out = torch.zeros(len(p), len(q), dtype=torch.float64, device=x.device)
    for left, right in zip(_columns(x), _columns(y), strict=True):
        wider = torch.promote_types(left.dtype, right.dtype)  # small tensors are summed in float64
        out += left.to(wider) @ right.to(wider).mT
    return out.addr_(first.mean - p, second.mean - q, alpha=-first.count)


def _columns(rows: Tensor) -> Iterator[Tensor]:
    """Yield the rows with channels first, [d, samples], `SAMPLES` at a time; large maps one by one, without a copy."""
    if rows.ndim > 2 and rows[0, 0].numel() >= LARGE:
        yield from rows.flatten(2)
        return
    for part in rows.split(max(1, SAMPLES // max(1, rows[0, 0].numel()))):
        yield part.mT if rows.ndim == 2 else part.movedim(1, 0).flatten(1)


def _stable_mean_variance(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel (dim 1), float64.

    Far means are subtracted before the sums, as they would cost digits; a first estimate from a few samples finds them.
    """
    few, limit = (1, NEAR) if rows.ndim > 2 else (FEW, FAR)
    centred, pivot = _subtract_far_means(rows, *_mean_variance(rows[:few]), limit)
    mean, variance = _mean_variance(centred)
    recentred, shift = _subtract_far_means(centred, mean, variance, limit)
    if recentred is not centred:  # the few first samples were not like the rest
        mean, variance = _mean_variance(recentred)
    return mean + pivot + shift, variance


def _subtract_far_means(rows: Tensor, mean: Tensor, variance: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Subtract the means that are further from zero than `limit` standard deviations.

    Returns:
        The rows, and what was subtracted per channel (zero for near means), float64 [d].
    """
    far = mean.abs() > limit * variance.sqrt()
    if not bool(far.any()):
        return rows, torch.zeros_like(mean)
    shift = torch.where(far, mean, 0.0).to(rows.dtype)
    return rows - shift.reshape(-1, *(1,) * (rows.ndim - 2)), shift.double()


def _mean_variance(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel (dim 1), in float64.

    The kernel adds up rows [n, d] one by one in their own precision: float32 is exact enough for a thousand rows, not for a
    million, so that parts of `ROWS` rows are put together in float64.
    """
    if rows.ndim > 2:
        return _map_mean_variance(rows)
    parts = rows.split(ROWS)
    weight = torch.tensor([p.numel() / rows.numel() for p in parts], dtype=torch.float64, device=rows.device)[:, None]
    means, variances = (torch.stack(v).double() for v in zip(*map(_column_mean_variance, parts), strict=True))
    mean = (means * weight).sum(0)
    return mean, ((variances + (means - mean).square()) * weight).sum(0)


def _column_mean_variance(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per column; on a CPU by the kernel of BatchNorm, ten times as fast as `var_mean`."""
    if rows.device.type == "cpu" and len(rows) > 1:
        return torch.batch_norm_update_stats(rows, None, None, 0.0)
    variance, mean = torch.var_mean(rows, 0, correction=0)
    return mean, variance


def _map_mean_variance(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel of maps [n, d, …]: the sum and norm of each map, added up in float64."""
    maps = maps.flatten(2)
    count = maps.shape[0] * maps.shape[2]
    mean = maps.sum(2).double().sum(0) / count
    square = torch.linalg.vector_norm(maps, dim=2).double().square().sum(0) / count
    return mean, (square - mean.square()).clamp_min(0)  # rounding can make a variance near 0 negative


def as_count(total: Tensor) -> float:
    """Return a sum of weights, as an int where it is one."""
    n = float(total)
    return int(n) if n.is_integer() else n


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Merge moments by Chan's parallel formula, in float64; a field that one side lacks is missing from the result, too."""
    if not a.count or not b.count:  # a batch of nothing but padding
        return b if not a.count else a
    n = a.count + b.count
    delta, weight = b.mean - a.mean, a.count * b.count / n
    taps, k, absolute, scatter = None, a.tap_count + b.tap_count, None, None
    if a.taps is not None and b.taps is not None:
        taps = a.taps + (b.taps - a.taps) * (b.tap_count / k)
    if a.absolute is not None and b.absolute is not None:
        absolute = a.absolute + (b.absolute - a.absolute) * (b.count / n)
    if a.scatter is not None and b.scatter is not None:
        scatter = torch.add(a.scatter, b.scatter).addr_(delta, delta, alpha=weight)
    mean, m2 = a.mean + delta * (b.count / n), a.m2 + b.m2 + delta.square() * weight
    return Moments(n, mean, m2, taps, k, absolute, scatter)
