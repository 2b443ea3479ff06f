"""scores → mask: exact counts, ties broken by index, budgets met by bisection on the exact cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from ..doors import door
from ..errors import BudgetError, MaskError, PruneError, nearest
from ..spec.spec import Spec
from ..types import Budget, Mask, Scope, Scores
from . import scope as scopes
from .budget import fewest
from .caps import TINY, Caps, RoundTo, caps, patterns
from .knapsack import by_saving
from .order import Order, by_share

DIGITS = 10_000
"""What a message promises, it promises to four digits."""

Ratio = float | Budget | Sequence[Budget] | Mapping[str, float]
"""The share removed, what is kept of one or more costs, or the share removed of the groups that match each glob."""


@door
def select(
    scores: Scores,
    ratio: Ratio,
    *,
    spec: Spec | None = None,
    scope: Scope | None = None,
    round_to: RoundTo = 1,
    max_ratio: float | Mapping[str, float] = 1.0,
    min_units: int | Mapping[str, int] = 1,
) -> Mask:
    """Choose which units stay.

    Args:
        scores: group → [units]; higher = keep.
        ratio: share of units removed, in [0, 1), rounded down to whole units; or a budget such as `budget.macs(0.65)`, or
            several, which are all met; or a share for each glob on the groups' names, `{"layer1.*": 0.2, "*": 0.5}`: a
            group's own name decides, else the first glob that matches, and groups that match none stay whole. The groups of
            a glob are ranked among themselves.
        spec: needed for budgets and by most scopes; with it, the scores are checked against its groups.
        scope: what is ranked against what; default `scope.global_()`.
        round_to: kept counts are multiples of this; rounded so that never more is removed than asked. A group that is
            smaller stays whole. A dtype (`torch.float16`) is the multiple that tensor cores want for it.
        max_ratio: no group loses more than this share.
        min_units: every group keeps at least so many.
            These three may be mappings from globs, too; what matches none has no such limit.

    Returns:
        Group → bool [units], True = kept, for the groups in `scores`.

    Raises:
        PruneError: a bad ratio, a pattern that matches nothing, or scores that do not fit or are not finite.
        BudgetError: the demand cannot be met; the message says what can.

    >>> select({"a": torch.tensor([3.0, 1.0, 2.0, 1.0])}, 0.5)
    {'a': tensor([ True, False,  True, False])}
    """
    scope = scopes.global_() if scope is None else scope
    names = list(scores)
    limits = caps(
        names,
        np.array([len(s) if s.ndim else 0 for s in scores.values()], dtype=np.int64),
        round_to=round_to,
        max_ratio=max_ratio,
        min_units=min_units,
    )
    _check_scores(scores, spec)
    if budgets := _budgets(ratio):
        if spec is None:
            raise PruneError("a budget needs the spec: select(scores, budget, spec=spec)")
        order = _order(scores, scope, [""] * len(names), limits, spec)
        return order.mask(order.first(_fewest(order, budgets, spec)))
    ratios = _ratios(ratio)
    decides = patterns("ratio", ratios, names) if isinstance(ratio, Mapping) else [""] * len(names)
    order = _order(scores, scope, decides, limits, spec)
    return order.mask(order.first_of_classes(_asked(order, scope, decides, ratios, limits)))


def _budgets(ratio: Any) -> list[Budget]:
    """The budgets, if the ratio is one or several.

    Raises:
        PruneError: there are none in the sequence, or other things.
    """
    if isinstance(ratio, Budget):
        return [ratio]
    if not isinstance(ratio, Sequence):
        return []
    if not ratio or not all(isinstance(b, Budget) for b in ratio):
        raise PruneError(f"the ratio is {ratio!r}; several demands must all be budgets, such as [budget.macs(0.65)]")
    return list(ratio)


def _ratios(ratio: Any) -> dict[str, float]:
    """Pattern → ratio; the pattern of a plain one is empty.

    Raises:
        PruneError: one of them is no share.
    """
    ratios = dict(ratio) if isinstance(ratio, Mapping) else {"": ratio}
    for pattern, r in ratios.items():
        if not isinstance(r, Real) or not 0 <= float(r) < 1:
            of = f" of {pattern!r}" if pattern else ""
            raise PruneError(f"the ratio{of} is {r}; it is the share of units removed and must be in [0, 1)")
    return ratios


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


def _order(scores: Scores, scope: Scope, decides: Sequence[str | None], limits: Caps, spec: Spec | None) -> Order:
    """Rank all units once. `decides`: the pattern that each group falls under; patterns are ranked apart."""
    names = list(scores)
    if scope.per is not None and spec is None:
        raise PruneError(f"scope.{scope.name}() needs the spec: select(scores, ratio, spec=spec, scope=…)")
    keys = [None] * len(names) if scope.classes is None else scope.classes(names, spec)
    number: dict[object, int] = {}
    classes = [-1 if d is None else number.setdefault((d, k), len(number)) for d, k in zip(decides, keys, strict=True)]
    values = [_comparable(name, s, scope) for name, s in scores.items()]
    numbered = np.array(classes, dtype=np.int64)
    if scope.per is not None and spec is not None:
        return by_saving(names, values, numbered, limits, getattr(spec.costs, scope.per), spec.sizes)
    return by_share(names, values, numbered, limits)


def _comparable(name: str, scores: torch.Tensor, scope: Scope) -> np.ndarray:
    """The scores of a group on the scale of its class."""
    s = scores.detach().double().cpu()
    if scope.normalize is not None and len(s):
        s = scope.normalize(s)
        if tuple(s.shape) != tuple(scores.shape) or not bool(torch.isfinite(s).all()):
            what = getattr(scope.normalize, "__name__", repr(scope.normalize))
            raise PruneError(
                f"the normaliser {what!r} makes {tuple(s.shape)} of the scores of group {name!r}, {tuple(scores.shape)}, or "
                "numbers that are not finite; it must return a finite number per unit"
            )
    return s.numpy()


# ---- ratios


def _asked(
    order: Order, scope: Scope, decides: Sequence[str | None], ratios: Mapping[str, float], limits: Caps
) -> list[int]:
    """How many units the ratios remove from each class.

    Raises:
        BudgetError: more than may go.
    """
    ruled = order.classes >= 0
    last = int(order.classes.max(initial=-1))
    units = np.bincount(order.classes[ruled], weights=order.sizes[ruled], minlength=last + 1).astype(np.int64)
    possible = np.bincount(order.classes[ruled], weights=limits.most[ruled], minlength=last + 1).astype(np.int64)
    out = np.zeros(last + 1, dtype=np.int64)
    for pattern, ratio in ratios.items():
        mine = np.array([d == pattern for d in decides], dtype=bool)
        classes = np.unique(order.classes[mine])
        asked = _share(ratio, units[classes], scope)
        if (asked > possible[classes]).any():
            tight = np.flatnonzero(mine & np.isin(order.classes, classes[asked > possible[classes]]))
            short = min(tight.tolist(), key=lambda i: int(order.sizes[i]))
            of = f" for {pattern!r}" if pattern else ""
            raise BudgetError(
                f"a ratio of {ratio}{of} removes {asked.sum()} of {units[classes].sum()} units, but min_units, max_ratio and "
                f"round_to let only {np.minimum(asked, possible[classes]).sum()} go (the smallest group is "
                f"{order.names[short]!r} with {order.sizes[short]}); "
                f"a ratio up to {_highest(units[classes], possible[classes], scope)} works"
            )
        out[classes] = asked
    return out.tolist()


def _share(ratio: float, units: np.ndarray, scope: Scope) -> np.ndarray:
    """The share of each class, rounded down; never the whole of a class by a rounding error."""
    asked = (ratio * units + TINY).astype(np.int64)
    return asked if scope.classes is None else np.minimum(asked, units - 1)


def _highest(units: np.ndarray, possible: np.ndarray, scope: Scope) -> float:
    """The highest ratio of four digits that can be met."""
    low, high = 0, DIGITS
    while high - low > 1:
        middle = (low + high) // 2
        met = bool((_share(middle / DIGITS, units, scope) <= possible).all())
        low, high = (middle, high) if met else (low, middle)
    return low / DIGITS


# ---- budgets


def _fewest(order: Order, budgets: list[Budget], spec: Spec) -> int:
    """The fewest units of the order whose removal meets the budgets."""

    def sizes(k: int) -> Mapping[str, int]:
        return {**spec.sizes, **dict(zip(order.names, order.kept(order.first(k)).tolist(), strict=True))}

    return fewest(budgets, spec, sizes, len(order.unit))
