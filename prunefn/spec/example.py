"""A description of the example inputs that suffices to draw similar ones."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import trees
from ..frozen_dict import FrozenDict
from .axis import Leaf
from .domain import Domain
from .program import Input

KEPT = 1 << 16
"""Integers and flags (ids, lengths, edges, masks) of at most this many bytes are kept as they were in the traced call."""
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Like(NamedTuple):
    """A tensor input: its shape, its dtype and the range of its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float
    high: float
    free: FrozenDict[int, str] = FrozenDict()
    """Dim whose size may change from call to call → name of its axis."""
    packed: bytes = b""
    """The values of small integers and flags, compressed; empty for others."""


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
            batch: size of every dim that may change, or the nearest size that the program accepts; None: the size of the traced call.
            device: device of the inputs.
        """
        generator = torch.Generator().manual_seed(seed)
        sizes = {} if batch is None else self.domain.nearest(batch)
        flat = [_draw(x, sizes, generator).to(device) if isinstance(x, Like) else x for x in self.leaves]
        return trees.unflatten(flat, self.in_spec)


def example_of(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    in_spec: trees.Form,
    inputs: Sequence[Input],
    parameters: tuple[str, ...] = (),
) -> Example:
    """Return the description of these arguments, keywords in the order of the traced call.

    `inputs` holds the axes of the tensors, if they are known; `parameters` are those of `forward`.
    """
    names = in_spec.children()[1].context or list(kwargs)
    flat = trees.leaves((args, {n: kwargs[n] for n in names}))
    axes = iter(inputs)
    likes = tuple(_like(x, next(axes, None)) if isinstance(x, Tensor) else x for x in flat)
    traced = {leaf: x.shape[d] for x in likes if isinstance(x, Like) for d, leaf in x.free.items()}
    return Example(likes, in_spec, Domain(FrozenDict(traced)), parameters)


def _like(t: Tensor, known_input: Input | None) -> Like:
    values = t.detach().double() if not (t.is_meta or t.is_complex()) and t.numel() else torch.zeros(1)
    values = values[values.isfinite()]  # infinities and NaN are no bounds to draw between
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    axes = known_input.axes if known_input is not None else (Leaf("batch"),) if t.ndim else ()
    variable_dims = {d: axis.name for d, axis in enumerate(axes) if isinstance(axis, Leaf)}
    return Like(tuple(t.shape), t.dtype, low, high, FrozenDict(variable_dims), _pack(t))


def _pack(t: Tensor) -> bytes:
    """Return the values of a small tensor of integers or flags; nothing for another tensor."""
    is_kept = t.dtype in WHOLE and t.layout is torch.strided and not t.is_meta and t.numel() * t.element_size() <= KEPT
    return zlib.compress(t.detach().cpu().contiguous().numpy().tobytes()) if is_kept else b""


def _unpack(like: Like) -> Tensor:
    values = torch.frombuffer(bytearray(zlib.decompress(like.packed)), dtype=like.dtype) if prod(like.shape) else []
    return torch.as_tensor(values, dtype=like.dtype).reshape(like.shape)


def _draw(like: Like, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    shape = [sizes.get(like.free.get(d, ""), n) for d, n in enumerate(like.shape)]
    if like.packed:
        values = _unpack(like)
        for d, n in enumerate(shape):
            if n != values.shape[d]:
                values = values.index_select(d, torch.arange(n) % max(values.shape[d], 1))
        return values
    if like.dtype.is_floating_point or like.dtype.is_complex:
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (like.low + (like.high - like.low) * uniform).to(like.dtype)
    return torch.randint(int(like.low), int(like.high) + 1, shape, generator=generator).to(like.dtype)
