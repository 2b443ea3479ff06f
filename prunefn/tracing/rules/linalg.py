"""Linear algebra: functions of matrices mix all of their entries, but treat the matrices of a batch one by one."""

from __future__ import annotations

from ..axes import ONE
from .base import Axes, Call, replaced, rule
from .shape import freeze_all

MATRIX = "a function of the whole matrix is computed"
SOLVES = {
    "linalg_solve": ("A", "B"),
    "_linalg_solve_ex": ("A", "B"),
    "linalg_solve_triangular": ("self", "B"),
    "linalg_lu_solve": ("LU", "B"),
    "linalg_ldl_solve": ("LD", "B"),
    "cholesky_solve": ("input2", "self"),
    "triangular_solve": ("A", "self"),
}
"""Solver of linear equations → names of its matrix, and of the right-hand sides."""


@rule(
    *(f"aten.linalg_{name}" for name in "qr lu lu_factor lu_factor_ex cholesky cholesky_ex inv inv_ex eig".split()),
    *(f"aten.linalg_{name}" for name in "ldl_factor ldl_factor_ex householder_product pinv matrix_sqrth polar".split()),
    *(f"aten._linalg_{name}" for name in "det slogdet eigh eigvals svd".split()),
    *(f"aten.{name}" for name in "matrix_exp cholesky_inverse geqrf lu_unpack".split()),
)
def of_matrix(call: Call) -> list[Axes]:
    """Freeze the last two dims of a matrix; the dims before them are a batch, and pass.

    Other tensors, such as pivots, have dims of the matrix behind the same batch.
    """
    matrix, *others = call.tensors()
    batch = matrix.axes[:-2]
    n, sizes = len(batch), tuple(call.alg.size(a) for a in batch)
    shapes = [*call.shapes, *(tuple(map(call.alg.size, v.axes)) for v in others)]
    if any(0 not in s and s[:n] != sizes for s in shapes):
        return freeze_all(call, MATRIX)
    for v in call.tensors():
        call.freeze(v.axes[n:], MATRIX)
        for a, b in zip(v.axes[:n], batch, strict=True):
            call.unify(a, b)
    call.freeze([a for a in batch if any(0 in s for s in shapes)], MATRIX)
    return [(*batch, *call.frozen(s[n:], MATRIX)) if 0 not in s else call.frozen(s, MATRIX) for s in call.shapes]


@rule(*(f"aten.{name}" for name in SOLVES))
def solve(call: Call) -> list[Axes]:
    """Solve A [..., m, m] for right-hand sides B [..., m, k], which are k columns by themselves (or k rows, with `left=False`)."""
    matrix, sides = (call[name] for name in SOLVES[call.op.split(".")[1]])
    others = [v for v in call.tensors() if v is not sides]
    if len(sides.axes) < max(2, len(matrix.axes)):
        return freeze_all(call, MATRIX)  # vectors instead of columns
    n, own = len(call.shape) - 2, -2 if call["left"] is False else -1
    call.freeze([a for v in others for a in (v.axes[-2:] if v is matrix else v.axes)], MATRIX)
    call.freeze(sides.axes[-3 - own], MATRIX)
    lead = [v._replace(axes=(*v.axes[:-2], ONE, ONE)) for v in (matrix, sides)]
    batch = call.broadcast(lead, (*call.shape[:n], 1, 1))[:n]
    columns = {n + 2 + own: sides.axes[own]}
    first = replaced((*batch, *call.frozen(call.shape[n:], MATRIX)), columns)
    if (
        len(call.shapes) > 1 or len(others) > 1
    ):  # a factorisation besides the solution, or pivots: of each matrix of the batch
        call.freeze(batch, MATRIX)
    return [first, *(call.frozen(s, MATRIX) for s in call.shapes[1:])]


@rule("aten.linalg_cross")
def cross(call: Call) -> Axes:
    """Freeze the dim of three coordinates, and broadcast the others."""
    a, b = call["self"], call["other"]
    axes = call.broadcast([a, b])
    d = (-1 if call["dim"] is None else call["dim"]) % len(axes)
    call.freeze(axes[d], "its positions are coordinates")
    return axes


@rule("aten._pdist_forward")
def pdist(call: Call) -> Axes:
    """Compute the distance of each pair of rows of a matrix; the columns are mixed."""
    if len(call["self"].axes) != 2:
        return freeze_all(call, "its positions are paired")[0]
    rows, columns = call["self"].axes
    call.freeze(rows, "its positions are paired")
    call.mark([columns], f"mixed:{call.op}")
    return call.frozen(call.shape, "its positions are paired")
