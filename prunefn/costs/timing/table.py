"""The table: seconds of every op over a grid of sizes, and what follows from them for any sizes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...doors import door
from ...frozen_dict import FrozenDict
from ...parameters.transforms import check_mask
from ...spec.axis import Axis, size
from ...spec.spec import Spec
from ...types import Mask


class Grid(NamedTuple):
    """Seconds at a rectangular grid of sizes.

    >>> Grid(((1, 3), (2, 4)), (1.0, 2.0, 3.0, 4.0)).at((2, 2))
    2.0
    """

    sizes: tuple[tuple[int, ...], ...]
    """Of each coordinate, ascending."""
    seconds: tuple[float, ...]
    """Row-major."""

    def at(self, where: Sequence[int]) -> float:
        """Linear in each size between its two neighbours, and beyond the last ones."""
        corners = [(0, 1.0)]
        for known, n in zip(self.sizes, where, strict=True):
            i, share = _between(known, n)
            sides = [(i + j, w) for j, w in ((0, 1 - share), (1, share)) if w]
            corners = [(k * len(known) + j, v * w) for k, v in corners for j, w in sides]
        return sum(self.seconds[k] * w for k, w in corners)


def _between(known: Sequence[int], n: int) -> tuple[int, float]:
    """Index of the neighbour below, and the share of the way to the next."""
    if len(known) == 1:
        return 0, 0.0
    i = min(max(bisect_right(known, n) - 1, 0), len(known) - 2)
    return i, (n - known[i]) / (known[i + 1] - known[i])


class Op(NamedTuple):
    """What is known of one instruction, or of several that depend on the same sizes."""

    name: str
    """The instruction; empty for several."""
    op: str
    module: str
    axes: tuple[Axis, ...]
    """Whose sizes its seconds depend on; none: they do not change."""
    grid: Grid
    even: Grid | None = None
    """At sizes that kernels like; None: no axis is long enough."""

    def at(self, where: Sequence[int], dense: Sequence[int], multiple: int) -> float:
        """Seconds at the sizes of its axes."""
        if self.even is not None and all(is_even(n, top, multiple) for n, top in zip(where, dense, strict=True)):
            return self.even.at(where)
        return self.grid.at(where)


def is_even(n: int, dense: int, multiple: int) -> bool:
    """A multiple, or whole; of a short axis, any size."""
    return dense < 2 * multiple or n % multiple == 0 or n == dense


class LatencyTable(NamedTuple):
    """Measured seconds of the ops of a program, and a prediction for any sizes of its groups.

    It is a value: what it was measured on stands in it, and it predicts without running anything.
    """

    spec: Spec
    """The dense one."""
    device: str
    """Name of the device."""
    torch: str
    """Version."""
    threads: int
    clock: str
    """What was measured: CPU time, wall time, …"""
    batch: int
    multiple: int
    """Sizes that kernels like are multiples of it."""
    sizes: FrozenDict[str, int]
    """Of all leaves, the batch's included, when nothing is removed."""
    ops: tuple[Op, ...]
    """One for each instruction."""
    merged: tuple[Op, ...]
    """The same with those added up that depend on the same sizes."""

    def predict(self, sizes: Mapping[str, int]) -> float:
        """Seconds of a forward at these sizes of groups; a group that is not named has all its units.

        >>> from prunefn.spec.axis import Leaf
        >>> table = LatencyTable(None, "", "", 1, "", 1, 16, FrozenDict({"a": 8}), (), ())
        >>> table._replace(merged=(Op("", "", "", (Leaf("a"),), Grid(((1, 8),), (1.0, 8.0))),)).predict({"a": 4})
        4.0
        """
        return sum(self._seconds(self.merged, sizes))

    def by_op(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """Seconds of each instruction; their sum is the prediction."""
        return dict(zip((o.name for o in self.ops), self._seconds(self.ops, sizes), strict=True))

    def of(self, mask: Mask | None = None) -> float:
        """Seconds of a forward of what a mask leaves.

        Raises:
            MaskError: the mask does not fit the spec.
        """
        check_mask(mask or {}, self.spec)
        return self.predict({g: int(m.sum()) for g, m in (mask or {}).items()})

    def _seconds(self, ops: Sequence[Op], sizes: Mapping[str, int]) -> list[float]:
        now: dict[str, int] = {**self.sizes, **sizes}
        known: dict[Axis, tuple[int, int]] = {}
        out = []
        for op in ops:
            for a in op.axes:
                if a not in known:
                    known[a] = size(a, now), size(a, self.sizes)
            where, dense = [known[a][0] for a in op.axes], [known[a][1] for a in op.axes]
            out.append(op.at(where, dense, self.multiple))
        return out

    def __repr__(self) -> str:
        dense = self.predict({})
        return (
            f"LatencyTable({dense * 1e3:.4g} ms dense, batch {self.batch}; {len(self.ops)} ops; {self.device}, "
            f"torch {self.torch}, {self.threads} threads, {self.clock})"
        )


def merge(ops: Sequence[Op]) -> tuple[Op, ...]:
    """Ops that are known at the same sizes of the same axes become one.

    >>> from prunefn.spec.axis import Leaf
    >>> a = Op("a", "relu", "", (Leaf("c"),), Grid(((1, 2),), (1.0, 2.0)))
    >>> merge([a, a._replace(name="b")])[0].grid.seconds
    (2.0, 4.0)
    """
    sums: dict[tuple, Op] = {}
    for o in ops:
        key = o.axes, o.grid.sizes, o.even and o.even.sizes
        old = sums.get(key)
        even = o.even if old is None or old.even is None or o.even is None else _add(old.even, o.even)
        sums[key] = Op("", "", "", o.axes, o.grid if old is None else _add(old.grid, o.grid), even)
    return tuple(sums.values())


def _add(a: Grid, b: Grid) -> Grid:
    return Grid(a.sizes, tuple(x + y for x, y in zip(a.seconds, b.seconds, strict=True)))


@door
def latency(table: LatencyTable, mask: Mask | None = None) -> float:
    """Predicted seconds of a forward; with a mask, of what it leaves. Nothing is built or run.

    Raises:
        MaskError: the mask does not fit the table's spec.
    """
    return table.of(mask)
