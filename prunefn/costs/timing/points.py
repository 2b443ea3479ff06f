"""The sizes at which an op is measured: the axes that its seconds depend on, and a grid over their sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product as combinations
from typing import NamedTuple

from ...spec.axis import Axis, Concat, Leaf, Product, leaves, size
from ...spec.parts import EXPERTS
from ...spec.program import Size
from ...spec.spec import Spec

MOST = 3
"""Maximal number of coordinates; an op that depends on more is measured along a line through them."""
COARSE = (0.5,)
"""Shares for ops with `MOST` coordinates, besides the full and the smallest size."""


class Coordinate(NamedTuple):
    """An axis whose size varies, and the leaves that vary it."""

    axis: Axis
    leaves: tuple[str, ...]


class Point(NamedTuple):
    """The sizes of the coordinates at a point of a grid, and those of their leaves."""

    where: tuple[int, ...]
    sizes: Mapping[str, int]


class Mesh(NamedTuple):
    """A grid: the sizes of each coordinate, ascending, and all their combinations, row-major."""

    sizes: tuple[tuple[int, ...], ...]
    points: tuple[Point, ...]


def coordinates(
    shapes: Sequence[Sequence[Axis]], loose: Iterable[Axis], groups: Collection[str]
) -> tuple[Coordinate, ...]:
    """Return the coordinates that the seconds of an op depend on: one for each group, but one for all parts of a concatenation.

    Args:
        shapes: axes of the dims of every input and output tensor.
        loose: axes whose sizes are arguments of the op.
        groups: leaves that may shrink.

    >>> a, b, c = map(Leaf, "abc")
    >>> for x in coordinates([(Concat((a, b)), c)], [], {"a", "b", "c"}): print(x.leaves)
    ('a', 'b')
    ('c',)
    """
    axes = dict.fromkeys(x for x in (*(x for s in shapes for x in s), *loose) if _groups(x, groups))
    bundles: list[Coordinate] = []
    for concat in dict.fromkeys(c for x in axes for c in _concats(x, groups)):
        concat_groups, parts = dict.fromkeys(_groups(concat, groups)), [concat]
        for b in [b for b in bundles if concat_groups.keys() & b.leaves]:  # concatenations that share a group merge
            bundles.remove(b)
            concat_groups, parts = dict.fromkeys([*b.leaves, *concat_groups]), [b.axis, *parts]
        bundles.append(Coordinate(parts[0] if len(parts) == 1 else Concat(tuple(parts)), tuple(concat_groups)))
    bundled = {n for b in bundles for n in b.leaves}
    single = dict.fromkeys(n for x in axes for n in _groups(x, groups) if n not in bundled)
    all_coordinates = (*bundles, *(Coordinate(Leaf(n), (n,)) for n in single))
    if len(all_coordinates) <= MOST:
        return all_coordinates
    elements = Concat(tuple(Product(tuple(s)) for s in shapes))  # its size is the number of elements of all tensors
    return (Coordinate(elements, tuple(n for c in all_coordinates for n in c.leaves)),)


def _groups(axis: Axis, groups: Collection[str]) -> list[str]:
    """Return the leaves of an axis that are among the groups."""
    return [n for n in leaves(axis) if n in groups]


def _concats(axis: Axis, groups: Collection[str]) -> Iterator[Axis]:
    """Yield the outermost concatenations that contain a group."""
    match axis:
        case Concat() if _groups(axis, groups):
            yield axis
        case Product(factors):
            for f in factors:
                yield from _concats(f, groups)


def sizes_in(args: object) -> Iterator[Axis]:
    """Yield the axes whose sizes are in a nest of arguments."""
    match args:
        case Size(axis):
            yield axis
        case tuple():
            for a in args:
                yield from sizes_in(a)


def mesh(
    found: Sequence[Coordinate], dense: Mapping[str, int], shares: Sequence[float], multiple: int, *, even: bool
) -> Mesh:
    """Return the grid of sizes at which an op with these coordinates is measured.

    Args:
        found: coordinates of the op.
        dense: dense size of each leaf.
        shares: shares of an axis that are left; the full size, and a single unit, are always included.
        multiple: `even` sizes are multiples of it, other sizes are odd: kernels that work in blocks differ in speed for the two.
        even: whether the sizes are even.
    """
    shares = COARSE if len(found) >= MOST else shares
    lines = [_line(c, dense, shares, multiple, even) for c in found]
    points = []
    for choice in combinations(*lines):
        sizes = {n: m for point in choice for n, m in point.sizes.items()}
        points.append(Point(tuple(p.where[0] for p in choice), sizes))
    return Mesh(tuple(tuple(p.where[0] for p in line) for line in lines), tuple(points))


def _line(c: Coordinate, dense: Mapping[str, int], shares: Sequence[float], multiple: int, even: bool) -> list[Point]:
    """Return the points along one coordinate, ascending."""
    full = {n: dense[n] for n in c.leaves}
    leaf_sizes = [{n: part(m, s, multiple, even=even) for n, m in full.items()} for s in sorted({0.0, *shares})]
    first, n = next(iter(full.items()))
    if not even and n >= 2 * multiple:
        leaf_sizes.append({**full, first: n - 1})  # an odd size next to the full one, which may be even
    by_size = {size(c.axis, {**dense, **sizes}): sizes for sizes in (*leaf_sizes, full)}
    return [Point((n,), by_size[n]) for n in sorted(by_size)]


def timed(spec: Spec) -> frozenset[str]:
    """Return the groups at whose sizes networks are timed: all but experts, as many of which compute for a token as before."""
    return frozenset(g for g, group in spec.groups.items() if group.kind != EXPERTS)


def part(n: int, share: float, multiple: int, *, even: bool) -> int:
    """Return about this share of n units, at least one; a multiple if `even`, else an odd number or n.

    >>> [part(64, s, 16, even=even) for s in (0.0, 0.5, 1.0) for even in (False, True)]
    [1, 16, 31, 32, 64, 64]
    """
    m = round(share * n)
    if share == 1 or m >= n:
        return n
    if even and n >= 2 * multiple:
        return max(1, round(share * n / multiple)) * multiple
    return max(1, m - 1 + m % 2)
