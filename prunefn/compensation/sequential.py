"""The sequential mode: the order in which groups are pruned, and the inputs of a site once earlier groups are pruned."""

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
from ..stats.weights import Weights, position_weights
from ..types import Batch, Mask, Moments, Paired, Params


def steps(spec: Spec, mask: Mask) -> list[Mask]:
    """Split a mask into parts, from the input on: groups that share a site are in one part, at the first of their sites.

    Groups without a site (query and key widths) come first: nothing is compensated for them.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(4)])
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> half = torch.tensor([True, True, False, False])
    >>> [list(part) for part in steps(spec, {"2": half, "0": half, "1": half})]
    [['0'], ['1'], ['2']]
    """
    position = {i.name: n for n, i in enumerate(spec.program.instructions)}
    first = dict.fromkeys(mask, -1)
    joined: dict[str, set[str]] = {g: {g} for g in mask}
    # Sites from the last to the first, so that each set of joined groups ends with its first site.
    for site in sorted(spec.sites.values(), key=lambda s: position[s.calls[0]], reverse=True):
        joint = set().union(*(joined[g] for g in leaves(site.axis) if g in mask))
        for g in joint:
            joined[g], first[g] = joint, position[site.calls[0]]
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
    weights: Weights = True,
    max_batches: int | None = None,
    progress: bool = False,
) -> dict[str, Paired]:
    """Measure sites in two networks on the same batches: the dense one, and the one with some groups already pruned.

    Args:
        dense: params and spec before anything was removed.
        small: params and spec after some units were removed, but none at these sites.
        batches, weights, max_batches, progress: as in `collect_stats`.
        sites: of either spec, which have the same names, values and sizes.
        covariance: measure covariances too, including those between the inputs of the two networks.

    Returns:
        Site → moments in both networks.
    """
    params, spec = dense
    check_plain({**params, **small[0]}, "sequential=True", "leave it out")
    device, out = device_of(params), {}
    for batch in each(batches, max_batches=max_batches, progress=progress, text="statistics"):
        inputs = inputs_of(batch, spec=spec, device=device)
        dense_values, small_values = (_site_values(p, s, inputs, sites) for p, s in (dense, small))
        # sites keep their sizes until they are compensated, so that both networks have the same positions there
        weighted = position_weights(spec, inputs, batch, weights)
        for site in sites:
            for value in site.values:
                of_dense = dense_values[value]
                w = None if weighted is None else weighted.of(*value, of_dense.shape)
                pair = _pair_moments(of_dense, small_values[value], value[1], site, covariance, w)
                out[site.name] = _merge_pairs(out[site.name], pair) if site.name in out else pair
    return out


def _site_values(
    params: Params, spec: Spec, inputs: list[Tensor], sites: Sequence[Site]
) -> Mapping[tuple[str, int], Tensor]:
    """Run a network, and return (value, dim) → tensor for the values that the sites read."""
    keys = tuple(dict.fromkeys(v for s in sites for v in s.values))

    def emit(_: fx.Graph, env: Mapping[str, Any]) -> Any:
        return tuple(env[value] for value, _ in keys)

    run = compiled(spec, params, ("values", keys), emit, only=[value for value, _ in keys])
    with torch.no_grad():
        return dict(zip(keys, run(params, inputs), strict=True))


def _pair_moments(
    dense: Tensor, small: Tensor, dim: int, site: Site, covariance: bool, weights: Tensor | None
) -> Paired:
    """Return the moments of a site's input in both networks, for one batch."""
    a, b = (_moments(x, dim, site, covariance, weights) for x in (dense, small))
    return Paired(b, a, cross_scatter(dense, small, dim, a, b, weights) if covariance else None)


def _moments(x: Tensor, dim: int, site: Site, covariance: bool, weights: Tensor | None) -> Moments:
    m = site_moments(x, dim, False, covariance, weights)
    if not site.taps or site.geometry is None:
        return m
    taps, count = tap_means(x, dim, site.geometry, weights)
    return m._replace(taps=taps, tap_count=count)


def _merge_pairs(a: Paired, b: Paired) -> Paired:
    """Merge the moments of two sets of batches; the cross scatter by Chan's formula, too."""
    n, m = a.dense.count, b.dense.count
    if not n or not m:
        return b if not n else a
    cross = None
    if a.cross is not None and b.cross is not None:
        x, y = b.dense.mean - a.dense.mean, b.small.mean - a.small.mean
        cross = torch.add(a.cross, b.cross).addr_(x, y, alpha=n * m / (n + m))
    return Paired(merge_moments(a.small, b.small), merge_moments(a.dense, b.dense), cross)
