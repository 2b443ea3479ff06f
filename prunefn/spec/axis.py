"""Axis expressions: each describes one dimension of one tensor.

    axis := Leaf | Fixed | Derived | Product(axis, …)   row-major, as in a reshape
                                   | Concat(axis, …)    as in cat, split and slice
                                   | AnyOf(axis, …)     only in costs: 1 while one of them is not empty

A `Leaf` has a name. Its size is looked up in a dict of sizes, so the same expression serves every pruned size of a
network and every size of its inputs. `Fixed` and `Derived` axes are always frozen. Expressions are immutable, hashable values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._shapes import Bool, Int64
from .expressions import Expr, names, substituted, value, written


@dataclass(frozen=True, slots=True)
class Leaf:
    """An indivisible axis whose size may change: a group, or a size of the inputs, such as the batch."""

    name: str


@dataclass(frozen=True, slots=True)
class Fixed:
    """An axis that never changes its size."""

    size: int


@dataclass(frozen=True, slots=True)
class Derived:
    """An axis whose size follows from sizes of the inputs, such as the height after a convolution with a stride."""

    expr: Expr


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product of its factors, as in `reshape`."""

    factors: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """Concatenation of its parts, as in `cat`."""

    parts: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A factor of a cost: 1 if one of the alternatives, axes of sizes 0 or 1, has size 1, else 0. No tensor has such an axis."""

    alternatives: tuple[Axis, ...]


Axis = Leaf | Fixed | Derived | Product | Concat | AnyOf
Sizes = Mapping[str, int]
Number = TypeVar("Number", int, float, Tensor)
"""Type of a size: an int, or an expected size that need not be whole, which a tensor carries gradients of."""


def product(factors: list[Axis]) -> Axis:
    """Return the product in its simplest form: ones are dropped, neighbouring fixed factors are merged."""
    kept: list[Axis] = []
    for f in factors:
        for g in f.factors if isinstance(f, Product) else (f,):
            if isinstance(g, Fixed) and kept and isinstance(kept[-1], Fixed):
                kept[-1] = Fixed(kept[-1].size * g.size)
            elif g != Fixed(1):
                kept.append(g)
    return kept[0] if len(kept) == 1 else Product(tuple(kept)) if kept else Fixed(1)


def concat(parts: list[Axis]) -> Axis:
    """Return the concatenation in its simplest form: empty parts are dropped, neighbouring fixed parts are merged."""
    kept: list[Axis] = []
    for p in parts:
        for q in p.parts if isinstance(p, Concat) else (p,):
            if isinstance(q, Fixed) and kept and isinstance(kept[-1], Fixed):
                kept[-1] = Fixed(kept[-1].size + q.size)
            elif q != Fixed(0):
                kept.append(q)
    return kept[0] if len(kept) == 1 else Concat(tuple(kept)) if kept else Fixed(0)


def any_of(alternatives: list[Axis]) -> Axis:
    """Return the factor in its simplest form: alternatives that are never there are dropped.

    >>> any_of([Leaf("a"), Fixed(0)]), any_of([Leaf("a"), Fixed(1)])
    (Leaf(name='a'), Fixed(size=1))
    """
    possible = [a for a in dict.fromkeys(alternatives) if a != Fixed(0)]
    if Fixed(1) in possible:
        return Fixed(1)
    return possible[0] if len(possible) == 1 else AnyOf(tuple(possible)) if possible else Fixed(0)


def last_of(axis: Axis) -> Axis:
    """Return an axis whose size is the last position of an axis, which is a leaf or a product of such.

    >>> size(last_of(Product((Fixed(2), Leaf("experts")))), {"experts": 3})
    5
    """
    return Derived(("+", _expression(axis), -1))


def _expression(axis: Axis) -> Expr:
    match axis:
        case Leaf(name):
            return name
        case Fixed(n):
            return n
        case Derived(expr):
            return expr
        case Product(children):
            return ("*", *map(_expression, children))
        case Concat(children):
            return ("+", *map(_expression, children))
        case AnyOf(children):
            return ("max", *map(_expression, children))


def size(axis: Axis, sizes: Mapping[str, Number]) -> Number:
    """Return the number of positions of `axis`, given the size of each leaf.

    >>> size(Product((Fixed(3), Leaf("heads"), Leaf("head_dim"))), {"heads": 2, "head_dim": 8})
    48
    """
    return _size(axis, sizes)


def _size(axis: Axis, sizes: Mapping[str, Any]) -> Any:
    match axis:
        case Leaf(name):
            return sizes[name]
        case Fixed(n):
            return n
        case Derived(expr):
            return int(value(expr, sizes))
        case Product(factors):
            return prod(_size(f, sizes) for f in factors)
        case Concat(parts):
            return sum(_size(p, sizes) for p in parts)
        case AnyOf(alternatives):  # between 0 and 1, sizes are the probabilities of independent gates
            return 1 - prod(1 - _size(a, sizes) for a in alternatives)


def leaves(axis: Axis) -> Iterator[str]:
    """Yield the names of the leaves of `axis`, from left to right, with repetitions."""
    match axis:
        case Leaf(name):
            yield name
        case Product(children) | Concat(children) | AnyOf(children):
            for child in children:
                yield from leaves(child)
        case Derived(expr):
            yield from names(expr)
        case Fixed():
            return


def bound(axis: Axis, sizes: Sizes) -> Axis:
    """Return the axis with some leaves replaced by axes of fixed sizes.

    >>> bound(Product((Leaf("batch"), Derived(("//", "length", 2)))), {"batch": 1, "length": 8})
    Fixed(size=4)
    """
    match axis:
        case Leaf(name) if name in sizes:
            return Fixed(sizes[name])
        case Derived(expr) if not sizes.keys().isdisjoint(names(expr)):
            result = substituted(expr, sizes)
            return Fixed(result) if isinstance(result, int) else Derived(result)
        case Product(factors):
            return product([bound(f, sizes) for f in factors])
        case Concat(parts):
            return concat([bound(p, sizes) for p in parts])
        case AnyOf(alternatives):
            return any_of([bound(a, sizes) for a in alternatives])
        case _:
            return axis


def keep(axis: Axis, mask: Mapping[str, Tensor], sizes: Sizes) -> Bool[Tensor, " positions"]:
    """Return which positions of `axis` are kept: bool [size]. A position is kept iff all units on its path are kept.

    >>> keep(Product((Fixed(2), Leaf("c"))), {"c": torch.tensor([True, False, True])}, {"c": 3}).int().tolist()
    [1, 0, 1, 1, 0, 1]
    """
    match axis:
        case Leaf(name) if name in mask:
            return mask[name].cpu()
        case Leaf() | Fixed() | Derived() | AnyOf():
            return torch.ones(size(axis, sizes), dtype=torch.bool)
        case Product(factors):
            out = torch.ones(1, dtype=torch.bool)
            for f in factors:
                out = (out[:, None] & keep(f, mask, sizes)).flatten()
            return out
        case Concat(parts):
            return torch.cat([keep(p, mask, sizes) for p in parts])


def reorder(axis: Axis, orders: Mapping[str, Tensor], sizes: Sizes) -> Int64[Tensor, " positions"]:
    """Return where each position of `axis` comes from when the units of its leaves are reordered: int64 [size].

    >>> reorder(Product((Fixed(2), Leaf("c"))), {"c": torch.tensor([2, 0, 1])}, {"c": 3}).tolist()
    [2, 0, 1, 5, 3, 4]
    """
    match axis:
        case Leaf(name) if name in orders:
            return orders[name].cpu()
        case Leaf() | Fixed() | Derived() | AnyOf():
            return torch.arange(size(axis, sizes))
        case Product(factors):
            out = torch.zeros(1, dtype=torch.int64)
            for f in factors:
                out = (out[:, None] * size(f, sizes) + reorder(f, orders, sizes)).flatten()
            return out
        case Concat(parts):
            starts = torch.tensor([0, *(size(p, sizes) for p in parts)]).cumsum(0).tolist()
            return torch.cat([s + reorder(p, orders, sizes) for s, p in zip(starts, parts, strict=False)])


def positions(axis: Axis, leaf: str, sizes: Sizes) -> Int64[Tensor, "units k"]:
    """Return the index map of a leaf in an axis: int64 [units, k], the k positions of each unit.

    >>> positions(Concat((Leaf("c"), Fixed(1), Leaf("c"))), "c", {"c": 2}).tolist()
    [[0, 3], [1, 4]]
    """
    unit = unit_of(axis, leaf, sizes)
    order = torch.argsort(unit, stable=True)  # stable: the positions of each unit stay in ascending order
    order = order[unit[order] >= 0]
    return order.reshape(sizes[leaf], -1)


def unit_of(axis: Axis, leaf: str, sizes: Sizes) -> Int64[Tensor, " positions"]:
    """Return the unit of `leaf` at each position of `axis`: int64 [size], -1 where the leaf does not occur."""
    match axis:
        case Leaf(name) if name == leaf:
            return torch.arange(sizes[name])
        case Leaf() | Fixed() | Derived() | AnyOf():
            return torch.full((size(axis, sizes),), -1)
        case Product(factors):
            out = torch.full((1,), -1)
            for f in factors:
                # -1 loses against every unit, so the factor that contains the leaf decides
                out = torch.maximum(out[:, None], unit_of(f, leaf, sizes)).flatten()
            return out
        case Concat(parts):
            return torch.cat([unit_of(p, leaf, sizes) for p in parts])


def einops_form(axis: Axis, labels: Mapping[str, str], *, inner: bool = False) -> str:
    """Return the axis in einops notation; concatenated parts are joined by ` + `.

    >>> einops_form(Product((Fixed(3), Leaf("h"), Leaf("d"))), {"h": "heads", "d": "head_dim"})
    '(3 heads head_dim)'
    """
    match axis:
        case Leaf(name):
            return labels.get(name, name)
        case Fixed(n):
            return str(n)
        case Derived(expr):
            return f"({written(expr)})"
        case Product(factors):
            return "(" + " ".join(einops_form(f, labels, inner=True) for f in factors) + ")"
        case Concat(parts):
            return "(" + " + ".join(_shorten_sum([einops_form(p, labels, inner=True) for p in parts])) + ")"
        case AnyOf(alternatives):
            return "(" + " or ".join(einops_form(a, labels, inner=True) for a in alternatives) + ")"


def _shorten_sum(words: list[str], limit: int = 8) -> list[str]:
    """Return the words of a sum; drop the middle of a long one."""
    return words if len(words) <= limit else [*words[:4], f"… {len(words) - 6} more …", *words[-2:]]
