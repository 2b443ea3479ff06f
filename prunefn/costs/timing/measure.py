"""`latency_table`: the ops of a program timed over a grid of sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from ...doors import door
from ...errors import ParamsError, PruneError
from ...files.cache import Cache, file_name, folder_of
from ...frozen_dict import FrozenDict
from ...parameters.transforms import check_names
from ...spec.axis import Axis, size
from ...spec.program import Instruction
from ...spec.spec import Spec, check_runnable
from ...types import Params
from .calibrate import Placed, corrected, in_place, networks
from .clock import Call, Clock, clock_for, device_name, typical
from .points import Mesh, coordinates, mesh, sizes_in
from .table import Grid, LatencyTable, Op, merge
from .walk import Env, Machine, instruction_axes, is_view, resized, walk

GRID = (1.0, 0.75, 0.5, 0.25, 0.1)
ROUNDS = 2
"""Forwards for each repeat: all else is scaled by them."""
MULTIPLE = 16
"""Kernels work in blocks of so many channels: 16 floats fill a vector of AVX-512, and tensor cores like 8 or 16."""


@door
def latency_table(
    spec: Spec,
    params: Params,
    device: torch.device | str | None = None,
    *,
    batch: int = 1,
    grid: Sequence[float] = GRID,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
    repeats: int = 10,
    clock: Clock | None = None,
) -> LatencyTable:
    """Measure once how long every op takes at some sizes, to predict how long a forward takes at any sizes.

    An op's seconds are a function of the sizes of the few groups on its axes. It is measured alone, on parts of the tensors
    that it meets in the dense program, over a grid of these sizes, and interpolated linearly in each size. Sizes that are
    multiples of 16, which kernels like, and odd ones make a grid each. Then whole forwards are timed op by op, with the same
    share of every group, and each op's grid is scaled to what it takes there, so that the prediction is exact for them.
    Ops of the same shapes are measured once, also for later tables: they are kept in a file for each device, version of
    torch, number of threads and type of the parameters. A measurement that was stopped goes on where it was.

    With one thread on a CPU, CPU time is measured: what wall time would be on a machine of one's own, however busy it is.
    Biases that a compensation created are left out.

    Args:
        spec: of the dense network.
        params: of the spec.
        device: where it is measured; default: where the params are.
        batch: samples of a forward.
        grid: shares of the units at which ops are measured; all of them, and a single one, always are.
        cache: folder of the files; default `prunefn/latency` in the user's cache folder.
        progress: show a bar.
        repeats: calls of which the lower quartile counts; fewer for ops that take long.
        clock: default: the device's own.

    Raises:
        TraceError: the spec was recorded, so that it has no program that runs.
        ParamsError: the params do not fit the spec, or are on `meta`.
        PruneError: a bad grid, batch or number of repeats; or a file in the cache is damaged (it is left as it is).

    >>> import tempfile, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
    >>> spec = pf.trace(model, (torch.randn(2, 64),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = latency_table(spec, pf.params(model), batch=32, cache=folder, progress=False)
    >>> table.predict({"0": 100}) > 0, len(table.ops)
    (True, 3)
    """
    check_runnable(spec)
    check_names(params, spec)
    _check(grid, batch, repeats)
    placed, place = _placed(params, device)
    nets = networks(spec, placed, batch, place, grid, MULTIPLE)
    m = nets[0].machine
    clock = clock or clock_for(place)
    name, version, threads = device_name(place), str(torch.__version__), torch.get_num_threads()
    store = Cache(folder_of(cache) / _file(name, version, threads, placed, clock))
    with torch.no_grad():
        try:
            found = _alone(m, _Plan(clock, store, tuple(grid), repeats), progress)
            places = in_place(nets, clock, store, "\n".join(f.key for f in found), ROUNDS * repeats, progress)
        finally:
            store.write()
    ops = tuple(_op(f, m, places) for f in found)
    return LatencyTable(
        spec,
        name,
        version,
        threads,
        clock.name,
        batch,
        MULTIPLE,
        FrozenDict(m.sizes),
        ops,
        merge(ops),
    )


def _check(grid: Sequence[float], batch: int, repeats: int) -> None:
    if not all(0 < s <= 1 for s in grid):
        raise PruneError(f"grid={tuple(grid)}: shares of units must be above 0 and at most 1")
    if batch < 1 or repeats < 1:
        raise PruneError(f"batch ({batch}) and repeats ({repeats}) must be at least 1")


def _placed(params: Params, device: torch.device | str | None) -> tuple[Params, torch.device]:
    """The params on the device, and the device."""
    own = next((t.device for t in params.values()), torch.device("cpu"))
    place = own if device is None else torch.device(device)
    if "meta" in (own.type, place.type):
        raise ParamsError("tensors on 'meta' take no time; give the params on a real device")
    return (params if place == own else {n: t.to(place) for n, t in params.items()}), place


def _file(name: str, version: str, threads: int, params: Params, clock: Clock) -> str:
    dtype = next((str(t.dtype) for t in params.values() if t.is_floating_point()), "no parameters")
    return file_name(name, f"torch {version}", f"{threads} threads", dtype.removeprefix("torch."), clock.name)


# ---- the ops alone


class _Plan(NamedTuple):
    """How ops are measured."""

    clock: Clock
    store: Cache
    shares: tuple[float, ...]
    repeats: int


class _Found(NamedTuple):
    """An instruction with what it takes alone; no grid where its size does not matter."""

    ins: Instruction
    key: str
    """What it is at full size."""
    axes: tuple[Axis, ...] = ()
    grid: Grid | None = None
    even: Grid | None = None


def _alone(m: Machine, plan: _Plan, progress: bool) -> list[_Found]:
    """Go through the dense program once, and stop at each op to time it at all sizes."""
    found: list[_Found] = []
    bar = tqdm(total=len(m.spec.program.instructions), desc="latency of ops", disable=not progress, leave=False)

    def run(ins: Instruction, call: Call, env: Env) -> Any:
        result = call()
        found.append(_over_grid(m, ins, env, plan, view=is_view(call, result)))
        bar.update()
        return result

    with bar:
        walk(m, run)
    return found


def _over_grid(m: Machine, ins: Instruction, env: Env, plan: _Plan, *, view: bool) -> _Found:
    key, _ = resized(m, ins, env, {})
    loose = sizes_in((ins.args, tuple(v for _, v in ins.kwargs)))
    where = coordinates([*instruction_axes(m.spec, ins)], loose, m.spec.sizes.keys())
    if view or not where:
        return _Found(ins, key)

    def seconds(sizes: Mapping[str, int]) -> float:
        name, make = resized(m, ins, env, sizes)
        return plan.store.get(name, lambda: typical(plan.clock, make(), plan.repeats))

    def measured(points: Mesh) -> Grid:
        return Grid(points.sizes, tuple(seconds(p.sizes) for p in points.points))

    odd, liked = (mesh(where, m.sizes, plan.shares, MULTIPLE, even=even) for even in (False, True))
    axes = tuple(c.axis for c in where)
    return _Found(ins, key, axes, measured(odd), measured(liked) if liked.sizes != odd.sizes else None)


def _op(f: _Found, m: Machine, places: Sequence[Placed]) -> Op:
    """Scaled to what it takes in place."""
    ins = f.ins
    if f.grid is None:
        return Op(ins.name, ins.op, ins.module, (), Grid((), (places[0].seconds[ins.name],)))
    raw = Op(ins.name, ins.op, ins.module, f.axes, f.grid, f.even)
    tops = [size(a, m.sizes) for a in f.axes]
    known = []
    for p in places:
        where = [size(a, p.sizes) for a in f.axes]
        alone = raw.at(where, tops, MULTIPLE)
        known.append((where, p.seconds[ins.name] / alone if alone else 1.0))
    return raw._replace(
        grid=corrected(f.grid, tops, known), even=None if f.even is None else corrected(f.even, tops, known)
    )
