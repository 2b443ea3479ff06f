"""Files that are either the old ones or the new ones, and never half of either.

Everything that prunefn writes goes through here. A link stays, and the file behind it is replaced; a new file has the mode that
the umask says, an old one keeps its own; devices and pipes are written to, never replaced. What a killed process left beside a
file is removed when the file is written next: a writer holds a lock on its unfinished file, so that those of others that still
write are told apart.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from ..errors import PruneError

try:
    import fcntl
except ImportError:  # no POSIX system: nothing is locked, so that nothing is removed either
    fcntl = None

ENDING = ".part"
LONGEST = 200
"""Bytes of a name that fit, with the token and the ending, into the 255 of a file system."""
COPIED = 1 << 23
"""Bytes that are copied at once."""


def write(path: str | os.PathLike[str], fill: Callable[[str], object]) -> None:
    """Let something be written beside the file, then rename it: a reader never sees a part of it.

    Args:
        path: in a folder that exists.
        fill: writes the file whose name it is given.

    Raises:
        PruneError: `path` is a folder, a disk, a socket, or a pipe that nobody reads.
        OSError: the file cannot be written, such as on a full disk; what was there before is kept.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/a", lambda name: Path(name).write_text("whole"))
    ...     Path(f"{folder}/a").read_text(), os.listdir(folder)
    ('whole', ['a'])
    """
    place = _place(path)
    with _naming(path):
        if place.special:
            with tempfile.TemporaryDirectory() as folder:
                fill(os.path.join(folder, "whole"))
                _pour(Path(folder, "whole"), place.file)
            return
        _clear(place.file)
        part, handle = _locked_file(place.file, place.mode)
        try:
            fill(str(part))
            _rename(part, place)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write bytes, all of them or none."""
    write(path, lambda name: Path(name).write_bytes(data))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode())


@contextmanager
def workroom(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder beside a file that is about to be written, for those who make several; it is removed at the end.

    Raises:
        PruneError, OSError: as for `write`.
    """
    place = _place(path)
    beside = Path(tempfile.gettempdir(), place.file.name) if place.special else place.file
    with _naming(path):
        _clear(beside)
        room, handle = _locked_folder(beside)
    try:
        yield room
    finally:
        os.close(handle)
        shutil.rmtree(room, ignore_errors=True)


def move(file: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Give a finished file of a `workroom` its name, by the rules of `write`."""
    place = _place(path)
    with _naming(path):
        if place.special:
            _pour(Path(file), place.file)
        else:
            _rename(Path(file), place)


# ---- where it goes


class _Place(NamedTuple):
    """Behind all links."""

    file: Path
    mode: int | None
    """Of the file that is there; None: there is none."""
    special: bool
    """It is written to and not replaced."""


def _place(path: str | os.PathLike[str]) -> _Place:
    """Follow links, and see what is there.

    Raises:
        PruneError, OSError: as for `write`.
    """
    given = Path(path)
    try:
        there = os.stat(given)
    except FileNotFoundError:
        return _Place(Path(os.path.realpath(given)), None, False)
    kind, owned = there.st_mode, os.path.realpath(given.parent)
    if stat.S_ISDIR(kind):
        raise PruneError(f"{given} is a folder; give the name of a file in it")
    if stat.S_ISBLK(kind) or stat.S_ISSOCK(kind):
        raise PruneError(f"{given} is a {'disk' if stat.S_ISBLK(kind) else 'socket'}; give the name of a file")
    if not stat.S_ISREG(kind) or owned == "/dev" or owned.startswith("/proc/"):  # /dev/stdout may be any file
        return _Place(given, None, True)
    if not os.access(given, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is read-only", str(given))
    return _Place(Path(os.path.realpath(given)), stat.S_IMODE(kind), False)


def _pour(file: Path, target: Path) -> None:
    """Copy a finished file into a device or a pipe."""
    try:
        handle = os.open(
            target, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK
        )  # a pipe without a reader would wait for ever
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise PruneError(f"{target} is a pipe that nobody reads; start its reader first") from error
        raise
    os.set_blocking(handle, True)
    with open(handle, "wb") as sink, file.open("rb") as source:
        shutil.copyfileobj(source, sink, COPIED)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of the system name the file that was asked for, not the unfinished one beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not (error.filename is None or str(error.filename).endswith(ENDING)):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


# ---- unfinished files


def _prefix(target: Path) -> str:
    """How the names of its unfinished files begin; those of no other file do."""
    name = os.fsencode(target.name)
    if len(name) <= LONGEST:
        return target.name
    return f"{name[: LONGEST // 2].decode(errors='ignore')}.{blake2b(name, digest_size=16).hexdigest()}"


def _part(target: Path) -> Path:
    return target.parent / f"{_prefix(target)}.{token_hex(4)}{ENDING}"


def _locked_file(target: Path, mode: int | None) -> tuple[Path, int]:
    """A new file beside the target, held by a lock; with the mode, or as the umask says."""
    while True:
        part = _part(target)
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode | 0o600)
        _lock(handle, wait=True)
        if part.exists():  # else another took it for left over, before it was locked
            return part, handle
        os.close(handle)


def _locked_folder(target: Path) -> tuple[Path, int]:
    """The same of a folder."""
    while True:
        part = _part(target)
        part.mkdir(mode=0o700)
        with suppress(FileNotFoundError):
            handle = os.open(part, os.O_RDONLY)
            _lock(handle, wait=True)
            if part.exists():
                return part, handle
            os.close(handle)


def _lock(handle: int, *, wait: bool = False) -> bool:
    """Whether nobody else holds it; False where the file system knows no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _clear(target: Path) -> None:
    """Remove what writers of this file left that are dead."""
    shape = re.compile(rf"{re.escape(_prefix(target))}\.[0-9a-f]{{8}}{re.escape(ENDING)}")
    try:
        names = os.listdir(target.parent)
    except PermissionError:  # a folder may be writable and not readable
        return
    for name in filter(shape.fullmatch, names):
        part = target.parent / name
        with suppress(OSError):  # another is faster, or it is somebody else's
            handle = os.open(part, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if not _lock(handle):
                    continue
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            finally:
                os.close(handle)


def _rename(part: Path, place: _Place) -> None:
    """Bytes, owner and mode are on the disk before the file gets its name."""
    if place.mode is not None:
        with suppress(OSError):  # only root may give files away
            there = os.stat(place.file)
            os.chown(part, there.st_uid, there.st_gid)
        os.chmod(part, place.mode)  # after chown, which clears some bits
    handle = os.open(part, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(part, place.file)
