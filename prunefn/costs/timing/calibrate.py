"""Ops in place: what they take in whole forwards, beside what they take alone.

Alone, an op finds its weights and its memory warm; in a forward it does not, and the difference is another for large and for
small sizes. So whole forwards are timed at a few shares of all groups, op by op, and each op's grid is scaled to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ...files.cache import Cache
from ...parameters.transforms import apply, shrink
from ...program.inputs import flat_inputs
from ...program.run import forward
from ...spec.program import Instruction
from ...spec.spec import Spec
from ...types import Params
from .clock import Call, Clock, quiet
from .points import part
from .table import Grid
from .walk import Env, Machine, machine, walk


class Network(NamedTuple):
    """The network with the same share of every group."""

    machine: Machine
    whole: Call
    """A forward."""


class Placed(NamedTuple):
    """What was measured in one of these networks."""

    sizes: Mapping[str, int]
    """Of all leaves."""
    seconds: Mapping[str, float]
    """Of each instruction in place; they add up to a whole forward."""


def networks(
    spec: Spec, params: Params, batch: int, device: torch.device, shares: Sequence[float], multiple: int
) -> list[Network]:
    """At each share; the first is whole."""
    args, kwargs = spec.example.draw(batch=batch, device=device)
    out = []
    for share in sorted({1.0, *shares}, reverse=True):
        left = {g: part(n, share, multiple, even=False) for g, n in spec.sizes.items()}
        mask = {g: torch.arange(n) < left[g] for g, n in spec.sizes.items()}
        small, small_spec = apply(params, mask, spec=spec), shrink(spec, mask)
        m = machine(small_spec, small, flat_inputs(spec, args, kwargs), device)
        out.append(Network(m, Call("whole", "forward", partial(forward, small, spec=small_spec), args, kwargs)))
    return out


def in_place(
    nets: Sequence[Network], clock: Clock, store: Cache, program: str, rounds: int, progress: bool
) -> list[Placed]:
    """Measure all of them in turns, after a round that warms up.

    Args:
        program: tells it apart from others in the cache.
        rounds: of each network, op by op and whole.
    """
    names = [i.name for i in nets[0].machine.spec.program.instructions]
    marks = [sha256(f"{program} {net.machine.sizes}".encode()).hexdigest()[:16] for net in nets]
    keys = {(k, n): f"{mark} {n}" for k, mark in enumerate(marks) for n in names}
    if any(key not in store.seconds for key in keys.values()):
        times: dict[tuple[int, str], list[float]] = {}
        for i in tqdm(range(-1, rounds), desc="latency of the whole", disable=not progress, leave=False):
            for k, net in enumerate(nets):
                seconds = {**_timed_walk(net.machine, clock), "": clock.run(net.whole)[1]}
                for n, s in seconds.items() if i >= 0 else ():
                    times.setdefault((k, n), []).append(s)
        typical = {at: quiet(s) for at, s in times.items()}
        for k in range(len(nets)):
            total = sum(typical[k, n] for n in names)
            scale = typical[k, ""] / total if total else 1.0
            store.seconds |= {keys[k, n]: typical[k, n] * scale for n in names}
    return [Placed(net.machine.sizes, {n: store.seconds[keys[k, n]] for n in names}) for k, net in enumerate(nets)]


def _timed_walk(m: Machine, clock: Clock) -> dict[str, float]:
    seconds: dict[str, float] = {}

    def run(ins: Instruction, call: Call, env: Env) -> Any:
        result, seconds[ins.name] = clock.run(call)
        return result

    walk(m, run)
    return seconds


def corrected(grid: Grid, tops: Sequence[int], known: Sequence[tuple[Sequence[int], float]]) -> Grid:
    """The grid times a factor for each point: that of the networks which have about the same share of it.

    Args:
        tops: sizes of the coordinates when nothing is removed.
        known: (sizes of the coordinates in a network, seconds in place over seconds alone).

    >>> corrected(Grid(((2, 4),), (1.0, 2.0)), (4,), [((4,), 2.0), ((2,), 3.0)]).seconds
    (3.0, 4.0)
    """
    factors = {_share(where, tops): factor for where, factor in known}
    shares = sorted(factors)
    points = [_share(p, tops) for p in _points(grid)]
    found = np.interp(points, shares, [factors[s] for s in shares]).tolist()
    return grid._replace(seconds=tuple(s * f for s, f in zip(grid.seconds, found, strict=True)))


def _points(grid: Grid) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for sizes in grid.sizes:
        found = [(*p, n) for p in found for n in sizes]
    return found


def _share(where: Sequence[int], tops: Sequence[int]) -> float:
    """Geometric mean of what is left of each coordinate."""
    return float(np.prod([n / top for n, top in zip(where, tops, strict=True)]) ** (1 / len(tops)))
