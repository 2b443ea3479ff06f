"""A network in a runtime: its parts, a whole forward, and the seconds of each part."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ...spec.axis import Axis
from .clock import Call


class Part(NamedTuple):
    """A contraction with the ops that compute on its result, up to the next contractions."""

    weight: str
    """Name of the contraction's weight; empty for ops before the first one."""
    axes: tuple[Axis, ...]
    """Axes of the weight."""

    @property
    def module(self) -> str:
        """Return the path of the module that has the weight."""
        return self.weight.rpartition(".")[0]


class Loaded(NamedTuple):
    """A network in a runtime."""

    parts: tuple[Part, ...]
    whole: Call
    """A whole forward."""
    profile: Callable[[int], dict[int, float]]
    """Number of forwards → part → seconds of its kernels, without those between kernels."""


def sum_by_part(kernels: Iterable[tuple[str, float]], number_of: Callable[[str], int | None]) -> dict[int, float]:
    """Return part → seconds of its kernels.

    Kernels that a runtime adds, such as a change of layout, count for the part of the kernel before them.

    Args:
        kernels: (name, seconds) in the order in which they run.
        number_of: name of a kernel → number of its part; None if the name does not say it.

    >>> sum_by_part([("1 conv", 5.0), ("reorder", 2.0), ("2 conv", 1.0)], lambda n: int(n[0]) if n[0].isdigit() else None)
    {1: 7.0, 2: 1.0}
    """
    out: dict[int, float] = {}
    part = 0
    for name, seconds in kernels:
        number = number_of(name)
        part = part if number is None else number
        out[part] = out.get(part, 0.0) + seconds
    return out
