"""Checks of values of plain Python: numbers, names, paths, devices, and lists and mappings of them."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import PruneError
from .words import said

Refuse = Callable[..., NoReturn]
"""(fix, what) → raises PruneError; default fix: that of the kind; default what: the argument and its value."""
Read = Callable[[Any, str, Refuse, Mapping[str, Any]], Any]
"""(value, name of the argument, refuse, all arguments of the call) → the value that the function gets."""


class Kind(NamedTuple):
    """Kind of values that an argument takes."""

    write: str
    """What the user should write, for messages."""
    read: Read
    error: type[PruneError] = PruneError
    distinct: bool = False
    """Whether the values of this kind are recognisable, so that swapped arguments can be detected."""


LEAST: dict[str, int] = dict.fromkeys(
    ("max_batches batch batch_size batches repeats chunk_size chunk inputs "
     "classes workers trials image_size max_shard_bytes length sequences "
     "num_classes in_chans img_size patch_size dim depth heads end rate opset"
     ).split(), 1,
) | {"start": 0, "mlp_ratio": 0, "recover_steps": 0}  # fmt: skip
"""Name of a parameter → its smallest value, where that is the same for all functions."""


def read_int(value: Any, name: str, refuse: Refuse, _: Mapping[str, Any]) -> int:
    """Read an integer of any library, but no bool."""
    if isinstance(value, bool | np.bool_):
        refuse("write a whole number, such as 1")
    try:
        number = operator.index(value)
    except (TypeError, RuntimeError):  # a tensor of several elements or on meta raises either
        refuse()
    if number < LEAST.get(name, number):
        refuse(f"it must be {LEAST[name]} or more")
    return number


SHARES = ("keep", "q", "ratio")
"""Numbers whose range each function checks itself, including NaN."""


def read_float(value: Any, name: str, refuse: Refuse, _: Mapping[str, Any]) -> float:
    """Read a finite number, but no bool; numbers of `SHARES` may be infinite or NaN."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real) or not (name in SHARES or isfinite(value)):
        refuse()
    return value if type(value) is float else float(value)


def read_bool(value: Any, _: str, refuse: Refuse, __: Mapping[str, Any]) -> bool:
    """Read a bool, or 0 or 1."""
    if isinstance(value, np.bool_) or (type(value) is int and value in (0, 1)):
        return bool(value)
    return value if isinstance(value, bool) else refuse()


def read_text(value: Any, _: str, refuse: Refuse, __: Mapping[str, Any]) -> str:
    """Read a string."""
    return value if isinstance(value, str) else refuse()


def read_path(value: Any, _: str, refuse: Refuse, __: Mapping[str, Any]) -> Any:
    """Read a path that is not empty."""
    return value if isinstance(value, str | os.PathLike) and os.fspath(value) else refuse()


def read_mapping(value: Any, _: str, refuse: Refuse, __: Mapping[str, Any]) -> Any:
    """Read a mapping with strings as keys."""
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        refuse()
    return value


def or_mapping(one: Read) -> Read:
    """Return a reader of one value for all groups, or one for each glob."""

    def read(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
        if not isinstance(value, Mapping):
            return one(value, name, refuse, given)
        read_mapping(value, name, refuse, given)
        return {k: one(v, name, at_entry(refuse, name, k, v), given) for k, v in value.items()}

    return read


def read_optimizer_state(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read the state of an optimizer, of all parameters in groups."""
    if not {"state", "param_groups"} <= set(read_mapping(value, name, refuse, given)):
        refuse()
    return value


def mapping_of(one: Read) -> Read:
    """Return a reader of mappings from a name to a value."""

    def read(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
        read_mapping(value, name, refuse, given)
        return {k: one(v, name, at_entry(refuse, name, k, v), given) for k, v in value.items()}

    return read


def list_of(one: Read) -> Read:
    """Return a reader of iterables of any number of values."""

    def read(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
        if isinstance(value, str | Mapping | Tensor | nn.Module) or not isinstance(value, Iterable):
            refuse()
        return tuple([one(v, name, at_entry(refuse, name, i, v), given) for i, v in enumerate(value)])

    return read


def read_pair(value: Any, _: str, refuse: Refuse, __: Mapping[str, Any]) -> Any:
    """Read a tuple or list of two values."""
    if not isinstance(value, tuple | list) or len(value) != 2 or any(v is None or isinstance(v, str) for v in value):
        refuse()
    return tuple(value)


def at_entry(refuse: Refuse, name: str, key: Any, value: Any) -> Refuse:
    """Return `refuse` for an entry of the argument."""
    return lambda fix="", what="": refuse(fix, what or f"{name}[{key!r}] is {said(value)}")


def read_device(value: Any, _: str, refuse: Refuse, __: Mapping[str, Any]) -> Any:
    """Read a device that this machine has."""
    if not isinstance(value, str | torch.device):
        refuse()
    try:
        device = torch.device(value)
    except RuntimeError as error:
        refuse(f"{str(error).splitlines()[0]}; write a device, such as 'cpu' or 'cuda:0'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        refuse(f"this machine has {torch.cuda.device_count()} CUDA devices; write a device that it has, such as 'cpu'")
    return value


def read_round_to(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a multiple or a dtype."""
    if isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype):
        refuse(f"write torch.{value}")
    return value if isinstance(value, torch.dtype) else read_int(value, name, refuse, given)


def read_dtype(value: Any, _: str, refuse: Refuse, __: Mapping[str, Any]) -> torch.dtype:
    """Read a dtype."""
    if isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype):
        refuse(f"write torch.{value}")
    return value if isinstance(value, torch.dtype) else refuse()
