"""Which units and layers of a model in a folder stay: by a budget in uniform sizes, or by the numbers of its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ..errors import PruneError
from ..modules.targets import target
from ..selection import scope
from ..selection.choose import select
from ..spec.axis import leaves
from ..spec.parts import LAYER, Group, Site
from ..spec.spec import Spec
from ..spec.stacked import Stacked, stacked_of
from ..types import Budget, Mask, Scores, TargetSizes, Where
from ..where import matches
from .opened import Opened

MULTIPLE, LARGE = 8, 64
"""Sizes are multiples of this, if all groups that may shrink are at least so large."""


class Goal(NamedTuple):
    """What the smaller model should be: one of the two."""

    budgets: tuple[Budget, ...] = ()
    sizes: Mapping[str, int] = {}
    """Field of the config → number."""
    where: Where | str | None = None
    """Groups that may shrink under budgets; None: the widths inside layers, of kind `hidden`."""
    round_to: int | None = None


def check_goal(goal: Goal) -> None:
    """Check that there are either budgets or sizes; raise PruneError if not."""
    if bool(goal.budgets) == bool(goal.sizes):
        both = "both are given" if goal.sizes else "neither is given"
        raise PruneError(
            f"give a budget such as pf.budget.params(0.75), or a target such as {{'intermediate_size': 1152}}; {both}"
        )
    if goal.sizes and (goal.where is not None or goal.round_to is not None):
        raise PruneError("where= and round_to= are for budgets; a target says the sizes itself")


def target_of(goal: Goal, opened: Opened) -> TargetSizes | None:
    """Return the sizes that the numbers of the config state; None for budgets.

    Raises:
        PruneError: a field is unknown, or states no size.
    """
    return target(opened.spec, opened.model, **goal.sizes) if goal.sizes else None


def candidates(goal: Goal, spec: Spec, sizes: TargetSizes | None) -> list[str]:
    """Return the groups that may lose units.

    Raises:
        PruneError: there are none.
    """
    if sizes is not None:
        return [g for g, n in sizes.sizes.items() if n < spec.sizes[g]]
    found = [g.name for g in spec.groups.values() if _may_shrink(g, goal.where, spec)]
    if not found:
        raise PruneError(f"no group matches where={goal.where!r}; print(pf.trace(…)) lists the groups")
    return found


def _may_shrink(group: Group, where: Where | str | None, spec: Spec) -> bool:
    if where is not None:
        return matches(where, group)
    layers = [b.module for n, b in spec.branches.items() if spec.groups[n].kind == LAYER]
    inside = any(all(m.tensor.startswith(f"{path}.") for m in group.members) for path in layers)
    return group.kind == "hidden" and (inside or not layers)


def sites_of_groups(groups: Iterable[str], spec: Spec) -> list[Site]:
    """Return the sites that read some groups."""
    names = set(groups)
    return [s for s in spec.sites.values() if names & set(leaves(s.axis))]


def stacked_of_groups(groups: Iterable[str], spec: Spec) -> list[Stacked]:
    """Return the contractions inside experts that read some groups."""
    names = set(groups)
    return [s for s in stacked_of(spec) if names & set(leaves(s.axis))]


def choose(scores: Scores, goal: Goal, sizes: TargetSizes | None, groups: Sequence[str], spec: Spec) -> Mask:
    """Return the mask that meets the goal.

    Raises:
        BudgetError: the budget cannot be met.
        PruneError: a group of the target has no score.
    """
    if sizes is not None:
        return select(scores, sizes, spec=spec)
    least = min(spec.sizes[g] for g in groups)
    round_to = goal.round_to or (MULTIPLE if least >= LARGE else 1)
    chosen = {g: s for g, s in scores.items() if g in set(groups)}
    return select(chosen, goal.budgets, spec=spec, scope=scope.uniform(), round_to=round_to)
