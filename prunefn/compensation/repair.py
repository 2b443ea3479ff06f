"""Compensate contractions for what a mask removes, and predict what is lost all the same."""

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
"""Samples for each kept input: with n samples for k inputs the error of a least-squares estimate grows by about n / (n − k)."""
MOST_NAMED = 3
"""Sites that a warning names."""


@door
def compensate(
    params: Params,
    means: Stats | Mapping[str, Tensor | Moments],
    mask: Mask,
    *,
    spec: Spec,
    method: Compensation | None = None,
) -> Params:
    """Make all contractions up for the units that `mask` removes: rewrite their weights, shift their outputs, or both.

    A shift goes into the bias; without one, into the running mean of a BatchNorm that follows; without either, a new
    bias is created, which `forward`, `apply` and `to_module` carry.

    Args:
        params: of the spec, not yet pruned.
        means: stats, or site → moments or mean of its input, [size of the axis] or [size of the axis, taps].
        mask: what is about to be removed.
        spec: of the params.
        method: default `compensation.mean()`.

    Returns:
        New params of the same shapes; `apply` them next. A warning says where `affine` has few samples for its estimate.

    Raises:
        StatsError: a site that loses inputs has no mean, or what the method needs was not measured; the message names it. Or
            stats are of other params: to use them all the same, give their `sites`.
        ParamsError: a weight cannot be rewritten, and the method does not say what to do otherwise.
        MaskError, ParamsError: something does not fit the spec.

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
    """Predict what the outputs of contractions lose when units go, before anything is pruned.

    With D the dense weight less the compensated one (zero at removed inputs), the error is tr(D C Dᵀ) + ‖D μ − shift‖²: for
    `affine(0.0)`, tr(W_P (C_PP − C_PS C_SS⁻¹ C_SP) W_Pᵀ). Of one layer, given dense inputs: errors of the layers before it come
    on top. Exact over the measured samples for layers without taps; a convolution's taps are taken as uncorrelated, and without
    covariances so are the channels.

    Args:
        stats: of the params that are to be pruned; with `covariance=True` for exact numbers.
        mask: what is about to be removed.
        spec: of the stats.
        method: default `compensation.mean()`.

    Returns:
        Site that loses inputs → `Residual(error, signal)`, sums over its outputs; `.relative` is their ratio. It is of the
        measured samples: where a warning says that they are few, new data loses more.

    Raises:
        StatsError, MaskError, ParamsError: as for `compensate`.

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
    """A site that loses inputs: as it is, and what is done to it."""

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
    """What a method does to each of the sites that lose inputs; given what they are in the dense network, towards its outputs.

    One by one, so that of DTensors a single weight is there in whole at any time. At the end a warning names the sites where too few
    samples were measured for a weight that is estimated from the covariance.
    """
    given, few = means.sites if isinstance(means, Stats) else means, list[str]()
    for site in affected(spec, mask):
        inputs, weight = site_inputs(site, given, mask, params, spec), site_weight(params, site, spec=spec)
        if dense is not None:
            inputs = inputs._replace(dense=_dense(dense[site.name], site, spec, inputs))
        repair = _repair(weight, inputs, site, spec, method)
        yield Repaired(site, weight, inputs, repair)
        few += _few_samples(site, given[site.name], inputs, repair, method)
    if few:
        named = "; ".join(few[:MOST_NAMED]) + (
            f"; and {len(few) - MOST_NAMED} more sites" if len(few) > MOST_NAMED else ""
        )
        warn(
            f"compensation {method.name!r} estimates weights from few samples, and may fit their noise: {named}; give "
            f"collect_stats more batches ({ENOUGH} samples for each kept input, or more), a larger ridge such as "
            "compensation.affine(1e-1), or take compensation.mean()",
        )


def _few_samples(
    site: Site, found: Tensor | Moments, inputs: Inputs, repair: Repair, method: Compensation
) -> Iterator[str]:
    """What to say of a site whose new weight follows from a covariance of few samples."""
    kept = int(inputs.kept.sum(1).max())
    estimated = repair.weight is not None and "covariance" in method.needs
    if estimated and isinstance(found, Moments) and found.count < ENOUGH * kept:
        yield f"site {site.name!r} has {found.count} samples for {kept} kept inputs"


def affected(spec: Spec, mask: Mask) -> list[Site]:
    """The sites that lose inputs."""
    return [
        s for s in spec.sites.values() if any(leaf in mask and not bool(mask[leaf].all()) for leaf in leaves(s.axis))
    ]


def written(params: Params, repaired: Iterable[Repaired], spec: Spec) -> Params:
    """New params with the repairs."""
    out = dict(params)
    for r in repaired:
        if r.repair.weight is not None:
            _rewrite(out, r.site, r.repair.weight, spec)
        if r.repair.shift is not None:
            _add(out, r.site, r.repair.shift.flatten(), spec)
    return out


def residuals(repaired: Iterable[Repaired]) -> dict[str, Residual]:
    """What the repairs leave of the error."""
    return {r.site.name: _residual(r.weight, r.inputs, r.repair) for r in repaired}


def _residual(weight: Float[Tensor, "g o i t"], x: Inputs, repair: Repair) -> Residual:
    new = (weight if repair.weight is None else repair.weight) * x.kept[:, None, :, None]
    target = x.mean if x.dense is None else x.dense.mean
    bias = weighted_sum(weight, target) - weighted_sum(new, x.mean) - (0.0 if repair.shift is None else repair.shift)
    if x.dense is None or x.dense.cross is None:
        error, signal = output_variance(weight - new, x).sum(), output_variance(weight, x).sum()
    else:
        signal = output_variance(weight, x._replace(covariance=x.dense.covariance)).sum()
        both = einsum(weight, x.dense.cross, new, "g o i t, g i j, g o j t -> ")
        error = (signal - 2 * both + output_variance(new, x).sum()).clamp_min(0)
    return Residual(float(error + bias.square().sum()), float(signal))


def _repair(weight: Tensor, x: Inputs, site: Site, spec: Spec, method: Compensation) -> Repair:
    """By the method, or by what it says to do where the weight cannot be rewritten."""
    if method.repair is None:
        return Repair(None, None)
    if "covariance" in method.needs and x.covariance is None:
        raise StatsError(
            f"compensation {method.name!r} needs the covariance of site {site.name!r}; use collect_stats(…, covariance=True)"
        )
    repair = method.repair(weight, x)
    if repair.weight is None or not (why := not_ours(site, spec)):
        return repair
    if method.otherwise is None:
        raise ParamsError(
            f"compensation {method.name!r} cannot rewrite the weight of site {site.name!r}: {why}; say what to do there, such as "
            f"compensation.{method.name}(otherwise=compensation.mean())"
        )
    return _repair(weight, x, site, spec, method.otherwise)


def not_ours(site: Site, spec: Spec) -> str:
    """Why a site's weight cannot be rewritten; empty if it can."""
    if site.weight not in spec.parameters:
        return "it is computed from other tensors"
    for i in spec.program.instructions:
        if site.weight in i.reads() and i.name not in site.calls:
            return f"{site.weight!r} also serves {i.module or i.name!r}"
    return ""


def site_inputs(site: Site, given: Mapping[str, Tensor | Moments], mask: Mask, params: Params, spec: Spec) -> Inputs:
    """What is known of a site, arranged as its weight is."""
    device = next(t.device for n, t in params.items() if n in spec.parameters)
    g = size(site.groups, spec.sizes)
    kept = rearrange(keep(site.axis, mask, spec.sizes).to(device), "(g i) -> g i", g=g)
    mean = rearrange(_means(site, given, spec).to(device).double(), "(g i) t -> g i t", g=g)
    if not bool((torch.isfinite(mean) | kept[..., None]).all()):
        raise StatsError(f"the mean of site {site.name!r} is not finite; look for NaN in the statistics")
    found = given[site.name]
    if isinstance(found, Tensor):
        return Inputs(kept, mean, None, None)
    variance = rearrange(found.m2.to(device).double() / found.count, "(g i) -> g i", g=g)
    if found.scatter is None:
        return Inputs(kept, mean, variance, None)
    return Inputs(kept, mean, variance, _blocks(found.scatter / found.count, g).to(device))


def _dense(found: Paired, site: Site, spec: Spec, x: Inputs) -> Dense:
    """What a site is in the dense network, arranged as its weight is."""
    g, device = len(x.kept), x.mean.device
    mean = rearrange(_means(site, {site.name: found.dense}, spec).to(device).double(), "(g i) t -> g i t", g=g)
    if found.cross is None or found.dense.scatter is None:
        return Dense(mean)
    n = found.dense.count
    return Dense(mean, _blocks(found.dense.scatter / n, g).to(device), _blocks(found.cross / n, g).to(device))


def _blocks(c: Tensor, g: int) -> Tensor:
    """The blocks on the diagonal: [(g i), (g i)] → [g, i, i]."""
    i = len(c) // g
    return torch.stack([c[n * i : (n + 1) * i, n * i : (n + 1) * i] for n in range(g)])


def _means(site: Site, given: Mapping[str, Tensor | Moments], spec: Spec) -> Tensor:
    """[size of the axis, taps or 1]"""
    if site.name not in given:
        raise StatsError(
            f"site {site.name!r} loses inputs, but there is no mean for it; collect statistics for it{nearest(site.name, given)}"
        )
    found, geometry = given[site.name], site.geometry
    means = found if isinstance(found, Tensor) else found.mean if found.taps is None else found.taps
    n, taps = size(site.axis, spec.sizes), 1 if geometry is None else prod(geometry.kernel)
    if tuple(means.shape) not in ((n,), (n, taps)):
        raise StatsError(
            f"the mean of site {site.name!r} has shape {tuple(means.shape)}; its axis has {n} positions: it must be [{n}]"
            + (f" or [{n}, {taps}]" if geometry is not None else "")
        )
    if means.ndim == 2:
        return means
    # an output of a transposed convolution meets only every s-th tap
    return means[:, None] / (prod(geometry.stride) if geometry is not None and geometry.transposed else 1)


def _rewrite(out: Params, site: Site, weight: Float[Tensor, "g o i t"], spec: Spec) -> None:
    """Put a new weight in a dict that is ours."""
    old = out[site.weight]
    left, right = (side.strip() for side in site.pattern.split("->"))
    kernel = [c for c in left.split() if c.startswith("k")]
    known = dict(zip(kernel, old.shape[old.ndim - len(kernel) :], strict=True))
    new = rearrange(weight, f"{right} -> {left}", **conv_groups(site, spec), **known)
    new = spread(new.to(old.dtype), old)
    for name in [site.weight, *(n for n, first in spec.tied.items() if first == site.weight and n in out)]:
        out[name] = new


def _add(out: Params, site: Site, shift: Tensor, spec: Spec) -> None:
    """Put the shift where it belongs, in a dict that is ours."""
    if site.bias is not None:
        target, sign = site.bias, 1.0
        users = [i for i in spec.program.instructions if site.bias in i.reads()]
        if others := [i.module or i.name for i in users if i.name not in site.calls]:
            raise ParamsError(
                f"bias {site.bias!r} serves {site.name!r} and {others[0]!r}, which need different shifts; "
                "use method=compensation.none(), or give each a bias of its own"
            )
    elif site.norm is not None:
        target, sign = site.norm, -1.0
    else:
        target, sign = site.slot, 1.0
    old = out.get(target)
    new = sign * shift if old is None else gather(old).double() + sign * shift
    like = old if old is not None else next(t for n, t in out.items() if n in spec.parameters and t.is_floating_point())
    new = spread(new.to(like.dtype).to(like.device), like)
    for name in [target, *(n for n, first in spec.tied.items() if first == target and n in out)]:
        out[name] = new
