"""Stateless optuna samplers: a trial's proposal depends only on the seed, the trial's place and the finished trials.

A resumed sweep therefore proposes the same settings as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseGASampler, BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from ..errors import PruneError, nearest
from .places import find_place
from .space import Space, grid

POPULATION = 12
"""Trials of a generation of NSGA-II; optuna's default of 50 would be all trials of most sweeps."""

NAMES = ("tpe", "grid", "nsga2", "random")


def sampler_of(name: str, space: Space, seed: int) -> BaseSampler:
    """Return the sampler of a name.

    Raises:
        PruneError: the name is unknown, or the grid has ranges.
    """
    if name not in NAMES:
        raise PruneError(f"there is no sampler {name!r}{nearest(name, NAMES)} (all: {', '.join(NAMES)})")
    if name == "grid":
        return ByPlace(partial(_Point, grid(space, seed)))
    makers: dict[str, Callable[..., BaseSampler]] = {"tpe": TPESampler, "random": RandomSampler}
    makers["nsga2"] = partial(NSGAIISampler, population_size=POPULATION)
    return ByPlace(lambda place: makers[name](seed=seed_of(seed, place)))


def seed_of(seed: int, place: int) -> int:
    """Return a seed for the place; those of similar seeds and places are unrelated."""
    return int(np.random.SeedSequence([seed & 0xFFFFFFFF, place]).generate_state(1)[0])


class ByPlace(BaseSampler):
    """A sampler that creates a new one for every trial, by the trial's place in the sweep."""

    def __init__(self, make: Callable[[int], BaseSampler]) -> None:
        self.make = make
        self.now: BaseSampler = RandomSampler(seed=0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.now = self.make(find_place(study, trial))
        self.now.before_trial(study, trial)
        if isinstance(self.now, BaseGASampler):
            # parents come in another order when they are chosen than when they are read again
            self.now.get_parent_population(study, self.now.get_trial_generation(study, trial))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.now.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.now.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.now.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.now.after_trial(study, trial, state, values)


class _Point(BaseSampler):
    """A point of a grid. optuna's own gives a point to two workers, or to none, where trials were stopped."""

    def __init__(self, points: Sequence[dict[str, Any]], place: int) -> None:
        self.point = points[place % len(points)]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.point[param_name]
