"""Statistics of activations: moments per site, in one pass, merged exactly.

Nothing is hooked: the program is compiled with the moments of its sites as outputs, and what the sites do not need is not
run. Within a batch, sums run in the data's precision about a pivot; across batches, in float64 by Chan's formula.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .batches import device_of, each, inputs_of
from .errors import BatchError, StatsError
from .forward import compiled
from .params import check_names
from .trace.expr import leaves
from .trace.rules import Geometry
from .trace.spec import Spec
from .types import Batch, Criterion, FrozenDict, Moments, Params, Site, Where
from .where import matches

FAR, NEAR = 30.0, 10.0
"""Means further from zero than this many standard deviations are taken out before the sums (of rows, of maps)."""

SMALL = 1 << 15
"""Tensors of at most so many elements are summed in float64: it costs nothing there."""

FEW = 64
"""Rows that are looked at first."""

ROWS = 1 << 10
"""So many rows are added up at once."""


class Stats(NamedTuple):
    """What was measured. The empty `Stats()` is the identity of `merge_stats`."""

    spec: Spec | None = None
    params: Mapping[str, Tensor] = FrozenDict()
    """The parameters that were measured; criteria on weights read them."""
    sites: Mapping[str, Moments] = FrozenDict()
    """Site → moments of its input, [size of the site's axis]."""
    sums: Mapping[str, Mapping[str, Tensor]] = FrozenDict()
    """Collector → group or tensor → what it collected, summed over batches."""
    batches: int = 0
    samples: int = 0
    """Of all batches: the sum of their sizes."""


def collect_stats(
    params: Params,
    batches: Iterable[Batch] | None,
    *,
    spec: Spec,
    criterion: Criterion | Sequence[Criterion] = (),
    where: Where | str | None = None,
    max_batches: int | None = None,
    progress: bool = False,
) -> Stats:
    """Measure the inputs of all contractions in one pass over the batches.

    Args:
        params: of the spec.
        batches: any iterable of tensors, tuples (inputs first) or dicts by input name; None for criteria that need no data.
        spec: of the params.
        criterion: one or several; what they collect besides moments is gathered in the same pass.
        where: only sites of groups that match (`pf.kind("hidden")`, a glob, any predicate).
        max_batches: stop after so many.
        progress: show a bar.

    Returns:
        Stats that hold the moments of each site: count, mean, M2 in float64.

    Raises:
        BatchError: no batches, or a batch that does not fit.
        StatsError: a site's input is not finite.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> stats = pf.collect_stats(pf.params(model), [torch.randn(8, 4), torch.randn(5, 4)], spec=spec)
    >>> {name: (m.count, tuple(m.mean.shape)) for name, m in stats.sites.items()}
    {'2': (13, (3,))}
    """
    check_names(params, spec)
    chosen = [criterion] if isinstance(criterion, Criterion) else list(criterion)
    start = Stats(spec, FrozenDict(params))
    if batches is None:
        if needy := [c.name for c in chosen if c.data]:
            raise BatchError(f"criterion {needy[0]!r} needs batches")
        return start
    sites = [
        s
        for s in spec.sites.values()
        if any(matches(where, spec.groups[g]) for g in leaves(s.axis) if g in spec.groups)
    ]
    collectors = list({c.name: c for one in chosen for c in one.collectors}.values())
    device, total = device_of(params), start
    for batch in each(batches, max_batches=max_batches, progress=progress, text="statistics"):
        inputs = inputs_of(batch, spec=spec, device=device)
        sums = {c.name: FrozenDict(dict(c.collect(params, batch, spec))) for c in collectors}
        size = next((len(x) for x in inputs if x.ndim), 1)
        measured = FrozenDict(_measure(params, inputs, sites, spec))
        total = merge_stats(total, start._replace(sites=measured, sums=FrozenDict(sums), batches=1, samples=size))
    return total


def _measure(params: Params, inputs: list[Tensor], sites: Sequence[Site], spec: Spec) -> dict[str, Moments]:
    """The moments of one batch: extra outputs of the program, one per distinct (value, dim, geometry)."""
    if not sites:
        return {}
    wanted = list(dict.fromkeys((*v, s.geometry if s.taps else None) for s in sites for v in s.values))

    def emit(graph: fx.Graph, env: Mapping[str, Any]) -> Any:
        return tuple(graph.call_function(site_moments, (env[value], dim, geometry)) for value, dim, geometry in wanted)

    run = compiled(spec, params, ("moments", tuple(wanted)), emit, only=[value for value, _, _ in wanted])
    with torch.no_grad():
        by_key = dict(zip(wanted, run(params, inputs), strict=True))
    out: dict[str, Moments] = {}
    for s in sites:
        for value in s.values:
            m = by_key[(*value, s.geometry if s.taps else None)]
            out[s.name] = m if s.name not in out else merge_moments(out[s.name], m)
    for name, m in out.items():
        if not bool(torch.isfinite(m.mean).all() & torch.isfinite(m.m2).all()):
            raise StatsError(
                f"the input of site {name!r} is not finite in {int((~torch.isfinite(m.m2)).sum())} of {len(m.m2)} channels; "
                "look for NaN in the batches or parameters"
            )
    return out


# ---- moments of one tensor


@torch.fx.wrap
def site_moments(x: Tensor, dim: int, geometry: Geometry | None = None) -> Moments:
    """Moments over all dims but one, and tap means if a convolution's geometry is given.

    Args:
        x: [..., d at `dim`, ...], any floating dtype.
        dim: counted from the right.
        geometry: of the convolution that reads x; x is then [n, d, *spatial].
    """
    taps, n = (None, 0) if geometry is None else tap_sums(x, dim, geometry)
    flat = x.ndim < 3 or x.stride(dim) == 1
    rows = x.movedim(dim, -1).reshape(-1, x.shape[dim]) if flat else x.movedim(dim, 1)
    rows = (
        rows.double()
        if rows.numel() <= SMALL
        else rows.float()
        if rows.dtype in (torch.float16, torch.bfloat16)
        else rows
    )
    count = rows.numel() // rows.shape[1]
    mean, variance = _centred(rows)
    return Moments(count, mean, variance * count, None if taps is None else taps / n, n)


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel (dim 1), far means taken out of the sums: a few samples say which they are."""
    centred, pivot = _without(rows, *_mean_variance(rows[: 1 if rows.ndim > 2 else FEW]))
    mean, variance = _mean_variance(centred)
    again, more = _without(centred, mean, variance)
    if again is not centred:  # the few were not like the rest
        mean, variance = _mean_variance(again)
    return mean + pivot + more, variance


def _without(rows: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less the means that are far from zero, and those means."""
    far = mean.abs() > (NEAR if rows.ndim > 2 else FAR) * variance.sqrt()
    if not bool(far.any()):
        return rows, torch.zeros_like(mean)
    shift = torch.where(far, mean, 0.0).to(rows.dtype)
    return rows - shift.reshape(-1, *(1,) * (rows.ndim - 2)), shift.double()


def _mean_variance(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel (dim 1), in float64.

    The kernel adds up rows [n, d] one by one in their own precision: in float32 a thousand lose nothing, a million do.
    """
    if rows.ndim > 2:
        return _of_maps(rows)
    parts = rows.split(ROWS)
    share = torch.tensor([p.numel() / rows.numel() for p in parts], dtype=torch.float64, device=rows.device)[:, None]
    means, variances = (torch.stack(v).double() for v in zip(*map(_kernel, parts), strict=True))
    mean = (means * share).sum(0)
    return mean, ((variances + (means - mean).square()) * share).sum(0)


def _kernel(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per column: on a CPU, by the kernel of BatchNorm, ten times as fast as `var_mean`."""
    if rows.device.type == "cpu" and len(rows) > 1:
        return torch.batch_norm_update_stats(rows, None, None, 0.0)
    variance, mean = torch.var_mean(rows, 0, correction=0)
    return mean, variance


def _of_maps(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of maps [n, d, …]: the sum and the norm of each map, put together in float64."""
    maps = maps.flatten(2)
    count = maps.shape[0] * maps.shape[2]
    mean = maps.sum(2).double().sum(0) / count
    square = torch.linalg.vector_norm(maps, dim=2).double().square().sum(0) / count
    return mean, (square - mean.square()).clamp_min(0)


def tap_sums(x: Tensor, dim: int, g: Geometry) -> tuple[Tensor, int]:
    """Sum over output positions of the zero-padded input at each tap: float64 [d, taps], and the number of output positions.

    For a transposed convolution: the sum over the input positions whose contribution through a tap falls inside the output.
    """
    rank = len(g.kernel)
    batch = x.shape[0] if x.ndim == rank + 2 else 1
    image = x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32)) if x.ndim == rank + 2 else x
    image = image.double()
    spatial = image.shape[1:]
    if g.transposed:
        out = [
            (n - 1) * s - p[0] - p[1] + d * (k - 1) + o + 1
            for n, s, p, d, k, o in zip(
                spatial, g.stride, g.padding, g.dilation, g.kernel, g.output_padding, strict=True
            )
        ]
    else:
        image = F.pad(image, [p for pair in reversed(g.padding) for p in pair])
        out = [
            (n + p[0] + p[1] - d * (k - 1) - 1) // s + 1
            for n, s, p, d, k in zip(spatial, g.stride, g.padding, g.dilation, g.kernel, strict=True)
        ]
    taps = [image]
    for i, kernel in enumerate(g.kernel):  # one spatial dim (now dim 1) after the other
        windows = [_reach(i, t, spatial[i], out[i], g) for t in range(kernel)]
        step = 1 if g.transposed else g.stride[i]
        taps = [v.narrow(1, start, length)[:, ::step].sum(1) for v in taps for start, length in windows]
    return torch.stack(taps, 1), batch * prod(out)


def _reach(i: int, t: int, n: int, out: int, g: Geometry) -> tuple[int, int]:
    """(start, length) of the input positions that meet tap t along spatial dim i."""
    if not g.transposed:
        return t * g.dilation[i], (out - 1) * g.stride[i] + 1
    offset = t * g.dilation[i] - g.padding[i][0]  # output position = input position * stride + offset
    first = max(0, -(offset // g.stride[i]))
    last = min(n - 1, (out - 1 - offset) // g.stride[i])
    return min(first, n), max(0, last - first + 1)


# ---- merging


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Chan's parallel formula, in float64."""
    n = a.count + b.count
    delta = b.mean - a.mean
    taps, k = a.taps, a.tap_count + b.tap_count
    if a.taps is not None and b.taps is not None:
        taps = a.taps + (b.taps - a.taps) * (b.tap_count / k)
    return Moments(n, a.mean + delta * (b.count / n), a.m2 + b.m2 + delta.square() * (a.count * b.count / n), taps, k)


def merge_stats(a: Stats, b: Stats) -> Stats:
    """Statistics of both sets of batches; associative and commutative to float64 rounding, `Stats()` is the identity.

    Raises:
        StatsError: they are of different specs or parameters.
    """
    if a.spec is None or b.spec is None:
        return b if a.spec is None else a
    if a.spec != b.spec:
        raise StatsError("the statistics are of different specs; collect both with the same spec")
    if any(not _same(t, b.params.get(n)) for n, t in a.params.items()):
        raise StatsError("the statistics are of different parameters; collect both with the same params")
    sites = dict(a.sites)
    for name, m in b.sites.items():
        sites[name] = merge_moments(sites[name], m) if name in sites else m
    sums: dict[str, Mapping[str, Tensor]] = dict(a.sums)
    for name, groups in b.sums.items():
        old = sums.get(name, {})
        sums[name] = FrozenDict({g: old[g] + v if g in old else v for g, v in groups.items()})
    return Stats(a.spec, a.params, FrozenDict(sites), FrozenDict(sums), a.batches + b.batches, a.samples + b.samples)


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is a or (b is not None and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))


def check_stats(stats: Stats, spec: Spec) -> None:
    """The statistics are of this spec.

    Raises:
        StatsError: they are of another one, or empty.
    """
    if stats.spec is None:
        raise StatsError("the statistics are empty; use collect_stats(params, batches, spec=spec)")
    if stats.spec != spec:
        raise StatsError("the statistics are of another spec; collect them with the spec that they are used with")
