"""Files that are either the old ones or the new ones, and never half of either."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from glob import escape
from pathlib import Path


def write(path: str | os.PathLike[str], fill: Callable[[str], object], *, alone: bool = False) -> None:
    """Let something be written beside the file, then rename it: a reader never sees a part of it.

    Args:
        path: in a folder that is there.
        fill: writes the file whose name it is given.
        alone: no other process writes this file, so that what one left beside it that was killed can go.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/a", lambda name: Path(name).write_text("whole"))
    ...     Path(f"{folder}/a").read_text(), os.listdir(folder)
    ('whole', ['a'])
    """
    target = Path(path)
    if alone:
        for stale in target.parent.glob(f"{escape(target.name)}*.part"):
            stale.unlink()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    os.close(handle)
    try:
        fill(name)
        os.chmod(name, 0o644)
        _flush(name)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """A text file, whole or not at all."""
    write(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def _flush(name: str) -> None:
    """The bytes are on the disk before the file gets its name."""
    handle = os.open(name, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
