"""Check the settings of `prune_trial` before anything runs."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import PruneError, nearest
from ..settings import validated
from ..train.recipe import Recipe
from .space import Space, Value

OWN = ("macs_ratio", "criterion", "compensation")


def choices_of(space: Space, name: str, default: str) -> list[str]:
    """Return the choices of a setting whose values are names.

    Raises:
        PruneError: a choice is no name.
    """
    choices = space.get(name, [default])
    if isinstance(choices, Mapping) or not all(isinstance(v, str) for v in choices):
        raise PruneError(f"{name!r} is {choices!r}; give a list of names")
    return [str(v) for v in choices]


def check_space(space: Space, recipe: Recipe) -> None:
    """Check that every setting is known and that all its values are allowed.

    Raises:
        PruneError: one is not; names it.
    """
    if "macs_ratio" not in space:
        raise PruneError("the space has no 'macs_ratio', the fraction of the MACs to remove; give choices or a range")
    names = (*OWN, *Recipe.model_fields)
    for name, values in space.items():
        if name not in names:
            raise PruneError(f"there is no setting {name!r}{nearest(name, names)}")
        values = [values[k] for k in ("low", "high")] if isinstance(values, Mapping) else values
        for value in values:
            if name == "macs_ratio" and not 0 <= number_of({name: value}, name) < 1:
                raise PruneError(
                    f"macs_ratio is {value}; it is the fraction of the MACs to remove and must be at least 0 and below 1"
                )
            recipe_of(recipe, {name: value})


def recipe_of(base: Recipe, settings: Mapping[str, Value]) -> Recipe:
    """Return the recipe with the settings of a trial.

    Raises:
        PruneError: a value is not allowed.

    >>> recipe_of(Recipe(batch_size=32), {"macs_ratio": 0.5, "lr": 0.01, "epochs": 3}).lr
    0.01
    """
    options = {k: v for k, v in settings.items() if k not in OWN}
    return validated(Recipe, {**base.model_dump(), **options})


def number_of(settings: Mapping[str, Value], name: str) -> float:
    """Return the value of a numeric setting.

    Raises:
        PruneError: the value is no number.
    """
    value = settings[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PruneError(f"{name} is {value!r}; it must be a number")
    return float(value)
