"""Whole numbers in the attributes of a module, also inside containers, configs, partial functions and closures.

A place is named like the Python expression that reads it from the module: `heads`, `cfg['heads']`, `config.sizes[0]`,
`split.keywords['h']`. Setting a number copies everything on the way to it, so an object that modules share is not changed.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cached_property, partial, singledispatch
from types import CellType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

DEPTH = 5
"""Maximal number of steps from a module to a number."""
LONGEST = 64
"""Containers with more entries hold data, not sizes."""
MOST = 4096
"""Maximal number of places in one attribute, which may refer to everything, such as a trainer."""
OPAQUE = (nn.Module, Tensor, str, bytes, bool, float, complex, type, ModuleType, Enum, torch.dtype, torch.device)
"""Classes of values that are not searched for numbers."""
FRAMEWORKS = (
    *("torch", "numpy", "builtins", "collections", "threading", "logging", "re", "pathlib"),
    *("lightning", "pytorch_lightning", "accelerate", "tokenizers"),
)
"""Packages whose objects are searched only if they are plain containers."""
OF_MODULES = frozenset(vars(nn.Module())) | {"_hub_mixin_config"}
"""Attributes of `nn.Module` itself, and the arguments that huggingface_hub's mixin keeps, which no forward reads."""


class Step(NamedTuple):
    """An attribute, an index of a list, or a key of a dict."""

    key: Any
    is_attribute: bool

    def __str__(self) -> str:
        return f".{self.key}" if self.is_attribute else f"[{self.key!r}]"

    def read(self, value: Any) -> Any:
        """Return what the step leads to."""
        return getattr(value, self.key) if self.is_attribute else value[self.key]


class Place(NamedTuple):
    """The way from a module to a number."""

    steps: tuple[Step, ...]
    value: int
    names: tuple[str, ...]
    """Names of the attributes and keys on the way; of a pair (name, number), the name."""
    is_shared: bool
    """Whether the number is in an object that other modules may share, such as a config."""

    def __str__(self) -> str:
        return "".join(map(str, self.steps)).removeprefix(".")


def places(module: nn.Module) -> Iterator[Place]:
    """Yield the place of every whole number in the attributes of a module, but not of its children.

    >>> m = nn.Module()
    >>> m.heads, m.cfg = 4, {"dim": 6, "parts": [1, 2]}
    >>> [f"{p} = {p.value}" for p in places(m)]
    ['heads = 4', "cfg['dim'] = 6", "cfg['parts'][0] = 1", "cfg['parts'][1] = 2"]
    """
    own = {k: v for k, v in vars(module).items() if k not in OF_MODULES}
    for cls in type(module).__mro__:
        if cls.__module__.partition(".")[0] == "torch":
            break
        own = {**{k: v for k, v in vars(cls).items() if type(v) is int and not k.startswith("__")}, **own}
    for name, value in own.items():
        if not isinstance(getattr(type(module), name, None), cached_property):
            start = Place((Step(name, True),), 0, (name,), False)
            yield from itertools.islice(_places(value, start, frozenset()), MOST)


def _places(value: Any, place: Place, outer: frozenset[int]) -> Iterator[Place]:
    """Yield the places in the value at a place; `outer` are the ids of the objects on the way."""
    if type(value) is int:
        yield place._replace(value=value)
    elif value is not None and not isinstance(value, OPAQUE) and len(place.steps) < DEPTH and id(value) not in outer:
        is_pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
        is_shared = place.is_shared or parts.dispatch(type(value)) is parts.dispatch(object)
        for step in parts(value):
            name = value[0] if is_pair else step.key
            names = (*place.names, name) if isinstance(name, str) else place.names
            inner = Place((*place.steps, step), 0, names, is_shared)
            yield from _places(step.read(value), inner, outer | {id(value)})


@singledispatch
def parts(value: Any) -> list[Step]:
    """Return the steps from a value to its parts: the attributes of an object of the user's own."""
    if type(value).__module__.partition(".")[0] in FRAMEWORKS or callable(getattr(value, "__get__", None)):
        return []
    names = [f.name for f in fields(value)] if is_dataclass(value) else list(getattr(value, "__dict__", ()))
    return [Step(n, True) for n in names if n not in OF_MODULES and hasattr(value, n)]


@parts.register
def _(value: dict) -> list[Step]:
    return [Step(k, False) for k in value if isinstance(k, str | int)] if len(value) <= LONGEST else []


@parts.register(list)
@parts.register(tuple)
def _(value: list | tuple) -> list[Step]:
    names = getattr(value, "_fields", ())
    return [Step(n, True) for n in names] or [Step(i, False) for i in range(len(value)) if len(value) <= LONGEST]


@parts.register
def _(value: partial) -> list[Step]:
    return [Step("args", True), Step("keywords", True)]


@parts.register
def _(value: FunctionType) -> list[Step]:
    return [Step(n, True) for n in ("__defaults__", "__kwdefaults__", "__closure__") if getattr(value, n)]


@parts.register
def _(value: CellType) -> list[Step]:
    try:
        value.cell_contents  # noqa: B018  # an empty cell has none
    except ValueError:
        return []
    return [Step("cell_contents", True)]


@singledispatch
def with_parts(value: Any, changes: Mapping[Any, Any]) -> Any:
    """Return a copy of a value with other parts: the attributes of an object."""
    changed = copy.copy(value)
    for name, part in changes.items():
        object.__setattr__(changed, name, part)  # a frozen dataclass refuses setattr
    return changed


@with_parts.register(dict)
@with_parts.register(list)
def _(value: dict | list, changes: Mapping[Any, Any]) -> Any:
    changed = copy.copy(value)
    for key, part in changes.items():
        changed[key] = part
    return changed


@with_parts.register
def _(value: tuple, changes: Mapping[Any, Any]) -> tuple:
    if names := getattr(value, "_fields", ()):
        return type(value)(*(changes.get(n, v) for n, v in zip(names, value, strict=True)))
    return type(value)(changes.get(i, v) for i, v in enumerate(value))


@with_parts.register
def _(value: partial, changes: Mapping[Any, Any]) -> partial:
    return type(value)(value.func, *changes.get("args", value.args), **changes.get("keywords", value.keywords))


@with_parts.register
def _(value: FunctionType, changes: Mapping[Any, Any]) -> FunctionType:
    defaults, closure = (changes.get(n, getattr(value, n)) for n in ("__defaults__", "__closure__"))
    changed = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, closure)
    changed.__kwdefaults__ = changes.get("__kwdefaults__", value.__kwdefaults__)
    changed.__dict__.update(value.__dict__)
    return changed


@with_parts.register
def _(value: CellType, changes: Mapping[Any, Any]) -> CellType:
    return CellType(changes["cell_contents"])


def read_number(module: nn.Module, place: Place) -> int:
    """Return the number that is at a place now."""
    value: Any = module
    for step in place.steps:
        value = step.read(value)
    return value


def write_number(module: nn.Module, place: Place, number: int) -> None:
    """Set the number at a place; objects on the way to it are replaced by changed copies."""
    if read_number(module, place) != number:
        first, *rest = place.steps
        setattr(module, first.key, _changed(getattr(module, first.key), rest, number))


def _changed(value: Any, steps: list[Step], number: int) -> Any:
    """Return a copy of a value with another number where the steps lead to."""
    if not steps:
        return number
    first, *rest = steps
    return with_parts(value, {first.key: _changed(first.read(value), rest, number)})
