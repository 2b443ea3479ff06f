"""Steps under budgets: multipliers of the costs' gradients, found so that every step meets its targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import BudgetError
from ..selection.meeting import at_least
from ..spec.spec import Spec
from ..types import Budget
from .concrete import expected_units

FALLING = 0.7
"""Fraction of the steps over which a target falls, linearly, from the dense cost to the budget."""
BISECTIONS = 40
MOST = 1e12
"""Largest multiplier; with it, every gate moves as far as a step may."""
Logits = Mapping[str, Tensor]


def target(keep: float, step: int, steps: int) -> float:
    """Return the fraction of a cost that may be left after a step from 1.

    >>> [target(0.3, step, 10) for step in (0, 7, 10)]
    [1.0, 0.3, 0.3]
    """
    return keep + (1 - keep) * (1 - min(1.0, step / (FALLING * steps)))


class Shares:
    """The fractions of budgets' costs that are left at sizes that need not be whole."""

    def __init__(self, budgets: Sequence[Budget], spec: Spec) -> None:
        self.budgets, self.spec = list(budgets), spec
        for b in self.budgets:
            if b.soft is None:
                raise BudgetError(
                    f"budget.{b.quantity}({b.keep}) has no cost at sizes that are not whole, which gates need; give a table of "
                    "pf.latency_table, or budget.custom(…, soft=…)"
                )
        self.dense = [self._cost(b, spec.sizes) for b in self.budgets]

    def _cost(self, budget: Budget, sizes: Mapping[str, Any]) -> Any:
        assert budget.soft is not None
        return budget.soft({**self.spec.sizes, **sizes}, self.spec)

    def of(self, sizes: Mapping[str, Any]) -> list[Any]:
        """Return the fraction of each budget's cost that is left; a tensor if its sizes are."""
        return [self._cost(b, sizes) / d if d else 0.0 for b, d in zip(self.budgets, self.dense, strict=True)]

    def of_logits(self, logits: Logits) -> list[float]:
        """Return the fractions left at the expected sizes."""
        return [float(s) for s in self.of({g: float(u) for g, u in expected_units(logits).items()})]

    def gradients(self, logits: Logits) -> list[dict[str, Tensor]]:
        """Return the gradients of the fractions by the logits."""
        leaves = {g: t.detach().requires_grad_() for g, t in logits.items()}
        with torch.enable_grad():
            shares = self.of(expected_units(leaves))
            return [
                dict(
                    zip(
                        leaves,
                        torch.autograd.grad(s, list(leaves.values()), retain_graph=True, materialize_grads=True),
                        strict=True,
                    )
                )
                if isinstance(s, Tensor) and s.requires_grad
                else {g: torch.zeros_like(t) for g, t in leaves.items()}
                for s in shares
            ]

    def check(self, groups: Sequence[str]) -> None:
        """Check that the budgets can be met with the fewest units of each of these groups; raise BudgetError if not."""
        fewest = {g: float(self.spec.groups[g].floor) for g in groups}
        for b, share in zip(self.budgets, self.of(fewest), strict=True):
            if float(share) > b.keep:
                raise BudgetError(
                    f"budget.{b.quantity}({b.keep}) cannot be met: with the fewest units in each of the {len(groups)} groups with gates, "
                    f"{at_least(float(share))} of the {b.quantity} stay; choose more groups, or allow as much"
                )


def constrained(
    move: Callable[[Sequence[float]], Logits], shares: Shares, targets: Sequence[float]
) -> tuple[Logits, list[float]]:
    """Return the logits after a step that meets all targets, as far as a step can, and the multipliers of the budgets.

    Each multiplier is the smallest that meets its target, given the others; there are two rounds for several budgets.

    Args:
        move: multipliers → logits after the step. The shares fall with each multiplier.
        shares: of the budgets.
        targets: fraction of each budget's cost that may be left.
    """
    multipliers = [0.0] * len(targets)

    def excess(k: int, value: float) -> float:
        tried = [value if i == k else m for i, m in enumerate(multipliers)]
        return shares.of_logits(move(tried))[k] - targets[k]

    for _ in range(1 if len(targets) == 1 else 2):
        for k in range(len(targets)):
            multipliers[k] = _smallest(lambda value, k=k: excess(k, value))
    return move(multipliers), multipliers


def _smallest(excess: Callable[[float], float]) -> float:
    """Return the smallest value ≥ 0 at which a falling function is not above zero; `MOST` if there is none.

    >>> round(_smallest(lambda x: 3 - x), 4), _smallest(lambda x: -1.0)
    (3.0, 0.0)
    """
    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1e-6
    while excess(high) > 0:
        if high >= MOST:
            return MOST
        low, high = high, 10 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        if high - low <= 1e-6 * high:
            break
    return high
