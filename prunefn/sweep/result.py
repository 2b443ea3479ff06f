"""The results of a sweep as plain values."""

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
from ..tables import Table
from .places import DEATHS, has_died, tries_by_place
from .space import Objectives, Space, Value, distributions
from .store import without_logs

STATES = {TrialState.COMPLETE: "finished", TrialState.RUNNING: "running", TrialState.WAITING: "stopped"}


class Trial(NamedTuple):
    """A trial of a sweep."""

    number: int
    """Place in the sweep, and name of the folder."""
    settings: Mapping[str, Value]
    results: Mapping[str, float]
    state: str
    """`finished`; `failed`, it raised; `running`; `stopped`, to be run again."""
    error: str = ""
    same_as: int | None = None
    """The trial with the same settings whose results these are; it has no folder of its own."""
    seconds: float | None = None


class Sweep(NamedTuple):
    """The trials of a sweep."""

    folder: Path
    name: str
    space: Space
    objectives: Objectives
    """Result → "maximize" or "minimize"."""
    trials: tuple[Trial, ...]

    def __repr__(self) -> str:
        states = [t.state for t in self.trials]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)) or "no trials"
        return f"Sweep({self.name!r}: {counts}; {', '.join(f'{d} {n}' for n, d in self.objectives.items())})"

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def table(self) -> Table:
        """Return a table with a row for each trial: settings, results, state."""
        settings = list(dict.fromkeys(n for t in self.trials for n in t.settings))
        results = list(dict.fromkeys(n for t in self.trials for n in t.results))
        rows = [
            [str(t.number)]
            + [_short(t.settings[n]) if n in t.settings else "" for n in settings]
            + [_short(t.results[n]) if n in t.results else "" for n in results]
            + [t.state]
            for t in self.trials
        ]
        return Table(repr(self), ["trial", *settings, *results, "state"], rows)

    @property
    def finished(self) -> list[Trial]:
        """Return the trials with results, in order."""
        return [t for t in self.trials if t.state == "finished"]

    @property
    def failed(self) -> list[Trial]:
        """Return the trials that raised, with their errors."""
        return [t for t in self.trials if t.state == "failed"]

    @property
    def front(self) -> list[Trial]:
        """Return the Pareto-optimal trials, identical settings once; in order."""
        return [t for t in self._own(study_of(self).best_trials) if t.same_as is None]

    def best(self, goal: Goal = Goal()) -> Trial | None:  # noqa: B008
        """Return the trial that meets the goal and loses the fewest points, then has the fewest MACs; None if none meets it.

        Raises:
            PruneError: a trial has no `macs_removed` or no `points_lost`.
        """
        if lacking := [t for t in self.finished if not is_comparable(t)]:
            raise PruneError(
                f"trial {lacking[0].number} gave no macs_removed and points_lost, so that no goal can be checked; "
                f"it gave {', '.join(lacking[0].results)}"
            )
        meeting = [t for t in self.finished if goal.met(t.results)]
        return min(
            meeting, key=lambda t: (t.results["points_lost"], -t.results["macs_removed"], t.number), default=None
        )

    def importances(self) -> dict[str, dict[str, float]]:
        """Return objective → setting → its fraction of the variance that single settings explain; largest first.

        Objectives that do not vary are left out; all of them if no setting may vary. Computed by functional ANOVA:
        Hutter et al., ICML 2014; `optuna.importance`.
        """
        with needs("sweep", "importances"):
            import sklearn  # noqa: F401
        study = study_of(self)
        varied = [n for n, distribution in distributions(self.space).items() if not distribution.single()]
        out: dict[str, dict[str, float]] = {}
        for i, name in enumerate(self.objectives):
            if varied and len({t.results[name] for t in self.finished}) > 1:
                fractions = optuna.importance.get_param_importances(
                    study,
                    evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                    params=varied,
                    target=lambda t, i=i: t.values[i],
                )
                out[name] = {setting: float(fraction) for setting, fraction in fractions.items()}
        return out

    def _own(self, frozen: Iterable[FrozenTrial]) -> list[Trial]:
        numbers = {t.user_attrs["number"] for t in frozen}
        return [t for t in self.trials if t.number in numbers]


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial."""
    return folder / "trials" / f"{number:04d}"


def read_trials(study: Study) -> tuple[Trial, ...]:
    """Return the trials of a study, by place."""
    return tuple(_trial(place, tries) for place, tries in tries_by_place(study.get_trials(deepcopy=False)).items())


def _trial(place: int, tries: Sequence[FrozenTrial]) -> Trial:
    last = tries[-1]
    attrs, state, error = last.user_attrs, STATES.get(last.state, "failed"), ""
    if last.state == TrialState.FAIL:
        deaths = sum(map(has_died, tries))
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
    """Return the finished trials as a study in memory, identical for identical trials."""
    with without_logs():
        study = optuna.create_study(directions=[StudyDirection[d.upper()] for d in sweep.objectives.values()])
    by_setting = distributions(sweep.space)
    study.add_trials(
        optuna.trial.create_trial(
            params=dict(t.settings),
            distributions=by_setting,
            values=[t.results[n] for n in sweep.objectives],
            user_attrs={"number": t.number},
        )
        for t in sweep.finished
    )
    return study


def is_comparable(trial: Trial) -> bool:
    """Return whether the results have what a goal requires."""
    return {"macs_removed", "points_lost"} <= set(trial.results)


def describe_method(settings: Mapping[str, Value]) -> str:
    """Return the pruning method and the training settings in words.

    >>> describe_method({"macs_ratio": 0.3, "criterion": "variance", "compensation": "affine", "lr": 0.01, "epochs": 20})
    'variance + affine, lr 0.01, epochs 20'
    """
    names = [str(settings[k]) for k in ("criterion", "compensation") if k in settings]
    rest = [f"{k} {_short(v)}" for k, v in settings.items() if k not in ("criterion", "compensation", "macs_ratio")]
    return ", ".join(([" + ".join(names)] if names else []) + rest)


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
