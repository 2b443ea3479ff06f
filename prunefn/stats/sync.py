"""Merging of statistics over the processes of a group.

Ranks send one value at a time: besides its own statistics and the result, no rank holds more than three copies of the largest
covariance. The ranks compare what they hold before the first tensor is sent: either all of them raise, or none.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..doors import door
from ..errors import StatsError
from ..frozen_dict import FrozenDict
from ..program.batches import device_of
from ..program.sharded import check_plain, is_sharded, outline
from ..spec.spec import Spec
from ..types import Moments, Stats
from .fingerprint import Origin, difference, origin
from .moments import merge_moments
from .wire import Wire


@door
def sync_stats(stats: Stats, *, group: dist.ProcessGroup | None = None) -> Stats:
    """Merge the statistics of all processes; every rank gets the bit-identical result.

    Each rank measures its own share of the batches, with the same spec and params; shares may differ in size. A rank that
    has no batches passes `Stats()`. The result equals that of one process over all batches, up to float64 rounding: one rank
    merges the shares in the order of the ranks and sends the result to all as float64.

    Args:
        stats: of this rank; not changed.
        group: ranks that take part, all of which must call this; None: all. A rank outside gets its own statistics back.

    Returns:
        Merged statistics on the device of the rank's params, as of `merge_stats`. Without a process group, or with a single
        process: `stats` itself.

    Raises:
        StatsError: on every rank, if specs, params, or measured fields differ; names a rank and the difference.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec, batches = pf.trace(model, (torch.randn(2, 4),)), [torch.randn(8, 4), torch.randn(5, 4)]
    >>> rank, world = 0, 1  # in a process group: its rank and its size
    >>> share = batches[rank::world]
    >>> stats = pf.collect_stats(pf.params(model), share, spec=spec) if share else pf.Stats()
    >>> sync_stats(stats).samples
    13
    """
    if not (dist.is_available() and dist.is_initialized()):
        return stats
    if dist.get_rank(group) < 0 or dist.get_world_size(group) == 1:
        return stats
    wire = Wire(group)
    shares = wire.together(lambda: _describe_share(stats))
    first = next((r for r, s in enumerate(shares) if s.origin is not None), None)
    if first is None:
        return stats
    _check(shares, first, wire)
    if any(s.origin is None for s in shares):
        stats = _fill_spec(stats, first, wire)
    device = device_of(dict(stats.params))
    return stats._replace(
        sites=FrozenDict(_merge_sites(stats, shares, wire, device)),
        sums=FrozenDict(_merge_sums(stats, shares, wire, device)),
        batches=sum(s.batches for s in shares),
        samples=sum(s.samples for s in shares),
    )


# ---- descriptions of what each rank holds


class _Layout(NamedTuple):
    """Layout of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    device: str
    """Type of the device, such as 'cuda'."""


class _MomentsLayout(NamedTuple):
    """Counts and shapes of moments, without their values."""

    count: float
    tap_count: float
    shapes: dict[str, tuple[int, ...]]
    """Field → shape; fields that were not measured are left out."""
    shared: str
    """First site that shares the same covariance object."""


class _Share(NamedTuple):
    """Description of the statistics that a rank holds."""

    origin: Origin | None
    batches: int
    samples: int
    sites: dict[str, _MomentsLayout]
    sums: dict[tuple[str, str], _Layout]
    """(collector, group or tensor) → layout"""
    collectors: list[str]


def _describe_share(stats: Stats) -> _Share:
    """Return the description of this rank's statistics; DTensors are described by their outlines."""
    first: dict[int, str] = {}
    return _Share(
        None
        if stats.spec is None
        else origin(
            stats.spec, {n: outline(t) if is_sharded(t) else t for n, t in stats.params.items()}, stats.fingerprints
        ),
        stats.batches,
        stats.samples,
        {n: _describe_moments(n, m, first.setdefault(id(m.scatter), n)) for n, m in stats.sites.items()},
        {(c, g): _layout(t) for c, groups in stats.sums.items() for g, t in groups.items()},
        list(stats.sums),
    )


def _describe_moments(site: str, m: Moments, shared: str) -> _MomentsLayout:
    """Return counts and shapes of moments, checked here so that no merge can fail while other ranks wait.

    Raises:
        StatsError: the shapes of the moments do not fit each other.
    """
    shapes = {f: tuple(v.shape) for f, v in m._asdict().items() if isinstance(v, Tensor)}
    d = tuple(m.mean.shape)
    expected = {"m2": d, "absolute": d, "scatter": (*d, *d), "taps": (*d, *shapes.get("taps", ())[1:])}
    if len(d) != 1 or any(expected[f] != shape for f, shape in shapes.items() if f in expected):
        raise StatsError(f"the moments of site {site!r} have shapes {shapes} that do not fit each other")
    if m.taps is not None and m.count and not m.tap_count:
        raise StatsError(f"the moments of site {site!r} have taps but tap_count=0; set tap_count")
    return _MomentsLayout(m.count, m.tap_count, shapes, shared)


def _layout(t: Tensor) -> _Layout:
    return _Layout(t.dtype, tuple(t.shape), t.device.type)


def _check(shares: list[_Share], first: int, wire: Wire) -> None:
    """Check that all shares can be merged; the outcome is the same on every rank.

    Raises:
        StatsError: a rank does not fit one before it; names both.
    """
    sites: dict[str, tuple[int, _MomentsLayout]] = {}
    sums: dict[tuple[str, str], tuple[int, _Layout]] = {}
    for r, share in enumerate(shares):
        if share.origin is None:
            continue
        reference = shares[first].origin
        assert reference is not None
        if other := difference(reference, share.origin):
            raise StatsError(
                f"rank {wire.name(r)} has {other} from rank {wire.name(first)}'s; all ranks must measure the same spec and params"
            )
        for name, moments in share.sites.items():
            before, reference_moments = sites.setdefault(name, (r, moments))
            for field in {**reference_moments.shapes, **moments.shapes}:
                a, b = reference_moments.shapes.get(field), moments.shapes.get(field)
                if a != b:
                    raise StatsError(
                        f"site {name!r}: rank {wire.name(r)} has {_shape_text(field, b)}, but rank {wire.name(before)} has "
                        f"{_shape_text(field, a)}; all ranks must call collect_stats with the same criterion and covariance"
                    )
        for key, layout in share.sums.items():
            before, expected = sums.setdefault(key, (r, layout))
            if expected[:2] != layout[:2]:  # devices may differ
                raise StatsError(
                    f"collector {key[0]!r}, {key[1]!r}: rank {wire.name(r)} has {layout.dtype} of shape {layout.shape}, but "
                    f"rank {wire.name(before)} has {expected.dtype} of shape {expected.shape}; all ranks must collect the same"
                )


def _shape_text(field: str, shape: tuple[int, ...] | None) -> str:
    return f"no {field!r}" if shape is None else f"{field!r} of shape {shape}"


# ---- merging, one value at a time


def _merge_sites(stats: Stats, shares: list[_Share], wire: Wire, device: torch.device) -> dict[str, Moments]:
    """Merge moments site by site; a covariance that several sites share is sent once and stays shared."""
    out: dict[str, Moments] = {}
    scatters: dict[tuple[tuple[int, str], ...], Tensor | None] = {}
    for name in dict.fromkeys(n for s in shares for n in s.sites):
        holders = {r: s.sites[name] for r, s in enumerate(shares) if name in s.sites}
        # Ranks without samples are skipped; if none has any, the first still gives the shapes.
        holders = {r: layout for r, layout in holders.items() if layout.count} or dict(list(holders.items())[:1])
        key = tuple((r, layout.shared) for r, layout in holders.items())
        m = _to_float64(device, _merge_over_ranks(stats.sites.get(name), holders, wire, scatter=key not in scatters))
        out[name] = m._replace(scatter=scatters.setdefault(key, m.scatter))
    return out


def _merge_over_ranks(
    own: Moments | None, holders: Mapping[int, _MomentsLayout], wire: Wire, *, scatter: bool
) -> Moments:
    """Merge the moments of some ranks in their order on the first of them, and send the result to all.

    Args:
        own: moments of this rank.
        holders: rank → layout of its moments.
        wire: between the ranks.
        scatter: with the covariance.
    """
    root, total = next(iter(holders)), None
    for r, layout in holders.items():
        part = own if r == wire.rank == root else None
        if r != root:
            part = _broadcast_moments(own, layout, wire, r, scatter=scatter)
        if wire.rank == root and part is not None:
            part = _to_float64(wire.device, part if scatter else part._replace(scatter=None))
            total = part if total is None else merge_moments(total, part)
    counts = {"count": sum(s.count for s in holders.values()), "tap_count": sum(s.tap_count for s in holders.values())}
    return _broadcast_moments(total, holders[root]._replace(**counts), wire, root, scatter=scatter)


def _broadcast_moments(m: Moments | None, layout: _MomentsLayout, wire: Wire, source: int, *, scatter: bool) -> Moments:
    """Send moments from the source rank to all: the vectors in one piece, the covariance in another."""
    fields = {f: shape for f, shape in layout.shapes.items() if f != "scatter"}
    sizes = [prod(shape) for shape in fields.values()]
    values = None if m is None else m._asdict()
    packed = None if values is None else torch.cat([values[f].detach().double().flatten() for f in fields])
    parts = wire.send(packed, torch.float64, (sum(sizes),), source).split(sizes)
    received = {f: part.clone().reshape(shape) for (f, shape), part in zip(fields.items(), parts, strict=True)}
    if scatter and "scatter" in layout.shapes:
        received["scatter"] = wire.send(
            None if m is None else m.scatter, torch.float64, layout.shapes["scatter"], source
        )
    return Moments(count=layout.count, tap_count=layout.tap_count, **received)


def _to_float64(device: torch.device, m: Moments) -> Moments:
    """Return the moments in float64 on a device."""
    values: list[Any] = [v.detach().to(device, torch.float64) if isinstance(v, Tensor) else v for v in m]
    return Moments(*values)


def _merge_sums(
    stats: Stats, shares: list[_Share], wire: Wire, device: torch.device
) -> dict[str, FrozenDict[str, Tensor]]:
    """Add up the collectors' sums in their own dtype, in the order of the ranks."""
    out: dict[str, dict[str, Tensor]] = {c: {} for s in shares for c in s.collectors}
    for c, g in dict.fromkeys(key for s in shares for key in s.sums):
        layouts = {r: s.sums[c, g] for r, s in enumerate(shares) if (c, g) in s.sums}
        own, root, total = stats.sums.get(c, {}).get(g), next(iter(layouts)), None
        layout = layouts[root]
        for r in layouts:
            part = own if r == root else wire.send(own, layout.dtype, layout.shape, r)
            if wire.rank == root and part is not None:
                part = part.detach().to(wire.device)
                total = part if total is None else total + part
        total = wire.send(total, layout.dtype, layout.shape, root)
        out[c][g] = total.to("cpu" if layout.device == "cpu" else device)
    return {c: FrozenDict(groups) for c, groups in out.items()}


def _fill_spec(stats: Stats, first: int, wire: Wire) -> Stats:
    """Return the statistics; where this rank has no spec and parameters, those of rank `first` are received and added."""

    def pack() -> tuple[bytes, dict[str, _Layout], dict[str, str], Mapping[str, str]] | None:
        if wire.rank != first:
            return None
        check_plain(stats.params, "a rank without statistics", "call collect_stats on every rank, with batches or not")
        names: dict[tuple[Any, ...], str] = {}  # tied tensors are sent once
        first_names = {
            n: names.setdefault((t.data_ptr(), t.shape, t.stride(), t.dtype) if t.numel() else (n,), n)
            for n, t in stats.params.items()
        }
        return (
            pickle.dumps(stats.spec),
            {n: _layout(t) for n, t in stats.params.items()},
            first_names,
            stats.fingerprints,
        )

    packed, layouts, first_names, fingerprints = wire.together(pack)[first]
    spec = stats.spec
    received_spec: list[Spec] = []
    wire.together(lambda: received_spec.append(pickle.loads(packed)) if spec is None else None)
    params: dict[str, Tensor] = {}
    for name, layout in layouts.items():
        if first_names[name] == name:
            t = wire.send(stats.params.get(name), layout.dtype, layout.shape, first)
            if spec is None:
                params[name] = t
    if spec is not None:
        return stats
    received_params = FrozenDict({n: params[first_names[n]] for n in layouts})
    return stats._replace(spec=received_spec[0], params=received_params, fingerprints=fingerprints)
