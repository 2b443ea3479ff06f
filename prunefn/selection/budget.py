"""Budgets: what share of a cost is kept, at most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import inf, isfinite

from ..doors import door
from ..errors import BudgetError, PruneError
from ..spec.parts import Cost
from ..spec.spec import Spec
from ..types import Budget, Predictor, Where
from ..where import matches
from .polynomial_roots import degrees, root

__all__ = ["activations", "custom", "latency", "macs", "params", "uniform_ratio"]


SCAN = 512
"""How many points of an order are looked at when a cost need not fall."""
SLACK = 1 + 1e-12
"""So that a share of 0.3 of ten is three."""


@door
def macs(keep: float) -> Budget:
    """At most this share of the MACs.

    >>> macs(0.65).keep
    0.65
    """
    return _budget("macs", keep, _macs)


@door
def params(keep: float) -> Budget:
    """At most this share of the parameters."""
    return _budget("params", keep, _params)


@door
def activations(keep: float) -> Budget:
    """At most this share of the activations: the elements that all ops write for one sample, which is what training keeps."""
    return _budget("activations", keep, _activations)


@door
def latency(keep: float, table: Predictor) -> Budget:
    """At most this share of the latency that a table predicts.

    Latency need not fall with each unit, nor with all of them. Along the order of removal, up to 512 points are looked at,
    evenly spaced, until one meets the budget; between it and the point before, bisection finds where the budget is met
    first. What the table predicts must fit the spec that `select` is given.

    Args:
        keep: share of what the table predicts for the spec's sizes.
        table: anything with `predict(sizes) → float`, such as what `pf.latency_table` measures.

    >>> class Table:
    ...     def predict(self, sizes):
    ...         return 1e-3 + 1e-5 * sum(-(-n // 8) for n in sizes.values())  # in steps of eight units
    >>> latency(0.8, Table()).quantity
    'latency'
    """
    return _budget("latency", keep, partial(_predicted, table), falls=False)


@door
def custom(
    keep: float, cost: Callable[[Mapping[str, int], Spec], float], *, name: str = "custom", falls: bool = False
) -> Budget:
    """At most this share of any cost.

    Args:
        keep: share of `cost` at the spec's sizes.
        cost: (size of each group, spec) → a number that is not negative.
        name: for messages; not that of a field of `Cost`.
        falls: whether the cost never rises when a unit goes: then bisection finds the fewest units, else the search of `latency`.

    Raises:
        BudgetError: a share that is none.
        PruneError: the name is taken.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> spec = pf.trace(model, (torch.randn(2, 1),))
    >>> weights = custom(0.5, lambda sizes, spec: 2 * sizes["0"], name="weights", falls=True)
    >>> pf.select({"0": torch.tensor([3.0, 1.0, 2.0, 4.0])}, weights, spec=spec)
    {'0': tensor([ True, False, False,  True])}
    """
    if name in Cost._fields:
        raise PruneError(
            f"budget.custom(name={name!r}): this is the name of a cost of the spec; use budget.{name}({keep})"
        )
    return _budget(name, keep, cost, falls=falls)


def _budget(
    quantity: str, keep: float, cost: Callable[[Mapping[str, int], Spec], float], *, falls: bool = True
) -> Budget:
    if not 0 < keep <= 1:
        raise BudgetError(
            f"budget.{quantity}({keep}): the share that is kept must be above 0 and at most 1, such as 0.65"
        )
    return Budget(quantity, keep, cost, falls)


def _macs(sizes: Mapping[str, int], spec: Spec) -> int:
    return spec.costs.macs(sizes)


def _params(sizes: Mapping[str, int], spec: Spec) -> int:
    return spec.costs.params(sizes)


def _activations(sizes: Mapping[str, int], spec: Spec) -> int:
    return spec.costs.activations(sizes)


def _predicted(table: Predictor, sizes: Mapping[str, int], _: Spec) -> float:
    return float(table.predict(sizes))


# ---- meeting budgets


def shares(budgets: Iterable[Budget], spec: Spec) -> Callable[[Mapping[str, int]], list[float]]:
    """Sizes → for each budget, what share is kept of its cost; of nothing, nothing is kept.

    Raises:
        PruneError: (also when called) a cost is negative or not finite.
    """
    chosen = list(budgets)

    def cost(budget: Budget, sizes: Mapping[str, int]) -> float:
        value = float(budget.cost(sizes, spec))
        if not isfinite(value) or value < 0:
            raise PruneError(
                f"budget.{budget.quantity}({budget.keep}): the cost is {value}; it must be a finite number ≥ 0"
            )
        return value

    dense = [cost(b, spec.sizes) for b in chosen]

    def kept(sizes: Mapping[str, int]) -> list[float]:
        values = [cost(b, sizes) for b in chosen]
        return [v / d if d else inf if v else 0.0 for v, d in zip(values, dense, strict=True)]

    return kept


def fewest(budgets: Iterable[Budget], spec: Spec, sizes: Callable[[int], Mapping[str, int]], last: int) -> int:
    """The fewest steps of an order of removal, of which `sizes` says what is left, that meet all budgets.

    Costs that fall are bisected. From there on, for costs that need not, up to `SCAN` points are looked at until one meets
    them; bisection between it and the point before finds the first that does, if there is only one crossing between them.

    Raises:
        BudgetError: it says what can be met.
    """
    chosen = list(budgets)
    falling, others = [b for b in chosen if b.falls], [b for b in chosen if not b.falls]
    kept = shares(falling, spec)

    def met(step: int) -> bool:
        return _meets(falling, kept(sizes(step)))

    if not met(last):
        raise BudgetError(_cannot(falling, kept(sizes(last)), "with all that may go removed"))
    start = 0 if met(0) else _between(met, 0, last)
    return _scan(others, spec, sizes, start, last) if others else start


def _scan(budgets: list[Budget], spec: Spec, sizes: Callable[[int], Mapping[str, int]], first: int, last: int) -> int:
    kept = shares(budgets, spec)
    count = min(SCAN, last - first + 1)
    points = sorted({first + (last - first) * i // max(count - 1, 1) for i in range(count)})
    best: tuple[float, list[float]] | None = None
    miss: int | None = None
    for point in points:
        found = kept(sizes(point))
        if _meets(budgets, found):
            return point if miss is None else _between(lambda k: _meets(budgets, kept(sizes(k))), miss, point)
        worst = max(share / b.keep for share, b in zip(found, budgets, strict=True))
        best = (worst, found) if best is None or worst < best[0] else best
        miss = point
    assert best is not None
    raise BudgetError(_cannot(budgets, best[1], f"at the best of {len(points)} points along the order of removal"))


def _between(met: Callable[[int], bool], miss: int, hit: int) -> int:
    """The first step that meets, given one before it that does not, and one that does."""
    while hit - miss > 1:
        middle = (miss + hit) // 2
        miss, hit = (miss, middle) if met(middle) else (middle, hit)
    return hit


def _meets(budgets: list[Budget], kept: list[float]) -> bool:
    return all(share <= b.keep * SLACK for b, share in zip(budgets, kept, strict=True))


def _cannot(budgets: list[Budget], kept: list[float], when: str) -> str:
    out = []
    for b, share in zip(budgets, kept, strict=True):
        if share > b.keep * SLACK:
            least = at_least(share)
            fix = f"or allow at least {least}" if least <= 1 else "or loosen the other budgets"
            out.append(
                f"budget.{b.quantity}({b.keep}) cannot be met: {when}, {least} of the {b.quantity} stay; "
                f"score more groups, {fix}"
            )
    return "; and ".join(out)


def at_least(share: float) -> float:
    """A share of four digits that is no less.

    >>> at_least(0.75), at_least(0.750001)
    (0.75, 0.7501)
    """
    near = round(share, 4)
    return near if share <= near * SLACK else round(near + 1e-4, 4)


# ---- one ratio for all groups, in closed form


@door
def uniform_ratio(spec: Spec, budget: Budget, where: Where | str | None = None) -> float:
    """The ratio at which a budget is just met when it is removed from all chosen groups alike, sizes taken as continuous.

    With every chosen size n become q·n, a cost of the spec is a polynomial in q. Up to degree two it is solved in closed
    form, `keep·T = U + S₁q + S₂q²` with T the whole, U untouched, S₁ and S₂ where one side and both sides shrink;
    above that (grouped attention, products of three axes) by bisection. Other costs are searched as by `budget.latency`, at
    the sizes that `scope.local()` leaves.

    Args:
        spec: of the network.
        budget: `budget.macs(0.65)`, say.
        where: which groups shrink: `pf.kind("hidden")`, a glob, any predicate; default all.

    Returns:
        The share removed, 1 − q, in [0, 1): a ratio for `scope.local()`, which then meets the budget to within the rounding.

    Raises:
        PruneError: `where` chooses no group.
        BudgetError: the budget cannot be met; the message says what can.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
    >>> spec = pf.trace(model, (torch.randn(2, 1),))
    >>> round(uniform_ratio(spec, pf.budget.macs(0.3)), 6)  # 24 of 80 = 8 q + 64 q² + 8 q
    0.5
    """
    names = [g for g, group in spec.groups.items() if matches(where, group)]
    if not names:
        raise PruneError(f"no group matches {where!r}: there is nothing to remove")
    if budget.quantity not in Cost._fields:
        return _searched(spec, budget, names)
    coefficients = degrees(getattr(spec.costs, budget.quantity), spec.sizes, names)
    total, rest = sum(coefficients), coefficients[0]
    if rest >= budget.keep * total and budget.keep < 1:
        least = min(at_least(rest / total + 1e-5), 1.0)
        raise BudgetError(
            f"budget.{budget.quantity}({budget.keep}) cannot be met: {rest / total:.4f} of the {budget.quantity} are "
            f"outside the {len(names)} chosen groups; choose more groups, or allow at least {least}"
        )
    return min(max(1 - root(coefficients, budget.keep * total), 0.0), 1.0)


def _searched(spec: Spec, budget: Budget, names: list[str]) -> float:
    """The lowest ratio of six digits that meets the budget, as far as `fewest` finds it."""
    digits = 1_000_000

    def sizes(step: int) -> Mapping[str, int]:
        return {**spec.sizes, **{g: spec.sizes[g] - spec.sizes[g] * step // digits for g in names}}

    return fewest([budget], spec, sizes, digits - 1) / digits


def __dir__() -> list[str]:
    return __all__
