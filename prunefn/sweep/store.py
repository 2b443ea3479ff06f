"""Store the trials of a sweep, and register the processes that work on them."""

from __future__ import annotations

import json
import os
import socket
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from filelock import FileLock, Timeout
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from ..errors import PruneError
from ..files import atomic
from .places import mend
from .space import Objectives, Space

DATABASE = "sweep.db"
CONFIG = "config.json"
WORKERS = "workers"
WAIT = 120
"""Seconds to wait for another process that writes to an SQLite file."""
BEAT, SILENCE = 30, 120
"""Seconds between the signals of a trial on a database server, and seconds without a signal after which it is dead."""


@contextmanager
def without_logs() -> Iterator[None]:
    """Silence optuna's line for every trial; errors are in the folder."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class SweepConfig(NamedTuple):
    """The arguments of a sweep that must not change when it is resumed."""

    space: Space
    sampler: str
    objectives: Objectives
    """Name → "maximize" or "minimize"."""
    seed: int


class Place(NamedTuple):
    """The folder and storage of a sweep."""

    folder: Path
    storage: str | None
    """An optuna URL, or `journal://` and the path of a file; None: SQLite in the folder."""
    name: str


def check_config(at: Place, config: SweepConfig) -> dict[str, Any]:
    """Create the folder, and return the config as JSON.

    Raises:
        PruneError: the folder is of a sweep with another config; names both values.
    """
    at.folder.mkdir(parents=True, exist_ok=True)
    as_json, path = json.loads(json.dumps(config._asdict())), at.folder / CONFIG
    if path.exists():
        _check_same(str(path), json.loads(path.read_text(encoding="utf-8")), as_json)
    return as_json


def create_study(at: Place, config: SweepConfig) -> Study:
    """Create or open the study of a sweep.

    Raises:
        PruneError: the folder or the study is of a sweep with another config; names both values.
    """
    with FileLock(at.folder / "begin.lock"):
        as_json = check_config(at, config)
        study = optuna.create_study(
            storage=_storage(at),
            study_name=at.name,
            directions=[StudyDirection[d.upper()] for d in config.objectives.values()],
            load_if_exists=True,
        )
        if "config" in study.user_attrs:
            _check_same(f"the study {at.name!r}", study.user_attrs["config"], as_json)
        study.set_user_attr("config", as_json)
        atomic.write_text(at.folder / CONFIG, json.dumps(as_json, indent=1) + "\n")
    return study


def open_study(at: Place) -> tuple[Study, SweepConfig]:
    """Open the study of a sweep that exists.

    Raises:
        PruneError: there is none.
    """
    if at.storage is None and not (at.folder / DATABASE).exists():
        raise PruneError(f"there is no sweep in {at.folder}; start one, or give its storage=")
    try:
        study = optuna.load_study(study_name=at.name, storage=_storage(at))
    except KeyError as error:
        raise PruneError(f"there is no sweep {at.name!r} in {at.storage or at.folder}; give its name=") from error
    return study, SweepConfig(**study.user_attrs["config"])


def _check_same(where: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key, value in now.items():
        if json.dumps(before.get(key)) != json.dumps(value):  # the order counts, too
            raise PruneError(
                f"{where} belongs to a sweep with {key}={before.get(key)!r}, now it is {value!r}; use another folder or name"
            )


def _storage(at: Place) -> BaseStorage:
    url = at.storage or f"sqlite:///{(at.folder / DATABASE).absolute()}"
    kind, _, rest = url.partition("://")
    if kind == "journal":
        return JournalStorage(JournalFileBackend(rest))
    if kind == "sqlite":
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": WAIT}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(url, heartbeat_interval=BEAT, grace_period=SILENCE)


# ---- processes at work


@contextmanager
def at_work(folder: Path) -> Iterator[str]:
    """Register this process as a worker of the folder under a unique name, until it ends in any way."""
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    (folder / WORKERS).mkdir(exist_ok=True)
    path = folder / WORKERS / f"{name}.lock"
    try:
        with FileLock(path):
            yield name
    finally:
        path.unlink(missing_ok=True)


def _is_at_work(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def requeue_stopped(study: Study, at: Place, me: str = "", *, retry_failed: bool = False) -> None:
    """Put stopped trials back into the queue: of this machine, of one with the same folder, or of one without a signal.

    Args:
        me: the name of this process, if it is a worker.
        retry_failed: also trials that raised.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    locks = at.folder / WORKERS

    def alive(trial: FrozenTrial) -> bool:
        worker, begun = trial.user_attrs.get("worker"), trial.datetime_start
        if worker is None:  # it has begun this moment, or its process died in the first one
            others = any(p.stem != me and _is_at_work(p) for p in locks.glob("*.lock"))
            recent = begun is None or (datetime.now() - begun).total_seconds() < SILENCE
            return others or (at.storage is not None and recent)
        lock = locks / f"{worker}.lock"
        elsewhere = at.storage is not None and not lock.exists()
        return worker == me or elsewhere or _is_at_work(lock)

    with FileLock(at.folder / "mend.lock"):
        mend(study, alive, retry_failed)
