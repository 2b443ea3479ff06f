"""Networks timed beside each other, layer by layer, with the reasons why latency does not fall with the MACs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import benchmark
from torch.utils.benchmark.utils.timer import timer as wall_time
from tqdm import tqdm

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
from .timing.clock import Call, Clock, clock_for, device_name, quiet, typical
from .timing.walk import Env, Machine, machine, walk

WARM_UP, WALKS = 3, 7
"""Rounds of whole forwards that are not timed; rounds of forwards op by op."""


class Timing(NamedTuple):
    """Seconds of a forward, over the rounds."""

    median: float
    mean: float
    std: float
    p10: float
    p90: float
    p99: float
    rounds: int


class Profiled(NamedTuple):
    """A network."""

    name: str
    cost: Cost
    """Of one sample."""
    timing: Timing
    throughput: float
    """Samples a second, at the median."""
    layers: Mapping[str, Layer]
    """Module → its ops; their seconds add up to the median."""
    weights: int
    """Bytes of parameters and buffers; tied ones count once."""
    peak: int
    """Bytes that a forward needs beside them and its inputs: of a GPU, what was allocated; else results alive at the same time."""


class Profile(NamedTuple):
    """Networks that were timed in turns."""

    networks: tuple[Profiled, ...]
    batch: int
    device: str
    threads: int
    clock: str
    """What was measured: wall time, or CPU time where there is one thread."""

    def table(self) -> Table:
        """Cost and latency of each network beside the first."""
        first = self.networks[0]
        rows = []
        for n in self.networks:
            t = n.timing
            saved = f"{1 - n.cost.macs / first.cost.macs:.1%}", f"{first.timing.median / t.median:.2f}×"
            spread = (
                f"{1e3 * t.mean:.2f} ± {1e3 * t.std:.2f}",
                f"{1e3 * t.p10:.2f} / {1e3 * t.p90:.2f} / {1e3 * t.p99:.2f}",
            )
            rows.append([n.name, f"{n.cost.macs / 1e9:.3f}", saved[0], f"{1e3 * t.median:.2f}", *spread, saved[1]])
            rows[-1] += [f"{n.throughput:.1f}", f"{n.weights / 1e6:.1f}", f"{n.peak / 1e6:.1f}"]
        columns = ["network", "GMACs", "MACs\nsaved", "median\nms", "mean ± std\nms", "p10 / p90 / p99\nms", "speed-up"]
        title = f"{self.device}, {self.threads} threads, batch {self.batch}, {self.clock}"
        return Table(title, [*columns, "samples\na second", "weights\nMB", "peak\nMB"], rows)

    def excess(self, name: str, most: int = 8) -> list[Excess]:
        """Why a network is not as fast as its MACs say: the layers that cost most of the difference.

        Args:
            name: of a network other than the first, which it is compared with.
            most: so many layers.

        Raises:
            PruneError: there is no such network.
        """
        dense, small, share, seen = self._beside(name)
        found = [excess(layer, dense.get(layer, NOTHING), now, share, seen) for layer, now in small.items()]
        return sorted((e for e in found if e.seconds > 0), key=lambda e: -e.seconds)[:most]

    def account(self, name: str) -> Account:
        """All of the difference between a network's latency and its share of the MACs, by cause.

        Args:
            name: of a network other than the first, which it is compared with.

        Raises:
            PruneError: there is no such network.
        """
        dense, small, share, seen = self._beside(name)
        return account(dense, small, share, seen)

    def _beside(self, name: str) -> tuple[Mapping[str, Layer], Mapping[str, Layer], float, Balance]:
        first, known = self.networks[0], {n.name: n for n in self.networks[1:]}
        if name not in known:
            raise PruneError(f"there is no network {name!r} beside {first.name!r}; there are {', '.join(known)}")
        share = known[name].cost.macs / max(first.cost.macs, 1)
        return first.layers, known[name].layers, share, balance(first.layers)


class _Placed(NamedTuple):
    """A network on the device, with inputs."""

    params: Params
    spec: Spec
    args: Any
    kwargs: Any

    def machine(self, device: torch.device) -> Machine:
        return machine(self.spec, self.params, flat_inputs(self.spec, self.args, self.kwargs), device)


@door
def profile(
    networks: Mapping[str, tuple[Params, Spec]],
    *,
    batch: int = 1,
    device: torch.device | str | None = None,
    rounds: int = 30,
    seed: int = 0,
    progress: bool = False,
) -> Profile:
    """Time networks in turns, by torch.utils.benchmark, on random inputs like the traced ones.

    All of them are timed in every round, so that what else the machine does falls on all of them alike. Then all of them are
    walked through op by op, in turns again, for the times of their layers; these are scaled to the median of the whole.

    On a CPU with one thread, CPU time is measured: what wall time would be on a machine of one's own, however busy it is.

    Args:
        networks: name → (params, spec); the first is what the others are compared with.
        batch: samples of a forward pass.
        device: None: that of the first network's params.
        rounds: that are timed, after three that are not. Timer warms up with two more forwards each time.
        seed: of the inputs.
        progress: show a bar.

    Raises:
        PruneError: there is no network, or too few rounds.
        TraceError: a spec was recorded, so that it has no program.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8)).eval()
    >>> spec, params = pf.trace(model, (torch.randn(2, 64),)), pf.params(model)
    >>> mask = {"0": torch.arange(256) < 64}
    >>> small = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    >>> found = profile({"dense": (params, spec), "small": small}, rounds=5)
    >>> [n.cost.macs for n in found.networks], list(found.networks[0].layers)
    ([18432, 4608], ['0', '1', '2'])
    """
    if not networks or rounds < 2:
        raise PruneError(f"profile needs a network and at least two rounds; it was given {len(networks)} and {rounds}")
    first = next(iter(next(iter(networks.values()))[0].values()))
    where = torch.device(device) if device is not None else first.device
    placed: dict[str, _Placed] = {}
    for name, (params, spec) in networks.items():
        check_runnable(spec)
        args, kwargs = draw(params, spec, batch=batch, device=where, seed=seed)
        placed[name] = _Placed({n: t.to(where) for n, t in params.items()}, spec, args, kwargs)
    clock = clock_for(where)
    timings = {name: _timing(times) for name, times in _in_turns(placed, clock, rounds, progress).items()}
    machines = {name: p.machine(where) for name, p in placed.items()}
    counts = {name: counted(m) for name, m in machines.items()}
    seconds = _op_by_op(machines, clock, progress)
    start = typical(clock, Call("alone", "neg", torch.neg, (torch.zeros(1, device=where),)), 100)
    found = []
    for name, p in placed.items():
        layers = _layers(machines[name], counts[name], seconds[name], timings[name].median, start)
        peak = _peak(p, where) if where.type == "cuda" else counts[name].peak
        cost, own = p.spec.costs(p.spec.sizes), tied_names(p.params, p.spec)
        weights = sum(t.nbytes for n, t in p.params.items() if n not in own)
        timing = timings[name]
        found.append(Profiled(name, cost, timing, batch / timing.median, layers, weights, peak))
    return Profile(tuple(found), batch, device_name(where), torch.get_num_threads(), _seconds(clock))


def _in_turns(placed: Mapping[str, _Placed], clock: Clock, rounds: int, progress: bool) -> dict[str, list[float]]:
    timers = {
        name: benchmark.Timer(
            "run(params, *args, spec=spec, **kwargs)",
            globals={"run": forward, **p._asdict()},
            num_threads=torch.get_num_threads(),
            timer=time.thread_time if _seconds(clock) == "CPU time" else wall_time,
        )
        for name, p in placed.items()
    }
    times: dict[str, list[float]] = {name: [] for name in timers}
    with torch.no_grad():
        for i in tqdm(range(-WARM_UP, rounds), desc="profile", disable=not progress, leave=False):
            for name, timer in timers.items() if i % 2 else reversed(timers.items()):
                seconds = timer.timeit(1).mean
                if i >= 0:
                    times[name].append(seconds)
    return times


def _seconds(clock: Clock) -> str:
    """What whole forwards are timed in: torch's timer waits for a GPU and takes wall time."""
    return clock.name if clock.name == "CPU time" else "wall time"


def _timing(times: Sequence[float]) -> Timing:
    p10, p90, p99 = (float(p) for p in np.percentile(times, [10, 90, 99]))
    return Timing(median(times), fmean(times), stdev(times), p10, p90, p99, len(times))


def _op_by_op(machines: Mapping[str, Machine], clock: Clock, progress: bool) -> dict[str, dict[str, float]]:
    """Network → instruction → seconds; a walk through each network in turns, after one that warms up."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in machines}
    with torch.no_grad():
        for i in tqdm(range(-1, WALKS), desc="profile op by op", disable=not progress, leave=False):
            for name, m in machines.items() if i % 2 else reversed([*machines.items()]):

                def timed(ins: Instruction, call: Call, _: Env, found: dict[str, list[float]] = times[name]) -> Any:
                    result, spent = clock.run(call)
                    found.setdefault(ins.name, []).append(spent)
                    return result

                walk(m, timed)
    return {name: {n: quiet(spent[1:]) for n, spent in found.items()} for name, found in times.items()}


def _layers(m: Machine, counts: Counted, seconds: Mapping[str, float], whole: float, start: float) -> dict[str, Layer]:
    """Module → its ops, whose seconds are scaled so that all of them take as long as the whole forward."""
    scale = whole / max(sum(seconds.values()), 1e-12)
    layers: dict[str, Layer] = {}
    for ins in m.spec.program.instructions:
        old, op = layers.get(ins.module, NOTHING), counts.ops[ins.name]
        layers[ins.module] = Layer(
            old.seconds + scale * seconds[ins.name],
            old.macs + op.macs,
            old.moved + op.moved,
            tuple(dict.fromkeys((*old.widths, *op.widths))),
            old.start + scale * start,
        )
    return layers


def _peak(p: _Placed, device: torch.device) -> int:
    """What the allocator gave out at most, beyond what was there before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.no_grad():
        forward(p.params, *p.args, spec=p.spec, **p.kwargs)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
