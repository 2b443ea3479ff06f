"""Compensation of contractions for the units that a mask removes, and prediction of the remaining error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..doors import door
from ..errors import ParamsError, StatsError, nearest, warn
from ..parameters.transforms import check_mask, check_names
from ..program.compiled import site_weight
from ..spec.axis import keep, leaves, size
from ..spec.branches import without
from ..spec.parts import Site
from ..spec.spec import Spec, removed_branches
from ..spec.stacked import stacked_of
from ..stats import check_stats
from ..types import Compensation, Inputs, Mask, Moments, Params, Repair, Residual, Stats
from . import methods as compensations
from .branches import with_means
from .error import residual_of, with_lacking
from .shifts import add_shift, may_shift
from .weights import write_weight

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
    repaired = written(params, repairs(params, means, mask, spec=spec, method=method), spec)
    return with_means(repaired, means if isinstance(means, Stats) else Stats(), mask, spec)


@door
def residual(stats: Stats, mask: Mask, *, spec: Spec, method: Compensation | None = None) -> dict[str, Residual]:
    """Predict the errors of the outputs of contractions when units are removed, before anything is pruned.

    With D the dense weight minus the compensated one (zero at removed inputs), the error is tr(D C Dᵀ) + ‖D μ − shift‖²: for
    `affine(0.0)`, tr(W_P (C_PP − C_PS C_SS⁻¹ C_SP) W_Pᵀ). It is the error of one layer on dense inputs: errors of earlier
    layers are not included. The prediction is exact over the measured samples for layers without taps. The taps of a
    convolution are taken as uncorrelated; without covariances, so are the channels. On new samples, fitted weights do worse: by
    generalised cross-validation, by (1 − parameters / samples)⁻².

    Args:
        stats: of the params to prune; with `covariance=True` for exact values.
        mask: units to remove, not removed yet.
        spec: of the stats.
        method: default: `compensation.mean()`.

    Returns:
        Site that loses inputs → `Residual(error, signal, expected)`, sums over its outputs: `error` is of the measured samples,
        `expected` an estimate for new ones, and `.relative` is its fraction of `signal`.

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
    """[g, out, in, taps], at hand"""
    inputs: Inputs
    repair: Repair
    whole: Repair | None = None
    """The repair of all inputs, if those at hand are only the last of several blocks."""


def repairs(
    params: Params,
    means: Stats | Mapping[str, Tensor | Moments],
    mask: Mask,
    *,
    spec: Spec,
    method: Compensation,
) -> Iterator[Repaired]:
    """Yield a method's repair of each site that loses inputs.

    At the end, a warning names the sites with too few samples for a weight that is estimated from the covariance.

    Args:
        params, means, mask, spec, method: as in `compensate`.
    """
    few, unchanged = list[str](), list[str]()
    for repaired in repairs_of_sites(params, means, mask, spec=spec, method=method):
        yield repaired
        few += few_samples(repaired, method)
        unchanged += [repaired.site.name] if is_unchanged(repaired) else []
    warn_of_few_samples(few, method)
    warn_of_unchanged(unchanged, method)


def repairs_of_sites(
    params: Params,
    means: Stats | Mapping[str, Tensor | Moments],
    mask: Mask,
    *,
    spec: Spec,
    method: Compensation,
) -> Iterator[Repaired]:
    """Yield what `repairs` yields, without its warning.

    Sites are repaired one by one, so that a single weight of DTensors is gathered at any time.
    """
    moments = means.sites if isinstance(means, Stats) else means
    inside = [s for s in affected_experts(spec, mask) if s.name in moments and _has_samples(moments[s.name])]
    for site in (*affected(spec, mask), *inside):
        inputs, weight = site_inputs(site, moments, mask, params, spec), site_weight(params, site, spec=spec)
        yield repaired_by(method, site, weight, inputs, spec)


def few_samples(r: Repaired, method: Compensation) -> Iterator[str]:
    """Yield a text about a site whose new weight is estimated from a covariance of too few samples."""
    columns = int(r.inputs.kept.sum(1).max())
    if r.inputs.covariance is not None and r.inputs.covariance.shape[-1] > r.inputs.kept.shape[1]:
        columns *= r.weight.shape[-1]
    if r.repair.weight is not None and "covariance" in method.needs and r.inputs.count < ENOUGH * columns:
        yield f"site {r.site.name!r} has {r.inputs.count:.0f} samples for {columns} kept inputs"


def warn_of_few_samples(few: Sequence[str], method: Compensation) -> None:
    """Warn once of all sites with too few samples."""
    if few:
        more = f"; and {len(few) - MOST_NAMED} more sites" if len(few) > MOST_NAMED else ""
        warn(
            f"compensation {method.name!r} estimates weights from few samples, and may fit their noise: "
            f"{'; '.join(few[:MOST_NAMED])}{more}; give collect_stats more batches ({ENOUGH} samples for each kept input, or "
            "more), a larger ridge such as compensation.affine(1e-1), or take compensation.mean()",
        )


def is_unchanged(r: Repaired) -> bool:
    """Return whether an expert that loses inputs stays as it is: it has no bias to shift."""
    return r.site.expert is not None and r.repair.weight is None and r.repair.shift is None


def warn_of_unchanged(names: Sequence[str], method: Compensation) -> None:
    """Warn once of all contractions of experts that a method leaves as they are."""
    if names:
        warn(
            f"compensation {method.name!r} leaves {len(names)} contractions of experts as they are, such as {names[0]!r}: they have "
            "no bias to shift; compensation.affine() rewrites their weights"
        )


def affected(spec: Spec, mask: Mask) -> list[Site]:
    """Return the sites that lose inputs and stay; those of removed branches do not."""
    left = without(spec, removed_branches(spec, mask)).sites
    return [
        spec.sites[n] for n, s in left.items() if any(g in mask and not bool(mask[g].all()) for g in leaves(s.axis))
    ]


def affected_experts(spec: Spec, mask: Mask) -> list[Site]:
    """Return the contractions of experts that lose inputs and stay, in the order of the program."""
    left = {s.call for s in stacked_of(without(spec, removed_branches(spec, mask)))}
    return [
        s.site(e)
        for s in stacked_of(spec)
        if s.call in left and any(g in mask and not bool(mask[g].all()) for g in leaves(s.axis))
        for e in keep(s.experts, mask, spec.sizes).nonzero()[:, 0].tolist()
    ]


def _has_samples(moments: Tensor | Moments) -> bool:
    return isinstance(moments, Tensor) or moments.count > 0


def written(params: Params, repaired: Iterable[Repaired], spec: Spec) -> Params:
    """Return new params with the repairs applied."""
    out = dict(params)
    for r in repaired:
        weight, shift, *_ = r.whole or r.repair
        if weight is not None:
            write_weight(out, r.site, weight, params, spec)
        if shift is not None:
            add_shift(out, r.site, shift.flatten(), spec)
    return out


def residuals(repaired: Iterable[Repaired]) -> dict[str, Residual]:
    """Return site → the error that remains after its repair."""
    return {r.site.name: residual_of(r.weight, r.inputs, r.repair) for r in repaired}


def check_covariance(x: Inputs, site: Site, purpose: str) -> Tensor:
    if x.covariance is None:
        raise StatsError(f"{purpose} needs the covariance of site {site.name!r}; use collect_stats(…, covariance=True)")
    return x.covariance


def repaired_by(method: Compensation, site: Site, weight: Tensor, x: Inputs, spec: Spec) -> Repaired:
    """Return the repair by the method, or by its fallback if the weight cannot be rewritten.

    Raises:
        StatsError: the method needs a covariance that was not collected.
        ParamsError: the weight cannot be rewritten, and the method has no fallback.
    """
    x = with_lacking(weight, x)._replace(may_shift=may_shift(site, spec))
    if method.repair is None:
        return Repaired(site, weight, x, Repair(None, None))
    if "covariance" in method.needs:
        check_covariance(x, site, f"compensation {method.name!r}")
    if (repair := method.repair(weight, x)).weight is None or not (why := not_ours(site, spec)):
        is_stuck = site.expert is not None and not x.may_shift
        return Repaired(site, weight, x, repair._replace(shift=None) if is_stuck else repair)
    if method.fallback is None:
        raise ParamsError(
            f"compensation {method.name!r} cannot rewrite the weight of site {site.name!r}: {why}; choose a fallback, such as "
            f"compensation.{method.name}(fallback=compensation.mean())"
        )
    second = repaired_by(method.fallback, site, weight, x, spec)
    # a second choice creates no bias that the class has no room for
    return second if x.may_shift else second._replace(repair=second.repair._replace(shift=None))


def not_ours(site: Site, spec: Spec) -> str:
    """Return the reason why a site's weight cannot be rewritten; empty if it can. A stacked weight serves its experts only."""
    if site.expert is not None:
        return ""
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
    variance = rearrange(moments.m2.to(device).double() / moments.count, "(g i) -> g i 1", g=g)
    covariance = None if moments.scatter is None else _blocks(moments.scatter / moments.count, g).to(device)
    return Inputs(kept, mean, variance, covariance, moments.count)


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
