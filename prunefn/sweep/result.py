"""What a sweep found: plain values, tables, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .._extras import needs
from ..errors import PruneError
from ..report.goal import Goal
from .places import DEATHS, died, places
from .space import Objectives, Space, Value, distributions
from .store import quiet

STATES = {TrialState.COMPLETE: "finished", TrialState.RUNNING: "running", TrialState.WAITING: "stopped"}


class Trial(NamedTuple):
    """A trial of a sweep."""

    number: int
    """Its place in the sweep, and the name of its folder."""
    settings: Mapping[str, Value]
    results: Mapping[str, float]
    state: str
    """`finished`; `failed`, it raised; `running`; `stopped`, to be run again."""
    error: str = ""
    same_as: int | None = None
    """The trial with the same settings whose results these are; it has no folder of its own."""
    seconds: float | None = None


class Sweep(NamedTuple):
    """What a sweep has found."""

    folder: Path
    name: str
    space: Space
    objectives: Objectives
    """Result → "maximize" or "minimize"."""
    trials: tuple[Trial, ...]

    @property
    def finished(self) -> list[Trial]:
        """Trials with results, in order."""
        return [t for t in self.trials if t.state == "finished"]

    @property
    def failed(self) -> list[Trial]:
        """Trials that raised, with their errors."""
        return [t for t in self.trials if t.state == "failed"]

    @property
    def front(self) -> list[Trial]:
        """Trials that no other beats in one objective without losing in another, each settings once; in order."""
        return [t for t in self._own(study_of(self).best_trials) if t.same_as is None]

    def best(self, goal: Goal = Goal()) -> Trial | None:  # noqa: B008
        """The trial that meets the goal and loses the fewest points, then has the fewest MACs; None if none meets it.

        Raises:
            PruneError: the trials do not say `macs_removed` and `points_lost`.
        """
        if lacking := [t for t in self.finished if not compared(t)]:
            raise PruneError(
                f"trial {lacking[0].number} gave no macs_removed and points_lost, so that no goal can be checked; "
                f"it gave {', '.join(lacking[0].results)}"
            )
        good = [t for t in self.finished if goal.met(t.results)]
        return min(good, key=lambda t: (t.results["points_lost"], -t.results["macs_removed"], t.number), default=None)

    def importances(self) -> dict[str, dict[str, float]]:
        """Objective → setting → its share of what settings explain of the objective's variance, each on its own; largest first.

        Objectives that do not vary are left out, and so are all of them where no setting may vary. By functional ANOVA:
        Hutter et al., ICML 2014; `optuna.importance`.
        """
        with needs("sweep", "importances"):
            import sklearn  # noqa: F401
        study = study_of(self)
        varied = [n for n, within in distributions(self.space).items() if not within.single()]
        out: dict[str, dict[str, float]] = {}
        for i, name in enumerate(self.objectives):
            if varied and len({t.results[name] for t in self.finished}) > 1:
                shares = optuna.importance.get_param_importances(
                    study,
                    evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                    params=varied,
                    target=lambda t, i=i: t.values[i],
                )
                out[name] = {setting: float(share) for setting, share in shares.items()}
        return out

    def _own(self, frozen: Iterable[FrozenTrial]) -> list[Trial]:
        numbers = {t.user_attrs["number"] for t in frozen}
        return [t for t in self.trials if t.number in numbers]


def folder_of(folder: Path, number: int) -> Path:
    """Of a trial."""
    return folder / "trials" / f"{number:04d}"


def trials_of(study: Study) -> tuple[Trial, ...]:
    """What a study says, by place."""
    return tuple(_trial(place, tries) for place, tries in places(study.get_trials(deepcopy=False)).items())


def _trial(place: int, tries: Sequence[FrozenTrial]) -> Trial:
    last = tries[-1]
    attrs, state, error = last.user_attrs, STATES.get(last.state, "failed"), ""
    if last.state == TrialState.FAIL:
        deaths = sum(map(died, tries))
        error = attrs.get("error", "" if deaths < DEATHS else f"its process died, {deaths} times")
        state = "failed" if error else "stopped"
    params = last.params or dict(last.system_attrs.get("fixed_params", {}))
    seconds = last.duration.total_seconds() if last.state == TrialState.COMPLETE and last.duration else None
    return Trial(
        place,
        params,
        attrs.get("results", {}) if state == "finished" else {},
        state,
        error,
        attrs.get("same_as") if state == "finished" else None,
        seconds,
    )


def study_of(sweep: Sweep) -> Study:
    """The finished trials as a study in memory; always the same for the same trials."""
    with quiet():
        study = optuna.create_study(directions=[StudyDirection[d.upper()] for d in sweep.objectives.values()])
    within = distributions(sweep.space)
    study.add_trials(
        optuna.trial.create_trial(
            params=dict(t.settings),
            distributions=within,
            values=[t.results[n] for n in sweep.objectives],
            user_attrs={"number": t.number},
        )
        for t in sweep.finished
    )
    return study


def compared(trial: Trial) -> bool:
    """Whether it says what a goal asks for."""
    return {"macs_removed", "points_lost"} <= set(trial.results)


def method(settings: Mapping[str, Value]) -> str:
    """How it was pruned, in a word or two.

    >>> method({"sparsity": 0.3, "criterion": "variance", "compensation": "affine", "lr": 0.01, "epochs": 20})
    'variance + affine, lr 0.01, epochs 20'
    """
    names = [str(settings[k]) for k in ("criterion", "compensation") if k in settings]
    rest = [f"{k} {_short(v)}" for k, v in settings.items() if k not in ("criterion", "compensation", "sparsity")]
    return ", ".join(([" + ".join(names)] if names else []) + rest)


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
