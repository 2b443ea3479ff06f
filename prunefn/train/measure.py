"""Means of metrics over held-out data, in one process or many."""

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
from ..errors import PruneError
from .feed import Feed, Source, to_plain
from .objective import call
from .setup import Setup

TIMEOUT = timedelta(seconds=50)
"""A process that waits longer than this for another one ends with an error."""


def make_accelerator(precision: str = "no", device: str | None = None) -> Accelerator:
    """Return accelerate's view of this process: a single one, or one of those that torchrun started.

    Args:
        precision: "no", "bf16" or "fp16".
        device: "cpu" for the CPU; None: a GPU if there is one.
    """
    AcceleratorState._reset_state(reset_partial_state=False)  # two stages may differ in precision
    return Accelerator(
        mixed_precision=precision,
        cpu=device == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(), InitProcessGroupKwargs(timeout=TIMEOUT)],
    )


@door
def evaluate(
    model: nn.Module, data: Source | Setup, *, batch_size: int = 256, device: str | None = None
) -> dict[str, float]:
    """Measure a model: the mean of each metric over all samples, in eval mode.

    Under torchrun, every process measures its part of each batch.

    Args:
        model: returned to its modes and device afterwards.
        data: what to measure on; or a `Setup`, whose `held_out` is measured by its metrics.
        batch_size: samples at once, of all processes together.
        device: "cpu" for the CPU; None: that of the setup, or a GPU if there is one.

    Returns:
        Metric → mean; by default top1 in [0, 1] and the cross entropy.

    Raises:
        PruneError: the setup has no held-out data.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> evaluate(nn.Identity(), [(x, torch.tensor([0, 0]))], device="cpu")["top1"]
    0.5
    """
    setup = Setup.of(data)
    if setup is not data:
        setup = setup._replace(held_out=setup.data)
    return measure(model, setup, make_accelerator(device=device or setup.device), batch_size)


def measure(model: nn.Module, setup: Setup, accelerator: Accelerator, batch_size: int = 256) -> dict[str, float]:
    """Return the mean of each metric over the held-out data, measured in the processes of an accelerator."""
    if setup.held_out is None:
        raise PruneError("the setup has no held-out data to measure on; write Setup(data, held_out)")
    at = accelerator
    home = next(model.parameters(), torch.zeros(())).device
    feed = Feed(setup.held_out, batch=batch_size, shuffle=False, rank=at.process_index, world=at.num_processes)
    modes = {m: m.training for m in model.modules()}
    sums: dict[str, Tensor] = {}
    total = 0
    model.to(at.device).eval()
    try:
        for part in feed:
            with torch.no_grad(), at.autocast():
                output, rest = call(model, to_device(part.batch, at.device), setup.inputs)
                means = setup.metrics(output, *rest)
            for key, value in means.items():
                sums[key] = sums.get(key, torch.zeros((), dtype=torch.float64)) + value.double().cpu() * part.samples
            total += part.total
    finally:
        for m, mode in modes.items():
            m.training = mode
        model.to(home)
    names = list(sums)
    together = at.reduce(torch.stack([sums[n] for n in names]).to(at.device), "sum")
    assert isinstance(together, Tensor)
    means = {n: float(v) / total for n, v in zip(names, together.cpu(), strict=True)}
    finish = getattr(setup.metrics, "finish", None)
    return means if finish is None else finish(means)


def to_device(value: Any, device: torch.device | str) -> Any:
    """Return a nest with its tensors on a device."""
    return trees.map_tensors(lambda t: t.to(device, non_blocking=True), to_plain(value))
