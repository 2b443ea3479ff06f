"""Run a sweep in one process, or in many on one storage."""

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

from ..display.progress import progress_bar
from ..doors import door
from ..errors import PruneError
from ..files import atomic
from . import result, workers, write
from .places import find_place, tries_by_place
from .result import Sweep
from .sampler import sampler_of
from .space import Objectives, Space, Value, distributions, grid, suggest
from .store import Place, SweepConfig, at_work, check_config, create_study, open_study, requeue_stopped, without_logs

Trial = Callable[[Mapping[str, Value], Path], Mapping[str, float]]
"""(settings, the trial's folder) → results, such as {"top1": 0.93, "macs": 4.1e6}."""
OBJECTIVES: Objectives = {"top1": "maximize", "macs": "minimize"}


@runtime_checkable
class Prepared(Protocol):
    """A trial with values that all trials of a sweep share."""

    def prepare(self, space: Space, folder: Path) -> Trial:
        """Return the trial to run, which may read files of the folder. Called once by every call of `sweep`, before any trial."""
        ...


class _Surplus(Exception):
    """Two workers started the last trial at once."""


class Job(NamedTuple):
    """The job of a worker."""

    trial: Trial
    at: Place
    config: SweepConfig
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
    """Run trials of the settings of a space, and keep the results; the same call resumes a sweep that was stopped.

    If a trial raises, its error is kept (the traceback is in `error.txt` of its folder), and the sweep continues. If its process
    or machine is killed, the trial is retried in the same folder; after three times, it counts as failed. A trial with the
    settings of an earlier finished trial is not run; it gets the same results. With one worker, a resumed sweep proposes the
    same settings as an uninterrupted one.

    Several machines work on one study if the same call runs on each of them with a storage that all of them reach. Each call
    returns when there is no trial left to start. The trial of a machine that died is retried after two minutes without a signal
    (on a database server) or at once (if the machines share the folder); otherwise the next call retries it.

    Args:
        trial: (settings, folder) → results: a function, or something with `prepare`, such as `prune_trial(…)`. Results hold the
            objectives, and any other values to record.
        space: setting → choices, or {low, high, step, log}.
        folder: for `sweep.db`, `trials.csv`, and `trials/0000` and so on.
        sampler: "tpe", "nsga2", "random", or "grid", which tries all combinations of choices, in a seeded order.
        trials: total number, including those of earlier calls; None: all points of a grid.
        objectives: result → "maximize" or "minimize"; default: top1 and macs.
        storage: an optuna URL (`postgresql://…`, `mysql://…`, `sqlite:///…`), or `journal://` and a file on a disk that all
            machines share; None: SQLite in the folder.
        name: of the study in the storage.
        workers: processes on this machine. They are spawned, so that a script that calls this needs `if __name__ == "__main__":`,
            and the trial is pickled. They share the CPU's threads, and take the GPUs in turn.
        seed: of the sampler.
        retry_failed: whether to retry trials that raised.
        progress: whether to show a bar.

    Raises:
        PruneError: the folder belongs to another sweep, the space or a name is wrong, the trial cannot be pickled, or workers died.
        KeyboardInterrupt: the user interrupted it; finished trials are kept.

    >>> import tempfile
    >>> def trial(settings, folder):
    ...     return {"top1": 1 - settings["macs_ratio"] ** 2, "macs": 100 * (1 - settings["macs_ratio"])}
    >>> done = sweep(trial, {"macs_ratio": [0.0, 0.5, 0.9]}, folder=tempfile.mkdtemp(), sampler="grid")
    >>> sorted((t.settings["macs_ratio"], t.results["top1"]) for t in done.finished)
    [(0.0, 1.0), (0.5, 0.75), (0.9, 0.18999999999999995)]
    """
    config = SweepConfig(space, sampler, dict(OBJECTIVES if objectives is None else objectives), seed)
    total = _count_trials(config, trials)
    at = Place(Path(folder), storage, name)
    with without_logs():
        check_config(at, config)
        ready = trial.prepare(space, at.folder) if isinstance(trial, Prepared) else trial
        study = create_study(at, config)
        job = Job(ready, at, config, total)
        requeue_stopped(study, at, retry_failed=retry_failed)
        with _shown_progress(study, job, progress) as show:
            if workers == 1:
                work(job, show)
            else:
                _in_parallel(study, job, workers, show)
        return _read_study(study, at, config)


@door
def read_sweep(folder: Path | str, *, storage: str | None = None, name: str = "sweep") -> Sweep:
    """Return the trials of a sweep so far; it may be running.

    Args:
        folder, storage, name: as for `sweep`.

    Raises:
        PruneError: there is no sweep.
    """
    at = Place(Path(folder), storage, name)
    with without_logs():
        study, config = open_study(at)
        return _read_study(study, at, config)


def _count_trials(config: SweepConfig, trials: int | None) -> int:
    distributions(config.space)
    for name, direction in config.objectives.items():
        if direction not in ("maximize", "minimize"):
            raise PruneError(f"objective {name!r} is {direction!r}; it must be 'maximize' or 'minimize'")
    if not config.objectives:
        raise PruneError("there is no objective; give one, such as {'top1': 'maximize'}")
    sampler_of(config.sampler, config.space, config.seed)
    points = len(grid(config.space, config.seed)) if config.sampler == "grid" else None
    if trials is None and points is None:
        raise PruneError(f"sampler {config.sampler!r} has no end of its own; give the number of trials by trials=")
    counts = [n for n in (trials, points) if n is not None]
    return min(counts)


# ---- a process that works


def work(job: Job, after: Callable[[], object] = lambda: None, proceed: Callable[[], bool] = lambda: True) -> None:
    """Run trials until there is none left to start.

    Args:
        after: called after each trial.
        proceed: called before each trial; False: stop.
    """
    with without_logs(), at_work(job.at.folder) as me:
        study, _ = open_study(job.at)
        study.sampler = sampler_of(job.config.sampler, job.config.space, job.config.seed)
        while proceed():
            requeue_stopped(study, job.at, me)
            if not _trials_left(study, job.trials):
                break
            study.optimize(lambda t: _run(study, job, me, t), n_trials=1, catch=(Exception,))
            after()


def _trials_left(study: Study, total: int) -> bool:
    """Return whether there is a trial to start."""
    trials = study.get_trials(deepcopy=False)
    return any(t.state == TrialState.WAITING for t in trials) or len(tries_by_place(trials)) < total


def _run(study: Study, job: Job, me: str, trial: optuna.Trial) -> list[float]:
    """Run a trial of optuna, and return its objectives."""
    trial.set_user_attr("worker", me)
    frozen = next(t for t in study.get_trials(deepcopy=False) if t.number == trial.number)
    place = find_place(study, frozen)
    if place >= job.trials and "again" not in trial.user_attrs:
        trial.set_user_attr("surplus", True)
        raise _Surplus
    settings = {n: suggest(trial, n, distribution) for n, distribution in distributions(job.config.space).items()}
    try:
        results = _earlier_results(study, trial, settings)
        if results is None:
            results = _run_in_folder(result.trial_folder(job.at.folder, place), job, settings)
        trial.set_user_attr("results", results)
        return [float(results[name]) for name in job.config.objectives]
    except Exception as error:
        trial.set_user_attr("error", f"{type(error).__name__}: {error}"[:1000])
        raise
    except BaseException:
        trial.set_user_attr("stopped", True)
        raise


def _earlier_results(study: Study, trial: optuna.Trial, settings: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the results of an earlier trial with the same settings."""
    for place, tries in tries_by_place(study.get_trials(deepcopy=False)).items():
        last = tries[-1]
        if last.state == TrialState.COMPLETE and last.params == settings and "same_as" not in last.user_attrs:
            trial.set_user_attr("same_as", place)
            return last.user_attrs["results"]
    return None


def _run_in_folder(folder: Path, job: Job, settings: Mapping[str, Any]) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "settings.json", json.dumps(settings, indent=1) + "\n")
    try:
        results = _check_results(job.trial(settings, folder), job.config.objectives)
    except Exception:
        atomic.write_text(folder / "error.txt", traceback.format_exc())
        raise
    (folder / "error.txt").unlink(missing_ok=True)
    atomic.write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def _check_results(raw: Mapping[str, float], objectives: Objectives) -> dict[str, float]:
    results = {str(k): v if isinstance(v, int) else float(v) for k, v in raw.items()}
    for name in objectives:
        if name not in results:
            raise PruneError(
                f"the trial returned no {name!r}, which is an objective; it returned {', '.join(results) or 'nothing'}"
            )
        if not isfinite(results[name]):
            raise PruneError(f"the trial returned {name}={results[name]}; an objective must be finite")
    return results


# ---- many processes


def _in_parallel(study: Study, job: Job, n: int, show: Callable[[], object]) -> None:
    codes = workers.run_workers(work, job, n, show)
    requeue_stopped(study, job.at)
    if any(codes) and _trials_left(study, job.trials):
        raise PruneError(
            f"of {n} workers, some died before all trials were run (exit codes {codes}; a negative one is a signal, -9 often "
            f"means that memory ran out); the same call resumes the sweep"
        )


# ---- what is shown and returned


@contextmanager
def _shown_progress(study: Study, job: Job, progress: bool) -> Iterator[Callable[[], None]]:
    """Yield a function that updates the bar and `trials.csv`; it is called once more at the end, also after an error."""
    shown: list[Sweep] = []
    with progress_bar(total=job.trials, text=job.at.name, unit="trial", show=progress) as bar:

        def show() -> None:
            now = _read_study(study, job.at, job.config)
            if shown == [now]:
                return
            shown[:] = [now]
            write.write_trials(now)
            done = sum(t.state in ("finished", "failed") for t in now.trials)
            if now.finished:
                last = now.finished[-1].results
                bar.set_postfix_str(", ".join(f"{k} {last[k]:.4g}" for k in job.config.objectives), refresh=False)
            bar.update(done - bar.n)

        show()
        try:
            yield show
        finally:
            show()


def _read_study(study: Study, at: Place, config: SweepConfig) -> Sweep:
    return Sweep(at.folder, at.name, config.space, config.objectives, result.read_trials(study))
