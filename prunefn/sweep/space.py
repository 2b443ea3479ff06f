"""The space of a sweep's settings: plain data, as from a YAML file."""

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
    """Return setting → optuna's distribution.

    Raises:
        PruneError: a setting has no choices, a choice twice, or an invalid range; names it.

    >>> distributions({"epochs": [20, 30], "lr": {"low": 1e-4, "high": 1e-1, "log": True}})["lr"].log
    True
    """
    if not space:
        raise PruneError("the space is empty; give settings with choices, such as {'macs_ratio': [0.3, 0.5]}")
    return {name: _distribution(name, values) for name, values in space.items()}


def _distribution(name: str, values: Any) -> BaseDistribution:
    if isinstance(values, Mapping):
        return _range(name, values)
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise PruneError(f"{name!r} is {values!r}; give a list of choices, or a range {{low: …, high: …}}")
    if not values:
        raise PruneError(f"{name!r} has no choices; give at least one")
    for value in values:
        if not isinstance(value, Value):
            raise PruneError(f"{name!r} has the choice {value!r}; a choice is a number, a string, a boolean or null")
    if len(set(map(repr, values))) < len(values):
        raise PruneError(f"{name!r} has a choice twice: {list(values)}")
    return CategoricalDistribution(tuple(values))


def _range(name: str, values: Mapping[str, Any]) -> BaseDistribution:
    if unknown := [k for k in values if k not in KEYS]:
        raise PruneError(f"the range of {name!r} has the key {unknown[0]!r}{nearest(unknown[0], KEYS)}")
    if missing := [k for k in KEYS[:2] if k not in values]:
        raise PruneError(f"the range of {name!r} has no {missing[0]!r}: {dict(values)}")
    numbers = [values[k] for k in KEYS[:3] if values.get(k) is not None]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
        raise PruneError(
            f"the range of {name!r} is {dict(values)}; low, high and step must be numbers (1.0e-3, not 1e-3)"
        )
    low, high, step, log = values["low"], values["high"], values.get("step"), bool(values.get("log", False))
    try:
        if all(isinstance(v, int) for v in numbers):
            return IntDistribution(low, high, log=log, step=1 if step is None else step)
        return FloatDistribution(low, high, log=log, step=step)
    except ValueError as error:
        raise PruneError(f"the range of {name!r} is {dict(values)}: {error}") from error


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Value:
    """Return optuna's proposal for a setting."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def grid(space: Space, seed: int) -> list[dict[str, Value]]:
    """Return all combinations of the choices, in an order drawn from the seed, so that the first cover the space.

    Raises:
        PruneError: a setting is a range; names it.

    >>> sorted(p["a"] + p["b"] for p in grid({"a": [0, 1], "b": [0, 10]}, seed=0))
    [0, 1, 10, 11]
    """
    distributions(space)
    for name, values in space.items():
        if isinstance(values, Mapping):
            raise PruneError(f"a grid needs choices, but {name!r} is the range {dict(values)}; list its values")
    points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    random.Random(seed).shuffle(points)
    return points
