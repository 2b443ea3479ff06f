"""`latency_table`: time the ops of a program over a grid of sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ...display.progress import progress_bar
from ...doors import door
from ...errors import ParamsError, PruneError
from ...files.cache import Cache, file_name, folder_of
from ...frozen_dict import FrozenDict
from ...parameters.transforms import check_names
from ...spec.axis import Axis, size
from ...spec.program import Instruction
from ...spec.spec import Spec, check_runnable
from ...types import Params
from .calibrate import Network, Placed, corrected, in_place, networks
from .clock import Call, Clock, clock_for, device_name, typical
from .points import Mesh, coordinates, mesh, sizes_in, timed
from .runtimes import KERNELS, check_runtime, version_of
from .table import Grid, LatencyTable, Op, merge
from .walk import Env, Machine, instruction_axes, is_view, resized, walk
from .whole import Timer, timed_layers

GRID = (1.0, 0.75, 0.5, 0.25, 0.1)
"""Default shares of the units at which ops are measured."""
ROUNDS = 2
"""Timed forwards for each repeat of an op; more, because all other times are scaled by them."""
MULTIPLE = KERNELS["eager"].multiple


@door
def latency_table(
    params: Params,
    device: torch.device | str | None = None,
    *,
    spec: Spec,
    batch: int = 1,
    grid: Sequence[float] = GRID,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
    repeats: int = 10,
    clock: Clock | None = None,
    runtime: str = "eager",
) -> LatencyTable:
    """Measure the seconds of every op at some sizes, to predict those of a forward at any sizes.

    An op's seconds are a function of the sizes of the few groups on its axes. The op is measured alone, on parts of its tensors
    in the dense program, over a grid of these sizes, and interpolated linearly in each size. Sizes that are multiples of 16,
    which suit the kernels, and odd sizes have separate grids. Then whole forwards are timed op by op, with the same share of
    every group, and each op's grid is scaled to its seconds in these forwards, so that the prediction is exact for them. Ops of
    the same shapes are measured once, also for later tables: a file for each device, version of torch, number of threads and
    type of the parameters keeps them. An interrupted measurement resumes from this file.

    In other runtimes, ops of a layer run as one, so that whole networks are timed instead: the dense one, and for each share of
    the grid four, two of them with multiples of 16 units. Each group has a width of its own in each, from the smallest share to
    1. The runtime's profiler divides the seconds among the layers (those of torch.compile are divided as in an eager forward), and
    a grid is fitted to each. Where kernels fill up channels with zeros (ONNX Runtime from multiples of 4, OpenVINO from any
    number), sizes are predicted like the next multiple of 16. Writing or compiling the networks takes most of the time:
    torch.compile needs minutes for a large one.

    With one thread on a CPU, CPU time is measured: it is the wall time of an otherwise idle machine, however busy the machine is.
    Biases that a compensation created are left out.

    Args:
        params: params of the dense network.
        device: device of the measurement; default: that of the params.
        spec: spec of the params.
        batch: samples of a forward.
        grid: shares of the units at which ops are measured; all units, and a single one, are always measured, too.
        cache: folder of the cache files; default: `prunefn/latency` in the user's cache folder.
        progress: whether to show a progress bar.
        repeats: number of calls of an op, of which the lower quartile counts; fewer for ops that take long.
        clock: the clock; default: that of the device.
        runtime: `eager` torch, `compiled` by torch.compile, or, on the CPU and with as many threads as torch uses, `onnx` for ONNX
            Runtime or `openvino` for OpenVINO (in float32).

    Raises:
        TraceError: the spec was recorded, so it has no program that runs.
        ParamsError: the params do not fit the spec, or are on `meta`.
        PruneError: grid, batch or repeats are out of range; or a file in the cache is damaged (it does not change).
        ModuleNotFoundError: the runtime is not installed; names the extra that brings it.

    >>> import tempfile, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
    >>> spec = pf.trace(model, (torch.randn(2, 64),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = latency_table(pf.params(model), spec=spec, batch=32, cache=folder, progress=False)
    >>> table.predict({"0": 100}) > 0, len(table.ops)
    (True, 3)
    """
    check_runnable(spec)
    check_names(params, spec)
    _check_arguments(grid, batch, repeats)
    device_params, where = _params_on_device(params, device)
    check_runtime(runtime, where)
    name, threads, clock = device_name(where), torch.get_num_threads(), clock or clock_for(where)
    version = version_of(runtime)
    store = Cache(folder_of(cache) / _cache_file(name, version, threads, device_params, clock))
    inputs = spec.example.draw(batch=batch, device=where)
    plan = _Plan(clock, store, tuple(grid), repeats)
    with torch.no_grad():
        try:
            if runtime == "eager":
                ops, sizes = _timed_ops(networks(spec, device_params, inputs, where, grid, MULTIPLE), plan, progress)
            else:
                timer = Timer(runtime, spec, device_params, inputs, clock, store, repeats)
                ops, sizes = timed_layers(timer, grid, progress)
        finally:
            store.write()
    multiple, filled = KERNELS[runtime]
    layers = multiple, FrozenDict(sizes), ops, merge(ops)
    return LatencyTable(spec, name, version, threads, clock.name, batch, *layers, filled, runtime)


def _check_arguments(grid: Sequence[float], batch: int, repeats: int) -> None:
    """Raise a PruneError for numbers out of range."""
    if not all(0 < s <= 1 for s in grid):
        raise PruneError(f"grid={tuple(grid)}: shares of units must be above 0 and at most 1")
    if batch < 1 or repeats < 1:
        raise PruneError(f"batch ({batch}) and repeats ({repeats}) must be at least 1")


def _params_on_device(params: Params, device: torch.device | str | None) -> tuple[Params, torch.device]:
    """Return the params on the device, and the device."""
    own = next((t.device for t in params.values()), torch.device("cpu"))
    where = own if device is None else torch.device(device)
    if "meta" in (own.type, where.type):
        raise ParamsError("tensors on 'meta' cannot be timed; give the params on a real device")
    return (params if where == own else {n: t.to(where) for n, t in params.items()}), where


def _cache_file(name: str, version: str, threads: int, params: Params, clock: Clock) -> str:
    """Return the name of the cache file, which contains everything that the seconds of an op depend on but its key."""
    dtype = next((str(t.dtype) for t in params.values() if t.is_floating_point()), "no parameters")
    return file_name(name, version, f"{threads} threads", dtype.removeprefix("torch."), clock.name)


# ---- the ops alone


def _timed_ops(nets: Sequence[Network], plan: _Plan, progress: bool) -> tuple[tuple[Op, ...], Mapping[str, int]]:
    """Return the ops of a program with their grids, and the dense sizes of all leaves."""
    m = nets[0].machine
    alone = _measure_alone(m, plan, progress)
    program = "\n".join(op.key for op in alone)
    placed = in_place(nets, plan.clock, plan.store, program, ROUNDS * plan.repeats, progress)
    return tuple(_calibrated_op(op, m, placed) for op in alone), m.sizes


class _Plan(NamedTuple):
    """The settings of the measurement of ops."""

    clock: Clock
    store: Cache
    shares: tuple[float, ...]
    repeats: int


class _Measured(NamedTuple):
    """An instruction with its seconds alone; without a grid if its size does not matter."""

    ins: Instruction
    key: str
    """Its key in the cache at full size."""
    axes: tuple[Axis, ...] = ()
    grid: Grid | None = None
    even: Grid | None = None


def _measure_alone(m: Machine, plan: _Plan, progress: bool) -> list[_Measured]:
    """Run the dense program once, and time each op at all sizes when its inputs are available."""
    ops: list[_Measured] = []
    bar = progress_bar(total=len(m.spec.program.instructions), text="latency of ops", show=progress)

    def run(ins: Instruction, call: Call, env: Env) -> Any:
        result = call()
        ops.append(_measure_over_grid(m, ins, env, plan, view=is_view(call, result)))
        bar.update()
        return result

    with bar:
        walk(m, run)
    return ops


def _measure_over_grid(m: Machine, ins: Instruction, env: Env, plan: _Plan, *, view: bool) -> _Measured:
    """Time an instruction alone over the grid of the sizes that it depends on; a view is not timed."""
    key, _ = resized(m, ins, env, {})
    argument_sizes = sizes_in((ins.args, tuple(v for _, v in ins.kwargs)))
    op_coordinates = coordinates([*instruction_axes(m.spec, ins)], argument_sizes, timed(m.spec))
    if view or not op_coordinates:
        return _Measured(ins, key)

    def seconds(sizes: Mapping[str, int]) -> float:
        name, make = resized(m, ins, env, sizes)
        return plan.store.get(name, lambda: typical(plan.clock, make(), plan.repeats))

    def grid_of(points: Mesh) -> Grid:
        return Grid(points.sizes, tuple(seconds(p.sizes) for p in points.points))

    odd, even = (mesh(op_coordinates, m.sizes, plan.shares, MULTIPLE, even=is_even) for is_even in (False, True))
    axes = tuple(c.axis for c in op_coordinates)
    return _Measured(ins, key, axes, grid_of(odd), grid_of(even) if even.sizes != odd.sizes else None)


def _calibrated_op(measured: _Measured, m: Machine, placed: Sequence[Placed]) -> Op:
    """Return the op with its grids scaled from its seconds alone to its seconds in place."""
    ins = measured.ins
    if measured.grid is None:
        return Op(ins.name, ins.op, ins.module, (), Grid((), (placed[0].seconds[ins.name],)))
    raw = Op(ins.name, ins.op, ins.module, measured.axes, measured.grid, measured.even)
    dense_sizes = [size(a, m.sizes) for a in measured.axes]
    factors = []
    for net in placed:
        sizes = [size(a, net.sizes) for a in measured.axes]
        alone = raw.at(sizes, dense_sizes, MULTIPLE)
        factors.append((sizes, net.seconds[ins.name] / alone if alone else 1.0))
    even = None if measured.even is None else corrected(measured.even, dense_sizes, factors)
    return raw._replace(grid=corrected(measured.grid, dense_sizes, factors), even=even)
