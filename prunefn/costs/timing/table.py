"""The latency table: seconds of every op over a grid of sizes, and the prediction for any sizes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import product as combinations
from typing import Any, NamedTuple

from ...display.units import quantity
from ...doors import door
from ...frozen_dict import FrozenDict
from ...parameters.transforms import check_mask
from ...spec.axis import Axis, size
from ...spec.spec import Spec
from ...types import Mask


class Grid(NamedTuple):
    """Seconds over a rectangular grid of sizes.

    >>> Grid(((1, 3), (2, 4)), (1.0, 2.0, 3.0, 4.0)).at((2, 2))
    2.0
    """

    sizes: tuple[tuple[int, ...], ...]
    """Sizes of each coordinate, ascending."""
    seconds: tuple[float, ...]
    """Seconds at all combinations of sizes, row-major."""

    def at(self, where: Sequence[Any]) -> Any:
        """Return the seconds at a point, by linear interpolation in each size; beyond the grid, by extrapolation."""
        return sum(self.seconds[k] * w for k, w in self.weights(where))

    def weights(self, where: Sequence[Any]) -> list[tuple[int, Any]]:
        """Return (row-major index, weight) of the points around a point, by which their seconds add up to its seconds."""
        corners: list[tuple[int, Any]] = [(0, 1.0)]
        for grid_sizes, n in zip(self.sizes, where, strict=True):
            i, share = _interval(grid_sizes, n)
            # a weight of zero still has a gradient
            sides = [(i + j, w) for j, w in ((0, 1 - share), (1, share)) if i + j < len(grid_sizes)]
            corners = [(k * len(grid_sizes) + j, v * w) for k, v in corners for j, w in sides]
        return corners

    def points(self) -> list[tuple[int, ...]]:
        """Return the sizes at all points, row-major."""
        return [*combinations(*self.sizes)]


def _interval(grid_sizes: Sequence[int], n: Any) -> tuple[int, Any]:
    """Return the index of the lower end of the interval for n, and the share of the way from there to the upper end."""
    if len(grid_sizes) == 1:
        return 0, 0.0
    i = min(max(bisect_right(grid_sizes, n) - 1, 0), len(grid_sizes) - 2)
    return i, (n - grid_sizes[i]) / (grid_sizes[i + 1] - grid_sizes[i])


class Op(NamedTuple):
    """The seconds of one instruction, or of several that depend on the same sizes."""

    name: str
    """Name of the instruction; empty for several."""
    op: str
    module: str
    axes: tuple[Axis, ...]
    """The axes whose sizes the seconds depend on; empty if the seconds do not change."""
    grid: Grid
    even: Grid | None = None
    """Seconds at sizes that suit the kernels; None if no axis is long enough."""

    def at(self, where: Sequence[int], dense: Sequence[int], multiple: int, filled: int | None = None) -> float:
        """Return the seconds at these sizes of its axes.

        Args:
            where: sizes of the axes.
            dense: their sizes when nothing is removed.
            multiple, filled: of the table.
        """
        pairs = [*zip(where, dense, strict=True)]
        if self.even is not None and all(is_even(n, top, multiple, filled) for n, top in pairs):
            return self.even.at([block(n, top, multiple) for n, top in pairs])
        return self.grid.at(where)


def is_even(n: int, dense: int, multiple: int, filled: int | None = None) -> bool:
    """Return whether n is a multiple (of `filled`, if given) or the full size; on a short axis, every size counts as even."""
    return dense < 2 * multiple or n % (filled or multiple) == 0 or n == dense


def block(n: int, dense: int, multiple: int) -> int:
    """Return the size that a kernel computes instead of n: the next multiple, at most the dense size.

    >>> block(36, 64, 16), block(64, 64, 16), block(5, 10, 16)
    (48, 64, 5)
    """
    return n if dense < 2 * multiple else min(-(-n // multiple) * multiple, dense)


class LatencyTable(NamedTuple):
    """Measured seconds of the ops of a program, and a prediction for any sizes of its groups.

    The table is a value: it states on which device and how it was measured, and it predicts without running anything.
    """

    spec: Spec
    """Spec of the dense network."""
    device: str
    """Name of the device."""
    version: str
    """Name and version of the runtime."""
    threads: int
    clock: str
    """The measured time: CPU time, wall time, …"""
    batch: int
    multiple: int
    """Sizes that suit the kernels are multiples of this number."""
    sizes: FrozenDict[str, int]
    """Sizes of all leaves when nothing is removed, those of the inputs included."""
    ops: tuple[Op, ...]
    """One op for each instruction; in a runtime other than eager torch, one for each layer with a weight."""
    merged: tuple[Op, ...]
    """The ops, with those that depend on the same sizes added up."""
    filled: int | None = None
    """Multiples of this number are filled up to `multiple` with zeros by the kernels; None: kernels have no such path."""
    runtime: str = "eager"
    """What runs the network: `eager`, `compiled`, `onnx` or `openvino`."""

    def predict(self, sizes: Mapping[str, int]) -> float:
        """Return the seconds of a forward at these sizes of groups; a group that is not named has all its units.

        >>> from prunefn.spec.axis import Leaf
        >>> table = LatencyTable(None, "", "", 1, "", 1, 16, FrozenDict({"a": 8}), (), ())
        >>> table._replace(merged=(Op("", "", "", (Leaf("a"),), Grid(((1, 8),), (1.0, 8.0))),)).predict({"a": 4})
        4.0
        """
        return sum(self._seconds(self.merged, sizes))

    def interpolate(self, sizes: Mapping[str, Any]) -> Any:
        """Return the seconds of a forward at sizes that need not be whole, as floats or as tensors that carry gradients.

        Between the measured sizes that suit the kernels, the seconds are linear in each size, so that they are continuous and equal
        `predict` there; odd sizes in between take longer than this.

        >>> from prunefn.spec.axis import Leaf
        >>> table = LatencyTable(None, "", "", 1, "", 1, 16, FrozenDict({"a": 8}), (), ())
        >>> table._replace(merged=(Op("", "", "", (Leaf("a"),), Grid(((1, 8),), (1.0, 8.0))),)).interpolate({"a": 4.5})
        4.5
        """
        every: dict[str, Any] = {**self.sizes, **sizes}
        size_of = {a: size(a, every) for a in dict.fromkeys(a for op in self.merged for a in op.axes)}
        return sum((op.even or op.grid).at([size_of[a] for a in op.axes]) for op in self.merged)

    def by_op(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """Return the seconds of each instruction (outside eager torch, of each weight's layer); their sum is the prediction."""
        return dict(zip((o.name for o in self.ops), self._seconds(self.ops, sizes), strict=True))

    def of(self, mask: Mask | None = None) -> float:
        """Return the seconds of a forward after pruning by a mask.

        Raises:
            MaskError: the mask does not fit the spec.
        """
        check_mask(mask or {}, self.spec)
        return self.predict({g: int(m.sum()) for g, m in (mask or {}).items()})

    def _seconds(self, ops: Sequence[Op], sizes: Mapping[str, int]) -> list[float]:
        """Return the seconds of each op at these sizes."""
        all_sizes: dict[str, int] = {**self.sizes, **sizes}
        axis_sizes: dict[Axis, tuple[int, int]] = {}  # axis → (its size, its dense size)
        out = []
        for op in ops:
            for a in op.axes:
                if a not in axis_sizes:
                    axis_sizes[a] = size(a, all_sizes), size(a, self.sizes)
            where, dense = [axis_sizes[a][0] for a in op.axes], [axis_sizes[a][1] for a in op.axes]
            out.append(op.at(where, dense, self.multiple, self.filled))
        return out

    def __repr__(self) -> str:
        dense = self.predict({})
        return (
            f"LatencyTable({quantity(dense, 's')} dense, batch {self.batch}; {len(self.ops)} ops; {self.device}, "
            f"{self.version}, {self.threads} threads, {self.clock})"
        )


def merge(ops: Sequence[Op]) -> tuple[Op, ...]:
    """Add up ops that were measured at the same sizes of the same axes.

    >>> from prunefn.spec.axis import Leaf
    >>> a = Op("a", "relu", "", (Leaf("c"),), Grid(((1, 2),), (1.0, 2.0)))
    >>> merge([a, a._replace(name="b")])[0].grid.seconds
    (2.0, 4.0)
    """
    sums: dict[tuple, Op] = {}
    for o in ops:
        key = o.axes, o.grid.sizes, o.even and o.even.sizes
        total = sums.get(key)
        even = o.even if total is None or total.even is None or o.even is None else _add(total.even, o.even)
        sums[key] = Op("", "", "", o.axes, o.grid if total is None else _add(total.grid, o.grid), even)
    return tuple(sums.values())


def _add(a: Grid, b: Grid) -> Grid:
    """Return the grid with the sums of the seconds of two grids of the same sizes."""
    return Grid(a.sizes, tuple(x + y for x, y in zip(a.seconds, b.seconds, strict=True)))


@door
def latency(table: LatencyTable, mask: Mask | None = None) -> float:
    """Return the predicted seconds of a forward, with a mask of the pruned network. Nothing is built or run.

    Raises:
        MaskError: the mask does not fit the table's spec.
    """
    return table.of(mask)
