"""Networks timed beside each other, layer by layer, with the reasons why latency does not fall with the MACs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import benchmark
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..errors import PruneError
from ..forward import forward
from ..latency.clock import Call, clock_for, device_name, quiet
from ..latency.walk import Env, Machine, is_view, machine, walk
from ..trace.program import Instruction
from ..trace.spec import Spec, check_runnable
from ..types import Cost, Params
from .tables import Table

ALIGNED = 8
"""Widths that are no multiple of this leave lanes of vector and matrix units empty."""
OVERHEAD = 20e-6
"""Seconds: a call that takes less is mostly its own start."""


class Timing(NamedTuple):
    """Seconds of a forward pass, over the rounds."""

    median: float
    mean: float
    std: float
    p10: float
    p90: float
    p99: float
    rounds: int


class Layer(NamedTuple):
    """All ops of a module."""

    seconds: float
    macs: int
    """Of the whole batch, by torch's counter."""
    moved: int
    """Bytes read and written."""
    width: int
    """Size of the last contraction's output dim; 0 where there is none."""


class Profiled(NamedTuple):
    """A network."""

    name: str
    cost: Cost
    """Of one sample."""
    timing: Timing
    layers: Mapping[str, Layer]
    """Module → its ops."""
    peak: int
    """Bytes: of a GPU, all that was allocated; else activations that are alive at the same time, without parameters."""


class Excess(NamedTuple):
    """A layer that saves less time than MACs."""

    layer: str
    seconds: float
    """More than if its time had fallen as its MACs (or, without any, its bytes) did."""
    reason: str


class Profile(NamedTuple):
    """Networks that were timed in turns."""

    networks: tuple[Profiled, ...]
    batch: int
    device: str
    threads: int

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
            rows[-1] += [f"{self.batch / t.median:.1f}", f"{n.peak / 1e6:.1f}"]
        columns = ["network", "GMACs", "MACs\nsaved", "median\nms", "mean ± std\nms", "p10 / p90 / p99\nms", "speed-up"]
        title = f"{self.device}, {self.threads} threads, batch {self.batch}"
        return Table(title, [*columns, "samples\na second", "peak\nMB"], rows)

    def excess(self, name: str, most: int = 8) -> list[Excess]:
        """Why a network is not as fast as its MACs say: the layers that cost most of the difference to the first network.

        Args:
            name: of a network other than the first.
            most: so many layers.

        Raises:
            PruneError: there is no such network.
        """
        known = {n.name: n for n in self.networks[1:]}
        if name not in known:
            raise PruneError(
                f"there is no network {name!r} beside {self.networks[0].name!r}; there are {', '.join(known)}"
            )
        dense, small = self.networks[0].layers, known[name].layers
        found = [_excess(layer, dense[layer], now) for layer, now in small.items() if layer in dense]
        return sorted((e for e in found if e.seconds > 0), key=lambda e: -e.seconds)[:most]


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

    All of them are timed in every round, so that what else the machine does falls on all of them alike. Then each is walked
    through op by op for the times of its layers, scaled to its median.

    Args:
        networks: name → (params, spec); the first is what the others are compared with.
        batch: samples of a forward pass.
        device: None: that of the first network's params.
        rounds: that are timed, after three that are not.
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
    placed: dict[str, tuple[Params, Spec, Any, Any]] = {}
    for name, (params, spec) in networks.items():
        check_runnable(spec)
        args, kwargs = spec.example.draw(seed=seed, batch=batch, device=where)
        placed[name] = {n: t.to(where) for n, t in params.items()}, spec, args, kwargs
    times = _in_turns(placed, rounds, progress)
    found = []
    for name, (params, spec, args, kwargs) in placed.items():
        timing = _timing(times[name])
        flat = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        layers, alive = _layers(machine(spec, params, flat, where), timing.median)
        peak = _peak(params, spec, args, kwargs, where) if where.type == "cuda" else alive
        found.append(Profiled(name, spec.costs(spec.sizes), timing, layers, peak))
    return Profile(tuple(found), batch, device_name(where), torch.get_num_threads())


def _in_turns(
    placed: Mapping[str, tuple[Params, Spec, Any, Any]], rounds: int, progress: bool
) -> dict[str, list[float]]:
    timers = {
        name: benchmark.Timer(
            "run(params, *args, spec=spec, **kwargs)",
            globals={"run": forward, "params": params, "args": args, "spec": spec, "kwargs": kwargs},
            num_threads=torch.get_num_threads(),
        )
        for name, (params, spec, args, kwargs) in placed.items()
    }
    times: dict[str, list[float]] = {name: [] for name in timers}
    with torch.no_grad():
        for i in tqdm(range(-3, rounds), desc="profile", disable=not progress, leave=False):
            for name, timer in timers.items() if i % 2 else reversed(timers.items()):
                seconds = timer.timeit(1).mean
                if i >= 0:
                    times[name].append(seconds)
    return times


def _timing(times: Sequence[float]) -> Timing:
    p10, p90, p99 = (float(p) for p in np.percentile(times, [10, 90, 99]))
    return Timing(median(times), fmean(times), stdev(times), p10, p90, p99, len(times))


def _layers(m: Machine, whole: float, rounds: int = 5) -> tuple[dict[str, Layer], int]:
    """(module → layer, bytes alive at most)"""
    clock = clock_for(m.device)
    seconds: dict[str, list[float]] = {}
    seen: dict[str, tuple[int, int, int]] = {}
    alive = [0]

    def count(ins: Instruction, call: Call, env: Env) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = call()
        macs = counter.get_total_flops() // 2
        out = _tensors(result)
        moved = sum(t.nbytes for t in [*_tensors((call.args, dict(call.kwargs))), *out])
        width = _width(ins, call, out) if macs else 0
        seen[ins.name] = macs, 0 if is_view(call, result) else moved, width
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in [*_live(env), *out]}
        alive[0] = max(alive[0], sum(storages.values()))
        return result

    def time(ins: Instruction, call: Call, env: Env) -> Any:
        result, spent = clock.run(call)
        seconds.setdefault(ins.name, []).append(spent)
        return result

    with torch.no_grad():
        walk(m, count)
        for _ in range(rounds):
            walk(m, time)
    typical = {name: quiet(spent) for name, spent in seconds.items()}
    scale = whole / max(sum(typical.values()), 1e-12)
    layers: dict[str, Layer] = {}
    for ins in m.spec.program.instructions:
        macs, moved, width = seen[ins.name]
        old = layers.get(ins.module, Layer(0.0, 0, 0, 0))
        layers[ins.module] = Layer(
            old.seconds + scale * typical[ins.name], old.macs + macs, old.moved + moved, width or old.width
        )
    return layers, alive[0]


def _live(env: Env) -> list[Tensor]:
    """Values that were computed, not given."""
    return _tensors([v for name, v in env.items() if name.startswith("%")])


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


def _width(ins: Instruction, call: Call, out: Sequence[Tensor]) -> int:
    """Size of the dim of the output that the weights make: channels of a convolution, features of a linear layer."""
    if not out or out[0].ndim < 2:
        return 0
    return out[0].shape[1] if "conv" in ins.op else out[0].shape[-1]


def _peak(params: Params, spec: Spec, args: Any, kwargs: Any, device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    with torch.no_grad():
        forward(params, *args, spec=spec, **kwargs)
    return torch.cuda.max_memory_allocated(device)


def _excess(name: str, dense: Layer, now: Layer) -> Excess:
    share = now.macs / dense.macs if dense.macs else now.moved / max(dense.moved, 1)
    seconds = now.seconds - share * dense.seconds
    if not dense.macs:
        reason = f"no multiplications: it moves {now.moved / 1e6:.2f} MB, whatever the MACs are"
    elif now.width % ALIGNED:
        reason = f"its width, {now.width}, is no multiple of {ALIGNED}: prune with round_to={ALIGNED}"
    elif now.seconds < OVERHEAD:
        reason = f"{1e6 * now.seconds:.0f} µs are mostly the start of the call: a larger batch hides it"
    else:
        reason = (
            f"{now.macs / max(now.moved, 1):.1f} MACs a byte (dense {dense.macs / max(dense.moved, 1):.1f}): bandwidth"
        )
    return Excess(name, seconds, reason)
