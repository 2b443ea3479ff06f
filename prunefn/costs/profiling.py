"""Time several networks in turns, layer by layer, with the reasons why latency does not fall with the MACs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

import numpy as np
import torch

from ..display.progress import progress_bar
from ..display.units import quantity, scale_of
from ..doors import door
from ..errors import PruneError
from ..parameters.transforms import tied_names
from ..program.inputs import flat_inputs
from ..program.run import forward
from ..spec.parts import Cost
from ..spec.program import Instruction
from ..spec.spec import Spec, check_runnable
from ..tables import Table
from ..types import Params
from .counted import Counted, counted, draw
from .excess import NOTHING, Account, Balance, Excess, Layer, account, balance, excess
from .runtime_layers import layers_of_parts
from .timing.clock import Call, Clock, clock_for, device_name, quiet, typical
from .timing.loaded import Loaded
from .timing.runtimes import check_runtime, load, version_of
from .timing.walk import Env, Machine, machine, walk

WARM_UP, WALKS = 3, 7
"""Rounds of whole forwards that do not count; rounds of op-by-op forwards that count."""


class Timing(NamedTuple):
    """Statistics of the seconds of a forward over the rounds."""

    median: float
    mean: float
    std: float
    p10: float
    p90: float
    p99: float
    rounds: int


class Profiled(NamedTuple):
    """The measurements of one network."""

    name: str
    cost: Cost
    """Cost of one sample."""
    timing: Timing
    throughput: float
    """Samples a second, at the median."""
    layers: Mapping[str, Layer]
    """Module → its ops; their seconds add up to the median."""
    weights: int
    """Bytes of parameters and buffers; tied ones count once."""
    peak: int
    """Bytes that a forward needs besides weights and inputs: on a GPU, those allocated; else those of results alive together."""


class Profile(NamedTuple):
    """Networks that were timed in turns."""

    networks: tuple[Profiled, ...]
    batch: int
    device: str
    threads: int
    clock: str
    """The measured time: wall time, or CPU time with one thread."""
    runtime: str = "eager"

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        times = ", ".join(f"{n.name} {quantity(n.timing.median, 's')}" for n in self.networks)
        return f"Profile({times}; batch {self.batch}, {self.device})"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def table(self) -> Table:
        """Return cost and latency of each network, compared with the first."""
        first = self.networks[0]
        scale, prefix = scale_of(max(n.cost.macs for n in self.networks))
        unit, short = scale_of(max(n.timing.median for n in self.networks), small=True)
        rows = []
        for n in self.networks:
            t = n.timing
            saved = f"{1 - n.cost.macs / first.cost.macs:.1%}", f"{first.timing.median / t.median:.2f}×"
            spread = (
                f"{t.mean / unit:.2f} ± {t.std / unit:.2f}",
                f"{t.p10 / unit:.2f} / {t.p90 / unit:.2f} / {t.p99 / unit:.2f}",
            )
            rows.append([n.name, f"{n.cost.macs / scale:.4g}", saved[0], f"{t.median / unit:.2f}", *spread, saved[1]])
            rows[-1] += [f"{n.throughput:.1f}", quantity(n.weights, "B", 3), quantity(n.peak, "B", 3)]
        times = [f"{name}\n{short}s" for name in ("median", "mean ± std", "p10 / p90 / p99")]
        columns = ["network", f"{prefix}MACs", "MACs\nsaved", *times, "speed-up"]
        runtime = "" if self.runtime == "eager" else f", {self.runtime}"
        title = f"{self.device}, {self.threads} threads, batch {self.batch}, {self.clock}{runtime}"
        return Table(title, [*columns, "samples\na second", "weights", "peak"], rows)

    def excess(self, name: str, most: int = 8) -> list[Excess]:
        """Return the layers that explain most of the seconds beyond those that the MACs suggest, the largest excess first.

        Args:
            name: name of a network other than the first, with which it is compared.
            most: maximal number of layers.

        Raises:
            PruneError: there is no such network.
        """
        dense, small, share, machine_balance = self._compared_with_first(name)
        layers = [excess(n, dense.get(n, NOTHING), layer, share, machine_balance) for n, layer in small.items()]
        return sorted((e for e in layers if e.seconds > 0), key=lambda e: -e.seconds)[:most]

    def account(self, name: str) -> Account:
        """Return the whole difference between a network's latency and its share of the MACs, by cause.

        Args:
            name: name of a network other than the first, with which it is compared.

        Raises:
            PruneError: there is no such network.
        """
        return account(*self._compared_with_first(name))

    def _compared_with_first(self, name: str) -> tuple[Mapping[str, Layer], Mapping[str, Layer], float, Balance]:
        """Return the layers of the first and of the named network, the share of the MACs, and the rates of the machine."""
        first, others = self.networks[0], {n.name: n for n in self.networks[1:]}
        if name not in others:
            raise PruneError(f"there is no network {name!r} beside {first.name!r}; there are {', '.join(others)}")
        share = others[name].cost.macs / max(first.cost.macs, 1)
        return first.layers, others[name].layers, share, balance(first.layers)


class _OnDevice(NamedTuple):
    """A network on the device, with its inputs."""

    params: Params
    spec: Spec
    args: Any
    kwargs: Any

    def machine(self, device: torch.device) -> Machine:
        """Return the network's program with its values on the device."""
        return machine(self.spec, self.params, flat_inputs(self.spec, self.args, self.kwargs), device)

    def forward(self) -> Call:
        """Return a whole forward in eager torch."""
        run = partial(forward, self.params, *self.args, spec=self.spec, **self.kwargs)
        return Call("whole", "forward", run)

    def load(self, runtime: str) -> Loaded:
        """Return the network in another runtime."""
        return load(runtime, self.params, self.spec, (self.args, self.kwargs))


@door
def profile(
    networks: Mapping[str, tuple[Params, Spec]],
    *,
    batch: int = 1,
    device: torch.device | str | None = None,
    rounds: int = 30,
    seed: int = 0,
    progress: bool = False,
    runtime: str = "eager",
) -> Profile:
    """Time networks in turns with `torch.utils.benchmark`, on random inputs like the traced ones.

    Every round times all networks, so that other load of the machine affects all of them alike. Then all networks are run op by
    op, again in turns, for the times of their layers; these are scaled to the median of the whole forward. In other runtimes than
    eager torch, a layer is a contraction with the ops that compute on its result, and the runtime's own profiler times it (of
    torch.compile, the shares of an eager forward); how long calls take to start is not known there.

    On a CPU with one thread, CPU time is measured: it is the wall time of an otherwise idle machine, however busy the machine is.

    Args:
        networks: name → (params, spec); the others are compared with the first.
        batch: samples of a forward pass.
        device: device of the measurement; default: that of the first network's params.
        rounds: number of timed rounds, at least 2, after three that do not count. The timer warms up with two more forwards
            each time.
        seed: seed of the inputs.
        progress: whether to show a progress bar.
        runtime: `eager` torch, `compiled` by torch.compile, or, on the CPU, `onnx` for ONNX Runtime or `openvino` for OpenVINO (in
            float32).

    Raises:
        PruneError: there is no network, or fewer than two rounds; there is no such runtime, or it does not run on the device.
        TraceError: a spec was recorded, so it has no program.
        ModuleNotFoundError: the runtime is not installed; names the extra that brings it.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8)).eval()
    >>> spec, params = pf.trace(model, (torch.randn(2, 64),)), pf.params(model)
    >>> mask = {"0": torch.arange(256) < 64}
    >>> small = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    >>> profiled = profile({"dense": (params, spec), "small": small}, rounds=5)
    >>> [n.cost.macs for n in profiled.networks], list(profiled.networks[0].layers)
    ([18432, 4608], ['0', '1', '2'])
    """
    if not networks or rounds < 2:
        raise PruneError(f"profile needs a network and at least two rounds; it was given {len(networks)} and {rounds}")
    first = next(iter(next(iter(networks.values()))[0].values()))
    where = torch.device(device) if device is not None else first.device
    check_runtime(runtime, where)
    version = version_of(runtime)
    on_device: dict[str, _OnDevice] = {}
    for name, (params, spec) in networks.items():
        check_runnable(spec)
        args, kwargs = draw(params, spec, batch=batch, device=where, seed=seed)
        on_device[name] = _OnDevice({n: t.to(where) for n, t in params.items()}, spec, args, kwargs)
    loaded = {} if runtime == "eager" else {name: p.load(runtime) for name, p in on_device.items()}
    clock = clock_for(where)
    calls = {name: loaded[name].whole if loaded else p.forward() for name, p in on_device.items()}
    timings = {name: _timing(times) for name, times in _time_in_turns(calls, clock, rounds, progress).items()}
    machines = {name: p.machine(where) for name, p in on_device.items()}
    counts = {name: counted(m) for name, m in machines.items()}
    layers = _layers_of_all(machines, counts, loaded, timings, clock, progress)
    profiled = []
    for name, p in on_device.items():
        peak = _peak(calls[name], where) if where.type == "cuda" else counts[name].peak
        cost, tied = p.spec.costs(p.spec.sizes), tied_names(p.params, p.spec)
        weights = sum(t.nbytes for n, t in p.params.items() if n not in tied)
        timing = timings[name]
        profiled.append(Profiled(name, cost, timing, batch / timing.median, layers[name], weights, peak))
    on = device_name(where), torch.get_num_threads(), _clock_name(clock)
    return Profile(tuple(profiled), batch, *on, "eager" if runtime == "eager" else version)


def _time_in_turns(calls: Mapping[str, Call], clock: Clock, rounds: int, progress: bool) -> dict[str, list[float]]:
    """Return network → seconds of each round of whole forwards, timed in turns."""
    from torch.utils.benchmark import Timer  # it brings setuptools and a search for compilers
    from torch.utils.benchmark.utils.timer import timer as wall_time

    timers = {
        name: Timer(
            "run()",
            globals={"run": call},
            num_threads=torch.get_num_threads(),
            timer=time.thread_time if _clock_name(clock) == "CPU time" else wall_time,
        )
        for name, call in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in timers}
    with torch.no_grad():
        for i in progress_bar(range(-WARM_UP, rounds), text="profile", show=progress):
            # every other round in reverse order, so that no network always follows the same one
            for name, timer in timers.items() if i % 2 else reversed(timers.items()):
                seconds = timer.timeit(1).mean
                if i >= 0:
                    times[name].append(seconds)
    return times


def _clock_name(clock: Clock) -> str:
    """Return the name of the time that whole forwards take: torch's timer waits for a GPU and takes wall time."""
    return clock.name if clock.name == "CPU time" else "wall time"


def _timing(times: Sequence[float]) -> Timing:
    """Return the statistics of the seconds of all rounds."""
    p10, p90, p99 = (float(p) for p in np.percentile(times, [10, 90, 99]))
    return Timing(median(times), fmean(times), stdev(times), p10, p90, p99, len(times))


def _time_op_by_op(machines: Mapping[str, Machine], clock: Clock, progress: bool) -> dict[str, dict[str, float]]:
    """Return network → instruction → seconds, from op-by-op forwards of all networks in turns, after one that warms up."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in machines}
    with torch.no_grad():
        for i in progress_bar(range(-1, WALKS), text="profile op by op", show=progress):
            for name, m in machines.items() if i % 2 else reversed([*machines.items()]):

                def timed(ins: Instruction, call: Call, _: Env, of_net: dict[str, list[float]] = times[name]) -> Any:
                    result, seconds = clock.run(call)
                    of_net.setdefault(ins.name, []).append(seconds)
                    return result

                walk(m, timed)
    return {name: {n: quiet(seconds[1:]) for n, seconds in of_net.items()} for name, of_net in times.items()}


def _layers_of_all(
    machines: Mapping[str, Machine],
    counts: Mapping[str, Counted],
    loaded: Mapping[str, Loaded],
    timings: Mapping[str, Timing],
    clock: Clock,
    progress: bool,
) -> dict[str, dict[str, Layer]]:
    """Return network → its layers; of a runtime, if `loaded` is not empty."""
    if loaded:
        with torch.no_grad():
            return {
                name: layers_of_parts(m.spec, counts[name], loaded[name], WALKS, timings[name].median)
                for name, m in machines.items()
            }
    seconds = _time_op_by_op(machines, clock, progress)
    # an op on one element has nothing to do, so it takes as long as the start of a call
    device = next(iter(machines.values())).device
    start = typical(clock, Call("alone", "neg", torch.neg, (torch.zeros(1, device=device),)), 100)
    return {n: _layers(m, counts[n], seconds[n], timings[n].median, start) for n, m in machines.items()}


def _layers(m: Machine, counts: Counted, seconds: Mapping[str, float], whole: float, start: float) -> dict[str, Layer]:
    """Return module → the sums over its ops, with seconds scaled so that all layers together take `whole` seconds."""
    scale = whole / max(sum(seconds.values()), 1e-12)
    layers: dict[str, Layer] = {}
    for ins in m.spec.program.instructions:
        total, op = layers.get(ins.module, NOTHING), counts.ops[ins.name]
        layers[ins.module] = Layer(
            total.seconds + scale * seconds[ins.name],
            total.macs + op.macs,
            total.moved + op.moved,
            tuple(dict.fromkeys((*total.widths, *op.widths))),
            total.start + scale * start,
        )
    return layers


def _peak(whole: Call, device: torch.device) -> int:
    """Return the maximal bytes that a forward allocated on a GPU, beyond those allocated before it."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.no_grad():
        whole()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
