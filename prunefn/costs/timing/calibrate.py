"""Calibrate the seconds of ops measured alone to their seconds in place, in whole forwards.

Measured alone, an op finds its weights in the caches; in a forward it does not, and the difference depends on the sizes. So whole
forwards are timed at a few shares of all groups, op by op, and each op's grid is scaled to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch

from ...display.progress import progress_bar
from ...files.cache import Cache
from ...parameters.transforms import apply, shrink
from ...program.inputs import flat_inputs
from ...program.run import forward
from ...spec.program import Instruction
from ...spec.spec import Spec
from ...types import Params
from .clock import Call, Clock, quiet
from .points import part, timed
from .table import Grid
from .walk import Env, Machine, machine, walk


class Network(NamedTuple):
    """The network with the same share of every group kept."""

    machine: Machine
    whole: Call
    """A whole forward."""


class Placed(NamedTuple):
    """The measurements of one of these networks."""

    sizes: Mapping[str, int]
    """Sizes of all leaves."""
    seconds: Mapping[str, float]
    """Seconds of each instruction in place; they add up to those of a whole forward."""


def networks(
    spec: Spec, params: Params, inputs: tuple[Any, Any], device: torch.device, shares: Sequence[float], multiple: int
) -> list[Network]:
    """Return the network at each share of the units, the largest first; the first is always the dense network."""
    args, kwargs = inputs
    out = []
    for share in sorted({1.0, *shares}, reverse=True):
        kept = {g: part(spec.sizes[g], share, multiple, even=False) for g in timed(spec)}
        mask = {g: torch.arange(spec.sizes[g]) < n for g, n in kept.items()}
        small, small_spec = apply(params, mask, spec=spec), shrink(spec, mask)
        m = machine(small_spec, small, flat_inputs(spec, args, kwargs), device)
        out.append(Network(m, Call("whole", "forward", partial(forward, small, spec=small_spec), args, kwargs)))
    return out


def in_place(
    nets: Sequence[Network], clock: Clock, store: Cache, program: str, rounds: int, progress: bool
) -> list[Placed]:
    """Measure all networks in turns, after a round that warms up.

    Args:
        nets: the networks, of `networks`.
        clock: measures the calls.
        store: cache of the seconds; if it has all of them, nothing is measured.
        program: text that identifies the program in the cache.
        rounds: number of timed rounds; each runs every network op by op and as a whole.
        progress: whether to show a progress bar.
    """
    names = [i.name for i in nets[0].machine.spec.program.instructions]
    digests = [sha256(f"{program} {net.machine.sizes}".encode()).hexdigest()[:16] for net in nets]
    keys = {(k, n): f"{digest} {n}" for k, digest in enumerate(digests) for n in names}
    if any(key not in store.seconds for key in keys.values()):
        times: dict[tuple[int, str], list[float]] = {}
        for i in progress_bar(range(-1, rounds), text="latency of the whole", show=progress):
            for k, net in enumerate(nets):
                seconds = {**_time_op_by_op(net.machine, clock), "": clock.run(net.whole)[1]}  # "": the whole forward
                for n, s in seconds.items() if i >= 0 else ():
                    times.setdefault((k, n), []).append(s)
        typical = {at: quiet(s) for at, s in times.items()}
        for k in range(len(nets)):
            total = sum(typical[k, n] for n in names)
            scale = typical[k, ""] / total if total else 1.0
            store.seconds |= {keys[k, n]: typical[k, n] * scale for n in names}
    return [Placed(net.machine.sizes, {n: store.seconds[keys[k, n]] for n in names}) for k, net in enumerate(nets)]


def _time_op_by_op(m: Machine, clock: Clock) -> dict[str, float]:
    """Run a program op by op, and return the seconds of each instruction."""
    seconds: dict[str, float] = {}

    def run(ins: Instruction, call: Call, env: Env) -> Any:
        result, seconds[ins.name] = clock.run(call)
        return result

    walk(m, run)
    return seconds


def corrected(grid: Grid, tops: Sequence[int], known: Sequence[tuple[Sequence[int], float]]) -> Grid:
    """Return the grid times a factor for each point, interpolated between the factors of networks by their shares.

    Args:
        grid: seconds alone.
        tops: dense sizes of the coordinates.
        known: for each network, (sizes of the coordinates, seconds in place over seconds alone).

    >>> corrected(Grid(((2, 4),), (1.0, 2.0)), (4,), [((4,), 2.0), ((2,), 3.0)]).seconds
    (3.0, 4.0)
    """
    factors = {_share(where, tops): factor for where, factor in known}
    shares = sorted(factors)
    point_shares = [_share(p, tops) for p in grid.points()]
    point_factors = np.interp(point_shares, shares, [factors[s] for s in shares]).tolist()
    return grid._replace(seconds=tuple(s * f for s, f in zip(grid.seconds, point_factors, strict=True)))


def _share(where: Sequence[int], tops: Sequence[int]) -> float:
    """Return the geometric mean of the shares that are left of the coordinates."""
    return float(np.prod([n / top for n, top in zip(where, tops, strict=True)]) ** (1 / len(tops)))
