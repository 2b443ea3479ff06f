"""Statistics of many processes put together.

One value at a time goes from rank to rank, so that beside its own statistics and the result no rank holds more than three of
the largest covariance. The ranks agree on what is there before the first tensor is sent: either all of them raise, or none.
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
    """Statistics of the batches of all processes; every rank gets the same, to the bit.

    Each rank measures its own share of the batches, with the same spec and params; shares may differ in size. A rank that
    has no batches gives `Stats()`. The result is that of one process over all batches, to float64 rounding: shares are
    merged in the order of the ranks, on one of them, and sent to all as float64.

    Args:
        stats: of this rank. It is not changed.
        group: ranks that take part, all of which must call this; None: all. A rank outside gets its own statistics back.

    Returns:
        Statistics on the device of the rank's params, as of `merge_stats`. Without a process group, or with a single
        process: what was given.

    Raises:
        StatsError: on every rank, if specs, params, or what was measured differ; names a rank that differs, and in what.

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
    shares = wire.together(lambda: _share(stats))
    first = next((r for r, s in enumerate(shares) if s.origin is not None), None)
    if first is None:
        return stats
    _check(shares, first, wire)
    if any(s.origin is None for s in shares):
        stats = _with_spec(stats, first, wire)
    device = device_of(dict(stats.params))
    return stats._replace(
        sites=FrozenDict(_sites(stats, shares, wire, device)),
        sums=FrozenDict(_sums(stats, shares, wire, device)),
        batches=sum(s.batches for s in shares),
        samples=sum(s.samples for s in shares),
    )


# ---- what each rank says that it has


class _Layout(NamedTuple):
    """Of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    device: str
    """Its type."""


class _Seen(NamedTuple):
    """Moments without their numbers."""

    count: int
    tap_count: int
    shapes: dict[str, tuple[int, ...]]
    """Field → shape; fields that were not measured are left out."""
    shared: str
    """The first site that has the same covariance, the same object."""


class _Share(NamedTuple):
    """What a rank has."""

    origin: Origin | None
    batches: int
    samples: int
    sites: dict[str, _Seen]
    sums: dict[tuple[str, str], _Layout]
    """(collector, group or tensor)"""
    collectors: list[str]


def _share(stats: Stats) -> _Share:
    first: dict[int, str] = {}
    return _Share(
        None
        if stats.spec is None
        else origin(
            stats.spec, {n: outline(t) if is_sharded(t) else t for n, t in stats.params.items()}, stats.fingerprints
        ),
        stats.batches,
        stats.samples,
        {n: _seen(n, m, first.setdefault(id(m.scatter), n)) for n, m in stats.sites.items()},
        {(c, g): _layout(t) for c, groups in stats.sums.items() for g, t in groups.items()},
        list(stats.sums),
    )


def _seen(site: str, m: Moments, shared: str) -> _Seen:
    """Checked here, so that no merge can fail while others wait.

    Raises:
        StatsError: the moments do not go together.
    """
    shapes = {f: tuple(v.shape) for f, v in m._asdict().items() if isinstance(v, Tensor)}
    d = tuple(m.mean.shape)
    asked = {"m2": d, "absolute": d, "scatter": (*d, *d), "taps": (*d, *shapes.get("taps", ())[1:])}
    if len(d) != 1 or any(asked[f] != shape for f, shape in shapes.items() if f in asked):
        raise StatsError(f"the moments of site {site!r} have shapes {shapes} that do not go together")
    if m.taps is not None and m.count and not m.tap_count:
        raise StatsError(f"the moments of site {site!r} have taps of no positions; give tap_count")
    return _Seen(m.count, m.tap_count, shapes, shared)


def _layout(t: Tensor) -> _Layout:
    return _Layout(t.dtype, tuple(t.shape), t.device.type)


def _check(shares: list[_Share], first: int, wire: Wire) -> None:
    """All shares can be merged; the same answer on every rank.

    Raises:
        StatsError: names the first rank that does not fit one before it.
    """
    sites: dict[str, tuple[int, _Seen]] = {}
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
        for name, seen in share.sites.items():
            before, known = sites.setdefault(name, (r, seen))
            for field in {**known.shapes, **seen.shapes}:
                a, b = known.shapes.get(field), seen.shapes.get(field)
                if a != b:
                    raise StatsError(
                        f"site {name!r}: rank {wire.name(r)} has {_said(field, b)}, but rank {wire.name(before)} has "
                        f"{_said(field, a)}; all ranks must call collect_stats with the same criterion and covariance"
                    )
        for key, layout in share.sums.items():
            before, known = sums.setdefault(key, (r, layout))
            if known[:2] != layout[:2]:
                raise StatsError(
                    f"collector {key[0]!r}, {key[1]!r}: rank {wire.name(r)} has {layout.dtype} of shape {layout.shape}, but "
                    f"rank {wire.name(before)} has {known.dtype} of shape {known.shape}; all ranks must collect the same"
                )


def _said(field: str, shape: tuple[int, ...] | None) -> str:
    return f"no {field!r}" if shape is None else f"{field!r} of shape {shape}"


# ---- one value after the other


def _sites(stats: Stats, shares: list[_Share], wire: Wire, device: torch.device) -> dict[str, Moments]:
    """Site by site; a covariance that sites share is sent once and stays shared."""
    out: dict[str, Moments] = {}
    scatters: dict[tuple[tuple[int, str], ...], Tensor | None] = {}
    for name in dict.fromkeys(n for s in shares for n in s.sites):
        have = {r: s.sites[name] for r, s in enumerate(shares) if name in s.sites}
        have = {r: seen for r, seen in have.items() if seen.count} or dict(list(have.items())[:1])
        key = tuple((r, seen.shared) for r, seen in have.items())
        m = _on(device, _merged(stats.sites.get(name), have, wire, scatter=key not in scatters))
        out[name] = m._replace(scatter=scatters.setdefault(key, m.scatter))
    return out


def _merged(own: Moments | None, have: Mapping[int, _Seen], wire: Wire, *, scatter: bool) -> Moments:
    """Moments of some ranks, merged in their order on the first of them, and sent to all; with or without covariance."""
    root, total = next(iter(have)), None
    for r, seen in have.items():
        part = own if r == wire.rank == root else None
        if r != root:
            part = _sent(own, seen, wire, r, scatter=scatter)
        if wire.rank == root and part is not None:
            part = _on(wire.device, part if scatter else part._replace(scatter=None))
            total = part if total is None else merge_moments(total, part)
    counts = {"count": sum(s.count for s in have.values()), "tap_count": sum(s.tap_count for s in have.values())}
    return _sent(total, have[root]._replace(**counts), wire, root, scatter=scatter)


def _sent(m: Moments | None, seen: _Seen, wire: Wire, source: int, *, scatter: bool) -> Moments:
    """Moments of the source to all: the vectors in one piece, the covariance in another."""
    fields = {f: shape for f, shape in seen.shapes.items() if f != "scatter"}
    sizes = [prod(shape) for shape in fields.values()]
    values = None if m is None else m._asdict()
    packed = None if values is None else torch.cat([values[f].detach().double().flatten() for f in fields])
    parts = wire.send(packed, torch.float64, (sum(sizes),), source).split(sizes)
    found = {f: part.clone().reshape(shape) for (f, shape), part in zip(fields.items(), parts, strict=True)}
    if scatter and "scatter" in seen.shapes:
        found["scatter"] = wire.send(None if m is None else m.scatter, torch.float64, seen.shapes["scatter"], source)
    return Moments(count=seen.count, tap_count=seen.tap_count, **found)


def _on(device: torch.device, m: Moments) -> Moments:
    """In float64 on a device."""
    values: list[Any] = [v.detach().to(device, torch.float64) if isinstance(v, Tensor) else v for v in m]
    return Moments(*values)


def _sums(stats: Stats, shares: list[_Share], wire: Wire, device: torch.device) -> dict[str, FrozenDict[str, Tensor]]:
    """Sums in their own type, added up in the order of the ranks."""
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


def _with_spec(stats: Stats, first: int, wire: Wire) -> Stats:
    """The statistics, with the spec and the parameters of the first rank that has them, where this rank has none."""

    def pack() -> tuple[bytes, dict[str, _Layout], dict[str, str], Mapping[str, str]] | None:
        if wire.rank != first:
            return None
        check_plain(stats.params, "a rank without statistics", "call collect_stats on every rank, with batches or not")
        names: dict[tuple[Any, ...], str] = {}
        same = {
            n: names.setdefault((t.data_ptr(), t.shape, t.stride(), t.dtype) if t.numel() else (n,), n)
            for n, t in stats.params.items()
        }
        return pickle.dumps(stats.spec), {n: _layout(t) for n, t in stats.params.items()}, same, stats.fingerprints

    packed, layouts, same, fingerprints = wire.together(pack)[first]
    spec = stats.spec
    lacking: list[Spec] = []
    wire.together(lambda: lacking.append(pickle.loads(packed)) if spec is None else None)
    params: dict[str, Tensor] = {}
    for name, layout in layouts.items():
        if same[name] == name:
            t = wire.send(stats.params.get(name), layout.dtype, layout.shape, first)
            if spec is None:
                params[name] = t
    if spec is not None:
        return stats
    received = FrozenDict({n: params[same[n]] for n in layouts})
    return stats._replace(spec=lacking[0], params=received, fingerprints=fingerprints)
