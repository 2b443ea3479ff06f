"""The words of configs: criteria, scopes, patterns, predicates on groups, and the pipeline that a section of them says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from .. import compensation, criteria, recipes, where
from ..criteria import normalizer, reduction
from ..errors import PruneError, nearest
from ..pipelines import Prune as Pruner
from ..selection import budget, scope
from ..sparse import criteria as weight_criteria
from ..sparse import pattern as patterns
from ..sparse import scope as weight_scopes
from ..spec.spec import Spec
from ..train import schedule, sparsity
from ..types import Budget, Compensation, Criterion, Params, Scope, Where
from .expression import Room, value_of
from .sections import Pat, Prune

T = TypeVar("T")
EVERY = "all"
FUNCTIONS: Room = {
    f"{room.__name__.rpartition('.')[2]}.{n}": (lambda value=value: value)
    for room in (normalizer, reduction)
    for n, value in vars(room).items()
    if callable(value) and getattr(value, "__module__", "") == room.__name__ and n.islower() and n[0] != "_"
}
CRITERIA: Room = {
    **{n: getattr(criteria, n) for n in criteria.__all__ if n != "smoothed"},
    **FUNCTIONS,
    "normalizer.quantile": normalizer.quantile,
}
"""Criteria, and what they may take: `normalized(magnitude, normalizer.rank)`."""
COMPENSATIONS: Room = {f.__name__: f for f in (compensation.none, compensation.mean, compensation.affine)} | {
    "variance_rescale": compensation.variance_rescale
}
SCOPES: Room = {f.__name__: f for f in (scope.global_, scope.local, scope.per_kind, scope.isomorphic, scope.knapsack)}
GROUPS: Room = {f.__name__: f for f in (where.kind, where.glob, where.module, where.touches, where.exact)} | {
    k: (lambda k=k: where.kind(k)) for k in where.KINDS
}
RECIPES: dict[str, Callable[..., Pruner]] = {
    n: getattr(recipes, n)
    for n, f in vars(recipes).items()
    if getattr(f, "__module__", "") == recipes.__name__ and callable(f) and not n.startswith("_")
}
WEIGHT_CRITERIA: Room = {
    n: getattr(weight_criteria, n) for n in ("magnitude", "random", "taylor", "snip", "movement", "wanda", "obs")
}
WEIGHT_SCOPES: Room = {n: getattr(weight_scopes, n) for n in ("layerwise", "rows", "global_", "lamp", "erk")}
PATTERNS: Room = {n: getattr(patterns, n) for n in ("unstructured", "n_m", "blocks", "slices")}
PENALTIES = ("l1_group", "lasso", "slimming", "growing", "concentration", "gradual")


def criterion_of(text: str) -> Criterion:
    """A criterion on units.

    >>> criterion_of("rank_fusion(weighted_variance, taylor, 0.7)").name
    'rank_fusion(weighted_variance, taylor)'
    """
    return _checked(value_of(text, CRITERIA, "criterion"), Criterion, text, "criterion")


def compensation_of(text: str) -> Compensation:
    """What makes up for removed units; affine where there is a covariance, and by the mean elsewhere.

    >>> compensation_of("mean").name
    'mean'
    """
    if text.strip() == "affine":
        return compensation.affine(otherwise=compensation.mean())
    return _checked(value_of(text, COMPENSATIONS, "compensation"), Compensation, text, "compensation")


def scope_of(text: str) -> Scope:
    """Among which units it is chosen.

    >>> scope_of("global").name
    'global'
    """
    return _checked(value_of(text, SCOPES, "scope"), Scope, text, "scope")


def where_of(text: str) -> Where | str | None:
    """Groups that may shrink: a kind, a glob, or predicates joined by & | ~; `all` is None.

    >>> where_of("layer1.*"), where_of("all")
    ('layer1.*', None)
    >>> where_of("hidden & ~module('layer1')")
    kind('hidden') & ~module('layer1')
    """
    if text.strip() == EVERY:
        return None
    if text.strip() in GROUPS or any(c in text for c in "()&|~"):
        return value_of(text, GROUPS, "where")
    return text


def weight_criterion_of(text: str, start: Callable[[], Params] = dict) -> Criterion:
    """A criterion on single weights.

    Args:
        text: `movement_since` among them.
        start: the weights that it looks back to.
    """
    since: Room = {"movement_since": lambda: weight_criteria.movement_since(start())}
    return value_of(text, {**WEIGHT_CRITERIA, **since}, "criterion")


def weight_scope_of(text: str) -> weight_scopes.WeightScope:
    """Among which weights it is chosen."""
    return value_of(text, WEIGHT_SCOPES, "scope")


def pattern_of(text: str) -> patterns.Pattern:
    """Which weights go together."""
    return value_of(text, PATTERNS, "pattern")


def sparsity_of(text: str) -> Callable[[Spec], sparsity.Sparsity]:
    """What a sparse phase trains towards, once there is a spec."""
    room: Room = {n: (lambda n=n, **given: lambda spec: getattr(sparsity, n)(spec, **given)) for n in PENALTIES}
    return value_of(text, room, "sparsity")


def schedule_of(name: str, share: float, steps: int) -> schedule.Schedule:
    """What goes when."""
    return {"linear": schedule.linear, "geometric": schedule.geometric, "cubic": schedule.cubic}[name](share, steps)


def options_of(section: Prune) -> dict[str, Any]:
    """Options of `pipeline` that the section gives."""
    read: dict[str, Callable[[str], Any]] = {
        "criterion": criterion_of,
        "compensation": compensation_of,
        "scope": scope_of,
        "where": where_of,
    }
    given = {key: make(text) for key, make in read.items() if (text := getattr(section, key)) is not None}
    names = ("round_to", "max_ratio", "min_units", "sequential", "recalibrate")
    default = Prune()
    given |= {n: getattr(section, n) for n in names if getattr(section, n) != getattr(default, n)}
    return given | ({"freeze": section.freeze} if section.freeze else {})


def maker_of(section: Prune) -> Callable[[Any], Pruner]:
    """(ratio or budget) → pipeline.

    Raises:
        PruneError: a word is not known.
    """
    if section.recipe not in RECIPES:
        raise PruneError(f"there is no recipe {section.recipe!r}{nearest(section.recipe, RECIPES)}")
    return partial(RECIPES[section.recipe], **options_of(section))


def amount_of(section: Prune) -> Any:
    """How much goes: a ratio, a budget, or several budgets.

    Raises:
        PruneError: a ratio and a budget.
    """
    kept = {n: k for n in ("macs", "params", "activations") if (k := getattr(section, n)) is not None}
    if kept and section.ratio is not None:
        raise PruneError(
            f"prune.ratio is {section.ratio}, and prune.{next(iter(kept))} is a budget; give one of the two"
        )
    budgets: list[Budget] = [getattr(budget, n)(k) for n, k in kept.items()]
    if not budgets:
        return 0.5 if section.ratio is None else section.ratio
    return budgets[0] if len(budgets) == 1 else budgets


def share_of(section: Pat, prune: Prune) -> tuple[float, str]:
    """What a schedule removes in the end, and what that is a share of: as `pat` says, or else as `prune` does.

    Raises:
        PruneError: that is no single share of units, MACs or params.
    """
    if section.share is not None:
        return section.share, section.of
    amount = amount_of(prune)
    if isinstance(amount, float):
        return amount, "units"
    if isinstance(amount, Budget) and amount.quantity in ("macs", "params"):
        return 1 - amount.keep, amount.quantity
    raise PruneError(
        "a schedule removes one share of units, MACs or params: give --share, and --of macs or --of params"
    )


def budget_of(quantity: str) -> Callable[[float], Budget] | None:
    """What the share of a schedule is a share of."""
    return {"units": None, "macs": budget.macs, "params": budget.params}[quantity]


def _checked(value: Any, kind: type[T], text: str, what: str) -> T:
    if not isinstance(value, kind):
        raise PruneError(f"{what} {text!r} is no {what}")
    return value
