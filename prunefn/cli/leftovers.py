"""What a run that did not end well leaves in its folder: all of its work, so that it resumes, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

RECORDS = (".json", ".jsonl", ".yaml", ".md", ".png", ".svg", ".html")
"""Suffixes of settings, measurements and pictures, which are worth nothing without the work that they are of."""
EVENTS = "events.out.tfevents"
"""Start of the names of TensorBoard's logs."""


@contextlib.contextmanager
def nothing_left_without_work(folder: Path) -> Iterator[None]:
    """Within, a failure or Ctrl-C takes away what is new in the folder, and the folder, if it is all records.

    Checkpoints, networks and the trials of a sweep are work: where there are any, old or new, everything stays as it is.
    """
    first = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    made = [p for p in (folder, *folder.parents) if p != first and first in p.parents]
    before = _files(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if all(map(_is_record, _files(folder))):
            _remove(folder, _files(folder) - before)
            for parent in made:  # from the inside
                _remove_if_empty(parent)
        raise


def _files(folder: Path) -> set[Path]:
    return {p for p in folder.rglob("*") if not p.is_dir()}


def _is_record(path: Path) -> bool:
    return path.suffix in RECORDS or path.name.startswith(EVENTS)


def _remove(folder: Path, files: set[Path]) -> None:
    """Remove files of a folder, and the folders within it that are then empty."""
    for path in files:
        path.unlink(missing_ok=True)
    for inner in sorted({p for f in files for p in f.parents if folder in p.parents}, reverse=True):
        _remove_if_empty(inner)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
