"""A module with example inputs and the expected outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ..small import randn


class Case(NamedTuple):
    """A module, and whether its class runs with half of every group."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]
    """Batch size → inputs."""
    refused: str = ""
    """A part of the line of the class that cannot run; empty if it can."""
    with_kinds: tuple[str, ...] = ()
    """Kinds of groups that are pruned; empty: all."""

    @property
    def name(self) -> str:
        return self.build.__name__


def tokens(width: int, length: int = 5) -> Callable[[int], tuple[Any, ...]]:
    return lambda batch: (randn(batch, length, width, seed=batch),)


def vectors(width: int) -> Callable[[int], tuple[Any, ...]]:
    return lambda batch: (randn(batch, width, seed=batch),)


def images(channels: int = 3, size: int = 8) -> Callable[[int], tuple[Any, ...]]:
    return lambda batch: (randn(batch, channels, size, size, seed=batch),)
