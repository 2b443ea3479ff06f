"""Time whole networks in a runtime at several widths, and fit a table of its layers to them.

A runtime fuses ops, chooses layouts and fills up channels, so that the seconds of an op alone do not add up to those of a network.
So whole networks are timed, with a width of its own for each group; the runtime's profiler divides the seconds among the layers
(of torch.compile, which has none, an eager forward does).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from statistics import median
from typing import Any, NamedTuple

import torch

from ...display.progress import progress_bar
from ...files.cache import Cache
from ...parameters.transforms import apply, shrink
from ...program.inputs import flat_inputs
from ...spec.axis import size
from ...spec.spec import Spec
from ...types import Params
from .clock import WARM_UP, Clock, quiet
from .fit import Row, fit
from .loaded import Loaded, Part
from .points import Coordinate, coordinates, part, timed
from .runtimes import KERNELS, Kernels, load
from .table import Grid, Op, block, is_even

ROUNDS = 2
"""Timed forwards for each repeat: all shares refer to whole forwards."""
DENSE_KEY = "dense"
DENSE = 10.0
"""Weight of the dense network in the fit, to which all shares of a latency refer."""

Sizes = Mapping[str, int]


class Timer(NamedTuple):
    """What times a network: the runtime, the inputs, the clock, and the cache of the seconds."""

    runtime: str
    spec: Spec
    params: Params
    inputs: tuple[Any, Any]
    clock: Clock
    store: Cache
    repeats: int

    @property
    def kernels(self) -> Kernels:
        """Return how the kernels of the runtime treat numbers of channels."""
        return KERNELS[self.runtime]

    def load(self, params: Params, spec: Spec) -> Loaded:
        """Load a network for the inputs."""
        return load(self.runtime, params, spec, self.inputs)


def timed_layers(timer: Timer, shares: Sequence[float], progress: bool) -> tuple[tuple[Op, ...], dict[str, int]]:
    """Return the layers of a network with their grids, and the dense sizes of all leaves.

    Args:
        timer: the network and how to time it.
        shares: the smallest is the lower end of the widths; for each, two networks of multiples and two of odd sizes are timed.
        progress: whether to show a progress bar.
    """
    spec = timer.spec
    dense = timer.load(timer.params, spec)
    tensors = dict(zip((i.name for i in spec.program.inputs), flat_inputs(spec, *timer.inputs), strict=True))
    free = {leaf: tensors[name].shape[dim] for leaf, (name, dim) in spec.program.free.items()}
    digest = sha256(f"{dense.parts} {spec.program.instructions}".encode()).hexdigest()[:16]
    nets = [dict(spec.sizes)]
    nets += [w for even in (True, False) for w in widths(timer, 2 * len(shares), min(shares), even=even)]
    keys = [f"{digest} { {**net, **free} }" for net in nets]
    for net, key in progress_bar([*zip(nets, keys, strict=True)], text="latency of networks", show=progress):
        if any(f"{key} {n}" not in timer.store.seconds for n in (*range(len(dense.parts)), DENSE_KEY)):
            timer.store.seconds |= {f"{key} {n}": s for n, s in _measure(timer, dense, net).items()}
            timer.store.write()
    seconds = timer.store.seconds
    # a machine that is busier for some networks is so for the dense one in their rounds, too
    typical = median(seconds[f"{key} {DENSE_KEY}"] for key in keys)
    rows = []
    for net, key in zip(nets, keys, strict=True):
        speed = typical / seconds[f"{key} {DENSE_KEY}"]
        rows.append((net, {n: seconds[f"{key} {n}"] * speed for n in range(len(dense.parts))}))
    sizes = {**spec.sizes, **free}
    return tuple(_fitted(timer, dense.parts, sizes, rows)), sizes


def _measure(timer: Timer, dense: Loaded, sizes: Sizes) -> dict[int | str, float]:
    """Return part → seconds of the network of these sizes, and those of the dense one in the same rounds."""
    net = dense
    if any(n < timer.spec.sizes[g] for g, n in sizes.items()):
        mask = {g: torch.arange(n) < sizes[g] for g, n in timer.spec.sizes.items()}
        small, spec = apply(timer.params, mask, spec=timer.spec), shrink(timer.spec, mask)
        net = timer.load(small, spec)
    times: dict[str, list[float]] = {"net": [], DENSE_KEY: []}
    for i in range(-WARM_UP, ROUNDS * timer.repeats):
        for name, loaded in (("net", net), (DENSE_KEY, dense)) if i % 2 else ((DENSE_KEY, dense), ("net", net)):
            s = timer.clock.run(loaded.whole)[1]
            if i >= 0:
                times[name].append(s)
    kernels = net.profile(timer.repeats)
    scale = quiet(times["net"]) / sum(kernels.values())
    return {**{n: scale * kernels.get(n, 0.0) for n in range(len(dense.parts))}, DENSE_KEY: quiet(times[DENSE_KEY])}


def widths(timer: Timer, count: int, smallest: float, *, even: bool) -> Iterator[dict[str, int]]:
    """Yield sizes of all groups: every group takes shares from `smallest` to 1, evenly spaced, in an order of its own."""
    spec, generator = timer.spec, torch.Generator().manual_seed(int(even))
    orders = {g: torch.randperm(count, generator=generator).tolist() for g in spec.sizes}
    for k in range(count):
        share = {g: smallest + (1 - smallest) * (order[k] + 0.5) / count for g, order in orders.items()}
        yield {
            **spec.sizes,
            **{g: part(spec.sizes[g], share[g], timer.kernels.multiple, even=even) for g in timed(spec)},
        }


def _fitted(
    timer: Timer, parts: Sequence[Part], dense: Sizes, rows: Sequence[tuple[Sizes, dict[int, float]]]
) -> Iterator[Op]:
    """Yield the layers with their grids; layers of the same shapes are fitted together, as shares of their dense seconds.

    Args:
        timer: says how its kernels treat sizes.
        parts: of the network.
        dense: sizes of all leaves.
        rows: (sizes of the groups, part → seconds) of each network, the dense one first.
    """
    of_part = [coordinates([p.axes], [], rows[0][0].keys()) for p in parts]
    shapes = [
        (tuple(size(c.axis, dense) for c in found), tuple(size(a, dense) for a in p.axes))
        for found, p in zip(of_part, parts, strict=True)
    ]
    alike: dict[Any, list[int]] = {}
    for n, shape in enumerate(shapes):
        alike.setdefault(shape, []).append(n)
    grids = {
        shape: _grids(timer.kernels, members, of_part, dense, rows) for shape, members in alike.items() if shape[0]
    }
    for n, (part_, found, shape) in enumerate(zip(parts, of_part, shapes, strict=True)):
        own = rows[0][1][n]
        if not found or not own:
            mean = sum(seconds[n] for _, seconds in rows) / len(rows)
            yield Op(part_.weight, timer.runtime, part_.module, (), Grid((), (mean,)))
            continue
        grid, even = (g._replace(seconds=tuple(s * own for s in g.seconds)) for g in grids[shape])
        yield Op(part_.weight, timer.runtime, part_.module, tuple(c.axis for c in found), grid, even)


def _grids(
    kernels: Kernels,
    members: Sequence[int],
    of_part: Sequence[Sequence[Coordinate]],
    dense: Sizes,
    rows: Sequence[tuple[Sizes, dict[int, float]]],
) -> tuple[Grid, Grid]:
    """Return the grids of odd sizes and of multiples, in shares of the dense seconds, of layers of the same shapes."""
    tops = tuple(size(c.axis, dense) for c in of_part[members[0]])
    by_kind: dict[bool, list[Row]] = {False: [], True: []}
    for n in members:
        if not rows[0][1][n]:
            continue
        for k, (sizes, seconds) in enumerate(rows):
            where = tuple(size(c.axis, {**dense, **sizes}) for c in of_part[n])
            even = all(is_even(m, top, *kernels) for m, top in zip(where, tops, strict=True))
            where = (
                tuple(block(m, top, kernels.multiple) for m, top in zip(where, tops, strict=True)) if even else where
            )
            by_kind[even].append(Row(where, seconds[n] / rows[0][1][n], 1.0 if k else DENSE))
    odd, even_rows = by_kind[False] or by_kind[True], by_kind[True]
    return fit(odd, tops, kernels.multiple, even=False), fit(even_rows, tops, kernels.multiple, even=True)
