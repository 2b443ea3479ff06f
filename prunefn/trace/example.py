"""What is remembered of the example inputs: enough to make others like them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Like(NamedTuple):
    """A tensor input: its shape, its type and the range of its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float
    high: float


class Example(NamedTuple):
    """The arguments of the traced call, flat: a `Like` for each tensor, anything else as it was."""

    leaves: tuple[Any, ...]
    in_spec: pytree.TreeSpec

    def draw(self, *, seed: int = 0, batch: int | None = None, device: torch.device | str = "cpu") -> tuple[Any, Any]:
        """Random inputs of the same kind: (args, kwargs).

        Args:
            seed: the same seed gives the same bits.
            batch: size of dim 0 of every tensor; None: as in the traced call.
            device: where they are put.
        """
        generator = torch.Generator().manual_seed(seed)
        flat = [_draw(x, batch, generator).to(device) if isinstance(x, Like) else x for x in self.leaves]
        return pytree.tree_unflatten(flat, self.in_spec)


def example_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], in_spec: pytree.TreeSpec) -> Example:
    """What stands for these arguments; keywords in the order of the traced call."""
    names = in_spec.children()[1].context or list(kwargs)
    flat = pytree.tree_leaves((args, {n: kwargs[n] for n in names}))
    return Example(tuple(_like(x) if isinstance(x, Tensor) else x for x in flat), in_spec)


def _like(t: Tensor) -> Like:
    values = t.detach().double() if not (t.is_meta or t.is_complex()) and t.numel() else torch.zeros(1)
    values = values[values.isfinite()]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    return Like(tuple(t.shape), t.dtype, low, high)


def _draw(like: Like, batch: int | None, generator: torch.Generator) -> Tensor:
    shape = like.shape if batch is None or not like.shape else (batch, *like.shape[1:])
    if like.dtype.is_floating_point or like.dtype.is_complex:
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (like.low + (like.high - like.low) * uniform).to(like.dtype)
    return torch.randint(int(like.low), int(like.high) + 1, shape, generator=generator).to(like.dtype)
