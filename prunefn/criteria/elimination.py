"""Greedy elimination of units: the optimal-brain-surgeon cost of each next unit, given those that are gone.

With x the inputs of y = W x, K = (C + λI)⁻¹ and M = Wᵀ F W, removing the positions J of a unit and compensating by least squares
costs tr(K_JJ⁻¹ M_JJ) in the norm F. Then K ← K − u uᵀ and M ← M − b uᵀ − u bᵀ, with K_JJ = L Lᵀ, u = K_:J L⁻ᵀ,
b = M_:J L⁻ᵀ − ½ u (L⁻¹ M_JJ L⁻ᵀ): exact Schur complements, which are subtracted from the matrices in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._shapes import Float, Int64

BLOCK = 64
"""Columns of updates that are subtracted at once."""


class Term(NamedTuple):
    """One contraction over the units."""

    precision: Float[Tensor, "n n"]
    """K"""
    importance: Float[Tensor, "n n"]
    """M"""
    positions: Int64[Tensor, "units p"]
    """Positions of each unit."""


class _State:
    """A term while units are removed; the positions of the units come first, unit after unit."""

    def __init__(self, term: Term) -> None:
        self.units, self.p = term.positions.shape
        n = len(term.precision)
        rest = torch.ones(n, dtype=torch.bool, device=term.positions.device)
        rest[term.positions.flatten()] = False
        order = torch.cat([term.positions.flatten(), rest.nonzero()[:, 0]])
        self.k, self.m = (v[order][:, order].clone() for v in (term.precision, term.importance))
        self.diagonal_k, self.diagonal_m = (self._diagonal(v) for v in (self.k, self.m))
        self.u = self.b = self.k.new_zeros(n, 0)

    def _diagonal(self, matrix: Tensor) -> Float[Tensor, "units p p"]:
        """Return the blocks on the diagonal."""
        w = self.units * self.p
        blocks = matrix[:w, :w].reshape(self.units, self.p, self.units, self.p)
        return blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0).clone()

    def costs(self) -> Float[Tensor, " units"]:
        """Return what removing each unit costs now; numbers of removed units do not matter."""
        if self.p == 1:
            return (self.diagonal_m / self.diagonal_k).flatten()
        solved, _ = torch.linalg.solve_ex(self.diagonal_k, self.diagonal_m)
        return solved.diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, unit: int) -> None:
        """Remove a unit."""
        own = slice(unit * self.p, (unit + 1) * self.p)
        k = self.k[:, own] - self.u @ self.u[own].mT
        m = self.m[:, own] - self.b @ self.u[own].mT - self.u @ self.b[own].mT
        factor = torch.linalg.cholesky(k[own])
        u, a = (torch.linalg.solve_triangular(factor, v.mT, upper=False).mT for v in (k, m))
        inner = torch.linalg.solve_triangular(factor, a[own], upper=False)
        b = a - u @ inner / 2
        of_units = [v[: self.units * self.p].unflatten(0, (self.units, self.p)) for v in (u, b)]
        self.diagonal_k -= of_units[0] @ of_units[0].mT
        both = of_units[1] @ of_units[0].mT
        self.diagonal_m -= both + both.mT
        self.u, self.b = torch.cat([self.u, u], 1), torch.cat([self.b, b], 1)
        if self.u.shape[1] >= BLOCK:
            self.k -= self.u @ self.u.mT
            both = self.b @ self.u.mT
            self.m -= both + both.mT
            self.u = self.b = self.u[:, :0]


def eliminate(terms: Sequence[Term]) -> tuple[Int64[Tensor, " units"], Float[Tensor, " units"]]:
    """Remove all units, each time the one that costs least, summed over terms; of equal ones, the first.

    Returns:
        The units in the order of their removal, and what each of them cost, given those before it.

    >>> c, w = torch.tensor([[4.0, 2.0], [2.0, 2.0]]).double(), torch.tensor([[1.0, 1.0]]).double()
    >>> term = Term(torch.linalg.inv(c), w.mT @ w, torch.arange(2)[:, None])
    >>> order, costs = eliminate([term])
    >>> order.tolist(), [round(v, 6) for v in costs.tolist()]  # 2 − 2² / 4, then 4 (1 + 2 / 4)²
    ([1, 0], [1.0, 9.0])
    """
    states = [_State(t) for t in terms]
    alive = torch.ones(states[0].units, dtype=torch.bool, device=states[0].k.device)
    order, costs = [], []
    for _ in range(states[0].units):
        now = torch.where(alive, sum((s.costs() for s in states[1:]), start=states[0].costs()), torch.inf)
        unit = int(now.argmin())
        order.append(unit)
        costs.append(now[unit].clamp_min(0))
        alive[unit] = False
        for s in states:
            s.remove(unit)
    return torch.tensor(order, device=alive.device), torch.stack(costs)
