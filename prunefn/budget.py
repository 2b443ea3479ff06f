"""Budgets: what share of a cost is kept, at most."""

from __future__ import annotations

from .errors import BudgetError
from .types import Budget


def macs(keep: float) -> Budget:
    """At most this share of the MACs."""
    return _budget("macs", keep)


def params(keep: float) -> Budget:
    """At most this share of the parameters."""
    return _budget("params", keep)


def _budget(quantity: str, keep: float) -> Budget:
    if not 0 < keep <= 1:
        raise BudgetError(
            f"budget.{quantity}({keep}): the share that is kept must be above 0 and at most 1, such as 0.65"
        )
    return Budget(quantity, keep)
