"""A description of the example inputs that suffices to draw similar ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import trees
from ..frozen_dict import FrozenDict
from .axis import Derived, Leaf
from .domain import Domain
from .expressions import Expr, names, value
from .program import Input


class Like(NamedTuple):
    """A tensor input: its shape, its dtype and the range of its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float
    high: float
    free: FrozenDict[int, Expr] = FrozenDict()
    """Dim whose size may change from call to call → name of its axis, or an expression in such names."""

    def at(self, sizes: Mapping[str, int]) -> Like:
        """Return the description with these sizes of axes; those that are not named keep theirs."""
        own = {name: self.shape[d] for d, name in self.free.items() if isinstance(name, str)}
        shape = [_size(self.free.get(d, n), {**own, **sizes}, n) for d, n in enumerate(self.shape)]
        return self._replace(shape=tuple(shape))


def _size(expr: Expr, sizes: Mapping[str, int], otherwise: int) -> int:
    """Return the size of a dim; the given one if the sizes do not say."""
    return int(value(expr, sizes)) if all(name in sizes for name in names(expr)) else otherwise


class Example(NamedTuple):
    """The arguments of the traced call, flattened: a `Like` for each tensor; all else is unchanged."""

    leaves: tuple[Any, ...]
    in_spec: trees.Form
    domain: Domain = Domain()
    """The sizes that the program accepts."""

    def draw(self, *, seed: int = 0, batch: int | None = None, device: torch.device | str = "cpu") -> tuple[Any, Any]:
        """Return random inputs of the same kind: (args, kwargs).

        Args:
            seed: the same seed gives identical inputs.
            batch: number of samples, or the nearest one that the program accepts; None: that of the example.
            device: device of the inputs.
        """
        generator = torch.Generator().manual_seed(seed)
        sizes = {} if batch is None else self.domain.nearest(batch, self.sizes)
        flat = [_draw(x.at(sizes), generator).to(device) if isinstance(x, Like) else x for x in self.leaves]
        return trees.unflatten(flat, self.in_spec)

    @property
    def sizes(self) -> dict[str, int]:
        """Return the size of each axis that may change."""
        likes = [x for x in self.leaves if isinstance(x, Like)]
        return {name: x.shape[d] for x in likes for d, name in x.free.items() if isinstance(name, str)}

    def at(self, sizes: Mapping[str, int]) -> Example:
        """Return the example with these sizes of axes; those that are not named keep theirs."""
        sizes = {**self.sizes, **sizes}
        return self._replace(leaves=tuple(x.at(sizes) if isinstance(x, Like) else x for x in self.leaves))


def example_of(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], in_spec: trees.Form, inputs: Sequence[Input], domain: Domain
) -> Example:
    """Return the description of these arguments, keywords in the order of the traced call.

    `inputs` holds the axes of the tensors, if they are known; `domain` holds the sizes that the program accepts.
    """
    names = in_spec.children()[1].context or list(kwargs)
    flat = trees.leaves((args, {n: kwargs[n] for n in names}))
    axes = iter(inputs)
    likes = tuple(_like(x, next(axes, None)) if isinstance(x, Tensor) else x for x in flat)
    return Example(likes, in_spec, domain)


def _like(t: Tensor, known_input: Input | None) -> Like:
    values = t.detach().double() if not (t.is_meta or t.is_complex()) and t.numel() else torch.zeros(1)
    values = values[values.isfinite()]  # infinities and NaN are no bounds to draw between
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    axes = known_input.axes if known_input is not None else (Leaf("batch"),) if t.ndim else ()
    variable_dims = {d: _expr(a) for d, a in enumerate(axes) if isinstance(a, Leaf | Derived)}
    return Like(tuple(t.shape), t.dtype, low, high, FrozenDict(variable_dims))


def _draw(like: Like, generator: torch.Generator) -> Tensor:
    shape = like.shape
    if like.dtype.is_floating_point or like.dtype.is_complex:
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (like.low + (like.high - like.low) * uniform).to(like.dtype)
    return torch.randint(int(like.low), int(like.high) + 1, shape, generator=generator).to(like.dtype)


def _expr(axis: Leaf | Derived) -> Expr:
    return axis.name if isinstance(axis, Leaf) else axis.expr
