"""Costs as exact polynomials in the leaf sizes: the cost of any mask is an evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from .axis import Axis, Fixed, Number, Sizes, bound, size
from .parts import Cost


class Polynomial(NamedTuple):
    """Σ coefficient · Π sizes of axes; all numbers are ints, so the value is exact."""

    terms: tuple[tuple[int, tuple[Axis, ...]], ...]

    def __call__(self, sizes: Mapping[str, Number]) -> Number:
        """Return the value for the given leaf sizes; sizes that are tensors can be differentiated by.

        >>> from prunefn.spec.axis import Leaf
        >>> polynomial([(Leaf("a"), Leaf("a"), Fixed(3))])({"a": 1.5})
        6.75
        """
        size_of: dict[Axis, Any] = {}

        def size_at(axis: Axis) -> Any:
            if axis not in size_of:
                size_of[axis] = size(axis, sizes)
            return size_of[axis]

        total: Any = sum(c * prod(map(size_at, axes)) for c, axes in self.terms)
        return total

    def bind(self, sizes: Sizes) -> Polynomial:
        """Return the polynomial in the other leaves, with these sizes for some leaves.

        >>> from prunefn.spec.axis import Leaf
        >>> polynomial([(Leaf("length"), Leaf("length"), Leaf("c"))]).bind({"length": 7})
        Polynomial(terms=((49, (Leaf(name='c'),)),))
        """
        return _collected(self.terms, sizes)


def polynomial(products: Iterable[Sequence[Axis]], batch: Collection[str] = ()) -> Polynomial:
    """Return the sum of products of axes, with like terms collected. Leaves of the batch count as one sample.

    >>> from prunefn.spec.axis import Leaf
    >>> polynomial([(Leaf("n"), Leaf("c"), Fixed(3)), (Leaf("c"), Fixed(4))], ["n"])({"c": 10})
    70
    """
    return _collected(((1, tuple(axes)) for axes in products), dict.fromkeys(batch, 1))


def _collected(terms: Iterable[tuple[int, Sequence[Axis]]], sizes: Sizes) -> Polynomial:
    """Return the sum of these terms, like ones collected, with fixed sizes for some leaves."""
    sums: dict[tuple[Axis, ...], int] = {}
    bound_of: dict[Axis, Axis] = {}
    for c, axes in terms:
        factors = [bound_of[a] if a in bound_of else bound_of.setdefault(a, bound(a, sizes)) for a in axes]
        fixed = prod(a.size for a in factors if isinstance(a, Fixed))
        # the order of factors does not matter: sorted, like terms have the same key
        key = tuple(sorted((a for a in factors if not isinstance(a, Fixed)), key=repr))
        sums[key] = sums.get(key, 0) + c * fixed
    return Polynomial(tuple((c, key) for key, c in sums.items() if c))


class Costs(NamedTuple):
    """The three cost polynomials of a network."""

    macs: Polynomial
    params: Polynomial
    activations: Polynomial

    def __call__(self, sizes: Mapping[str, int]) -> Cost:
        """Return the costs for the given leaf sizes."""
        return Cost(self.macs(sizes), self.params(sizes), self.activations(sizes))

    def bind(self, sizes: Sizes) -> Costs:
        """Return the polynomials in the other leaves, with these sizes for some leaves."""
        return Costs(*(p.bind(sizes) for p in self))
