"""Means over held-out data, in one process or many."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from .. import trees
from ..doors import door
from .feed import Feed, Source, plain
from .objective import Metrics, call, top1

TIMEOUT = timedelta(seconds=50)
"""A process that waits longer than this for another one ends with an error."""


def accelerator_of(precision: str = "no", device: str | None = None) -> Accelerator:
    """accelerate for this process: of a single one, or of one that torchrun started.

    Args:
        precision: "no", "bf16" or "fp16".
        device: "cpu" for the CPU; None: what there is.
    """
    AcceleratorState._reset_state(reset_partial_state=False)  # two stages may differ in precision
    return Accelerator(
        mixed_precision=precision,
        cpu=device == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(), InitProcessGroupKwargs(timeout=TIMEOUT)],
    )


@door
def evaluate(
    model: nn.Module,
    data: Source,
    *,
    metrics: Metrics = top1,
    batch: int = 256,
    inputs: int = 1,
    accelerator: Accelerator | None = None,
    device: str | None = None,
) -> dict[str, float]:
    """Means over all samples of the data, in eval mode; under torchrun, every process measures its share.

    Args:
        model: comes back in the mode it was in, on the device it was on.
        data, metrics, inputs, device: as for `train`.
        batch: samples at once, of all processes.
        accelerator: of a training that goes on; None: one of its own.
    """
    at = accelerator or accelerator_of(device=device)
    home = next(model.parameters(), torch.zeros(())).device
    feed = Feed(data, batch=batch, shuffle=False, rank=at.process_index, world=at.num_processes)
    modes = {m: m.training for m in model.modules()}
    sums: dict[str, Tensor] = {}
    total = 0
    model.to(at.device).eval()
    try:
        for part in feed:
            with torch.no_grad(), at.autocast():
                output, rest = call(model, moved(part.batch, at.device), inputs)
                found = metrics(output, *rest)
            for key, value in found.items():
                sums[key] = sums.get(key, torch.zeros((), dtype=torch.float64)) + value.double().cpu() * part.samples
            total += part.total
    finally:
        for m, mode in modes.items():
            m.training = mode
        model.to(home)
    names = list(sums)
    together = at.reduce(torch.stack([sums[n] for n in names]).to(at.device), "sum")
    assert isinstance(together, Tensor)
    return {n: float(v) / total for n, v in zip(names, together.cpu(), strict=True)}


def moved(value: Any, device: torch.device | str) -> Any:
    """A nest with its tensors on a device."""
    return trees.map_tensors(lambda t: t.to(device, non_blocking=True), plain(value))
