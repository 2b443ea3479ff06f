"""Plan of pruning-aware training as a value: what to prune in each step, and how to train around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ..costs.analytic import cost
from ..doors import check_fields
from ..errors import PruneError
from ..plans import Prune
from ..recipes import best
from ..selection.budget import macs
from ..spec.spec import Spec
from ..types import Budget, Mask, Pruned
from .recipe import MOST_ROUNDS, Recipe
from .regularizers import Regularizer
from .schedule import Schedule, one_shot

Make = Callable[[Any], Prune]
"""(ratio or budget) → pipeline, such as `recipes.vbp`."""
NEAR_ALL = 0.999
"""Largest ratio of one step: a schedule up to 1.0 stops at its target, but each pipeline needs a ratio below 1."""


class Phases(NamedTuple):
    """Phases of `pat`: sparse training, rounds of pruning and training, fine-tuning; each training is optional.

    By default, half of the units are removed at once by `recipes.best`, and nothing is trained: give `tuning=Recipe(…)`.

    >>> import prunefn as pf
    >>> from prunefn.train import Recipe, schedule
    >>> phases = Phases(pf.recipes.vbp, schedule.geometric(0.5, 3), between=Recipe(epochs=1), tuning=Recipe())
    >>> [round(phases.ratio(number), 2) for number in range(phases.rounds + 1)]
    [0.0, 0.21, 0.37, 0.5]
    """

    prune: Make = best
    """Makes the pipeline of a step from a ratio or budget, such as `recipes.vbp`."""
    schedule: Schedule | float = 0.5
    """Ratio removed after each step, such as `schedule.geometric(0.35, 5)`; a number is one step."""
    budget: Callable[[float], Budget] | None = None
    """Quantity of which the schedule's ratio is removed: with `budget.macs`, 0.35 leaves 65 % of the MACs. None: scored units.

    Of a latency, `lambda keep: budget.latency(keep, table)` with a table of the dense network."""
    sparse: tuple[Regularizer | Callable[[Spec], Regularizer], Recipe] | None = None
    """Regularizer, or a function of the spec that makes it, and recipe of the training before the first step; None: no training."""
    between: Recipe | None = None
    """Recipe of the training after each step; None: no training."""
    tuning: Recipe | None = None
    """Recipe of the training after the last step, of which the best epoch counts; None: no training."""
    distill: tuple[float, float] | None = None
    """(alpha, temperature) of distillation from the dense network after the sparse phase; None: no teacher."""
    masked: bool = False
    """Whether to keep the dense shapes, with removed units held at zero, and remove them after the last step.

    Until then, norms over a stream (LayerNorm) see the zeros."""
    target: float | None = None
    """Fraction of the MACs that is left when pruning stops, in (0, 1); the last step removes no more than needed.

    With `schedule.linear(1.0, n)`, the steps are as large as if everything were removed."""
    carry: bool = True
    """Whether the optimizer keeps its state of the remaining weights after a step; another optimizer always starts without one."""
    whole: bool = False
    """Whether every process measures all calibration batches, as sequential pipelines need."""

    @property
    def rounds(self) -> int:
        """Largest number of rounds; a target may end them earlier."""
        return self._steps.steps

    @property
    def epochs(self) -> int:
        """Return the largest number of epochs of all phases together; a target or patience may end them earlier."""
        recipes = [*([self.sparse[1]] if self.sparse else []), *[self.between] * self.rounds, self.tuning]
        return sum(r.epochs for r in recipes if r is not None)

    def ratio(self, number: int) -> float:
        """Return the ratio that the schedule removes in the first `number` rounds."""
        return self._steps(number)

    @property
    def _steps(self) -> Schedule:
        return one_shot(self.schedule) if isinstance(self.schedule, int | float) else self.schedule

    def advice(self) -> str | None:
        """Return what to know of rounds with training between, in one line; None where there are none."""
        if self.rounds == 1 or self.between is None:
            return None
        return (
            f"{self.rounds} rounds train {self.rounds * self.between.epochs} epochs before the final shape is known; at equal epochs, one "
            "step and more epochs of tuning were about as good or better in bench/results/after.md and pat.md"
        )

    def check(self) -> Phases:
        """Return the phases.

        Raises:
            PruneError: a field has a value that its kind does not allow, or fields contradict each other.
        """
        phases, target = check_fields(self), self.target
        if target is not None and not 0 < target < 1:
            raise PruneError(f"target is {target}; it is the fraction of the MACs that is left, and must be in (0, 1)")
        if phases.rounds > MOST_ROUNDS:
            raise PruneError(
                f"the schedule has {phases.rounds} steps; each is a round of pruning, and {MOST_ROUNDS} are the most"
            )
        if phases.ratio(phases.rounds) >= 1 and target is None:
            raise PruneError("the schedule removes everything; give target=, the fraction of the MACs at which to stop")
        return phases

    def make_regularizer(self, spec: Spec) -> Regularizer | None:
        """Return the regularizer of the sparse phase."""
        first = None if self.sparse is None else self.sparse[0]
        return first if first is None or isinstance(first, Regularizer) else first(spec)

    def settings(self) -> dict[str, Any]:
        """Return the settings that must be equal where a run resumes, as JSON: the start of `config.json`."""
        sparse = None
        if self.sparse is not None:
            sparse = {"regularizer": _describe(self.sparse[0]), **self.sparse[1].model_dump()}
        return {
            "prune": _describe(self.prune),
            "schedule": {"name": self._steps.name, "shares": [round(self.ratio(t), 6) for t in range(self.rounds + 1)]},
            "of": "units" if self.budget is None else self.budget(0.5).quantity,
            "sparse": sparse,
            "between": None if self.between is None else self.between.model_dump(),
            "tuning": None if self.tuning is None else self.tuning.model_dump(),
            "distill": None if self.distill is None else list(self.distill),
            "masked": self.masked,
            "target": self.target,
            "carry": self.carry,
        }

    def prune_round(
        self, number: int, dense: Spec, spec: Spec, mask: Mask, run: Callable[[Prune], Pruned]
    ) -> tuple[Pruned, bool]:
        """Prune once.

        Args:
            number: of the round, from 1.
            dense: spec of the dense network.
            spec: of what the earlier rounds left.
            mask: of the earlier rounds, over the dense network's groups.
            run: runs a pipeline on what is left.

        Returns:
            (what the round gives, whether it is the last one).
        """
        last = number == self.rounds
        pruned = run(self.prune(self._amount(min(self.ratio(number), NEAR_ALL), dense, spec, mask)))
        if self.target is None:
            return pruned, last
        floor = self.target * cost(dense).macs
        if (last and cost(pruned.spec).macs > floor) or cost(pruned.spec).macs < floor:
            return run(self.prune(macs(floor / cost(spec).macs))), True
        return pruned, last

    def _amount(self, ratio: float, dense: Spec, spec: Spec, mask: Mask) -> float | Budget:
        """Return what to remove of the rest, so that `ratio` of the dense network is removed: earlier roundings are made up for."""
        if self.budget is not None:
            cost_at = self.budget(0.5).cost
            keep = (1 - ratio) * cost_at(dense.sizes, dense) / cost_at(spec.sizes, spec)
            return self.budget(min(keep, 1.0))
        units = sum(len(m) for m in mask.values())
        kept = sum(int(m.sum()) for m in mask.values())
        return max(0.0, 1 - (1 - ratio) * units / kept) if kept else ratio


def _describe(value: Any) -> str:
    """Return the name of a function or value, with the arguments that a partial binds."""
    if isinstance(value, partial):
        bound = [repr(a) for a in value.args] + [f"{k}={_describe(v)}" for k, v in value.keywords.items()]
        return f"{_describe(value.func)}({', '.join(bound)})"
    name = str(getattr(value, "name", None) or getattr(value, "__name__", None) or value)
    return "a function" if name == "<lambda>" else name
