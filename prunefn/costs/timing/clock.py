"""Clocks, which time one call on a device."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

WARM_UP, LEAST, ENOUGH = 2, 3, 0.1
"""Number of calls that do not count; minimal number that count; seconds after which no more calls are timed."""


class Call(NamedTuple):
    """A call to be timed."""

    stage: str
    """`alone`: an op at some sizes; `in place`: as part of the dense program; `whole`: a dense forward."""
    op: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}

    def __call__(self) -> Any:
        """Run the call and return its result."""
        return self.function(*self.args, **self.kwargs)


class Clock(NamedTuple):
    """A way to time a call."""

    name: str
    """Name of the measured time."""
    run: Callable[[Call], tuple[Any, float]]
    """call → (its result, seconds)."""


def clock_for(device: torch.device) -> Clock:
    """Return the clock of a device: on a CPU, CPU time with one thread and wall time with more; on a GPU, CUDA events.

    With one thread, CPU time is the wall time of an otherwise idle machine, however busy the machine is.
    """
    if device.type == "cuda":
        return Clock("CUDA events", lambda call: _time_by_events(call, device))
    if device.type != "cpu":
        return Clock("wall time", lambda call: _time_synchronized(call, device))
    if torch.get_num_threads() == 1:
        return Clock("CPU time", lambda call: _time_by(call, time.thread_time))
    return Clock("wall time", lambda call: _time_by(call, time.perf_counter))


def _time_by(call: Call, now: Callable[[], float]) -> tuple[Any, float]:
    """Return the result of a call and the difference of two readings of `now`, in seconds."""
    start = now()
    result = call()
    return result, now() - start


def _time_synchronized(call: Call, device: torch.device) -> tuple[Any, float]:
    """Return the result of a call and its wall time in seconds, synchronized with the device before and after."""
    accelerator = getattr(torch, device.type)
    accelerator.synchronize()
    start = time.perf_counter()
    result = call()
    accelerator.synchronize()
    return result, time.perf_counter() - start


def _time_by_events(call: Call, device: torch.device) -> tuple[Any, float]:
    """Return the result of a call and the seconds between two CUDA events around it."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        result = call()
        end.record()
        end.synchronize()
    return result, start.elapsed_time(end) / 1e3  # milliseconds → seconds


def typical(clock: Clock, call: Call, repeats: int) -> float:
    """Return the typical seconds of a call, from up to `repeats` calls after some that warm up; fewer if they take long."""
    times: list[float] = []
    for _ in range(WARM_UP):
        clock.run(call)
    while len(times) < repeats and (len(times) < LEAST or sum(times) < ENOUGH):
        times.append(clock.run(call)[1])
    return quiet(times)


def quiet(times: Sequence[float]) -> float:
    """Return the lower quartile, because other load of the machine only adds to the times.

    >>> quiet([5.0, 1.0, 3.0, 2.0, 9.0])
    2.0
    """
    return sorted(times)[len(times) // 4]


def device_name(device: torch.device) -> str:
    """Return the maker's name of a GPU or CPU; of other devices, their type."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names[0] if names else platform.processor()) or platform.machine()
