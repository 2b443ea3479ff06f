"""scores → mask: exact counts, ties broken by index, budgets met by bisection on the exact cost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import scope as scopes
from .errors import BudgetError, MaskError, PruneError, nearest
from .trace.spec import Spec
from .types import Budget, Mask, Scope, Scores

log = logging.getLogger(__name__)

DIGITS = 10_000
"""What a message promises, it promises to four digits."""


class Order(NamedTuple):
    """All units that may go, the first to go first."""

    names: list[str]
    sizes: np.ndarray
    """Units of each group."""
    group: np.ndarray
    """Group number of each unit in the order."""
    unit: np.ndarray
    """Index of each unit in its group."""
    round_to: int

    def kept(self, k: int) -> np.ndarray:
        """Units that each group keeps when the first k of the order go; rounded up to multiples of `round_to`."""
        left = self.sizes - np.bincount(self.group[:k], minlength=len(self.names))
        return np.minimum(self.sizes, -(-left // self.round_to) * self.round_to)

    def mask(self, k: int) -> Mask:
        """The mask for the first k of the order."""
        kept, out = self.kept(k), {}
        by_group = np.argsort(self.group, kind="stable")
        ends = np.cumsum(np.bincount(self.group, minlength=len(self.names)))
        for i, name in enumerate(self.names):
            m = torch.ones(int(self.sizes[i]), dtype=torch.bool)
            start = ends[i - 1] if i else 0
            m[torch.from_numpy(self.unit[by_group[start : start + self.sizes[i] - kept[i]]])] = False
            out[name] = m
        return out


def select(
    scores: Scores,
    ratio: float | Budget,
    *,
    spec: Spec | None = None,
    scope: Scope | None = None,
    round_to: int = 1,
    max_ratio: float = 1.0,
    min_units: int = 1,
) -> Mask:
    """Choose which units stay.

    Args:
        scores: group → [units]; higher = keep.
        ratio: share of units removed, in [0, 1), rounded down to whole units; or a budget such as `budget.macs(0.65)`.
        spec: needed for budgets; with it, the scores are checked against its groups.
        scope: `scope.global_()` (default) or `scope.local()`.
        round_to: kept counts are multiples of this; rounded so that never more is removed than asked. A group that is
            smaller stays whole.
        max_ratio: no group loses more than this share.
        min_units: every group keeps at least so many.

    Returns:
        Group → bool [units], True = kept, for the groups in `scores`.

    Raises:
        PruneError: a bad ratio, or scores that do not fit or are not finite.
        BudgetError: the demand cannot be met; the message says what can.

    >>> select({"a": torch.tensor([3.0, 1.0, 2.0, 1.0])}, 0.5)
    {'a': tensor([ True, False,  True, False])}
    """
    if round_to < 1 or min_units < 1 or not 0 <= max_ratio <= 1:
        raise PruneError(
            f"round_to ({round_to}) and min_units ({min_units}) must be at least 1, max_ratio ({max_ratio}) in [0, 1]"
        )
    scope = scopes.global_() if scope is None else scope
    _check_scores(scores, spec)
    priorities = scope.priority({g: s.detach().double().cpu() for g, s in scores.items()})
    order = _order(priorities, round_to, max_ratio, min_units)
    if isinstance(ratio, Budget):
        if spec is None:
            raise PruneError("a budget needs the spec: select(scores, budget, spec=spec)")
        return order.mask(_fewest(order, ratio, spec))
    return order.mask(_asked(order, scope, priorities, ratio))


def _check_scores(scores: Scores, spec: Spec | None) -> None:
    for name, s in scores.items():
        if spec is not None and name not in spec.groups:
            raise MaskError(f"the scores have a group {name!r} that the spec has not{nearest(name, spec.groups)}")
        if s.ndim != 1 or (spec is not None and len(s) != spec.sizes[name]):
            units = "" if spec is None else f", but the group has {spec.sizes[name]} units"
            raise MaskError(
                f"the scores of group {name!r} have shape {tuple(s.shape)}{units}; they must be one number per unit"
            )
        if not bool(torch.isfinite(s).all()):
            raise PruneError(f"the scores of group {name!r} are not finite")


def _order(priorities: Scores, round_to: int, max_ratio: float, min_units: int) -> Order:
    """Sort all units once; those that a cap keeps are left out."""
    names = list(priorities)
    sizes = np.array([len(priorities[n]) for n in names], dtype=np.int64)
    if not names:
        return Order([], sizes, sizes, sizes, round_to)
    values = torch.cat([priorities[n] for n in names]).numpy()
    group = np.repeat(np.arange(len(names)), sizes)
    unit = np.concatenate([np.arange(n) for n in sizes])
    order = np.argsort(values, kind="stable")
    group, unit = group[order], unit[order]
    by_group = np.argsort(group, kind="stable")
    rank = np.empty_like(unit)
    rank[by_group] = np.concatenate([np.arange(n) for n in sizes])
    floor = np.minimum(sizes, max(min_units, round_to))
    cap = np.minimum(sizes - floor, (max_ratio * sizes + scopes.TINY).astype(np.int64))
    for name, n in zip(names, sizes, strict=True):
        if n < round_to:
            log.info("group %r has %d units, fewer than round_to=%d: it stays whole", name, n, round_to)
    allowed = rank < cap[group]
    return Order(names, sizes, group[allowed], unit[allowed], round_to)


def _asked(order: Order, scope: Scope, priorities: Scores, ratio: float) -> int:
    """How many units of the order a ratio removes."""
    if not 0 <= ratio < 1:
        raise PruneError(f"the ratio is {ratio}; it is the share of units removed and must be in [0, 1)")
    k = scope.count(priorities, ratio)
    possible = _possible(order, scope, priorities, ratio)
    if k > possible:
        short = min(order.names, key=lambda n: len(priorities[n]))
        raise BudgetError(
            f"a ratio of {ratio} removes {k} of {order.sizes.sum()} units, but min_units, max_ratio and round_to let only "
            f"{possible} go (the smallest group is {short!r} with {len(priorities[short])}); "
            f"a ratio up to {_highest(order, scope, priorities)} works"
        )
    return k


def _highest(order: Order, scope: Scope, priorities: Scores) -> float:
    """The highest ratio of four digits that can be met."""
    low, high = 0, DIGITS
    while high - low > 1:
        ratio = (middle := (low + high) // 2) / DIGITS
        met = scope.count(priorities, ratio) <= _possible(order, scope, priorities, ratio)
        low, high = (middle, high) if met else (low, middle)
    return low / DIGITS


def _possible(order: Order, scope: Scope, priorities: Scores, ratio: float) -> int:
    """How many of the units that a ratio asks for may go."""
    chosen = {g: torch.full_like(p, torch.inf) for g, p in priorities.items()}
    for i, name in enumerate(order.names):
        units = torch.from_numpy(order.unit[order.group == i])
        chosen[name][units] = priorities[name][units]
    allowed = {g: p[torch.isfinite(p)] for g, p in chosen.items()}
    return min(len(order.unit), scope.count(allowed, ratio)) if scope.name != "global" else len(order.unit)


def _fewest(order: Order, budget: Budget, spec: Spec) -> int:
    """The fewest units of the order whose removal meets the budget: bisection on the exact cost, which falls with each unit."""
    cost = _cost(order, budget, spec)
    dense = getattr(spec.costs, budget.quantity)(spec.sizes)
    target = budget.keep * dense * (1 + 1e-12)
    low, high = 0, len(order.unit)
    if (least := cost(high)) > target:
        share = ceil(least / dense * DIGITS - 1e-6) / DIGITS
        raise BudgetError(
            f"budget.{budget.quantity}({budget.keep}) cannot be met: with all that may go removed, {share} of the "
            f"{budget.quantity} stay; score more groups, or allow at least {share}"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= target else (middle + 1, high)
    return low


def _cost(order: Order, budget: Budget, spec: Spec) -> Callable[[int], int]:
    polynomial = getattr(spec.costs, budget.quantity)
    sizes: Mapping[str, int] = spec.sizes

    def cost(k: int) -> int:
        return polynomial({**sizes, **dict(zip(order.names, order.kept(k).tolist(), strict=True))})

    return cost


def mask_of(kept: Mapping[str, Tensor]) -> Mask:
    """A mask from any mapping of bool tensors."""
    return dict(kept)
