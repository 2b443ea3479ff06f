"""Costs as exact polynomials in the leaf sizes: the cost of any mask is an evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

from .axis import Axis, Concat, Fixed, Leaf, Product, Sizes, concat, product, size
from .parts import Cost


class Polynomial(NamedTuple):
    """Σ coefficient · Π sizes of axes; all numbers are ints, so the value is exact."""

    terms: tuple[tuple[int, tuple[Axis, ...]], ...]

    def __call__(self, sizes: Sizes) -> int:
        """Return the value for the given leaf sizes."""
        size_of: dict[Axis, int] = {}

        def size_at(axis: Axis) -> int:
            if axis not in size_of:
                size_of[axis] = size(axis, sizes)
            return size_of[axis]

        return sum(c * prod(map(size_at, axes)) for c, axes in self.terms)


def polynomial(products: Iterable[Sequence[Axis]], batch: Collection[str] = ()) -> Polynomial:
    """Return the sum of products of axes, with like terms collected. Leaves of the batch count as one sample.

    >>> polynomial([(Leaf("n"), Leaf("c"), Fixed(3)), (Leaf("c"), Fixed(4))], ["n"])({"c": 10})
    70
    """
    sums: dict[tuple[Axis, ...], int] = {}
    one_sample_of: dict[Axis, Axis] = {}
    for axes in products:
        single = [
            one_sample_of[a] if a in one_sample_of else one_sample_of.setdefault(a, one_sample(a, batch)) for a in axes
        ]
        fixed = prod(a.size for a in single if isinstance(a, Fixed))
        # the order of factors does not matter: sorted, like terms have the same key
        key = tuple(sorted((a for a in single if not isinstance(a, Fixed)), key=repr))
        sums[key] = sums.get(key, 0) + fixed
    return Polynomial(tuple((c, key) for key, c in sums.items() if c))


def one_sample(axis: Axis, batch: Collection[str]) -> Axis:
    """Return the axis with every batch leaf replaced by size 1."""
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
    """The three cost polynomials of a network."""

    macs: Polynomial
    params: Polynomial
    activations: Polynomial

    def __call__(self, sizes: Mapping[str, int]) -> Cost:
        """Return the costs for the given leaf sizes."""
        return Cost(self.macs(sizes), self.params(sizes), self.activations(sizes))
