"""Read batches: a batch is a tensor, a tuple, or a dict by input name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..doors import check_batch
from ..errors import BatchError, nearest
from ..spec.spec import Spec, check_replayable
from ..types import Batch, Params
from .inputs import flat_inputs


def inputs_of(batch: Batch, *, spec: Spec, device: torch.device | None = None) -> list[Tensor]:
    """Return the model's tensor inputs in a batch; elements after them (labels) are ignored.

    Raises:
        BatchError: an input is missing or of the wrong shape.
        ParamsError: the device is meta, so there are no values to measure.
        TraceError: the spec was recorded, so its program cannot be run.
    """
    check_replayable(spec)
    names = [i.name for i in spec.program.inputs]
    check_batch(batch, names, device)
    if isinstance(batch, Tensor):
        inputs: list[Any] = [batch]
    elif isinstance(batch, Mapping):
        if missing := [n for n in names if n not in batch]:
            raise BatchError(f"the batch has no input {missing[0]!r}{nearest(missing[0], batch)}")
        inputs = [batch[n] for n in names]
    else:
        inputs = list(batch)[: len(names)]
    flat = flat_inputs(spec, tuple(inputs), {})
    if any(x.ndim and x.shape[0] == 0 for x in flat):
        raise BatchError("the batch has no samples")
    return flat if device is None else [x.to(device) for x in flat]


def samples_in(inputs: Sequence[Tensor], spec: Spec) -> int:
    """Return the number of samples of a batch: the size of the spec's batch; without one, that of the first dim."""
    program = spec.program
    place = next((program.free[name] for name in program.free if name in program.domain.batch), None)
    if place is None:
        return next((len(x) for x in inputs if x.ndim), 1)
    index = next(n for n, i in enumerate(program.inputs) if i.name == place[0])
    return inputs[index].shape[place[1]]


def each(
    batches: Iterable[Batch],
    *,
    max_batches: int | None = None,
    progress: bool = False,
    text: str = "batches",
    least: int = 1,
) -> Iterator[Batch]:
    """Yield the batches one by one, with a progress bar if `progress`.

    Raises:
        BatchError: there are no batches (unless `least=0`), or the iterable is a single tensor or dict by mistake.
    """
    if isinstance(batches, Tensor | Mapping):
        raise BatchError("batches must be an iterable of batches; wrap a single batch in a list")
    total = _length_of(batches)
    if total is not None and max_batches is not None:
        total = min(total, max_batches)
    seen = False
    for batch in tqdm(islice(batches, max_batches), total=total, desc=text, disable=not progress, leave=False):
        seen = True
        yield batch
    if least and not seen:
        raise BatchError("there are no batches: the iterable is empty (a generator can be read only once)")


def _length_of(batches: Iterable[Batch]) -> int | None:
    """Return the number of batches; None if it is unknown (the length of a DataLoader over a stream raises TypeError)."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:
        return None


def device_of(params: Params) -> torch.device:
    """Return the device of the params; the CPU if there are none."""
    return next((t.device for t in params.values()), torch.device("cpu"))
