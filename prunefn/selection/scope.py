"""Scopes: what is ranked against what.

A scope divides the scored groups into classes. Units are ranked within their class; a ratio is a share of each class's
units, rounded down; under a budget the classes shrink alike: next goes the unit that takes the smallest share of its class,
itself and all below it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

from ..criteria import normalizer
from ..criteria.normalizer import Normalizer
from ..doors import door
from ..errors import PruneError, nearest
from ..spec.parts import Cost, Group
from ..spec.spec import Spec
from ..types import Scope
from .isomorphic import signatures

__all__ = ["by", "global_", "isomorphic", "knapsack", "local", "per_kind"]


@door
def global_(*, normalize: bool | Normalizer | None = None) -> Scope:
    """One ranking over all units of all groups; a ratio is a share of all units.

    Args:
        normalize: makes groups of different scale comparable: one of `normalizer`, or any function of a group's scores
            [units]; True is `normalizer.mean`.

    >>> import torch, prunefn as pf
    >>> scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([20.0, 30.0, 40.0])}
    >>> pf.select(scores, 0.34, scope=global_(normalize=pf.normalizer.min_max))
    {'a': tensor([False,  True,  True]), 'b': tensor([False,  True,  True])}
    """
    return Scope("global", None, _normalizer(normalize))


def local() -> Scope:
    """A ranking in each group; a ratio is the same share of every group.

    >>> import torch, prunefn as pf
    >>> scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([20.0, 30.0, 40.0])}
    >>> pf.select(scores, 0.5, scope=local())
    {'a': tensor([False,  True,  True]), 'b': tensor([False,  True,  True])}
    """
    return Scope("local", _each)


@door
def per_kind(*, normalize: bool | Normalizer | None = None) -> Scope:
    """A ranking over all groups of a kind (`hidden`, `residual`, `heads`, …); `select` needs the spec.

    Args:
        normalize: as for `global_`.
    """
    return by(_kind, name="per_kind", normalize=normalize)


@door
def isomorphic(*, normalize: bool | Normalizer | None = None) -> Scope:
    """A ranking over each set of structurally identical groups; `select` needs the spec.

    Scores of units that play different parts are not comparable, so that they are ranked apart: in a vision transformer, the
    MLPs' hidden units, the heads, the units of all heads, and the residual stream. What is identical, `isomorphic.signatures`
    says: kind, ops, and roles; neither sizes nor names.

    Args:
        normalize: as for `global_`.

    Source: Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024, arXiv 2407.04616. There, graphs of layers are
    compared; here, a group's members with the ops that use them.

    >>> import torch, prunefn as pf
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 1, groups=4), nn.Conv1d(4, 9, 1), nn.Conv1d(9, 5, 1), nn.Conv1d(5, 2, 1))
    >>> spec = pf.trace(model, (torch.randn(2, 3, 8),))
    >>> one, two, three = isomorphic().classes(list(spec.groups), spec)
    >>> one == two, two == three  # only the first runs through a depthwise convolution
    (False, True)
    """
    return Scope("isomorphic", _alike, _normalizer(normalize))


@door
def by(
    key: Callable[[Group, Spec], Hashable], *, name: str = "by", normalize: bool | Normalizer | None = None
) -> Scope:
    """A ranking over all groups for which `key(group, spec)` is the same; `select` needs the spec.

    Args:
        key: (group, spec) → anything that can be hashed.
        name: for messages.
        normalize: as for `global_`.

    >>> stages = by(lambda group, spec: group.name.split(".")[0], name="per_stage")
    """
    return Scope(name, partial(_keyed, key=key, name=name), _normalizer(normalize))


@door
def knapsack(quantity: str = "macs", *, normalize: bool | Normalizer | None = None) -> Scope:
    """One ranking over all units: next goes the lowest score per unit of cost that it saves; `select` needs the spec.

    What a unit saves depends on what else has gone: each step uses the exact saving at the sizes of that moment. Scores must
    not be below zero. Units that save nothing go last. With a mapping of ratios, the groups of a pattern are ranked as if all
    others stayed whole.

    Args:
        quantity: `macs`, `params` or `activations`.
        normalize: as for `global_`; `normalizer.min_max` for scores below zero.

    Raises:
        PruneError: there is no such quantity.

    Source: the greedy solution of the knapsack problem (Dantzig, Operations Research 5, 1957), with savings that change.

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


def _each(groups: Sequence[str], _: Spec | None) -> Sequence[Hashable]:
    return groups


def _kind(group: Group, _: Spec) -> Hashable:
    return group.kind


def _alike(groups: Sequence[str], spec: Spec | None) -> list[Hashable]:
    found = signatures(_spec(spec, "isomorphic"))
    return [found[g] for g in groups]


def _keyed(
    groups: Sequence[str], spec: Spec | None, *, key: Callable[[Group, Spec], Hashable], name: str
) -> list[Hashable]:
    known = _spec(spec, name)
    return [key(known.groups[g], known) for g in groups]


def _normalizer(normalize: bool | Normalizer | None) -> Normalizer | None:
    if isinstance(normalize, bool):
        return normalizer.mean if normalize else None
    return normalize


def _spec(spec: Spec | None, scope: str) -> Spec:
    if spec is None:
        raise PruneError(f"scope.{scope}() needs the spec: select(scores, ratio, spec=spec, scope=…)")
    return spec


def __dir__() -> list[str]:
    return __all__
