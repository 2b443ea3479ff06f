"""A nest of tensors, numbers and strings as one safetensors file without pickle: tensors unchanged, the rest as JSON metadata.

The file is sealed (`prunefn.files.tensors`): any bit that changes is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import FormatError, ParamsError
from .tensors import Reader, check_seal, save_sealed

KEY = "prunefn_nest"
Value = Any
"""None, a bool, number, string or tensor; a list, tuple or dict of these (keys are strings or numbers)."""


def write_nest(path: str | os.PathLike[str], value: Value) -> None:
    """Write a nest; `path` is half-written at first, so give a temporary one and rename it.

    Raises:
        ParamsError: a value in the nest is of another type; names its place.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_nest(f"{folder}/a.safetensors", {"step": 3, 0: (torch.ones(2), None, 0.1)})
    ...     read_nest(f"{folder}/a.safetensors")
    {'step': 3, 0: (tensor([1., 1.]), None, 0.1)}
    """
    tensors: dict[str, Tensor] = {}
    plan = _pack(value, tensors, "")
    save_sealed(path, tensors, {KEY: json.dumps(plan)})


def read_nest(path: str | os.PathLike[str]) -> Value:
    """Return the nest that `write_nest` wrote, on the CPU.

    Raises:
        ParamsError: the file does not hold a nest, or is damaged; states the reason.
    """
    try:
        check_seal(path)
        with Reader(path) as file:
            return _unpack(json.loads(file.metadata[KEY]), file)
    except (KeyError, ValueError, TypeError, OSError, RecursionError) as error:
        raise ParamsError(f"{path} is no file of prunefn, or is damaged ({type(error).__name__}: {error})") from error


def _pack(value: Value, tensors: dict[str, Tensor], at: str) -> Any:
    """Return a value as JSON, and put its tensors into `tensors`.

    Scalars stay scalars; everything else becomes a pair of its kind and its content.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = at or "."
        while name in tensors:  # the keys 0 and "0" look alike
            name += "'"
        tensors[name] = value
        return ["tensor", name]
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [_pack(v, tensors, f"{at}/{i}") for i, v in enumerate(value)]]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int | float):
                raise ParamsError(f"{at or 'the value'} has the key {key!r}; keys are strings or numbers")
        return ["dict", [[k, _pack(v, tensors, f"{at}/{k}")] for k, v in value.items()]]
    raise ParamsError(
        f"{at or 'the value'} is {type(value).__name__}, which is no tensor, number, string, list or dict"
    )


def _unpack(plan: Any, file: Reader) -> Value:
    """Return the value that `_pack` turned into JSON."""
    if not isinstance(plan, list):
        return plan
    kind, content = plan
    if kind == "tensor":
        return file.tensor(content)
    if kind in ("list", "tuple"):
        values = [_unpack(v, file) for v in content]
        return values if kind == "list" else tuple(values)
    if kind == "dict":
        return {k: _unpack(v, file) for k, v in content}
    raise FormatError(f"unknown kind {kind!r}")
