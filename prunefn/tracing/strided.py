"""`as_strided` where it is a view of dims: it is replaced by ops that say so, since strides change with the sizes of a pruned tensor."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten = torch.ops.aten
Call = tuple[Any, tuple[Any, ...]]
"""Op and its arguments behind the tensor."""


class Dim(NamedTuple):
    """A dim of a tensor in memory."""

    size: Any
    stride: Any

    def is_like(self, other: Dim) -> bool:
        """Return whether two dims step over memory alike."""
        return _same(self.size, other.size) and _same(self.stride, other.stride)


def spell_out_strides(graph: fx.Graph) -> None:
    """Replace `as_strided` by permute, reshape, expand or unfold where these give the same view."""
    for n in list(graph.nodes):
        if n.op != "call_function" or n.target is not aten.as_strided.default:
            continue
        names = ("size", "stride", "storage_offset")
        arguments = {**dict(zip(names, n.args[1:], strict=False)), **n.kwargs}
        if (calls := _views(n.args[0].meta["val"], **arguments)) is not None:  # type: ignore[union-attr]
            _replace(graph, n, calls)


def _views(x: Tensor, size: Any, stride: Any, storage_offset: Any = None) -> list[Call] | None:
    """Return the ops that give the view of an `as_strided`; None if it is no view of dims."""
    if storage_offset is not None and not _same(_value(storage_offset), x.storage_offset()):
        return None
    old = [Dim(*d) for d in zip(x.shape, x.stride(), strict=True)]
    new = [Dim(_value(n), _value(s)) for n, s in zip(size, stride, strict=True)]
    if _is_dense(old) and _is_dense(new) and _same(_count(old), _count(new)):
        return [(aten.reshape.default, (size,))]
    return _permuted(old, new, size) or _windows(old, new)


def _permuted(old: list[Dim], new: list[Dim], size: Any) -> list[Call] | None:
    """Return a permutation of the dims, with dims of size 1 left out or put in, and expanded where the stride is 0."""
    remaining = [d for d, dim in enumerate(old) if not _same(dim.size, 1)]
    ones = [d for d in range(len(old)) if d not in remaining]
    order, added = [], []
    for d, dim in enumerate(new):
        match = next((o for o in remaining if old[o].is_like(dim)), None)
        if match is not None:
            remaining.remove(match)
            order.append(match)
        elif _same(dim.size, 1) or _same(dim.stride, 0):
            added.append(d)
        else:
            return None
    if remaining:
        return None
    squeezed: list[Call] = [(aten.squeeze.dims, (ones,))] if ones else []
    places = {o: i for i, o in enumerate(o for o in range(len(old)) if o not in ones)}
    calls: list[Call] = [*squeezed, (aten.permute.default, ([places[o] for o in order],))]
    calls += [(aten.unsqueeze.default, (d,)) for d in added]
    return [*calls, (aten.expand.default, (size,))] if added else calls


def _windows(old: list[Dim], new: list[Dim]) -> list[Call] | None:
    """Return windows along one dim, which may first be made of neighbouring dims; they stand before their positions, or last."""
    for calls, dims in _merged(old):
        for d, dim in enumerate(dims):
            rest = [*dims[:d], *dims[d + 1 :]]
            if len(new) != len(dims) + 1 or not isinstance(
                step := new[d].stride // dim.stride if dim.stride else 0, int
            ):
                continue
            for place in (d + 1, len(new) - 1):
                others = [x for i, x in enumerate(new) if i not in (d, place)]
                window = new[place]
                if step < 1 or not _same(window.stride, dim.stride) or not _same(new[d].stride, step * dim.stride):
                    continue
                if not _same(new[d].size, (dim.size - window.size) // step + 1) or not isinstance(window.size, int):
                    continue
                if all(x.is_like(y) for x, y in zip(others, rest, strict=True)):
                    moved: list[Call] = [(aten.movedim.int, (-1, place))] if place != len(new) - 1 else []
                    return [*calls, (aten.unfold.default, (d, window.size, step)), *moved]
    return None


def _merged(dims: list[Dim]) -> Iterator[tuple[list[Call], list[Dim]]]:
    """Yield the dims, and the dims with two neighbours flattened into one."""
    yield [], dims
    for d, (a, b) in enumerate(pairwise(dims)):
        if _same(a.stride, b.size * b.stride):
            yield [(aten.flatten.using_ints, (d, d + 1))], [*dims[:d], Dim(a.size * b.size, b.stride), *dims[d + 2 :]]


def _replace(graph: fx.Graph, n: fx.Node, calls: list[Call]) -> None:
    value: Any = n.args[0]
    with graph.inserting_before(n):
        for op, args in calls:
            real = [[_value(x) for x in a] if isinstance(a, (list, tuple)) else a for a in args]
            meta = {**n.meta, "val": op(value.meta["val"], *real)}
            value = graph.call_function(op, (value, *args))
            value.meta = meta
    n.replace_all_uses_with(value)
    graph.erase_node(n)


def _value(x: Any) -> Any:
    return x.meta["val"] if isinstance(x, fx.Node) else x


def _same(a: Any, b: Any) -> bool:
    return statically_known_true(a == b)


def _count(dims: list[Dim]) -> Any:
    count: Any = 1
    for dim in dims:
        count *= dim.size
    return count


def _is_dense(dims: list[Dim]) -> bool:
    """Return whether dims lie in memory one after the other, from the last one on."""
    step: Any = 1
    for dim in reversed(dims):
        if not _same(dim.size, 1) and not _same(dim.stride, step):
            return False
        step = step * dim.size
    return True
