"""Compensation of contractions for the units that a mask removes, and prediction of the remaining error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor

from .._shapes import Float
from ..doors import door
from ..errors import ParamsError, StatsError, nearest, warn
from ..parameters.transforms import check_mask, check_names
from ..program.compiled import conv_groups, site_weight
from ..program.sharded import gather, spread
from ..spec.axis import keep, leaves, size
from ..spec.parts import Site
from ..spec.spec import Spec
from ..stats import check_stats
from ..types import Compensation, Dense, Inputs, Mask, Moments, Paired, Params, Repair, Residual, Stats
from . import methods as compensations
from .methods import output_variance, weighted_sum

ENOUGH = 2
"""Samples for each kept input: with n samples of k inputs, the error of a least-squares estimate grows by about n / (n − k)."""
MOST_NAMED = 3
"""Number of sites that a warning names."""


@door
def compensate(
    params: Params,
    means: Stats | Mapping[str, Tensor | Moments],
    mask: Mask,
    *,
    spec: Spec,
    method: Compensation | None = None,
) -> Params:
    """Compensate all contractions for the units that `mask` removes: rewrite their weights, shift their outputs, or both.

    A shift is added to the bias; without a bias, to the running mean of a BatchNorm that follows; without either, a new bias
    is created, which `forward`, `apply` and `to_module` support.

    Args:
        params: of the spec, not yet pruned.
        means: stats, or site → moments or mean of its input, [size of the axis] or [size of the axis, taps].
        mask: units to remove, not removed yet.
        spec: of the params.
        method: default: `compensation.mean()`.

    Returns:
        New params of the same shapes; `apply` removes the units next. A warning names sites with too few samples for `affine`.

    Raises:
        StatsError: a site that loses inputs has no mean, or lacks statistics that the method needs; the message names it. Or the
            stats are of other params: to use them nevertheless, pass their `sites`.
        ParamsError: a weight cannot be rewritten, and the method has no fallback; or the params do not fit the spec.
        MaskError: the mask does not fit the spec.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 1))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> p = pf.params(model)
    >>> q = pf.compensate(p, {"1": torch.tensor([0.0, 10.0])}, {"0": torch.tensor([True, False])}, spec=spec)
    >>> torch.allclose(q["1.bias"], p["1.bias"] + 10 * p["1.weight"][:, 1])
    True
    """
    method = compensations.mean() if method is None else method
    check_mask(mask, spec)
    check_names(params, spec)
    if isinstance(means, Stats):
        check_stats(means, spec, params)
    if method.repair is None:
        return dict(params)
    return written(params, repairs(params, means, mask, spec=spec, method=method), spec)


@door
def residual(stats: Stats, mask: Mask, *, spec: Spec, method: Compensation | None = None) -> dict[str, Residual]:
    """Predict the errors of the outputs of contractions when units are removed, before anything is pruned.

    With D the dense weight minus the compensated one (zero at removed inputs), the error is tr(D C Dᵀ) + ‖D μ − shift‖²: for
    `affine(0.0)`, tr(W_P (C_PP − C_PS C_SS⁻¹ C_SP) W_Pᵀ). It is the error of one layer on dense inputs: errors of earlier
    layers are not included. The prediction is exact over the measured samples for layers without taps. The taps of a
    convolution are taken as uncorrelated; without covariances, so are the channels.

    Args:
        stats: of the params to prune; with `covariance=True` for exact values.
        mask: units to remove, not removed yet.
        spec: of the stats.
        method: default: `compensation.mean()`.

    Returns:
        Site that loses inputs → `Residual(error, signal)`, sums over its outputs; `.relative` is their ratio. Both are of the
        measured samples: where a warning says that these are few, the error on new data is larger.

    Raises:
        StatsError, MaskError, ParamsError: as in `compensate`.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> spec, x = pf.trace(model, (torch.randn(2, 2),)), torch.randn(64, 2)
    >>> stats = pf.collect_stats(pf.params(model), [x], spec=spec, covariance=True)
    >>> pf.residual(stats, {"0": torch.tensor([True, True])}, spec=spec)
    {}
    >>> lost = pf.residual(stats, {"0": torch.tensor([True, False])}, spec=spec)["1"]
    >>> expected = model[1].weight[0, 1].double() ** 2 * stats.sites["1"].m2[1] / 64
    >>> torch.isclose(expected, torch.tensor(lost.error).double())
    tensor(True)
    """
    method = compensations.mean() if method is None else method
    check_mask(mask, spec)
    check_stats(stats, spec)
    return residuals(repairs(dict(stats.params), stats, mask, spec=spec, method=method))


class Repaired(NamedTuple):
    """A site that loses inputs, and its repair."""

    site: Site
    weight: Tensor
    """[g, out, in, taps]"""
    inputs: Inputs
    repair: Repair


def repairs(
    params: Params,
    means: Stats | Mapping[str, Tensor | Moments],
    mask: Mask,
    *,
    spec: Spec,
    method: Compensation,
    dense: Mapping[str, Paired] | None = None,
) -> Iterator[Repaired]:
    """Yield a method's repair of each site that loses inputs.

    Sites are repaired one by one, so that a single weight of DTensors is gathered at any time. At the end, a warning names the
    sites with too few samples for a weight that is estimated from the covariance.

    Args:
        params, means, mask, spec, method: as in `compensate`.
        dense: site → moments in the dense network and in this one; repairs then aim at the outputs of the dense network.
    """
    moments, few = means.sites if isinstance(means, Stats) else means, list[str]()
    for site in affected(spec, mask):
        inputs, weight = site_inputs(site, moments, mask, params, spec), site_weight(params, site, spec=spec)
        if dense is not None:
            inputs = inputs._replace(dense=_dense_inputs(dense[site.name], site, spec, inputs))
        repair = _repair(weight, inputs, site, spec, method)
        yield Repaired(site, weight, inputs, repair)
        few += _few_samples(site, moments[site.name], inputs, repair, method)
    if few:
        sites = "; ".join(few[:MOST_NAMED]) + (
            f"; and {len(few) - MOST_NAMED} more sites" if len(few) > MOST_NAMED else ""
        )
        warn(
            f"compensation {method.name!r} estimates weights from few samples, and may fit their noise: {sites}; give "
            f"collect_stats more batches ({ENOUGH} samples for each kept input, or more), a larger ridge such as "
            "compensation.affine(1e-1), or take compensation.mean()",
        )


def _few_samples(
    site: Site, moments: Tensor | Moments, inputs: Inputs, repair: Repair, method: Compensation
) -> Iterator[str]:
    """Yield a text about a site whose new weight is estimated from a covariance of too few samples."""
    kept = int(inputs.kept.sum(1).max())
    estimated = repair.weight is not None and "covariance" in method.needs
    if estimated and isinstance(moments, Moments) and moments.count < ENOUGH * kept:
        yield f"site {site.name!r} has {moments.count} samples for {kept} kept inputs"


def affected(spec: Spec, mask: Mask) -> list[Site]:
    """Return the sites that lose inputs."""
    return [
        s for s in spec.sites.values() if any(leaf in mask and not bool(mask[leaf].all()) for leaf in leaves(s.axis))
    ]


def written(params: Params, repaired: Iterable[Repaired], spec: Spec) -> Params:
    """Return new params with the repairs applied."""
    out = dict(params)
    for r in repaired:
        if r.repair.weight is not None:
            _write_weight(out, r.site, r.repair.weight, spec)
        if r.repair.shift is not None:
            _add_shift(out, r.site, r.repair.shift.flatten(), spec)
    return out


def residuals(repaired: Iterable[Repaired]) -> dict[str, Residual]:
    """Return site → the error that remains after its repair."""
    return {r.site.name: _residual(r.weight, r.inputs, r.repair) for r in repaired}


def _residual(weight: Float[Tensor, "g o i t"], x: Inputs, repair: Repair) -> Residual:
    """Return the squared error of a site's outputs after a repair, and their variance in the dense network."""
    repaired = (weight if repair.weight is None else repair.weight) * x.kept[:, None, :, None]
    target = x.mean if x.dense is None else x.dense.mean
    bias = (
        weighted_sum(weight, target) - weighted_sum(repaired, x.mean) - (0.0 if repair.shift is None else repair.shift)
    )
    if x.dense is None or x.dense.cross is None:
        error, signal = output_variance(weight - repaired, x).sum(), output_variance(weight, x).sum()
    else:
        signal = output_variance(weight, x._replace(covariance=x.dense.covariance)).sum()
        cross = einsum(weight, x.dense.cross, repaired, "g o i t, g i j, g o j t -> ")
        # E‖W x − W' x'‖² about the means; rounding can make a small difference negative
        error = (signal - 2 * cross + output_variance(repaired, x).sum()).clamp_min(0)
    return Residual(float(error + bias.square().sum()), float(signal))


def check_covariance(x: Inputs, site: Site, purpose: str) -> Tensor:
    if x.covariance is None:
        raise StatsError(f"{purpose} needs the covariance of site {site.name!r}; use collect_stats(…, covariance=True)")
    return x.covariance


def _repair(weight: Tensor, x: Inputs, site: Site, spec: Spec, method: Compensation) -> Repair:
    """Return the repair by the method, or by its fallback if the weight cannot be rewritten.

    Raises:
        StatsError: the method needs a covariance that was not collected.
        ParamsError: the weight cannot be rewritten, and the method has no fallback.
    """
    if method.repair is None:
        return Repair(None, None)
    if "covariance" in method.needs:
        check_covariance(x, site, f"compensation {method.name!r}")
    if (repair := method.repair(weight, x)).weight is None or not (why := not_ours(site, spec)):
        return repair
    if method.fallback is None:
        raise ParamsError(
            f"compensation {method.name!r} cannot rewrite the weight of site {site.name!r}: {why}; choose a fallback, such as "
            f"compensation.{method.name}(fallback=compensation.mean())"
        )
    return _repair(weight, x, site, spec, method.fallback)


def not_ours(site: Site, spec: Spec) -> str:
    """Return the reason why a site's weight cannot be rewritten; empty if it can."""
    if site.weight not in spec.parameters:
        return "it is computed from other tensors"
    for i in spec.program.instructions:
        if site.weight in i.reads() and i.name not in site.calls:
            return f"{site.weight!r} also serves {i.module or i.name!r}"
    return ""


def site_inputs(site: Site, given: Mapping[str, Tensor | Moments], mask: Mask, params: Params, spec: Spec) -> Inputs:
    """Return the mask and moments of a site's inputs, arranged by the groups of its weight."""
    device = next(t.device for n, t in params.items() if n in spec.parameters)
    g = size(site.groups, spec.sizes)
    kept = rearrange(keep(site.axis, mask, spec.sizes).to(device), "(g i) -> g i", g=g)
    mean = rearrange(_means(site, given, spec).to(device).double(), "(g i) t -> g i t", g=g)
    if not bool((torch.isfinite(mean) | kept[..., None]).all()):
        raise StatsError(f"the mean of site {site.name!r} is not finite; look for NaN in the statistics")
    moments = given[site.name]
    if isinstance(moments, Tensor):
        return Inputs(kept, mean, None, None)
    variance = rearrange(moments.m2.to(device).double() / moments.count, "(g i) -> g i", g=g)
    if moments.scatter is None:
        return Inputs(kept, mean, variance, None)
    return Inputs(kept, mean, variance, _blocks(moments.scatter / moments.count, g).to(device))


def _dense_inputs(pair: Paired, site: Site, spec: Spec, x: Inputs) -> Dense:
    """Return the moments of a site's inputs in the dense network, arranged by the groups of its weight."""
    g, device = len(x.kept), x.mean.device
    mean = rearrange(_means(site, {site.name: pair.dense}, spec).to(device).double(), "(g i) t -> g i t", g=g)
    if pair.cross is None or pair.dense.scatter is None:
        return Dense(mean)
    n = pair.dense.count
    return Dense(mean, _blocks(pair.dense.scatter / n, g).to(device), _blocks(pair.cross / n, g).to(device))


def _blocks(c: Tensor, g: int) -> Tensor:
    """Return the blocks on the diagonal: [(g i), (g i)] → [g, i, i]."""
    i = len(c) // g
    return torch.stack([c[n * i : (n + 1) * i, n * i : (n + 1) * i] for n in range(g)])


def _means(site: Site, given: Mapping[str, Tensor | Moments], spec: Spec) -> Tensor:
    """Return the means of a site's inputs, [size of the axis, taps or 1].

    Raises:
        StatsError: there is no mean, or its shape does not fit the axis.
    """
    if site.name not in given:
        raise StatsError(
            f"site {site.name!r} loses inputs, but there is no mean for it; collect statistics for it{nearest(site.name, given)}"
        )
    moments, geometry = given[site.name], site.geometry
    means = moments if isinstance(moments, Tensor) else moments.mean if moments.taps is None else moments.taps
    n, taps = size(site.axis, spec.sizes), 1 if geometry is None else prod(geometry.kernel)
    if tuple(means.shape) not in ((n,), (n, taps)):
        raise StatsError(
            f"the mean of site {site.name!r} has shape {tuple(means.shape)}; its axis has {n} positions: it must be [{n}]"
            + (f" or [{n}, {taps}]" if geometry is not None else "")
        )
    if means.ndim == 2:
        return means
    # An output of a transposed convolution sums over only one in prod(stride) taps.
    return means[:, None] / (prod(geometry.stride) if geometry is not None and geometry.transposed else 1)


def _write_weight(out: Params, site: Site, weight: Float[Tensor, "g o i t"], spec: Spec) -> None:
    """Write a new weight, and its tied copies, into `out`."""
    dense = out[site.weight]
    left, right = (side.strip() for side in site.pattern.split("->"))
    kernel = [c for c in left.split() if c.startswith("k")]
    kernel_sizes = dict(zip(kernel, dense.shape[dense.ndim - len(kernel) :], strict=True))
    rewritten = rearrange(weight, f"{right} -> {left}", **conv_groups(site, spec), **kernel_sizes)
    rewritten = spread(rewritten.to(dense.dtype), dense)
    for name in [site.weight, *(n for n, first in spec.tied.items() if first == site.weight and n in out)]:
        out[name] = rewritten


def _add_shift(out: Params, site: Site, shift: Tensor, spec: Spec) -> None:
    """Add a shift of the outputs to the bias, the running mean of a BatchNorm, or a new bias in `out`.

    Raises:
        ParamsError: the bias is shared with another contraction.
    """
    if site.bias is not None:
        target, sign = site.bias, 1.0
        users = [i for i in spec.program.instructions if site.bias in i.reads()]
        if others := [i.module or i.name for i in users if i.name not in site.calls]:
            raise ParamsError(
                f"bias {site.bias!r} serves {site.name!r} and {others[0]!r}, which need different shifts; "
                "use method=compensation.none(), or give each a separate bias"
            )
    elif site.norm is not None:
        target, sign = site.norm, -1.0
    else:
        target, sign = site.slot, 1.0
    current = out.get(target)
    shifted = sign * shift if current is None else gather(current).double() + sign * shift
    like = (
        current
        if current is not None
        else next(t for n, t in out.items() if n in spec.parameters and t.is_floating_point())
    )
    shifted = spread(shifted.to(like.dtype).to(like.device), like)
    for name in [target, *(n for n, first in spec.tied.items() if first == target and n in out)]:
        out[name] = shifted
