"""Clocks: how long one call takes on a device."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

WARM_UP, LEAST, ENOUGH = 2, 3, 0.1
"""Calls that do not count; calls that count at least; seconds after which there are enough."""


class Call(NamedTuple):
    """A call that is about to be timed."""

    stage: str
    """`alone`: an op at some sizes; `in place`: as part of the dense program; `whole`: a dense forward."""
    op: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}

    def __call__(self) -> Any:
        """Run it."""
        return self.function(*self.args, **self.kwargs)


class Clock(NamedTuple):
    """A way to time a call."""

    name: str
    """What is measured."""
    run: Callable[[Call], tuple[Any, float]]
    """call → (its result, seconds)."""


def clock_for(device: torch.device) -> Clock:
    """CPU time with one thread, wall time with more; on a GPU, its own events.

    With one thread, CPU time is what wall time would be on a machine of one's own, however busy it is.
    """
    if device.type == "cuda":
        return Clock("CUDA events", lambda call: _events(call, device))
    if device.type != "cpu":
        return Clock("wall time", lambda call: _waited(call, device))
    if torch.get_num_threads() == 1:
        return Clock("CPU time", lambda call: _timed(call, time.thread_time))
    return Clock("wall time", lambda call: _timed(call, time.perf_counter))


def _timed(call: Call, now: Callable[[], float]) -> tuple[Any, float]:
    start = now()
    result = call()
    return result, now() - start


def _waited(call: Call, device: torch.device) -> tuple[Any, float]:
    accelerator = getattr(torch, device.type)
    accelerator.synchronize()
    start = time.perf_counter()
    result = call()
    accelerator.synchronize()
    return result, time.perf_counter() - start


def _events(call: Call, device: torch.device) -> tuple[Any, float]:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        result = call()
        end.record()
        end.synchronize()
    return result, start.elapsed_time(end) / 1e3


def typical(clock: Clock, call: Call, repeats: int) -> float:
    """What several calls take, after a few that warm up; fewer where they take long."""
    times: list[float] = []
    for _ in range(WARM_UP):
        clock.run(call)
    while len(times) < repeats and (len(times) < LEAST or sum(times) < ENOUGH):
        times.append(clock.run(call)[1])
    return quiet(times)


def quiet(times: Sequence[float]) -> float:
    """The lower quartile: what else runs on the machine only adds.

    >>> quiet([5.0, 1.0, 3.0, 2.0, 9.0])
    2.0
    """
    return sorted(times)[len(times) // 4]


def device_name(device: torch.device) -> str:
    """What the maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names[0] if names else platform.processor()) or platform.machine()
