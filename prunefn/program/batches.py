"""What a batch is: a tensor, a tuple, or a dict by input name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..doors import check_batch
from ..errors import BatchError, nearest
from ..spec.spec import Spec, check_runnable
from ..types import Batch, Params
from .inputs import flat_inputs


def inputs_of(batch: Batch, *, spec: Spec, device: torch.device | None = None) -> list[Tensor]:
    """The model's tensor inputs in a batch; what follows them (labels) is left to the caller.

    Raises:
        BatchError: an input is missing or of the wrong shape.
        ParamsError: the device is meta: there are no numbers to measure with.
        TraceError: the spec was recorded, so that it has no program that runs.
    """
    check_runnable(spec)
    names = [i.name for i in spec.program.inputs]
    check_batch(batch, names, device)
    if isinstance(batch, Tensor):
        given: list[Any] = [batch]
    elif isinstance(batch, Mapping):
        if missing := [n for n in names if n not in batch]:
            raise BatchError(f"the batch has no input {missing[0]!r}{nearest(missing[0], batch)}")
        given = [batch[n] for n in names]
    else:
        given = list(batch)[: len(names)]
    flat = flat_inputs(spec, tuple(given), {})
    if any(x.ndim and x.shape[0] == 0 for x in flat):
        raise BatchError("the batch has no samples")
    return flat if device is None else [x.to(device) for x in flat]


def each(
    batches: Iterable[Batch],
    *,
    max_batches: int | None = None,
    progress: bool = False,
    text: str = "batches",
    least: int = 1,
) -> Iterator[Batch]:
    """Batches one by one, with a bar on request.

    Raises:
        BatchError: there are none (with `least=0`, that is fine), or the iterable is a single tensor or dict by mistake.
    """
    if isinstance(batches, Tensor | Mapping):
        raise BatchError("batches must be an iterable of batches; wrap a single batch in a list")
    total = _length(batches)
    if total is not None and max_batches is not None:
        total = min(total, max_batches)
    seen = False
    for batch in tqdm(islice(batches, max_batches), total=total, desc=text, disable=not progress, leave=False):
        seen = True
        yield batch
    if least and not seen:
        raise BatchError("there are no batches: the iterable is empty (a generator can be read only once)")


def _length(batches: Iterable[Batch]) -> int | None:
    """How many there are; None if nobody knows (a DataLoader over a stream has a length that raises)."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:
        return None


def device_of(params: Params) -> torch.device:
    """The device of the params."""
    return next((t.device for t in params.values()), torch.device("cpu"))
