"""Costs as polynomials in a common factor of sizes, and the factor at which a cost takes a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import sqrt

from ..spec.axis import AnyOf, Axis, Concat, Derived, Fixed, Leaf, Product, size
from ..spec.costs import Polynomial


def degrees(polynomial: Polynomial, sizes: Mapping[str, int], names: Iterable[str]) -> list[int]:
    """Return the coefficients c of the cost Σ c[i]·qⁱ when the sizes of the named groups are multiplied by q.

    >>> from prunefn.spec.costs import polynomial
    >>> degrees(polynomial([(Leaf("a"), Leaf("b"), Fixed(2)), (Leaf("b"), Fixed(7))]), {"a": 3, "b": 5}, ["a", "b"])
    [0, 35, 30]
    """
    chosen = frozenset(names)
    total = [0]
    for coefficient, axes in polynomial.terms:
        term = [coefficient]
        for axis in axes:
            term = _multiply(term, _axis_degrees(axis, sizes, chosen))
        total = _add(total, term)
    return total


def _axis_degrees(axis: Axis, sizes: Mapping[str, int], chosen: frozenset[str]) -> list[int]:
    """Return the coefficients of the size of an axis in powers of q, when the chosen groups have q times their size."""
    match axis:
        case Leaf(name):
            return [0, sizes[name]] if name in chosen else [sizes[name]]
        case Fixed() | Derived() | AnyOf():
            return [size(axis, sizes)]
        case Product(factors):
            out = [1]
            for f in factors:
                out = _multiply(out, _axis_degrees(f, sizes, chosen))
            return out
        case Concat(parts):
            out = [0]
            for p in parts:
                out = _add(out, _axis_degrees(p, sizes, chosen))
            return out


def _multiply(a: list[int], b: list[int]) -> list[int]:
    """Return the coefficients of a product of polynomials."""
    out = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] += x * y
    return out


def _add(a: list[int], b: list[int]) -> list[int]:
    """Return the coefficients of a sum of polynomials."""
    width = max(len(a), len(b))
    return [x + y for x, y in zip(a + [0] * (width - len(a)), b + [0] * (width - len(b)), strict=True)]


def root(coefficients: list[int], target: float) -> float:
    """Return the q in [0, 1] at which a polynomial without negative coefficients takes the target."""
    rest, one, two, *more = [*coefficients, 0, 0]
    if any(more):
        return bisected(coefficients, target)
    goal = target - rest
    # This form of the quadratic formula has no cancellation, and is right for degree one, too.
    return 2 * goal / (one + sqrt(one * one + 4 * two * goal)) if one or two else 1.0


def bisected(coefficients: list[int], target: float) -> float:
    """Return the same root for any degree, bisected to the last bit."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        value = sum(c * middle**i for i, c in enumerate(coefficients))
        low, high = (middle, high) if value <= target else (low, middle)
    return low
