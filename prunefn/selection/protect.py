"""Units of interfaces that must stay: ids of tokens that the model or its config names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..spec.spec import Spec
from .caps import Caps


def protected(names: Sequence[str], limits: Caps, spec: Spec | None) -> Caps:
    """Return the limits of the groups, lowered by the units that must stay, and by as many experts as a router chooses.

    Without a spec, `apply` refuses to remove these.
    """
    most = limits.most.copy()
    for i, name in enumerate(names):
        if spec is not None and name in spec.groups:
            stay = max(len(_stay(name, spec)), spec.groups[name].floor)
            most[i] = min(most[i], spec.sizes[name] - stay)
    return limits._replace(most=most)


def raised(name: str, scores: np.ndarray, spec: Spec | None) -> np.ndarray:
    """Return the scores of a group with those of units that must stay above all others, so that the limit keeps them."""
    if not (units := _stay(name, spec)):
        return scores
    out = scores.copy()
    out[units] = scores.max() + 1
    return out


def _stay(name: str, spec: Spec | None) -> list[int]:
    """Return the units of a group that must stay."""
    interface = None if spec is None else spec.program.interfaces.get(name)
    return [] if interface is None else sorted(interface.names())
