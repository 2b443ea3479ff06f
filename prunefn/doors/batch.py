"""Checks of batches when they are read, and explanations of torch's errors on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import trees
from ..errors import BatchError, ParamsError
from .words import said

WRITE = (
    "a batch is a tensor, a tuple whose first elements are the model's inputs as it takes them, or a dict by input name"
)


def check_batch(batch: Any, device: torch.device | None) -> None:
    """Check that a batch holds tensors.

    Args:
        batch: as read from the iterable.
        device: of the parameters; None if they do not matter.

    Raises:
        BatchError: the batch holds no tensors; says what it is instead.
        ParamsError: the parameters are on meta.
    """
    if device is not None and device.type == "meta":
        raise ParamsError(
            "params are on meta, without numbers to measure with; load weights before statistics are taken"
        )
    if isinstance(batch, np.ndarray):
        raise BatchError(f"one of the batches is {said(batch)}; write torch.from_numpy(batch)")
    leaves = trees.leaves(dict(batch) if isinstance(batch, Mapping) else batch)
    if leaves and not any(isinstance(x, Tensor | np.ndarray) for x in leaves):
        without = ", without a tensor" if isinstance(batch, list | tuple | Mapping) else ""
        raise BatchError(f"one of the batches is {said(batch)}{without}; {WRITE}")


def check_values(inputs: Iterable[tuple[str, Any]]) -> None:
    """Check that the inputs (name, value) in a batch are tensors with values.

    Raises:
        BatchError: one is a numpy array, or on meta.
    """
    for name, x in inputs:
        if isinstance(x, np.ndarray):
            raise BatchError(f"input {name!r} of a batch is {said(x)}; write torch.from_numpy(…)")
        if isinstance(x, Tensor) and x.is_meta:
            raise BatchError(f"input {name!r} of a batch is {said(x)}, without numbers; give tensors that have some")


def check_run(
    error: Exception,
    params: Mapping[str, Tensor],
    inputs: Iterable[tuple[tuple[str, torch.dtype | None], Any]],
    positions: Mapping[str, str],
) -> None:
    """Raise a clearer error for an error of torch, if devices, dtypes or indices explain it.

    Args:
        error: that running the network raised.
        params: of the run.
        inputs: (name, traced dtype), value.
        positions: input whose integers are positions of a group → which they may be.

    Raises:
        BatchError: an input is on another device or of another dtype, or has an index out of range.
        ParamsError: the parameters are on several devices.
    """
    torch_message = (str(error).splitlines() or [""])[0]
    devices = {str(t.device): n for n, t in params.items()}
    if len(devices) > 1:
        places = " and ".join(f"{n!r} on {d}" for d, n in list(devices.items())[:2])
        raise ParamsError(f"params has {places}; move all to one device ({torch_message})") from error
    dtypes = {t.dtype for t in params.values() if t.is_floating_point()}
    for (name, traced), x in inputs:
        if not isinstance(x, Tensor):
            continue
        if str(x.device) not in devices and devices:
            where = next(iter(devices))
            raise BatchError(
                f"input {name!r} is on {x.device}, but params are on {where}; write x.to({where!r})"
            ) from error
        expected = _expected_dtype(x.dtype, traced, dtypes)
        if expected is not None:
            raise BatchError(
                f"input {name!r} is {x.dtype}, but the spec was traced with {traced} and params are "
                f"{', '.join(sorted(map(str, dtypes)))}; write x.to({expected}) ({torch_message})"
            ) from error
        if isinstance(error, IndexError) and not x.is_floating_point():
            of = f"; {positions[name]}: pf.remap gives those of a smaller network" if name in positions else ""
            raise BatchError(
                f"input {name!r} has an index that the network's table lacks ({torch_message}){of}"
            ) from error


def _expected_dtype(dtype: torch.dtype, traced: torch.dtype | None, params: set[torch.dtype]) -> torch.dtype | None:
    """Return the dtype that an input should have; None if it has it."""
    if traced is not None and dtype.is_floating_point != traced.is_floating_point:
        return next(iter(params)) if traced.is_floating_point and len(params) == 1 else traced
    if dtype.is_floating_point and params and dtype not in params:
        return next(iter(params)) if len(params) == 1 else traced
    return None
