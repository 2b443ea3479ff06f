"""Fit grids of seconds to layers that were timed in whole networks, at sizes that lie on no grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .points import part
from .table import Grid

STEPS = 300
"""Sweeps of coordinate descent; the fits have at most 27 unknowns."""
RIDGE = 0.02
"""Weight of the grid with two sizes an axis in the fit of that with three, in units of a measurement."""


class Row(NamedTuple):
    """A measurement of a layer."""

    sizes: tuple[int, ...]
    """Sizes of its coordinates."""
    seconds: float
    weight: float = 1.0
    """How often it counts."""


def fit(rows: Sequence[Row], dense: Sequence[int], multiple: int, *, even: bool) -> Grid:
    """Return the grid whose interpolation is nearest to the rows, with no negative seconds.

    First a grid of the smallest and the largest size of each coordinate is fitted: seconds that are linear in each size. Then
    one with a size between them, which stays near the first where there are few rows.

    Args:
        rows: measurements, at least one.
        dense: dense sizes of the coordinates.
        multiple: see `part`.
        even: whether the sizes of the grid are multiples.

    >>> rows = [Row((n, m), 1e-3 * (2 + n * m)) for n in (16, 48, 64) for m in (16, 32, 64)]
    >>> grid = fit(rows, (64, 64), 16, even=True)
    >>> grid.sizes, round(grid.at((48, 32)), 6)
    (((16, 32, 64), (16, 32, 64)), 1.538)
    """
    ends = tuple(_sizes(n, (0.0, 1.0), multiple, even) for n in dense)
    scale = max(max(r.seconds for r in rows), 1e-12)
    y = np.array([r.seconds / scale for r in rows])
    weight = np.array([r.weight for r in rows])
    coarse = Grid(ends, tuple(_non_negative(_weights(ends, rows), y, weight).tolist()))
    sizes = tuple(_sizes(n, (0.0, 0.5, 1.0), multiple, even) for n in dense)
    near = np.array([max(coarse.at(point), 0.0) for point in Grid(sizes, ()).points()])
    a = _weights(sizes, rows)
    square = a.T * weight @ a + RIDGE * np.eye(len(near))
    fine = near + np.linalg.solve(square, a.T @ (weight * (y - a @ near)))
    return Grid(sizes, tuple((np.maximum(fine, 0.0) * scale).tolist()))


def _sizes(n: int, shares: Sequence[float], multiple: int, even: bool) -> tuple[int, ...]:
    """Return the sizes at these shares, ascending."""
    return tuple(sorted({part(n, s, multiple, even=even) for s in shares}))


def _weights(sizes: tuple[tuple[int, ...], ...], rows: Sequence[Row]) -> np.ndarray:
    """Return [rows, points]: the weight of each point of a grid in the interpolation at each row."""
    grid = Grid(sizes, ())
    out = np.zeros((len(rows), len(grid.points())))
    for i, row in enumerate(rows):
        for k, w in grid.weights(row.sizes):
            out[i, k] += w
    return out


def _non_negative(a: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the non-negative least-squares solution, by coordinate descent."""
    square, right = a.T * weight @ a, a.T @ (weight * y)
    square[np.diag_indices_from(square)] += 1e-9  # where rows leave a point open
    x = np.maximum(np.linalg.lstsq(square, right, rcond=None)[0], 0.0)
    for _ in range(STEPS):
        for k in range(len(x)):
            x[k] = max(0.0, x[k] + (right[k] - square[k] @ x) / square[k, k])
    return x
