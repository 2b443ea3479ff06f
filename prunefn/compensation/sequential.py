"""The sequential mode: which groups go together, and what the rest of a network reads once those before it are pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..program.batches import device_of, each, inputs_of
from ..program.compiled import compiled
from ..program.sharded import check_plain
from ..spec.axis import leaves
from ..spec.parts import Site
from ..spec.spec import Spec
from ..stats.moments import cross_scatter, merge_moments, site_moments, tap_means
from ..types import Batch, Mask, Moments, Paired, Params


def steps(spec: Spec, mask: Mask) -> list[Mask]:
    """A mask in parts, from the input on: groups that meet at a site go together, at the first of their sites.

    Groups without a site (query and key widths) go first: nothing is compensated for them.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(4)])
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> half = torch.tensor([True, True, False, False])
    >>> [list(part) for part in steps(spec, {"2": half, "0": half, "1": half})]
    [['0'], ['1'], ['2']]
    """
    at = {i.name: n for n, i in enumerate(spec.program.instructions)}
    first = dict.fromkeys(mask, -1)
    together: dict[str, set[str]] = {g: {g} for g in mask}
    for site in sorted(spec.sites.values(), key=lambda s: at[s.calls[0]], reverse=True):
        joint = set().union(*(together[g] for g in leaves(site.axis) if g in mask))
        for g in joint:
            together[g], first[g] = joint, at[site.calls[0]]
    parts: dict[int, Mask] = {}
    for g in sorted(mask, key=lambda g: first[g]):
        parts.setdefault(first[g], {})[g] = mask[g]
    return [p for p in parts.values() if any(not bool(m.all()) for m in p.values())]


def collect_pairs(
    dense: tuple[Params, Spec],
    small: tuple[Params, Spec],
    batches: Iterable[Batch],
    *,
    sites: Sequence[Site],
    covariance: bool = False,
    max_batches: int | None = None,
    progress: bool = False,
) -> dict[str, Paired]:
    """Measure sites in two networks on the same batches: the dense one, and what is left of it after some groups were pruned.

    Args:
        dense: params and spec before anything was removed.
        small: params and spec of which units were removed, though none at these sites.
        batches, max_batches, progress: as for `collect_stats`.
        sites: of either spec; their names, values and sizes are the same.
        covariance: also how the inputs of the two go together.
    """
    params, spec = dense
    check_plain({**params, **small[0]}, "sequential=True", "leave it out")
    device, out = device_of(params), {}
    for batch in each(batches, max_batches=max_batches, progress=progress, text="statistics"):
        inputs = inputs_of(batch, spec=spec, device=device)
        before, after = (_values(p, s, inputs, sites) for p, s in (dense, small))
        for site in sites:
            for value in site.values:
                found = _pair(before[value], after[value], value[1], site, covariance)
                out[site.name] = _merge(out[site.name], found) if site.name in out else found
    return out


def _values(
    params: Params, spec: Spec, inputs: list[Tensor], sites: Sequence[Site]
) -> Mapping[tuple[str, int], Tensor]:
    """What the sites read."""
    wanted = tuple(dict.fromkeys(v for s in sites for v in s.values))

    def emit(_: fx.Graph, env: Mapping[str, Any]) -> Any:
        return tuple(env[value] for value, _ in wanted)

    run = compiled(spec, params, ("values", wanted), emit, only=[value for value, _ in wanted])
    with torch.no_grad():
        return dict(zip(wanted, run(params, inputs), strict=True))


def _pair(dense: Tensor, small: Tensor, dim: int, site: Site, covariance: bool) -> Paired:
    a, b = (_moments(x, dim, site, covariance) for x in (dense, small))
    return Paired(b, a, cross_scatter(dense, small, dim, a, b) if covariance else None)


def _moments(x: Tensor, dim: int, site: Site, covariance: bool) -> Moments:
    m = site_moments(x, dim, None, False, covariance)
    if not site.taps or site.geometry is None:
        return m
    taps, count = tap_means(x, dim, site.geometry)
    return m._replace(taps=taps, tap_count=count)


def _merge(a: Paired, b: Paired) -> Paired:
    n, m = a.dense.count, b.dense.count
    cross = None
    if a.cross is not None and b.cross is not None:
        x, y = b.dense.mean - a.dense.mean, b.small.mean - a.small.mean
        cross = torch.add(a.cross, b.cross).addr_(x, y, alpha=n * m / (n + m))
    return Paired(merge_moments(a.small, b.small), merge_moments(a.dense, b.dense), cross)
