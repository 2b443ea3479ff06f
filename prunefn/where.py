"""Predicates on groups: by kind, by glob on the name, or any function."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor

from .errors import PruneError, nearest
from .trace.spec import Spec
from .types import Group, Scores, Where

KINDS = ("hidden", "residual", "heads", "head_dim", "groups")


def kind(*kinds: str) -> Where:
    """Groups of these kinds: `hidden`, `residual`, `heads`, `head_dim` or `groups`.

    Raises:
        PruneError: there is no such kind.
    """
    if unknown := [k for k in kinds if k not in KINDS]:
        raise PruneError(f"there is no kind {unknown[0]!r}; kinds are {', '.join(KINDS)}{nearest(unknown[0], KINDS)}")
    return lambda group: group.kind in kinds


def glob(*patterns: str) -> Where:
    """Groups whose name matches one of these patterns, such as `blocks.*.mlp.*`."""
    return lambda group: any(fnmatchcase(group.name, p) for p in patterns)


def matches(where: Where | str | None, group: Group) -> bool:
    """Whether a group is chosen; a string is a glob, None chooses all."""
    return where is None or (glob(where) if isinstance(where, str) else where)(group)


def only(scores: Scores, where: Where | str, *, spec: Spec | None = None) -> Scores:
    """Keep the scores of some groups; the others stay whole.

    Args:
        scores: group → [units].
        where: a glob on the name, `kind(…)`, or any predicate on `Group`.
        spec: needed by predicates that look at more than the name.

    Raises:
        PruneError: nothing is left, or a predicate needs the spec.

    >>> import torch
    >>> list(only({"a.fc1": torch.ones(2), "b": torch.ones(2)}, "*.fc1"))
    ['a.fc1']
    """
    groups: Mapping[str, Group] | None = None if spec is None else spec.groups
    if groups is None and not isinstance(where, str):
        raise PruneError("a predicate on groups needs the spec: only(scores, where, spec=spec)")
    kept: dict[str, Tensor] = {}
    for name, score in scores.items():
        if groups is not None and name not in groups:
            raise PruneError(f"the scores have a group {name!r} that the spec has not{nearest(name, groups)}")
        group = groups[name] if groups is not None else Group(name, "", len(score), (), ())
        if matches(where, group):
            kept[name] = score
    if scores and not kept:
        raise PruneError(f"no group of {', '.join(list(scores)[:5])} … matches {where!r}")
    return kept
