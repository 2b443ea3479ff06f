"""Scopes: which units are ranked together.

A scope divides the scored groups into classes. Units are ranked within their class; a ratio is a fraction of each class's
units, rounded down. Under a budget, the classes shrink at the same pace: the next unit removed is the one with the lowest
fraction (rank in its class) / (units of its class).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

from torch import Tensor

from ..criteria import normalizer
from ..criteria.normalizer import Normalizer
from ..doors import door
from ..errors import PruneError, nearest
from ..spec.parts import Cost, Group
from ..spec.spec import Spec
from ..types import Scope
from .corresponding import roles
from .isomorphic import signatures

__all__ = ["by", "global_", "isomorphic", "knapsack", "local", "per_kind", "uniform"]


@door
def global_(*, normalize: bool | Normalizer | None = None) -> Scope:
    """Rank all units of all groups together; a ratio is a fraction of all units.

    Args:
        normalize: function that makes groups of different scale comparable: one of `normalizer`, or any function of a group's
            scores [units]; True is `normalizer.mean`; default: none.

    >>> import torch, prunefn as pf
    >>> scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([20.0, 30.0, 40.0])}
    >>> pf.select(scores, 0.34, scope=global_(normalize=pf.normalizer.min_max))
    {'a': tensor([False,  True,  True]), 'b': tensor([False,  True,  True])}
    """
    return Scope("global", None, _normalizer(normalize))


def local() -> Scope:
    """Rank the units of each group separately; a ratio is the same fraction of every group.

    Under a budget, units go one by one until it is met, so that groups of one size may end a unit apart; `uniform` keeps them equal.

    >>> import torch, prunefn as pf
    >>> scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([20.0, 30.0, 40.0])}
    >>> pf.select(scores, 0.5, scope=local())
    {'a': tensor([False,  True,  True]), 'b': tensor([False,  True,  True])}
    """
    return Scope("local", _classes_by_name)


@door
def per_kind(*, normalize: bool | Normalizer | None = None) -> Scope:
    """Rank the units of all groups of a kind (`hidden`, `residual`, `heads`, …) together; `select` needs the spec.

    Args:
        normalize: as in `global_`.
    """
    return by(_kind, name="per_kind", normalize=normalize)


@door
def isomorphic(*, normalize: bool | Normalizer | None = None) -> Scope:
    """Rank the units of each set of structurally identical groups together; `select` needs the spec.

    Scores of units in different roles are not comparable, and are ranked separately: in a vision transformer, the MLPs' hidden
    units, the heads, the units of all heads, and the residual stream. `isomorphic.signatures` compares kinds, ops and roles,
    but neither sizes nor names.

    Args:
        normalize: as in `global_`.

    Source: Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024, arXiv 2407.04616. The paper
    compares graphs of layers; this function compares a group's members and the ops that use them.

    >>> import torch, prunefn as pf
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 1, groups=4), nn.Conv1d(4, 9, 1), nn.Conv1d(9, 5, 1), nn.Conv1d(5, 2, 1))
    >>> spec = pf.trace(model, (torch.randn(2, 3, 8),))
    >>> one, two, three = isomorphic().classes(list(spec.groups), spec)
    >>> one == two, two == three  # only the first runs through a depthwise convolution
    (False, True)
    """
    return Scope("isomorphic", _classes_by_signature, _normalizer(normalize))


def uniform() -> Scope:
    """Keep one count of units in all corresponding groups, the best of each; `select` needs the spec.

    Groups correspond if they have the same kind, size and role in their layers, such as the MLPs of all layers of a transformer:
    what one field of a config sizes, so that a config can state the result, and other software loads it. A ratio or a budget
    removes the same fraction of every group. With `round_to=128`, counts are multiples of 128; a budget is met from below, never
    exceeded. Corresponding groups that have no score (by `where`) keep their size.

    >>> import torch, prunefn as pf
    >>> layer = lambda: torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> spec = pf.trace(torch.nn.Sequential(layer(), layer()).eval(), (torch.randn(2, 5, 8),))
    >>> scores = {"0.linear1": torch.arange(16.0), "1.linear1": -torch.arange(16.0)}
    >>> mask = pf.select(scores, pf.budget.params(0.9), spec=spec, scope=uniform(), round_to=4)
    >>> {group: kept.nonzero()[:, 0].tolist() for group, kept in mask.items()}
    {'0.linear1': [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], '1.linear1': [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}
    """
    return Scope("uniform", _classes_by_role, _places, uniform=True)


@door
def by(
    key: Callable[[Group, Spec], Hashable], *, name: str = "by", normalize: bool | Normalizer | None = None
) -> Scope:
    """Rank the units of all groups with the same `key(group, spec)` together; `select` needs the spec.

    Args:
        key: (group, spec) → any hashable value.
        name: for messages.
        normalize: as in `global_`.

    >>> stages = by(lambda group, spec: group.name.split(".")[0], name="per_stage")
    """
    return Scope(name, partial(_classes_by_key, key=key, name=name), _normalizer(normalize))


@door
def knapsack(quantity: str = "macs", *, normalize: bool | Normalizer | None = None) -> Scope:
    """Rank all units together by score divided by the cost that removing the unit saves; `select` needs the spec.

    The saving of a unit depends on the units already removed: each step uses the exact saving at the current sizes. Scores must
    not be below zero. Units that save nothing are removed last. With a mapping of ratios, the groups of a pattern are ranked as
    if no other group were pruned.

    Args:
        quantity: `macs`, `params` or `activations`.
        normalize: as in `global_`; `normalizer.min_max` for scores below zero.

    Raises:
        PruneError: the quantity is unknown.

    Source: the greedy solution of the knapsack problem (Dantzig, Operations Research 5, 1957), with savings updated at each step.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    >>> spec = pf.trace(model, (torch.randn(2, 1),))
    >>> scores = {"0": torch.tensor([3.2, 9.0]), "1": torch.tensor([3.0, 3.0, 9.0])}
    >>> pf.select(scores, 0.2, spec=spec, scope=knapsack())  # 3.2 for 1 + 3 MACs is less than 3 for 2 + 1
    {'0': tensor([False,  True]), '1': tensor([True, True, True])}
    """
    if quantity not in Cost._fields:
        raise PruneError(
            f"there is no quantity {quantity!r}; quantities are {', '.join(Cost._fields)}{nearest(quantity, Cost._fields)}"
        )
    return Scope("knapsack", None, _normalizer(normalize), quantity)


def _classes_by_name(groups: Sequence[str], _: Spec | None) -> Sequence[Hashable]:
    return groups


def _kind(group: Group, _: Spec) -> Hashable:
    return group.kind


def _classes_by_signature(groups: Sequence[str], spec: Spec | None) -> list[Hashable]:
    by_group = signatures(require_spec(spec, "isomorphic"))
    return [by_group[g] for g in groups]


def _classes_by_role(groups: Sequence[str], spec: Spec | None) -> list[Hashable]:
    return roles(groups, require_spec(spec, "uniform"))


def _places(scores: Tensor) -> Tensor:
    """Return the place of each unit in the ascending order of its group, ties by index: all groups lose units in turn."""
    return scores.argsort(stable=True).argsort().to(scores.dtype)


def _classes_by_key(
    groups: Sequence[str], spec: Spec | None, *, key: Callable[[Group, Spec], Hashable], name: str
) -> list[Hashable]:
    spec = require_spec(spec, name)
    return [key(spec.groups[g], spec) for g in groups]


def _normalizer(normalize: bool | Normalizer | None) -> Normalizer | None:
    if isinstance(normalize, bool):
        return normalizer.mean if normalize else None
    return normalize


def require_spec(spec: Spec | None, scope: str) -> Spec:
    """Return the spec; raise PruneError if it is missing."""
    if spec is None:
        raise PruneError(f"scope.{scope}() needs the spec: select(scores, ratio, spec=spec, scope=…)")
    return spec


def __dir__() -> list[str]:
    return __all__
