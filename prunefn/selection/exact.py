"""Masks of exact sizes: the best units of every group, as many as a target states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import BudgetError, MaskError, PruneError, nearest
from ..spec.spec import Spec
from ..types import Among, Mask, Scores, TargetSizes
from .caps import Caps
from .order import by_share
from .protect import raised


def at_sizes(scores: Scores, target: TargetSizes, limits: Caps, spec: Spec | None) -> Mask:
    """Return the mask that keeps the best units of each group, as many as the target states; ties by index.

    Raises:
        MaskError: the target has a group that the spec lacks.
        PruneError: a group that must shrink has no score, or has fewer units already.
        BudgetError: round_to, max_ratio or min_units forbid a size.
    """
    names = list(scores)
    chosen = _layers(scores, target.layers)
    for group, n in target.sizes.items():
        if spec is not None and group not in spec.groups:
            raise MaskError(f"the spec has no group {group!r}, but the target has one{nearest(group, spec.groups)}")
        units = len(scores[group]) if group in scores else spec.sizes[group] if spec is not None else n
        if not 1 <= n <= units:
            raise PruneError(f"the target keeps {n} units of group {group!r}, which has {units}; give 1 to {units}")
        if group not in scores and n < units:
            raise PruneError(
                f"the target keeps {n} of the {units} units of group {group!r}, which has no score; score it too, or leave out "
                "the field that states it"
            )
    sizes = np.array([len(s) for s in scores.values()], dtype=np.int64)
    kept = {**target.sizes, **chosen}
    lost = sizes - np.array([kept.get(g, len(s)) for g, s in scores.items()], dtype=np.int64)
    values = [raised(n, s.detach().double().cpu().numpy(), spec) for n, s in scores.items()]
    order = by_share(names, values, np.arange(len(names)), Caps(np.maximum(sizes - 1, limits.most), limits.round_to))
    for i in np.flatnonzero((lost > limits.most) | (order.kept(lost) != sizes - lost)).tolist():
        raise BudgetError(
            f"the target keeps {sizes[i] - lost[i]} of the {sizes[i]} units of group {names[i]!r}, which round_to, max_ratio or "
            f"min_units forbid (at least {sizes[i] - limits.most[i]}, a multiple of {limits.round_to[i]}); leave them out"
        )
    return order.mask(lost)


def _layers(scores: Scores, layers: Sequence[Among]) -> dict[str, int]:
    """Return 0 for each layer that goes: of those among which a target chooses, the ones with the least scores.

    Raises:
        PruneError: one of them has no score.
    """
    out: dict[str, int] = {}
    for groups, kept in layers:
        if kept < len(groups) and (bare := next((g for g in groups if g not in scores), None)) is not None:
            raise PruneError(
                f"the target keeps {kept} of {len(groups)} layers, but layer {bare!r} has no score; score them by "
                "criteria.block_influence(), pf.eliminate or the like"
            )
        ranked = sorted(groups, key=lambda g: float(scores[g])) if kept < len(groups) else []
        out |= dict.fromkeys(ranked[: len(groups) - kept], 0)
    return out
