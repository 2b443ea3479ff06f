"""BatchNorm recalibration: new running statistics after the activations have changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx

from ..doors import door
from ..errors import BatchError
from ..parameters.transforms import check_names
from ..program.batches import device_of, each, inputs_of
from ..program.compiled import compiled
from ..program.sharded import check_plain
from ..spec.program import Instruction, Ref
from ..spec.spec import Spec, check_eval_mode
from ..tracing.rules.families import BATCH_NORM
from ..types import Batch, Params


@door
def recalibrate(
    params: Params,
    batches: Iterable[Batch],
    *,
    spec: Spec,
    max_batches: int | None = None,
    progress: bool = False,
    sync: bool = False,
) -> Params:
    """Replace the running statistics of every BatchNorm by the average over batches of its inputs' statistics.

    This equals training mode with cumulative averages (momentum None): each BatchNorm normalises by the statistics of the
    batch while they are measured. No module is changed, so that no momentum needs restoring. Dropout stays off.

    Args:
        params: of the spec, traced in eval mode.
        batches: as in `collect_stats`; thousands of images are better than hundreds.
        spec: of the params.
        max_batches: stop after this many batches.
        progress: show a progress bar.
        sync: average over the batches of all processes; `batches` is this process's share, which may be an empty list.

    Returns:
        New params; those of a network without BatchNorm are unchanged.

    Raises:
        BatchError: no batches, a batch that does not fit, or that leaves a single value per channel.
        ParamsError: the params do not fit the spec, or it was traced in train mode.
    """
    check_names(params, spec)
    check_plain(params, "recalibrate", "leave it out")
    check_eval_mode(spec, "recalibrate")
    norms = [i for i in spec.program.instructions if i.op == BATCH_NORM and isinstance(i.args[3], Ref)]
    if not norms:
        return dict(params)
    program = spec.program._replace(
        instructions=tuple(_use_batch_statistics(i) if i in norms else i for i in spec.program.instructions)
    )

    def emit(graph: fx.Graph, env: Mapping[str, Any]) -> Any:
        return tuple(graph.call_function(_batch_statistics, (env[i.args[0].name], i.args[3].name)) for i in norms)

    run = compiled(spec, params, ("recalibrate",), emit, only=[i.args[0].name for i in norms], program=program)
    device = device_of(params)
    names = [ref.name for i in norms for ref in i.args[3:5]]
    sums = {n: torch.zeros_like(params[n], dtype=torch.float64) for n in names}
    count = torch.zeros(len(sums), dtype=torch.float64, device=device)
    position = {n: i for i, n in enumerate(sums)}
    no_batches = sync and isinstance(batches, Sized) and not len(batches)
    for batch in () if no_batches else each(batches, max_batches=max_batches, progress=progress, text="recalibration"):
        with torch.no_grad():
            measured = run(params, inputs_of(batch, spec=spec, device=device))
        for norm, pair in zip(norms, measured, strict=True):
            for ref, value in zip(norm.args[3:5], pair, strict=True):
                sums[ref.name] += value
                count[position[ref.name]] += 1
    if sync and dist.is_available() and dist.is_initialized():
        for t in (*sums.values(), count):
            dist.all_reduce(t)
    return {**params, **{n: (sums[n] / count[position[n]]).to(params[n].dtype) for n in sums}}


def _use_batch_statistics(i: Instruction) -> Instruction:
    """Return the BatchNorm instruction in training mode, which normalises by the statistics of the batch."""
    # args: input, weight, bias, running mean, running variance, training, momentum, eps, …
    x, weight, bias, _, _, _, _, *rest = i.args
    return i._replace(args=(x, weight, bias, None, None, True, 0.0, *rest))


@torch.fx.wrap
def _batch_statistics(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance per channel, float64; `name` is for messages.

    Raises:
        BatchError: the batch has a single value per channel.
    """
    if x.numel() <= x.shape[1]:
        raise BatchError(
            f"{name!r} is measured over more than one value per channel, but the batch has one; use larger batches"
        )
    variance, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=1)
    return mean.double(), variance.double()
