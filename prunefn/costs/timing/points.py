"""At which sizes an op is measured: which axes its seconds depend on, and a grid over their sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product as combinations
from typing import NamedTuple

from ...spec.axis import Axis, Concat, Leaf, Product, leaves, size
from ...spec.program import Size

MOST = 3
"""Coordinates; an op that depends on more is measured along a line through them."""
COARSE = (0.5,)
"""Shares, beside all and the smallest, for ops with as many coordinates as that."""


class Coordinate(NamedTuple):
    """An axis that is made longer and shorter, and the leaves that are for this."""

    axis: Axis
    leaves: tuple[str, ...]


class Point(NamedTuple):
    """Sizes of coordinates, and of the leaves."""

    where: tuple[int, ...]
    sizes: Mapping[str, int]


class Mesh(NamedTuple):
    """Sizes of each coordinate, ascending, and all their combinations, row-major."""

    sizes: tuple[tuple[int, ...], ...]
    points: tuple[Point, ...]


def coordinates(
    shapes: Sequence[Sequence[Axis]], loose: Iterable[Axis], groups: Collection[str]
) -> tuple[Coordinate, ...]:
    """What the seconds of an op depend on: every group by itself, but the parts of a concatenation together.

    Args:
        shapes: axes of the dims of every tensor that goes in or comes out.
        loose: axes whose sizes are arguments.
        groups: leaves that may shrink.

    >>> a, b, c = map(Leaf, "abc")
    >>> for x in coordinates([(Concat((a, b)), c)], [], {"a", "b", "c"}): print(x.leaves)
    ('a', 'b')
    ('c',)
    """
    axes = dict.fromkeys(x for x in (*(x for s in shapes for x in s), *loose) if _groups(x, groups))
    bundles: list[Coordinate] = []
    for whole in dict.fromkeys(c for x in axes for c in _concats(x, groups)):
        inside, parts = dict.fromkeys(_groups(whole, groups)), [whole]
        for b in [b for b in bundles if inside.keys() & b.leaves]:
            bundles.remove(b)
            inside, parts = dict.fromkeys([*b.leaves, *inside]), [b.axis, *parts]
        bundles.append(Coordinate(parts[0] if len(parts) == 1 else Concat(tuple(parts)), tuple(inside)))
    bundled = {n for b in bundles for n in b.leaves}
    alone = dict.fromkeys(n for x in axes for n in _groups(x, groups) if n not in bundled)
    found = (*bundles, *(Coordinate(Leaf(n), (n,)) for n in alone))
    if len(found) <= MOST:
        return found
    elements = Concat(tuple(Product(tuple(s)) for s in shapes))
    return (Coordinate(elements, tuple(n for c in found for n in c.leaves)),)


def _groups(axis: Axis, groups: Collection[str]) -> list[str]:
    return [n for n in leaves(axis) if n in groups]


def _concats(axis: Axis, groups: Collection[str]) -> Iterator[Axis]:
    """The outermost concatenations in which a group stands."""
    match axis:
        case Concat() if _groups(axis, groups):
            yield axis
        case Product(factors):
            for f in factors:
                yield from _concats(f, groups)


def sizes_in(args: object) -> Iterator[Axis]:
    """Axes whose sizes stand in a nest of arguments."""
    match args:
        case Size(axis):
            yield axis
        case tuple():
            for a in args:
                yield from sizes_in(a)


def mesh(
    found: Sequence[Coordinate], dense: Mapping[str, int], shares: Sequence[float], multiple: int, *, even: bool
) -> Mesh:
    """The sizes at which an op with these coordinates is measured.

    Args:
        dense: size of each leaf when nothing is removed.
        shares: what is left of an axis; all of it, and a single unit, are always there.
        multiple: `even` sizes are multiples of it, others are odd: kernels that work in blocks tell the two apart.
    """
    shares = COARSE if len(found) >= MOST else shares
    lines = [_line(c, dense, shares, multiple, even) for c in found]
    points = []
    for choice in combinations(*lines):
        chosen = {n: m for point in choice for n, m in point.sizes.items()}
        points.append(Point(tuple(p.where[0] for p in choice), chosen))
    return Mesh(tuple(tuple(p.where[0] for p in line) for line in lines), tuple(points))


def _line(c: Coordinate, dense: Mapping[str, int], shares: Sequence[float], multiple: int, even: bool) -> list[Point]:
    """Points along one coordinate, ascending."""
    whole = {n: dense[n] for n in c.leaves}
    tries = [{n: part(m, s, multiple, even=even) for n, m in whole.items()} for s in sorted({0.0, *shares})]
    first, n = next(iter(whole.items()))
    if not even and n >= 2 * multiple:
        tries.append({**whole, first: n - 1})
    by_size = {size(c.axis, {**dense, **t}): t for t in (*tries, whole)}
    return [Point((n,), by_size[n]) for n in sorted(by_size)]


def part(n: int, share: float, multiple: int, *, even: bool) -> int:
    """About this share of n units, at least one.

    >>> [part(64, s, 16, even=even) for s in (0.0, 0.5, 1.0) for even in (False, True)]
    [1, 16, 31, 32, 64, 64]
    """
    m = round(share * n)
    if share == 1 or m >= n:
        return n
    if even and n >= 2 * multiple:
        return max(1, round(share * n / multiple)) * multiple
    return max(1, m - 1 + m % 2)
