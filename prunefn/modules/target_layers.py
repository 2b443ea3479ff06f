"""Targets that count layers: which layers may go for a number in a config, and how many of them stay."""

from __future__ import annotations

from collections.abc import Collection, Set

from ..errors import PruneError
from ..spec.parts import LAYER
from ..spec.spec import Spec
from ..types import Among
from .fields import Field, Outline


def layers_among(field: Field, value: int, outline: Outline, spec: Spec) -> Among | None:
    """Return the layers of which some go when a field has another number; None if the field counts no layers.

    Raises:
        PruneError: more layers would have to go than can be removed.
    """
    shapes, dense = outline.shapes({field: value}), outline.dense
    if isinstance(shapes, str) or isinstance(dense, str) or not shapes.keys() < dense.keys():
        return None
    missing = dense.keys() - shapes.keys()
    layers = {g: spec.branches[g].module for g, group in spec.groups.items() if group.kind == LAYER}
    parents = dict.fromkeys(
        path.rpartition(".")[0] for path in layers.values() if _all_inside(path, missing, dense.keys())
    )
    if len(parents) != 1 or any(not n.startswith(f"{next(iter(parents))}.") for n in missing):
        return None
    (parent,) = parents
    children = dict.fromkeys(
        n.removeprefix(f"{parent}.").partition(".")[0] for n in dense if n.startswith(f"{parent}.")
    )
    lost = [c for c in children if _all_inside(f"{parent}.{c}", missing, dense.keys())]
    groups = tuple(g for g, path in layers.items() if path.rpartition(".")[0] == parent)
    if len(lost) > len(groups):
        raise PruneError(
            f"{field}={value} takes {len(lost)} of the {len(children)} layers of {parent!r}, but only {len(groups)} of them can go: "
            f"the others are read by other layers; give at least {len(children) - len(groups)}"
        )
    return Among(groups, len(groups) - len(lost))


def _all_inside(path: str, names: Set[str], known: Collection[str]) -> bool:
    """Return whether a module has tensors, and all of them are among some names."""
    own = [n for n in known if n.startswith(f"{path}.")]
    return bool(own) and names >= set(own)
