"""Latency of several networks, measured in turn so that they share what disturbs the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import quantiles
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

import prunefn as pf

BATCH = 64
"""Images in a timed batch."""
SECONDS = 3.0
"""Time for all networks together."""
ROUNDS = 15
"""Every network is timed at least so often, however long it takes."""
WARMUP = 3


class Latency(NamedTuple):
    """Seconds for a batch: the median of many runs, and between what the middle half of them lies."""

    median: float
    low: float
    high: float


def latencies(
    networks: Mapping[str, tuple[pf.Params, pf.Spec]], images: Tensor, *, seconds: float = SECONDS
) -> dict[str, Latency]:
    """Time for one batch of each network, run as a graph module without gradients.

    Every round runs each network once, so that a slow spell of the machine hits all of them; every other round goes
    backwards.

    Args:
        networks: name → params and spec.
        images: the first `BATCH` are used.
        seconds: for how long.
    """
    modules = {name: pf.to_module(params, spec=spec) for name, (params, spec) in networks.items()}
    batch = images[:BATCH]
    times: dict[str, list[float]] = {name: [] for name in modules}
    with torch.inference_mode():
        for module in [*modules.values()] * WARMUP:
            module(batch)
        start = perf_counter()
        rounds = 0
        while rounds < ROUNDS or perf_counter() - start < seconds:
            for name in reversed(modules) if rounds % 2 else modules:
                times[name].append(_seconds(modules[name], batch))
            rounds += 1
    quartiles = {name: quantiles(t, n=4, method="inclusive") for name, t in times.items()}
    return {name: Latency(middle, low, high) for name, (low, middle, high) in quartiles.items()}


def _seconds(run: Callable[[Tensor], Any], batch: Tensor) -> float:
    """One run; on an accelerator until it has finished."""
    _wait(batch.device)
    start = perf_counter()
    run(batch)
    _wait(batch.device)
    return perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
