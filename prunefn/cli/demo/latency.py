"""Latency of several networks, measured in turn so that they share what disturbs the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

import prunefn as pf

BATCH = 64
"""Images in a timed batch."""
SECONDS = 2.0
"""Time for all networks together."""
ROUNDS = 15
"""Every network is timed at least so often, however long it takes."""
WARMUP = 3


def latencies(
    networks: Mapping[str, tuple[pf.Params, pf.Spec]], images: Tensor, *, seconds: float = SECONDS
) -> dict[str, float]:
    """Median seconds for one batch of each network, run as a graph module without gradients.

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
    return {name: median(t) for name, t in times.items()}


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
