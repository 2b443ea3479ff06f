"""Meeting budgets: the fewest steps of an order of removal after which all budgets are met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf, isfinite

from ..errors import BudgetError, PruneError
from ..spec.spec import Spec
from ..types import Budget

SCAN = 512
"""Number of points of an order that are tried when a cost need not fall."""
SLACK = 1 + 1e-12
"""Relative tolerance of a budget, so that keeping 3 of 10 meets 0.3 in spite of rounding errors."""


def shares(budgets: Iterable[Budget], spec: Spec) -> Callable[[Mapping[str, int]], list[float]]:
    """Return a function from sizes to the fraction kept of each budget's cost.

    The fraction is 0 if both costs are 0, and infinite if only the whole network's cost is 0.

    Raises:
        PruneError: (also when called) a cost is negative or not finite.
    """
    budgets = list(budgets)

    def cost(budget: Budget, sizes: Mapping[str, int]) -> float:
        value = float(budget.cost(sizes, spec))
        if not isfinite(value) or value < 0:
            raise PruneError(
                f"budget.{budget.quantity}({budget.keep}): the cost is {value}; it must be a finite number ≥ 0"
            )
        return value

    dense = [cost(b, spec.sizes) for b in budgets]

    def kept(sizes: Mapping[str, int]) -> list[float]:
        values = [cost(b, sizes) for b in budgets]
        return [v / d if d else inf if v else 0.0 for v, d in zip(values, dense, strict=True)]

    return kept


def fewest(budgets: Iterable[Budget], spec: Spec, sizes: Callable[[int], Mapping[str, int]], last: int) -> int:
    """Return the fewest steps of an order of removal that meet all budgets.

    Budgets of falling costs are met by bisection. From that step on, up to `SCAN` points are tried until one meets the other
    budgets; bisection between it and the previous point finds the first step that does, if there is only one crossing between
    them.

    Args:
        budgets: to meet.
        spec: of the network.
        sizes: number of steps → size of each group after them.
        last: the largest number of steps.

    Raises:
        BudgetError: a budget cannot be met; the message states the nearest one that can.
    """
    budgets = list(budgets)
    falling, others = [b for b in budgets if b.falls], [b for b in budgets if not b.falls]
    kept = shares(falling, spec)

    def is_met(step: int) -> bool:
        return _meets(falling, kept(sizes(step)))

    if not is_met(last):
        raise BudgetError(_unmet_text(falling, kept(sizes(last)), "with all that may go removed"))
    start = 0 if is_met(0) else _bisect_steps(is_met, 0, last)
    return _scan(others, spec, sizes, start, last) if others else start


def _scan(budgets: list[Budget], spec: Spec, sizes: Callable[[int], Mapping[str, int]], first: int, last: int) -> int:
    """Return the first step of [first, last] that a scan of `SCAN` points and bisection find to meet the budgets."""
    kept = shares(budgets, spec)
    count = min(SCAN, last - first + 1)
    points = sorted({first + (last - first) * i // max(count - 1, 1) for i in range(count)})
    best: tuple[float, list[float]] | None = None
    miss: int | None = None
    for point in points:
        fractions = kept(sizes(point))
        if _meets(budgets, fractions):
            return point if miss is None else _bisect_steps(lambda k: _meets(budgets, kept(sizes(k))), miss, point)
        worst = max(fraction / b.keep for fraction, b in zip(fractions, budgets, strict=True))
        best = (worst, fractions) if best is None or worst < best[0] else best
        miss = point
    assert best is not None
    raise BudgetError(_unmet_text(budgets, best[1], f"at the best of {len(points)} points along the order of removal"))


def _bisect_steps(is_met: Callable[[int], bool], miss: int, hit: int) -> int:
    """Return the first step that meets the budgets, between a step `miss` that does not and a step `hit` that does."""
    while hit - miss > 1:
        middle = (miss + hit) // 2
        miss, hit = (miss, middle) if is_met(middle) else (middle, hit)
    return hit


def _meets(budgets: list[Budget], kept: list[float]) -> bool:
    return all(fraction <= b.keep * SLACK for b, fraction in zip(budgets, kept, strict=True))


def _unmet_text(budgets: list[Budget], kept: list[float], when: str) -> str:
    """Return the message about the budgets that the kept fractions do not meet."""
    out = []
    for b, fraction in zip(budgets, kept, strict=True):
        if fraction > b.keep * SLACK:
            least = at_least(fraction)
            fix = f"or allow at least {least}" if least <= 1 else "or loosen the other budgets"
            out.append(
                f"budget.{b.quantity}({b.keep}) cannot be met: {when}, {least} of the {b.quantity} stay; "
                f"score more groups, {fix}"
            )
    return "; and ".join(out)


def at_least(share: float) -> float:
    """Round a fraction up to four digits.

    >>> at_least(0.75), at_least(0.750001)
    (0.75, 0.7501)
    """
    near = round(share, 4)
    return near if share <= near * SLACK else round(near + 1e-4, 4)
