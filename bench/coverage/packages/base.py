"""How a model of a package is built and fed; a package is imported when a model of it is built."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Draw = Callable[[int, torch.Generator], Any]
"""(batch size, generator) → an input."""


class Model(NamedTuple):
    """A model by name, how it is built, and how it is fed."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    """Batch size → (args, kwargs); the same at every call."""

    @property
    def package(self) -> str:
        """The package that it is imported from."""
        return self.name.partition(".")[0]


def model(path: str, inputs: Callable[[int], Inputs], *args: Any, variant: str = "", **options: Any) -> Model:
    """Describe the model that the class or function at `path` builds from these arguments.

    >>> model("torch.nn.Linear", feed(normal(3)), 3, 2).name
    'torch.Linear'
    """
    module, _, name = path.rpartition(".")
    full = f"{path.partition('.')[0]}.{name}" + (f" {variant}" if variant else "")
    return Model(full, partial(_build, module, name, *args, **options), inputs)


def _build(module: str, name: str, *args: Any, **options: Any) -> nn.Module:
    return getattr(import_module(module), name)(*args, **options)


def feed(*args: Draw, **kwargs: Draw) -> Callable[[int], Inputs]:
    """Return a function from the batch size to inputs that are drawn from a generator with this seed."""

    def inputs(batch: int) -> Inputs:
        generator = torch.Generator().manual_seed(batch)
        return tuple(d(batch, generator) for d in args), {n: d(batch, generator) for n, d in kwargs.items()}

    return inputs


def normal(*shape: int) -> Draw:
    """Normal values, [batch, …].

    >>> feed(normal(3, 4))(2)[0][0].shape
    torch.Size([2, 3, 4])
    """
    return lambda batch, generator: torch.randn(batch, *shape, generator=generator)


def uniform(*shape: int) -> Draw:
    """Values between 0 and 1, [batch, …]."""
    return lambda batch, generator: torch.rand(batch, *shape, generator=generator)


def whole(high: int, *shape: int, low: int = 0) -> Draw:
    """Whole numbers from `low` to `high` − 1, [batch, …]."""
    return lambda batch, generator: torch.randint(low, high, (batch, *shape), generator=generator)


def filled(value: float | int, *shape: int) -> Draw:
    """One value everywhere, [batch, …]."""
    return lambda batch, _: torch.full((batch, *shape), value)


def constant(value: Any) -> Draw:
    """The same at every batch size."""
    return lambda batch, _: value.clone() if isinstance(value, Tensor) else value
