"""What a class that cannot run at some sizes can lose instead, or must lose besides; nothing is advised that was not tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from ..errors import PruneError
from ..parameters.transforms import apply, shrink
from ..spec.axis import leaves
from ..spec.spec import Spec
from ..types import Params
from .problem import Problem
from .twin import dense

ATTEMPTS = 4
"""Maximal number of choices of groups that are tried."""


def advise(problem: Problem, dense_params: Params, spec: Spec, build: Callable[[Params, Spec], object]) -> str:
    """Return a sentence about sizes at which the class can run; it starts with a blank, and is empty if none is found.

    Args:
        problem: of the class at the sizes of the spec.
        dense_params: params of the traced model.
        spec: the spec at its new sizes.
        build: rebuilds the class from params and spec; raises `PruneError` if it cannot run.
    """
    if (traced := dense(spec)) is None:
        return ""
    pruned = [g for g, n in spec.sizes.items() if n != spec.traced[g]]
    wholes = ((t, {g: spec.sizes[g] for g in pruned if g not in whole}) for t, whole in _choices(problem, pruned, spec))
    for text, sizes in [*_equal_sizes(problem, spec), *wholes][:ATTEMPTS]:
        mask = {g: torch.arange(spec.traced[g]) < n for g, n in sizes.items()}
        try:
            build(apply(dense_params, mask, spec=traced), shrink(traced, mask))
        except PruneError:
            continue
        return f" It runs if {text}."
    return ""


def _choices(problem: Problem, pruned: Sequence[str], spec: Spec) -> Iterator[tuple[str, set[str]]]:
    """Yield groups that may have to stay whole, with a text: those of a kind, all but the hidden ones, those near the line."""
    kinds = {
        k: {g for g in pruned if spec.groups[g].kind == k} for k in dict.fromkeys(spec.groups[g].kind for g in pruned)
    }
    if len(kinds) > 1:
        for kind in sorted(kinds, key=lambda k: k != "heads"):
            if kind != "hidden":
                yield f"groups of the kind {kind!r} stay whole: where=~pf.kind({kind!r})", kinds[kind]
    if "hidden" in kinds and len(kinds) > 2:
        yield "only hidden groups are pruned: where=pf.kind('hidden')", set(pruned) - kinds["hidden"]
    near = [g for g in pruned if g in _groups_near(problem, spec)]
    if 0 < len(near) < len(pruned):
        names = ", ".join(map(repr, near))
        yield f"{names} {'stays' if len(near) == 1 else 'stay'} whole: where=~pf.glob({names})", set(near)


def _equal_sizes(problem: Problem, spec: Spec) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield sizes at which groups of one kind, near the line that fails, stay equal: a class may have one number for them all."""
    kinds: dict[tuple[str, int], list[str]] = {}
    near = _groups_near(problem, spec)
    for g in (g for g in spec.groups if g in near):
        kinds.setdefault((spec.groups[g].kind, spec.traced[g]), []).append(g)
    for groups in kinds.values():
        least = min(spec.sizes[g] for g in groups)
        if any(spec.sizes[g] != least for g in groups):
            sizes = {g: n for g, n in {**spec.sizes, **dict.fromkeys(groups, least)}.items() if n != spec.traced[g]}
            names = f"{', '.join(map(repr, groups[:-1]))} and {groups[-1]!r}"
            yield f"{names} keep equally many units, such as {least}: one number of the class sizes them all", sizes


def _groups_near(problem: Problem, spec: Spec) -> set[str]:
    """Return the groups of the values that the innermost failing module with ops of its own reads and returns."""
    for frame in reversed(problem.frames):
        if own := [i for i in spec.program.instructions if i.module == frame.path]:
            names = {name for i in own for name in (*i.reads(), f"%{i.name}")}
            return {g for n in names for a in spec.program.axes.get(n, spec.axes.get(n, ())) for g in leaves(a)}
    return set()
