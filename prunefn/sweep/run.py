"""Running a sweep: one process, or many on one storage."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import optuna
from optuna import Study
from optuna.trial import TrialState
from tqdm import tqdm

from ..doors import door
from ..errors import PruneError
from ..files import atomic
from . import result, workers, write
from .places import place_of, places
from .result import Sweep
from .sampler import sampler_of
from .space import Objectives, Space, Value, distributions, grid, suggest
from .store import Asked, Place, at_work, check, create, mended, opened, quiet

Trial = Callable[[Mapping[str, Value], Path], Mapping[str, float]]
"""(settings, its own folder) → what came out, such as {"top1": 0.93, "macs": 4.1e6}."""
OBJECTIVES: Objectives = {"top1": "maximize", "macs": "minimize"}


@runtime_checkable
class Prepared(Protocol):
    """A trial that shares something with the others of its sweep."""

    def prepare(self, space: Space, folder: Path) -> Trial:
        """Called once by every call of `sweep`, before any trial: what to run, which may read what was left in the folder."""
        ...


class _Surplus(Exception):
    """Two workers began the last trial."""


class Job(NamedTuple):
    """What a worker needs to know."""

    trial: Trial
    at: Place
    asked: Asked
    trials: int


@door
def sweep(
    trial: Trial | Prepared,
    space: Space,
    *,
    folder: Path | str,
    sampler: str = "tpe",
    trials: int | None = None,
    objectives: Objectives | None = None,
    storage: str | None = None,
    name: str = "sweep",
    workers: int = 1,
    seed: int = 0,
    retry_failed: bool = False,
    progress: bool = False,
) -> Sweep:
    """Try settings of a space, and keep what came out of each; the same call goes on with a sweep that was stopped.

    A trial that raises is kept with its error (and the traceback in `error.txt` of its folder), and the sweep goes on. One that
    was killed, with its process or its machine, is run again in the same folder; after three times, it counts as failed. One with
    the settings of an earlier one that is finished is not run: it has the same results. With one worker, a sweep that was stopped
    tries what it would have tried.

    Several machines work on one study when the same call runs on each of them with a storage that all of them reach. Each returns
    when there is no trial left to begin. Of a machine that died, the trial is begun again once it has been silent for two minutes
    (on a database server) or at once (where machines share the folder); else the same call picks it up later.

    Args:
        trial: (settings, folder) → results: a function, or something with `prepare`, such as `prune_trial(…)`. Results hold the
            objectives, and whatever else is to be written down.
        space: setting → choices, or {low, high, step, log}.
        folder: for `sweep.db`, `trials.csv`, and `trials/0000` and so on.
        sampler: "tpe", "nsga2", "random", or "grid", which tries all combinations of choices, in a seeded order.
        trials: how many in all, those before included; None: all points of a grid.
        objectives: result → "maximize" or "minimize"; default: top1 and macs.
        storage: an optuna URL (`postgresql://…`, `mysql://…`, `sqlite:///…`), or `journal://` and a file on a disk that all
            machines share; None: SQLite in the folder.
        name: of the study in the storage.
        workers: processes on this machine. They are spawned, so that a script that calls this needs `if __name__ == "__main__":`,
            and the trial is pickled. They share the CPU's threads, and take the GPUs in turn.
        seed: of the sampler.
        retry_failed: run what raised once more.
        progress: show a bar.

    Raises:
        PruneError: the folder belongs to another sweep, the space or a name is wrong, the trial cannot be pickled, or workers died.
        KeyboardInterrupt: when interrupted; what is finished is kept.

    >>> import tempfile
    >>> def trial(settings, folder):
    ...     return {"top1": 1 - settings["sparsity"] ** 2, "macs": 100 * (1 - settings["sparsity"])}
    >>> done = sweep(trial, {"sparsity": [0.0, 0.5, 0.9]}, folder=tempfile.mkdtemp(), sampler="grid")
    >>> sorted((t.settings["sparsity"], t.results["top1"]) for t in done.finished)
    [(0.0, 1.0), (0.5, 0.75), (0.9, 0.18999999999999995)]
    """
    asked = Asked(space, sampler, dict(OBJECTIVES if objectives is None else objectives), seed)
    total = _total(asked, trials)
    if workers < 1:
        raise PruneError(f"workers={workers}; give 1 or more")
    at = Place(Path(folder), storage, name)
    with quiet():
        check(at, asked)
        ready = trial.prepare(space, at.folder) if isinstance(trial, Prepared) else trial
        study = create(at, asked)
        job = Job(ready, at, asked, total)
        mended(study, at, retry_failed=retry_failed)
        with _shown(study, job, progress) as show:
            if workers == 1:
                work(job, show)
            else:
                _in_parallel(study, job, workers, show)
        return _read(study, at, asked)


@door
def read_sweep(folder: Path | str, *, storage: str | None = None, name: str = "sweep") -> Sweep:
    """What a sweep has found so far; it may be running.

    Args:
        folder, storage, name: as for `sweep`.

    Raises:
        PruneError: there is no sweep.
    """
    at = Place(Path(folder), storage, name)
    with quiet():
        study, asked = opened(at)
        return _read(study, at, asked)


def _total(asked: Asked, trials: int | None) -> int:
    distributions(asked.space)
    for name, direction in asked.objectives.items():
        if direction not in ("maximize", "minimize"):
            raise PruneError(f"objective {name!r} is {direction!r}; it must be 'maximize' or 'minimize'")
    if not asked.objectives:
        raise PruneError("there is no objective; give one, such as {'top1': 'maximize'}")
    sampler_of(asked.sampler, asked.space, asked.seed)
    points = len(grid(asked.space, asked.seed)) if asked.sampler == "grid" else None
    if trials is None and points is None:
        raise PruneError(f"sampler {asked.sampler!r} could go on for ever; say how many trials=")
    if trials is not None and trials < 1:
        raise PruneError(f"trials={trials}; give 1 or more")
    found = [n for n in (trials, points) if n is not None]
    return min(found)


# ---- a process that works


def work(job: Job, after: Callable[[], object] = lambda: None, go_on: Callable[[], bool] = lambda: True) -> None:
    """Run trials until there are none left to begin.

    Args:
        after: called after each.
        go_on: asked before each.
    """
    with quiet(), at_work(job.at.folder) as me:
        study, _ = opened(job.at)
        study.sampler = sampler_of(job.asked.sampler, job.asked.space, job.asked.seed)
        while go_on():
            mended(study, job.at, me)
            if not _left(study, job.trials):
                break
            study.optimize(lambda t: _run(study, job, me, t), n_trials=1, catch=(Exception,))
            after()


def _left(study: Study, total: int) -> bool:
    """Whether there is a trial to begin."""
    trials = study.get_trials(deepcopy=False)
    return any(t.state == TrialState.WAITING for t in trials) or len(places(trials)) < total


def _run(study: Study, job: Job, me: str, trial: optuna.Trial) -> list[float]:
    """A trial, from optuna's to ours and back."""
    trial.set_user_attr("worker", me)
    frozen = next(t for t in study.get_trials(deepcopy=False) if t.number == trial.number)
    place = place_of(study, frozen)
    if place >= job.trials and "again" not in trial.user_attrs:
        trial.set_user_attr("surplus", True)
        raise _Surplus
    settings = {n: suggest(trial, n, within) for n, within in distributions(job.asked.space).items()}
    try:
        results = _before(study, trial, settings)
        if results is None:
            results = _run_in(result.folder_of(job.at.folder, place), job, settings)
        trial.set_user_attr("results", results)
        return [float(results[name]) for name in job.asked.objectives]
    except Exception as error:
        trial.set_user_attr("error", f"{type(error).__name__}: {error}"[:1000])
        raise
    except BaseException:
        trial.set_user_attr("stopped", True)
        raise


def _before(study: Study, trial: optuna.Trial, settings: Mapping[str, Any]) -> dict[str, float] | None:
    """The results of an earlier trial with the same settings."""
    for place, tries in places(study.get_trials(deepcopy=False)).items():
        last = tries[-1]
        if last.state == TrialState.COMPLETE and last.params == settings and "same_as" not in last.user_attrs:
            trial.set_user_attr("same_as", place)
            return last.user_attrs["results"]
    return None


def _run_in(folder: Path, job: Job, settings: Mapping[str, Any]) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "settings.json", json.dumps(settings, indent=1) + "\n")
    try:
        results = _checked(job.trial(settings, folder), job.asked.objectives)
    except Exception:
        atomic.write_text(folder / "error.txt", traceback.format_exc())
        raise
    (folder / "error.txt").unlink(missing_ok=True)
    atomic.write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def _checked(found: Mapping[str, float], objectives: Objectives) -> dict[str, float]:
    results = {str(k): v if isinstance(v, int) else float(v) for k, v in found.items()}
    for name in objectives:
        if name not in results:
            raise PruneError(
                f"the trial gave no {name!r}, which is an objective; it gave {', '.join(results) or 'nothing'}"
            )
        if not isfinite(results[name]):
            raise PruneError(f"the trial gave {name}={results[name]}; an objective must be finite")
    return results


# ---- many processes


def _in_parallel(study: Study, job: Job, n: int, show: Callable[[], object]) -> None:
    codes = workers.run(work, job, n, show)
    mended(study, job.at)
    if any(codes) and _left(study, job.trials):
        raise PruneError(
            f"of {n} workers, some died before all trials were run (exit codes {codes}; a negative one is a signal, -9 often "
            f"means that memory ran out); the same call goes on"
        )


# ---- what is shown and returned


@contextmanager
def _shown(study: Study, job: Job, progress: bool) -> Iterator[Callable[[], None]]:
    """What brings bar and `trials.csv` up to date; called once more at the end, however it ends."""
    shown: list[Sweep] = []
    with tqdm(total=job.trials, desc=job.at.name, disable=not progress) as bar:

        def show() -> None:
            now = _read(study, job.at, job.asked)
            if shown == [now]:
                return
            shown[:] = [now]
            write.trials(now)
            done = sum(t.state in ("finished", "failed") for t in now.trials)
            if now.finished:
                last = now.finished[-1].results
                bar.set_postfix_str(", ".join(f"{k} {last[k]:.4g}" for k in job.asked.objectives), refresh=False)
            bar.update(done - bar.n)

        show()
        try:
            yield show
        finally:
            show()


def _read(study: Study, at: Place, asked: Asked) -> Sweep:
    return Sweep(at.folder, at.name, asked.space, asked.objectives, result.trials_of(study))
