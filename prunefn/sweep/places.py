"""Places: optuna numbers trials as they start; a trial that is retried keeps its place in the sweep.

Keys of a trial's `user_attrs`:
    again      place of the stopped trial that it retries
    worker     the process that runs it
    error      text of its exception
    stopped    it was interrupted by the user
    surplus    it was one too many, started by two workers at once
    results    its results
    same_as    the place of an earlier trial with the same settings, whose results these are
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

DEATHS = 3
"""Number of deaths after which a trial is not retried."""


def tries_by_place(trials: Iterable[FrozenTrial]) -> dict[int, list[FrozenTrial]]:
    """Return place → its tries, in order."""
    out: dict[int, list[FrozenTrial]] = {}
    for t in sorted(trials, key=lambda t: t.number):
        attrs = t.user_attrs
        if "again" in attrs:
            out[attrs["again"]].append(t)
        elif "surplus" not in attrs:
            out[len(out)] = [t]
    return out


def find_place(study: Study, trial: FrozenTrial) -> int:
    """Return the place of a trial that has started."""
    if "again" in trial.user_attrs:
        return trial.user_attrs["again"]
    before = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
    return len(tries_by_place(before))


def has_died(trial: FrozenTrial) -> bool:
    """Return whether the process of a trial ended before the trial."""
    explained = ("error", "stopped", "surplus")
    return trial.state == TrialState.FAIL and not any(k in trial.user_attrs for k in explained)


def mend(study: Study, alive: Callable[[FrozenTrial], bool], retry_failed: bool = False) -> None:
    """Put stopped trials back into the queue, with their settings.

    Args:
        study: must not be changed by another process meanwhile.
        alive: returns whether the process of a trial runs.
        retry_failed: also trials that raised.
    """
    for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not alive(t):
            study.tell(t.number, state=TrialState.FAIL, skip_if_finished=True)
    for place, tries in tries_by_place(study.get_trials(deepcopy=False)).items():
        last = tries[-1]
        if last.state != TrialState.FAIL:
            continue
        given_up = "error" in last.user_attrs or sum(map(has_died, tries)) >= DEATHS
        if retry_failed or not given_up:
            study.enqueue_trial(dict(last.params), user_attrs={"again": place})
