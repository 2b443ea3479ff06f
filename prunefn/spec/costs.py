"""Costs as exact polynomials in the leaf sizes: the cost of any mask is an evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

from .axis import Axis, Concat, Fixed, Leaf, Product, Sizes, concat, product, size
from .parts import Cost


class Polynomial(NamedTuple):
    """Σ coefficient · Π sizes of axes; all ints, so that no digit is lost."""

    terms: tuple[tuple[int, tuple[Axis, ...]], ...]

    def __call__(self, sizes: Sizes) -> int:
        """The value for given leaf sizes."""
        known: dict[Axis, int] = {}

        def at(axis: Axis) -> int:
            if axis not in known:
                known[axis] = size(axis, sizes)
            return known[axis]

        return sum(c * prod(map(at, axes)) for c, axes in self.terms)


def polynomial(products: Iterable[Sequence[Axis]], batch: Collection[str] = ()) -> Polynomial:
    """The sum of products of axes, like terms collected. Leaves of the batch count as one sample.

    >>> polynomial([(Leaf("n"), Leaf("c"), Fixed(3)), (Leaf("c"), Fixed(4))], ["n"])({"c": 10})
    70
    """
    sums: dict[tuple[Axis, ...], int] = {}
    simple: dict[Axis, Axis] = {}
    for axes in products:
        single = [simple[a] if a in simple else simple.setdefault(a, one_sample(a, batch)) for a in axes]
        fixed = prod(a.size for a in single if isinstance(a, Fixed))
        key = tuple(sorted((a for a in single if not isinstance(a, Fixed)), key=repr))
        sums[key] = sums.get(key, 0) + fixed
    return Polynomial(tuple((c, key) for key, c in sums.items() if c))


def one_sample(axis: Axis, batch: Collection[str]) -> Axis:
    """The axis with every batch leaf replaced by size 1."""
    match axis:
        case Leaf(name) if name in batch:
            return Fixed(1)
        case Product(factors):
            return product([one_sample(f, batch) for f in factors])
        case Concat(parts):
            return concat([one_sample(p, batch) for p in parts])
        case _:
            return axis


class Costs(NamedTuple):
    """The three polynomials of a network."""

    macs: Polynomial
    params: Polynomial
    activations: Polynomial

    def __call__(self, sizes: Mapping[str, int]) -> Cost:
        """Their values for given leaf sizes."""
        return Cost(self.macs(sizes), self.params(sizes), self.activations(sizes))
