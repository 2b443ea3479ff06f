"""Tensors of a program that no state dict contains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..frozen_dict import FrozenDict
from .axis import Axis


@dataclass(frozen=True, eq=False)
class Constants:
    """Tensors that no state dict contains: rotary tables, position grids, masks built in `forward`. Compared by value."""

    tensors: FrozenDict[str, Tensor]
    axes: FrozenDict[str, tuple[Axis, ...]]
    sources: FrozenDict[str, str]
    """Constant → path of the buffer or attribute that holds it."""

    def only(self, names: Iterable[str]) -> Constants:
        """Return the constants of these names."""
        kept = set(names)
        return Constants(*(FrozenDict({n: x for n, x in field.items() if n in kept}) for field in self._fields()))

    def _fields(self) -> tuple[FrozenDict[str, Any], ...]:
        return self.tensors, self.axes, self.sources

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constants) or self.axes != other.axes:
            return NotImplemented if not isinstance(other, Constants) else False
        # tensors on meta have no values: their shape and dtype decide
        pairs = [(t, other.tensors[n]) for n, t in self.tensors.items()]
        return all(
            a.shape == b.shape and a.dtype == b.dtype and (a.is_meta or b.is_meta or torch.equal(a.cpu(), b.cpu()))
            for a, b in pairs
        )

    def __hash__(self) -> int:
        return hash(tuple((n, tuple(t.shape)) for n, t in self.tensors.items()))
