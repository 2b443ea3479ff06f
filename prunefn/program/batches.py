"""Read batches in all forms in which a loader gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..display.progress import progress_bar
from ..doors import check_batch
from ..doors.batch import check_values
from ..errors import BatchError, nearest
from ..spec.spec import Spec, check_replayable
from ..types import Batch, Params
from .arguments import Call, bind, read
from .inputs import Signature, check_sizes, form_refusal, samples, signature


class Split(NamedTuple):
    """A batch, split into the inputs of the model and the rest."""

    inputs: list[Tensor]
    """In the order of the program."""
    rest: list[Any]
    """What the batch holds besides, such as labels: the further arguments of a loss."""
    names: tuple[str, ...]
    """Keys of the rest in a dict; empty for elements of a tuple."""


def inputs_of(batch: Batch, *, spec: Spec, device: torch.device | None = None) -> list[Tensor]:
    """Return the model's tensor inputs in a batch; all else (labels) is ignored. See `split`."""
    return split(batch, spec=spec, device=device).inputs


def split(batch: Batch, *, spec: Spec, device: torch.device | None = None) -> Split:
    """Return the model's tensor inputs in a batch, and the rest of it.

    A batch is what a loader gives: the arguments of the model one by one, as nested as it takes them, and labels after them;
    all arguments in a tuple, or in a dict by name, with labels after it or under further keys; for a model of one argument,
    that argument itself; or the tensors of nested arguments one by one. Arguments without tensors (flags, None) may be left out.

    Args:
        batch: one of these.
        spec: of the model.
        device: moves the inputs there; None: they stay where they are.

    Raises:
        BatchError: an input is missing, or of the wrong form or shape.
        ParamsError: the device is meta, so there are no values to measure.
        TraceError: the spec was recorded, so its program cannot be run.
    """
    check_replayable(spec)
    check_batch(batch, device)
    accepted = signature(spec)
    readings = _readings(batch, accepted, [i.name for i in spec.program.inputs])
    found = next(((tensors, rest) for tensors, problem, rest in readings if not problem), None)
    if found is None:
        raise BatchError(_refusal(batch, accepted))
    tensors, rest = found
    check_values(zip(accepted.inputs, tensors, strict=True))
    check_sizes(accepted, tensors)
    if samples(spec, tensors) == 0:
        raise BatchError("the batch has no samples")
    names = tuple(key for key, _ in rest if key)
    return Split([x if device is None else x.to(device) for x in tensors], [x for _, x in rest], names)


Rest = list[tuple[str, Any]]
"""(key, or an empty text for an element of a tuple; value)."""


def _readings(batch: Any, accepted: Signature, leaf_names: Sequence[str]) -> Iterator[tuple[list[Any], str, Rest]]:
    """Yield the ways to read a batch, the likeliest first, each as (tensors, problem, rest)."""
    call = accepted.call
    nodes = [node for _, node in call.filled]
    if len(nodes) == 1 and nodes[0].kind != "tensor":
        yield *read(nodes[0], batch), _besides(nodes[0].keys, batch)
    if isinstance(batch, Mapping):
        yield *_by_name(call, batch), _besides(call.names, batch)
        if all(name in batch for name in leaf_names):
            yield [batch[name] for name in leaf_names], "", _besides(leaf_names, batch)
        return
    values = list(batch) if isinstance(batch, list | tuple) else [batch]
    for names in (call.names, tuple(name for name, _ in call.filled)):
        if len(names) <= len(values) and (call.is_ordered or len(names) <= max(call.positional, 1)):
            tensors, problem = bind(call, (), dict(zip(names, values, strict=False)))
            extra = _besides(nodes[0].keys, values[0]) if len(names) == 1 == len(values) else []
            yield tensors, problem, extra or _unnamed(values[len(names) :])
    if values and isinstance(values[0], list | tuple):
        if len(values) > 1 and isinstance(values[1], Mapping):
            yield *bind(call, tuple(values[0]), values[1]), _unnamed(values[2:])
        yield *bind(call, tuple(values[0]), {}), _unnamed(values[1:])
    if values and isinstance(values[0], Mapping):
        yield *_by_name(call, values[0]), _unnamed(values[1:]) or _besides(call.names, values[0])
    n = len(leaf_names)
    if call.is_ordered and len(values) >= n and all(isinstance(x, Tensor | np.ndarray) for x in values[:n]):
        yield values[:n], "", _unnamed(values[n:])


def _by_name(call: Call, batch: Mapping[Any, Any]) -> tuple[list[Any], str]:
    """Read the arguments in a dict by name."""
    return bind(call, (), {name: batch[name] for name in call.names if name in batch})


def _besides(names: Iterable[Any], batch: Any) -> Rest:
    """Return what a dict holds under other keys; nothing for other containers."""
    known = set(names)
    return [(str(k), v) for k, v in batch.items() if k not in known] if isinstance(batch, Mapping) else []


def _unnamed(values: Iterable[Any]) -> Rest:
    return [("", value) for value in values]


def _refusal(batch: Any, accepted: Signature) -> str:
    """Return why no reading of a batch fits."""
    filled = accepted.call.filled
    if isinstance(batch, Mapping):
        is_inner = len(filled) == 1 and filled[0][1].kind == "dict" and filled[0][0] not in batch
        names = list(filled[0][1].keys) if is_inner else [name for name, _ in filled]
        if missing := [n for n in names if n not in batch]:
            return f"the batch has no input {missing[0]!r}{nearest(str(missing[0]), map(str, batch))}"
        return (read(filled[0][1], batch) if is_inner else _by_name(accepted.call, batch))[1]
    values = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
    names = [name for name, _ in filled]
    if not accepted.call.is_ordered and len(names) > accepted.call.positional:
        return f"the model was traced with {', '.join(names)} by name, in another order than it takes them; give a dict"
    given = dict(zip(names, values, strict=False))
    return form_refusal(accepted, tuple(given.values()), {}, bind(accepted.call, (), given)[1])


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
    for batch in progress_bar(islice(batches, max_batches), total=total, text=text, show=progress):
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
