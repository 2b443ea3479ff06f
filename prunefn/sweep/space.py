"""What a sweep tries: plain data, as it comes from a YAML file."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from ..errors import PruneError, nearest

Value = None | bool | int | float | str
Space = Mapping[str, Any]
"""Setting → a list of choices, or a range {low, high, step, log}; whole numbers where low, high and step are."""
Objectives = Mapping[str, str]
"""Result → "maximize" or "minimize"."""
KEYS = ("low", "high", "step", "log")


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """A space as optuna has it.

    Raises:
        PruneError: a setting has no choices, the same one twice, or is no range; names it.

    >>> distributions({"epochs": [20, 30], "lr": {"low": 1e-4, "high": 1e-1, "log": True}})["lr"].log
    True
    """
    if not space:
        raise PruneError("the space is empty; give settings with choices, such as {'sparsity': [0.3, 0.5]}")
    return {name: _distribution(name, what) for name, what in space.items()}


def _distribution(name: str, what: Any) -> BaseDistribution:
    if isinstance(what, Mapping):
        return _range(name, what)
    if isinstance(what, str) or not isinstance(what, Sequence):
        raise PruneError(f"{name!r} is {what!r}; give a list of choices, or a range {{low: …, high: …}}")
    if not what:
        raise PruneError(f"{name!r} has no choices; give at least one")
    for value in what:
        if not isinstance(value, Value):
            raise PruneError(f"{name!r} has the choice {value!r}; a choice is a number, a string, a boolean or null")
    if len(set(map(repr, what))) < len(what):
        raise PruneError(f"{name!r} has a choice twice: {list(what)}")
    return CategoricalDistribution(tuple(what))


def _range(name: str, what: Mapping[str, Any]) -> BaseDistribution:
    if unknown := [k for k in what if k not in KEYS]:
        raise PruneError(f"the range of {name!r} has the key {unknown[0]!r}{nearest(unknown[0], KEYS)}")
    if missing := [k for k in KEYS[:2] if k not in what]:
        raise PruneError(f"the range of {name!r} has no {missing[0]!r}: {dict(what)}")
    numbers = [what[k] for k in KEYS[:3] if what.get(k) is not None]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
        raise PruneError(
            f"the range of {name!r} is {dict(what)}; low, high and step must be numbers (1.0e-3, not 1e-3)"
        )
    low, high, step, log = what["low"], what["high"], what.get("step"), bool(what.get("log", False))
    try:
        if all(isinstance(v, int) for v in numbers):
            return IntDistribution(low, high, log=log, step=1 if step is None else step)
        return FloatDistribution(low, high, log=log, step=step)
    except ValueError as error:
        raise PruneError(f"the range of {name!r} is {dict(what)}: {error}") from error


def suggest(trial: Trial, name: str, within: BaseDistribution) -> Value:
    """Ask optuna for a setting."""
    if isinstance(within, CategoricalDistribution):
        return trial.suggest_categorical(name, within.choices)
    if isinstance(within, IntDistribution):
        return trial.suggest_int(name, within.low, within.high, step=within.step, log=within.log)
    assert isinstance(within, FloatDistribution)
    return trial.suggest_float(name, within.low, within.high, step=within.step, log=within.log)


def grid(space: Space, seed: int) -> list[dict[str, Value]]:
    """All combinations of the choices, in an order drawn from the seed, so that the first ones are from everywhere.

    Raises:
        PruneError: a setting is a range; names it.

    >>> sorted(p["a"] + p["b"] for p in grid({"a": [0, 1], "b": [0, 10]}, seed=0))
    [0, 1, 10, 11]
    """
    distributions(space)
    for name, what in space.items():
        if isinstance(what, Mapping):
            raise PruneError(f"a grid needs choices, but {name!r} is the range {dict(what)}; list its values")
    points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    random.Random(seed).shuffle(points)
    return points
