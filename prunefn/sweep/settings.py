"""The settings that `prune_trial` knows, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import PruneError, nearest
from ..settings import validated
from ..train.recipe import Recipe
from .space import Space, Value

OWN = ("sparsity", "criterion", "compensation")


def names(space: Space, name: str, default: str) -> list[str]:
    """The choices of a setting that is a name.

    Raises:
        PruneError: they are no names.
    """
    found = space.get(name, [default])
    if isinstance(found, Mapping) or not all(isinstance(v, str) for v in found):
        raise PruneError(f"{name!r} is {found!r}; give a list of names")
    return [str(v) for v in found]


def check(space: Space, recipe: Recipe) -> None:
    """Every setting is known, and every value of it allowed.

    Raises:
        PruneError: names the first that is not.
    """
    if "sparsity" not in space:
        raise PruneError("the space has no 'sparsity', the share of the MACs to remove; give choices or a range")
    known = (*OWN, *Recipe.model_fields)
    for name, what in space.items():
        if name not in known:
            raise PruneError(f"there is no setting {name!r}{nearest(name, known)}")
        values = [what[k] for k in ("low", "high")] if isinstance(what, Mapping) else what
        for value in values:
            if name == "sparsity" and not 0 <= number({name: value}, name) < 1:
                raise PruneError(f"sparsity is {value}; it is the share of the MACs to remove, at least 0 and below 1")
            recipe_of(recipe, {name: value})


def recipe_of(base: Recipe, settings: Mapping[str, Value]) -> Recipe:
    """The recipe with what a trial's settings say of it.

    Raises:
        PruneError: a value is not allowed.

    >>> recipe_of(Recipe(batch_size=32), {"sparsity": 0.5, "lr": 0.01, "epochs": 3}).lr
    0.01
    """
    given = {k: v for k, v in settings.items() if k not in OWN}
    return validated(Recipe, {**base.model_dump(), **given})


def number(settings: Mapping[str, Value], name: str) -> float:
    """A setting that is a number.

    Raises:
        PruneError: it is not.
    """
    value = settings[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PruneError(f"{name} is {value!r}; it must be a number")
    return float(value)
