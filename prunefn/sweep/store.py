"""Where the trials of a sweep are kept, and which processes are at work on them."""

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
"""Seconds between signs of life of a trial on a database server, and after how many without one it is dead."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without a line from optuna for every trial: what failed is in the folder."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class Asked(NamedTuple):
    """What a sweep is asked to do; it stays the same for as long as it goes on."""

    space: Space
    sampler: str
    objectives: Objectives
    """Name → "maximize" or "minimize"."""
    seed: int


class Place(NamedTuple):
    """Where a sweep is."""

    folder: Path
    storage: str | None
    """An optuna URL, or `journal://` and the path of a file; None: SQLite in the folder."""
    name: str


def check(at: Place, asked: Asked) -> dict[str, Any]:
    """What is asked, as JSON, once the folder is there, and is of no other sweep.

    Raises:
        PruneError: it is; names both.
    """
    at.folder.mkdir(parents=True, exist_ok=True)
    wanted, path = json.loads(json.dumps(asked._asdict())), at.folder / CONFIG
    if path.exists():
        _same(str(path), json.loads(path.read_text(encoding="utf-8")), wanted)
    return wanted


def create(at: Place, asked: Asked) -> Study:
    """The study of a sweep, made or opened.

    Raises:
        PruneError: the folder or the study is of a sweep with other settings; names both.
    """
    with FileLock(at.folder / "begin.lock"):
        wanted = check(at, asked)
        study = optuna.create_study(
            storage=_storage(at),
            study_name=at.name,
            directions=[StudyDirection[d.upper()] for d in asked.objectives.values()],
            load_if_exists=True,
        )
        if "asked" in study.user_attrs:
            _same(f"the study {at.name!r}", study.user_attrs["asked"], wanted)
        study.set_user_attr("asked", wanted)
        atomic.write_text(at.folder / CONFIG, json.dumps(wanted, indent=1) + "\n")
    return study


def opened(at: Place) -> tuple[Study, Asked]:
    """The study of a sweep that was begun.

    Raises:
        PruneError: there is none.
    """
    if at.storage is None and not (at.folder / DATABASE).exists():
        raise PruneError(f"there is no sweep in {at.folder}; begin one, or give its storage=")
    try:
        study = optuna.load_study(study_name=at.name, storage=_storage(at))
    except KeyError as error:
        raise PruneError(f"there is no sweep {at.name!r} in {at.storage or at.folder}; give its name=") from error
    return study, Asked(**study.user_attrs["asked"])


def _same(where: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
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
    """Within, this process is at work in the folder under a name of its own; once it is dead, however it died, it is not."""
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    (folder / WORKERS).mkdir(exist_ok=True)
    path = folder / WORKERS / f"{name}.lock"
    try:
        with FileLock(path):
            yield name
    finally:
        path.unlink(missing_ok=True)


def _works(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def mended(study: Study, at: Place, me: str = "", *, retry_failed: bool = False) -> None:
    """Put back into the queue what was stopped, here or on a machine that shares the folder or has fallen silent.

    Args:
        me: the name of this process, if it is at work itself.
        retry_failed: what raised, too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    locks = at.folder / WORKERS

    def alive(trial: FrozenTrial) -> bool:
        worker, begun = trial.user_attrs.get("worker"), trial.datetime_start
        if worker is None:  # it has begun this moment, or its process died in the first one
            others = any(p.stem != me and _works(p) for p in locks.glob("*.lock"))
            recent = begun is None or (datetime.now() - begun).total_seconds() < SILENCE
            return others or (at.storage is not None and recent)
        lock = locks / f"{worker}.lock"
        elsewhere = at.storage is not None and not lock.exists()
        return worker == me or elsewhere or _works(lock)

    with FileLock(at.folder / "mend.lock"):
        mend(study, alive, retry_failed)
