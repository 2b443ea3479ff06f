"""Helpers of several criteria: from values at positions of a tensor's dim or of a site to values of a group's units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from .._shapes import Float, Int64
from ..errors import StatsError
from ..frozen_dict import FrozenDict
from ..parameters.effective import effective, reader
from ..program.compiled import site_weight
from ..spec.axis import Axis, leaves, positions
from ..spec.parts import Site
from ..spec.spec import Spec
from ..spec.stacked import expert_sites, site_named
from ..stats.fingerprint import spec_of as spec_of
from ..types import Collector, Criterion, Moments, Scores, Stats

CHUNK = 512
"""Number of units that are compared with all others at once."""


@lru_cache(maxsize=4096)
def index_map(axis: Axis, group: str, sizes: FrozenDict[str, int]) -> Int64[Tensor, "units k"]:
    """Return the k positions of each unit of a group along an axis: int64 [units, k]."""
    return positions(axis, group, sizes)


def per_unit(values: Float[Tensor, " positions"], axis: Axis, group: str, spec: Spec) -> Float[Tensor, "units k"]:
    """Return the values of each unit's k positions, [units, k], from the values along an axis."""
    return values[index_map(axis, group, spec.sizes).to(values.device)]


def groups_of(axis: Axis, spec: Spec) -> list[str]:
    """Return the groups in an axis, each once."""
    return [g for g in dict.fromkeys(leaves(axis)) if g in spec.groups]


def wrapped(name: str, score: Callable[[Stats], Scores], *inner: Criterion) -> Criterion:
    """Return a criterion on the scores of inner criteria, with the needs and collectors of all of them."""
    needs = tuple(dict.fromkeys(n for c in inner for n in c.needs))
    collectors: dict[Collector, None] = dict.fromkeys(k for c in inner for k in c.collectors)
    return Criterion(name, score, needs, tuple(collectors), on_request=any(c.on_request for c in inner))


# ---- weights


def member_sums(spec: Spec, values: Callable[[str], Tensor], *, bias: bool = True) -> dict[str, Tensor]:
    """Return the sum over the unit's slice of every effective tensor: group → [tensors, units].

    Args:
        spec: of the groups.
        values: effective tensor (see `prunefn.parameters.effective`) → values of its shape; called once for each.
        bias: count biases, too.
    """
    sums: dict[str, list[Tensor]] = {}
    for tensor in effective(spec):
        if tensor.bias and not bias:
            continue
        elements = values(tensor.name)
        for d, axis in enumerate(tensor.axes):
            others = [other for other in range(elements.ndim) if other != d]
            if groups := groups_of(axis, spec):
                slices = elements.sum(others) if others else elements
                for group in groups:
                    sums.setdefault(group, []).append(per_unit(slices, axis, group, spec).sum(1))
    return {g: torch.stack(sums[g]) for g in spec.groups if g in sums}


def filters(stats: Stats, group: str) -> Float[Tensor, "units weights"] | None:
    """Return the signed effective weights that produce each unit, concatenated over weights.

    These are the unit's slices of all weights (not biases) with the group in their output dim. Without such weights
    (embeddings), the slices of all weights of two dims and more are taken; without those, the result is None.
    """
    spec, value = spec_of(stats), weight_reader(stats)
    matrices = [(e, d) for e in effective(spec) if len(e.axes) > 1 for d in e.dims(group)]
    producers = [(e, d) for e, d in matrices if e.roles[d] == "out"] or matrices
    if not producers:
        return None
    slices = []
    for tensor, dim in producers:
        w = value(tensor.name).movedim(dim, 0)
        slices.append(w[index_map(tensor.axes[dim], group, spec.sizes).to(w.device)].flatten(1))
    return torch.cat(slices, 1)


def weight_reader(stats: Stats) -> Callable[[str], Tensor]:
    """Return a function from the name of an effective tensor to its value in float64, detached."""
    value = reader(stats.params, spec=spec_of(stats))
    return lambda name: value(name).detach().double()


# ---- sites


def measured(stats: Stats, criterion: str, call: str, need: str = "moments") -> Mapping[str, Moments]:
    """Return the sites' moments, checked to hold the statistics that the criterion needs.

    Args:
        stats: of `collect_stats`.
        criterion: name of the criterion, for messages.
        call: expression that makes the criterion, for messages.
        need: "moments", "absolute" or "covariance".

    Raises:
        StatsError: something was not collected, or contains NaN; the text says how to collect it.

    Experts that no token chose are left out.
    """
    fix = f"use collect_stats(params, batches, spec=spec, criterion=criteria.{call})"
    if not stats.sites:
        raise StatsError(
            f"criterion {criterion!r} needs {need}: pass batches to collect_stats, and a `where` that matches sites; {fix}"
        )
    for name, m in stats.sites.items():
        if (need == "absolute" and m.absolute is None) or (need == "covariance" and m.scatter is None):
            what = {"absolute": "mean of |x|", "covariance": "covariance"}[need]
            raise StatsError(f"criterion {criterion!r} needs the {what} of site {name!r}; {fix}")
        if bool(torch.isnan(m.m2).any()):
            raise StatsError(f"the moments of site {name!r} contain NaN")
    return {n: m for n, m in stats.sites.items() if m.count or n in spec_of(stats).sites}


def over_sites(
    sites: Mapping[str, Moments],
    spec: Spec,
    values: Callable[[Site, Moments], Tensor],
    positions: Callable[[Tensor], Tensor],
) -> Scores:
    """Return group → [units], the mean over sites of each unit's score at a site.

    The experts of one stacked weight are one site: the mean over its experts by the tokens that they get.

    Args:
        sites: site → moments.
        spec: of the sites.
        values: (site, moments) → one value for each position of the site.
        positions: values of the units' positions [units, k] → scores [units], such as `mean_positions`.
    """
    totals, per_site = counts_of_stacks(sites, spec), dict[str, dict[str, Tensor]]()
    for name, moments in sites.items():
        site = site_named(spec, name)
        site_values, stack = values(site, moments), name if site.expert is None else site.weight
        for group in groups_of(site.axis, spec):
            found, share = positions(per_unit(site_values, site.axis, group, spec)), share_of(site, moments, totals)
            before = per_site.setdefault(group, {})
            before[stack] = found * share + before[stack] if stack in before else found * share
    return {g: torch.stack(list(per_site[g].values())).mean(0) for g in spec.groups if g in per_site}


def counts_of_stacks(sites: Mapping[str, Moments], spec: Spec) -> dict[str, float]:
    """Return stacked weight → positions of all its experts."""
    totals = dict[str, float]()
    for site, m in ((expert_sites(spec)[n], m) for n, m in sites.items() if n not in spec.sites):
        totals[site.weight] = totals.get(site.weight, 0.0) + m.count
    return totals


def share_of(site: Site, m: Moments, totals: Mapping[str, float]) -> float:
    """Return the fraction of the positions of all experts that an expert gets; 1 for other sites."""
    return 1.0 if site.expert is None else m.count / totals[site.weight]


def mean_positions(values: Float[Tensor, "units k"]) -> Float[Tensor, " units"]:
    """Return the mean over each unit's positions, so that units of one and of many positions are comparable."""
    return values.mean(1)


def sum_positions(values: Float[Tensor, "units k"]) -> Float[Tensor, " units"]:
    """Return the sum over each unit's positions, as all of them are removed together."""
    return values.sum(1)


def column_squares(stats: Stats, site: Site) -> Float[Tensor, " positions"]:
    """Return ‖W[:, j]‖² at each position j of a site's axis, summed over outputs and taps."""
    return site_weight(stats.params, site, spec=spec_of(stats)).square().sum((1, 3)).flatten()


# ---- collectors


def collected(stats: Stats, collector: Collector, criterion: str, call: str) -> Mapping[str, Tensor]:
    """Return the sums over samples of a collector.

    Raises:
        StatsError: the statistics were collected without it.
    """
    spec_of(stats)
    if collector.name not in stats.sums:
        collected_names = f"; the statistics have {', '.join(map(repr, stats.sums))}" if stats.sums else ""
        raise StatsError(
            f"criterion {criterion!r} needs {collector.name!r}, which was not collected{collected_names}; use "
            f"collect_stats(params, batches, spec=spec, criterion=criteria.{call})"
        )
    return stats.sums[collector.name]
