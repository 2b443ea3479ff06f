"""A description of the example inputs that suffices to draw similar ones."""

from __future__ import annotations

import zlib
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

KEPT = 1 << 16
"""Integers and flags (ids, lengths, edges, masks) of at most this many bytes are kept as they were in the traced call."""
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Packed(NamedTuple):
    """The values of a tensor of the traced call."""

    data: bytes
    """Compressed."""
    shape: tuple[int, ...]


class Like(NamedTuple):
    """A tensor input: its shape, its dtype and the range of its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float
    high: float
    free: FrozenDict[int, Expr] = FrozenDict()
    """Dim whose size may change from call to call → name of its axis, or an expression in such names."""
    packed: Packed | None = None
    """The values of small integers and flags; None for others."""

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
    parameters: tuple[str, ...] = ()
    """Names of the parameters of `forward` that may be given by position."""

    def draw(self, *, seed: int = 0, batch: int | None = None, device: torch.device | str = "cpu") -> tuple[Any, Any]:
        """Return inputs of the same kind: (args, kwargs).

        Floats are random. Integers and flags that the example keeps are those of the traced call, at other sizes its rows in turn,
        because a model may rely on what they mean: lengths, edges, words that stand for an image.

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
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    in_spec: trees.Form,
    inputs: Sequence[Input],
    domain: Domain,
    parameters: tuple[str, ...],
) -> Example:
    """Return the description of these arguments, keywords in the order of the traced call.

    `inputs` holds the axes of the tensors, if they are known; `domain` holds the sizes that the program accepts; `parameters`
    are those of `forward`.
    """
    names = in_spec.children()[1].context or list(kwargs)
    flat = trees.leaves((args, {n: kwargs[n] for n in names}))
    axes = iter(inputs)
    likes = tuple(_like(x, next(axes, None), domain) if isinstance(x, Tensor) else x for x in flat)
    return Example(likes, in_spec, domain, parameters)


def _like(t: Tensor, known_input: Input | None, domain: Domain) -> Like:
    values = t.detach().double() if not (t.is_meta or t.is_complex()) and t.numel() else torch.zeros(1)
    values = values[values.isfinite()]  # infinities and NaN are no bounds to draw between
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    axes = known_input.axes if known_input is not None else (Leaf("batch"),) if t.ndim else ()
    varies = [known_input is None or not isinstance(a, Leaf) or a.name in domain.traced for a in axes]  # else a group
    variable_dims = {d: _expr(a) for d, a in enumerate(axes) if varies[d] and isinstance(a, Leaf | Derived)}
    return Like(tuple(t.shape), t.dtype, low, high, FrozenDict(variable_dims), packed(t))


def packed(t: Tensor) -> Packed | None:
    """Return the values of a small tensor of integers or flags; None for another tensor."""
    is_kept = t.dtype in WHOLE and t.layout is torch.strided and not t.is_meta and t.numel() * t.element_size() <= KEPT
    data = zlib.compress(t.detach().cpu().contiguous().numpy().tobytes()) if is_kept else b""
    return Packed(data, tuple(t.shape)) if is_kept else None


def unpacked(packed: Packed, dtype: torch.dtype) -> Tensor:
    """Return the values of the traced call."""
    data = bytearray(zlib.decompress(packed.data))
    return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(packed.shape)


def _unpack(packed: Packed, like: Like) -> Tensor:
    """Return the values at the sizes of a description: the rows of the traced call in turn."""
    values = unpacked(packed, like.dtype)
    for d, n in enumerate(like.shape):
        if n != values.shape[d]:
            values = values.index_select(d, torch.arange(n) % max(values.shape[d], 1))
    return values


def _draw(like: Like, generator: torch.Generator) -> Tensor:
    shape = like.shape
    if like.packed is not None:
        return _unpack(like.packed, like)
    if like.dtype.is_floating_point or like.dtype.is_complex:
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (like.low + (like.high - like.low) * uniform).to(like.dtype)
    return torch.randint(int(like.low), int(like.high) + 1, shape, generator=generator).to(like.dtype)


def _expr(axis: Leaf | Derived) -> Expr:
    return axis.name if isinstance(axis, Leaf) else axis.expr
