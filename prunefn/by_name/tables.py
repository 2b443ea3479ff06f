"""Values by name, for the command line, sweeps and JSON configs: criteria, scopes, compensations, predicates, patterns, schedules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from .. import compensation, criteria, recipes, where
from ..criteria import normalizer, reduction
from ..errors import PruneError
from ..plans import Prune as Pruner
from ..selection import scope
from ..sparse import criteria as weight_criteria
from ..sparse import pattern as patterns
from ..sparse import scope as weight_scopes
from ..spec.spec import Spec
from ..train import regularizers, schedule
from ..types import Compensation, Criterion, Params, Scope, Where
from .expression import Room, value_of

T = TypeVar("T")
EVERY = "all"
FUNCTIONS: Room = {
    f"{room.__name__.rpartition('.')[2]}.{n}": partial(getattr, room, n)
    for room in (normalizer, reduction)
    for n in room.__all__
    if n.islower()
}
CRITERIA: Room = {
    **{n: getattr(criteria, n) for n in criteria.__all__ if n not in ("smoothed", "given")},
    **FUNCTIONS,
    "normalizer.quantile": normalizer.quantile,
}
"""Criteria, and what they may take: `normalized(magnitude, normalizer.rank)`."""
COMPENSATIONS: Room = {n: getattr(compensation, n) for n in compensation.__all__}
SCOPES: Room = {
    f.__name__: f for f in (scope.global_, scope.local, scope.uniform, scope.per_kind, scope.isomorphic, scope.knapsack)
}
GROUPS: Room = {f.__name__: f for f in (where.kind, where.glob, where.module, where.touches, where.exact)} | {
    k: (lambda k=k: where.kind(k)) for k in where.KINDS
}
RECIPES: dict[str, Callable[..., Pruner]] = {n: getattr(recipes, n) for n in recipes.__all__}
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
        return compensation.affine(fallback=compensation.mean())
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


def regularizer_of(text: str) -> Callable[[Spec], regularizers.Regularizer]:
    """What a sparse phase trains towards, once there is a spec."""
    room: Room = {n: (lambda n=n, **given: lambda spec: getattr(regularizers, n)(spec, **given)) for n in PENALTIES}
    return value_of(text, room, "regularizer")


def schedule_of(name: str, ratio: float, steps: int) -> schedule.Schedule:
    """Return the schedule of a name, which removes the ratio in so many steps."""
    return {"linear": schedule.linear, "geometric": schedule.geometric, "cubic": schedule.cubic}[name](ratio, steps)


def _checked(value: Any, kind: type[T], text: str, what: str) -> T:
    if not isinstance(value, kind):
        raise PruneError(f"{what} {text!r} is no {what}")
    return value
