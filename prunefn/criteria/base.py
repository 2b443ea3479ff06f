"""What several criteria share: from positions of a tensor's dim or of a site to units of a group."""

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
from ..types import Collector, Criterion, Moments, Scores, Stats

CHUNK = 512
"""So many units are compared with all others at once."""


@lru_cache(maxsize=4096)
def index_map(axis: Axis, group: str, sizes: FrozenDict[str, int]) -> Int64[Tensor, "units k"]:
    """The k positions of an axis at which each unit of a group stands: int64 [units, k]."""
    return positions(axis, group, sizes)


def per_unit(values: Float[Tensor, " positions"], axis: Axis, group: str, spec: Spec) -> Float[Tensor, "units k"]:
    """Values at the positions of an axis → values of the units' positions: [units, k]."""
    return values[index_map(axis, group, spec.sizes).to(values.device)]


def spec_of(stats: Stats) -> Spec:
    """The spec of the statistics.

    Raises:
        StatsError: they are empty.
    """
    if stats.spec is None:
        raise StatsError("the statistics are empty; use collect_stats(params, batches, spec=spec)")
    return stats.spec


def groups_of(axis: Axis, spec: Spec) -> list[str]:
    """The groups in an axis, each once."""
    return [g for g in dict.fromkeys(leaves(axis)) if g in spec.groups]


def wrapped(name: str, score: Callable[[Stats], Scores], *inner: Criterion) -> Criterion:
    """A criterion on the scores of others: it needs all that they need."""
    needs = tuple(dict.fromkeys(n for c in inner for n in c.needs))
    collectors: dict[Collector, None] = dict.fromkeys(k for c in inner for k in c.collectors)
    return Criterion(name, score, needs, tuple(collectors))


# ---- weights


def member_sums(spec: Spec, values: Callable[[str], Tensor], *, bias: bool = True) -> dict[str, Tensor]:
    """Sum over the unit's slice of every effective tensor: group → [tensors, units].

    Args:
        spec: whose groups.
        values: effective tensor (see `prunefn.parameters.effective`) → numbers of its shape; called once for each.
        bias: count biases, too.
    """
    sums: dict[str, list[Tensor]] = {}
    for tensor in effective(spec):
        if tensor.bias and not bias:
            continue
        elements = values(tensor.name)
        for d, axis in enumerate(tensor.axes):
            others = [other for other in range(elements.ndim) if other != d]
            if found := groups_of(axis, spec):
                slices = elements.sum(others) if others else elements
                for group in found:
                    sums.setdefault(group, []).append(per_unit(slices, axis, group, spec).sum(1))
    return {g: torch.stack(sums[g]) for g in spec.groups if g in sums}


def filters(stats: Stats, group: str) -> Float[Tensor, "units weights"] | None:
    """The signed effective weights that produce each unit: its slices of the weights (not biases) whose output dim it stands in,
    one after the other; without such weights (embeddings), of all weights of two dims and more; else None."""
    spec, value = spec_of(stats), weight_reader(stats)
    wide = [(e, d) for e in effective(spec) if len(e.axes) > 1 for d in e.dims(group)]
    chosen = [(e, d) for e, d in wide if e.roles[d] == "out"] or wide
    if not chosen:
        return None
    slices = []
    for tensor, dim in chosen:
        w = value(tensor.name).movedim(dim, 0)
        slices.append(w[index_map(tensor.axes[dim], group, spec.sizes).to(w.device)].flatten(1))
    return torch.cat(slices, 1)


def weight_reader(stats: Stats) -> Callable[[str], Tensor]:
    """Effective tensor → its value in float64, without a gradient."""
    value = reader(stats.params, spec=spec_of(stats))
    return lambda name: value(name).detach().double()


# ---- sites


def measured(stats: Stats, criterion: str, call: str, need: str = "moments") -> Mapping[str, Moments]:
    """The sites' moments, with what the criterion needs.

    Raises:
        StatsError: something was not collected; it says how to.
    """
    fix = f"use collect_stats(params, batches, spec=spec, criterion=criteria.{call})"
    if not stats.sites:
        raise StatsError(
            f"criterion {criterion!r} needs {need}: give collect_stats batches, and sites that `where` does not leave out; {fix}"
        )
    for name, m in stats.sites.items():
        if (need == "absolute" and m.absolute is None) or (need == "covariance" and m.scatter is None):
            what = {"absolute": "mean of |x|", "covariance": "covariance"}[need]
            raise StatsError(f"criterion {criterion!r} needs the {what} of site {name!r}; {fix}")
        if bool(torch.isnan(m.m2).any()):
            raise StatsError(f"the moments of site {name!r} contain NaN")
    return stats.sites


def over_sites(
    sites: Mapping[str, Moments],
    spec: Spec,
    values: Callable[[Site, Moments], Tensor],
    positions: Callable[[Tensor], Tensor],
) -> Scores:
    """A number for each position of each site → the mean over sites of what `positions` [units, k] → [units] makes of them."""
    found: dict[str, list[Tensor]] = {}
    for name, moments in sites.items():
        site = spec.sites[name]
        at = values(site, moments)
        for group in groups_of(site.axis, spec):
            found.setdefault(group, []).append(positions(per_unit(at, site.axis, group, spec)))
    return {g: torch.stack(found[g]).mean(0) for g in spec.groups if g in found}


def mean_positions(values: Float[Tensor, "units k"]) -> Float[Tensor, " units"]:
    """The mean over a unit's positions, so that units that stand once and often compare."""
    return values.mean(1)


def sum_positions(values: Float[Tensor, "units k"]) -> Float[Tensor, " units"]:
    """The sum over a unit's positions: they go together."""
    return values.sum(1)


def column_squares(stats: Stats, site: Site) -> Float[Tensor, " positions"]:
    """‖W[:, j]‖² at each position j of a site's axis, over outputs and taps."""
    return site_weight(stats.params, site, spec=spec_of(stats)).square().sum((1, 3)).flatten()


# ---- collectors


def collected(stats: Stats, collector: Collector, criterion: str, call: str) -> Mapping[str, Tensor]:
    """What a collector gathered: sums over samples.

    Raises:
        StatsError: it was not there when the statistics were collected.
    """
    spec_of(stats)
    if collector.name not in stats.sums:
        there = f"; the statistics have {', '.join(map(repr, stats.sums))}" if stats.sums else ""
        raise StatsError(
            f"criterion {criterion!r} needs {collector.name!r}, which was not collected{there}; use "
            f"collect_stats(params, batches, spec=spec, criterion=criteria.{call})"
        )
    return stats.sums[collector.name]
