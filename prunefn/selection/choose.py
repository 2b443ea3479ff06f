"""The step from scores to a mask: exact counts, ties broken by index, budgets met by bisection on the exact cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from ..doors import door
from ..errors import BudgetError, MaskError, PruneError, nearest
from ..spec.spec import Spec
from ..types import Budget, Count, Mask, Scope, Scores, TargetSizes
from . import scope as scopes
from .caps import TINY, Caps, RoundTo, caps, patterns
from .corresponding import equal_caps
from .counts import counted
from .exact import at_sizes
from .knapsack import by_saving
from .meeting import fewest
from .order import Order, by_share
from .protect import protected, raised

DIGITS = 10_000
"""Ratios in messages are multiples of 1 / DIGITS: four digits."""

Ratio = float | Budget | Sequence[Budget] | Count | TargetSizes | Mapping[str, float]
"""Ratio of units removed, one or more budgets, a number of layers or experts, exact sizes, or a ratio for each glob on names."""


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
    """Choose which units to keep.

    `round_to`, `max_ratio` and `min_units` may be mappings from globs on the groups' names, like `ratio`; a group that matches
    none has no such limit.

    Args:
        scores: group → [units]; higher = keep.
        ratio: fraction of units removed, in [0, 1), rounded down to whole units; or a budget such as `budget.macs(0.65)`, or
            several budgets, all of which are met; or a ratio for each glob, `{"layer1.*": 0.2, "*": 0.5}`: a group takes the
            ratio of its own name, else of the first glob that matches; groups that match none are not pruned. The groups of a
            glob are ranked among themselves. Or exact sizes, as `pf.target` makes them of the numbers of a config, whatever the
            scope: every group keeps its best units; `budget.layers(24)` and `budget.experts(96)` are such sizes, too.
        spec: needed for budgets and by most scopes; with it, the scores are checked against its groups.
        scope: which units are ranked together; default: `scope.global_()`.
        round_to: kept counts are multiples of this, rounded up, so that no more is removed than the ratio allows. A group
            smaller than this is not pruned. A dtype (`torch.float16`) stands for the multiple that tensor cores need for it.
        max_ratio: no group loses more than this fraction of its units.
        min_units: every group keeps at least this many units.

    Returns:
        Group → bool [units], True = kept, for the groups in `scores`. With the spec, ids of a vocabulary that the model or its
        config names (padding, end of text) are kept whatever their scores.

    Raises:
        PruneError: a bad ratio, a pattern that matches nothing, or scores that do not fit the spec or are not finite.
        BudgetError: the ratio or budget cannot be met; the message states the nearest one that can.

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
        may_vanish=() if spec is None else [n for n in names if n in spec.groups and not spec.groups[n].floor],
    )
    _check_scores(scores, spec)
    limits = protected(names, limits, spec)
    if isinstance(ratio, Count):
        if spec is None:
            raise PruneError(f"budget.{ratio!r} needs the spec: select(scores, budget.{ratio!r}, spec=spec)")
        ratio = counted(ratio, spec)
    if isinstance(ratio, TargetSizes):
        return at_sizes(scores, ratio, limits, spec)
    if budgets := _budgets(ratio):
        if spec is None:
            raise PruneError("a budget needs the spec: select(scores, budget, spec=spec)")
        order = _order(scores, scope, [""] * len(names), limits, spec)
        return order.mask(order.first(_fewest_units(order, budgets, spec)))
    ratios = _ratios(ratio)
    deciding = patterns("ratio", ratios, names) if isinstance(ratio, Mapping) else [""] * len(names)
    order = _order(scores, scope, deciding, limits, spec)
    return order.mask(order.first_of_classes(_removed_counts(order, scope, deciding, ratios)))


def _budgets(ratio: Any) -> list[Budget]:
    """Return the budgets if the ratio is one or several budgets, else an empty list.

    Raises:
        PruneError: the ratio is a sequence that is empty or holds other values than budgets.
    """
    if isinstance(ratio, Budget):
        return [ratio]
    if not isinstance(ratio, Sequence):
        return []
    if not ratio or not all(isinstance(b, Budget) for b in ratio):
        raise PruneError(f"the ratio is {ratio!r}; a sequence must hold budgets only, such as [budget.macs(0.65)]")
    return list(ratio)


def _ratios(ratio: Any) -> dict[str, float]:
    """Return pattern → ratio; the pattern of a single ratio is empty.

    Raises:
        PruneError: a ratio is no number in [0, 1).
    """
    ratios = dict(ratio) if isinstance(ratio, Mapping) else {"": ratio}
    for pattern, r in ratios.items():
        if not isinstance(r, Real) or not 0 <= float(r) < 1:
            of = f" of {pattern!r}" if pattern else ""
            raise PruneError(f"the ratio{of} is {r}; it is the fraction of units removed and must be in [0, 1)")
    return ratios


def _check_scores(scores: Scores, spec: Spec | None) -> None:
    """Check that scores fit the groups of the spec and are finite; raise PruneError if not."""
    for name, s in scores.items():
        if spec is not None and name not in spec.groups:
            raise MaskError(f"the spec has no group {name!r}, but the scores have one{nearest(name, spec.groups)}")
        if s.ndim != 1 or (spec is not None and len(s) != spec.sizes[name]):
            units = "" if spec is None else f", but the group has {spec.sizes[name]} units"
            raise MaskError(
                f"the scores of group {name!r} have shape {tuple(s.shape)}{units}; they must be one number per unit"
            )
        if not bool(torch.isfinite(s).all()):
            raise PruneError(f"the scores of group {name!r} are not finite")


def _order(scores: Scores, scope: Scope, deciding: Sequence[str | None], limits: Caps, spec: Spec | None) -> Order:
    """Rank all units once.

    Args:
        scores: group → [units].
        scope: that divides the groups into classes.
        deciding: the pattern that decides for each group; each pattern is ranked separately. None: the group is not pruned.
        limits: of each group.
        spec: may be None if the scope needs none.
    """
    names = list(scores)
    if scope.per is not None:
        scopes.require_spec(spec, scope.name)
    keys = [None] * len(names) if scope.classes is None else scope.classes(names, spec)
    numbers: dict[object, int] = {}  # a class for each pair of a pattern and a key of the scope
    classes = [
        -1 if d is None else numbers.setdefault((d, k), len(numbers)) for d, k in zip(deciding, keys, strict=True)
    ]
    values = [raised(name, _normalized_scores(name, s, scope), spec) for name, s in scores.items()]
    class_numbers = np.array(classes, dtype=np.int64)
    if scope.uniform:
        return by_share(names, values, class_numbers, equal_caps(class_numbers, limits))._replace(uniform=True)
    if scope.per is not None and spec is not None:
        return by_saving(names, values, class_numbers, limits, getattr(spec.costs, scope.per), spec.sizes)
    return by_share(names, values, class_numbers, limits)


def _normalized_scores(name: str, scores: torch.Tensor, scope: Scope) -> np.ndarray:
    """Return the scores of a group in float64, normalised to the scale of its class."""
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


def _removed_counts(
    order: Order, scope: Scope, deciding: Sequence[str | None], ratios: Mapping[str, float]
) -> list[int]:
    """Return how many units the ratios remove from each class.

    Raises:
        BudgetError: a ratio removes more units than the limits allow.
    """
    pruned = order.classes >= 0
    last = int(order.classes.max(initial=-1))
    units = np.bincount(order.classes[pruned], weights=order.sizes[pruned], minlength=last + 1).astype(np.int64)
    possible = np.bincount(order.classes[order.group], minlength=last + 1)
    at_once = np.bincount(order.classes[pruned], minlength=last + 1) if order.uniform else np.ones(last + 1, np.int64)
    out = np.zeros(last + 1, dtype=np.int64)
    for pattern, ratio in ratios.items():
        matching = np.array([d == pattern for d in deciding], dtype=bool)
        classes = np.unique(order.classes[matching])
        requested = _count_removed(ratio, units[classes], at_once[classes], scope)
        if (requested > possible[classes]).any():
            limited = np.flatnonzero(matching & np.isin(order.classes, classes[requested > possible[classes]]))
            smallest = min(limited.tolist(), key=lambda i: int(order.sizes[i]))
            of = f" for {pattern!r}" if pattern else ""
            raise BudgetError(
                f"a ratio of {ratio}{of} removes {requested.sum()} of {units[classes].sum()} units, but min_units, max_ratio and "
                f"round_to let only {np.minimum(requested, possible[classes]).sum()} go (the smallest group is "
                f"{order.names[smallest]!r} with {order.sizes[smallest]}); "
                f"a ratio up to {_highest_ratio(units[classes], possible[classes], at_once[classes], scope)} works"
            )
        out[classes] = requested
    return out.tolist()


def _count_removed(ratio: float, units: np.ndarray, at_once: np.ndarray, scope: Scope) -> np.ndarray:
    """Return the number of units of each class that a ratio removes, rounded down to a multiple of `at_once`.

    A class of a scope never loses all its units, even where TINY or a rounding error would round up.
    """
    removed = (ratio * units + TINY).astype(np.int64)
    removed = removed if scope.classes is None else np.minimum(removed, units - 1)
    return removed // at_once * at_once


def _highest_ratio(units: np.ndarray, possible: np.ndarray, at_once: np.ndarray, scope: Scope) -> float:
    """Return the highest ratio of four digits that can be met."""
    low, high = 0, DIGITS
    while high - low > 1:
        middle = (low + high) // 2
        met = bool((_count_removed(middle / DIGITS, units, at_once, scope) <= possible).all())
        low, high = (middle, high) if met else (low, middle)
    return low / DIGITS


# ---- budgets


def _fewest_units(order: Order, budgets: list[Budget], spec: Spec) -> int:
    """Return the smallest number of first units of the order whose removal meets the budgets."""

    def sizes(k: int) -> Mapping[str, int]:
        return {**spec.sizes, **dict(zip(order.names, order.kept(order.first(k)).tolist(), strict=True))}

    return fewest(budgets, spec, sizes, len(order.unit))
