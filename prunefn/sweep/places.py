"""Places: optuna's trials are numbered as they start; a trial that is run again keeps its place in the sweep.

What a trial's `user_attrs` say:
    again      its place, if it repeats one that was stopped
    worker     the process that runs it
    error      what it raised
    stopped    it was interrupted by the user
    surplus    it was one too many, begun by two workers at once
    results    what it gave
    same_as    the place of an earlier trial with the same settings, whose results these are
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

DEATHS = 3
"""A trial whose process dies so often is not begun again."""


def places(trials: Iterable[FrozenTrial]) -> dict[int, list[FrozenTrial]]:
    """Place → the trials that tried it, in order."""
    out: dict[int, list[FrozenTrial]] = {}
    for t in sorted(trials, key=lambda t: t.number):
        attrs = t.user_attrs
        if "again" in attrs:
            out[attrs["again"]].append(t)
        elif "surplus" not in attrs:
            out[len(out)] = [t]
    return out


def place_of(study: Study, trial: FrozenTrial) -> int:
    """Where a trial that has begun stands."""
    if "again" in trial.user_attrs:
        return trial.user_attrs["again"]
    before = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
    return len(places(before))


def died(trial: FrozenTrial) -> bool:
    """Whether its process ended in the middle of it."""
    known = ("error", "stopped", "surplus")
    return trial.state == TrialState.FAIL and not any(k in trial.user_attrs for k in known)


def mend(study: Study, alive: Callable[[FrozenTrial], bool], retry_failed: bool = False) -> None:
    """Put trials that were stopped back into the queue, with the settings that they had.

    Args:
        study: nobody else mends it meanwhile.
        alive: whether the process that runs a trial is.
        retry_failed: those that raised, too.
    """
    for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not alive(t):
            study.tell(t.number, state=TrialState.FAIL, skip_if_finished=True)
    for place, tries in places(study.get_trials(deepcopy=False)).items():
        last = tries[-1]
        if last.state != TrialState.FAIL:
            continue
        given_up = "error" in last.user_attrs or sum(map(died, tries)) >= DEATHS
        if retry_failed or not given_up:
            study.enqueue_trial(dict(last.params), user_attrs={"again": place})
