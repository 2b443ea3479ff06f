"""Write files atomically: a reader sees either the old content or the new, never half of it.

Everything that prunefn writes goes through here. A link stays, and the file that it points to is replaced; a new file gets the
mode of the umask, an existing one keeps its mode; devices and pipes are written to, never replaced. The next write of a file
removes the unfinished files that killed processes left beside it. Every writer locks its unfinished file, so that the unfinished
files of running writers are recognized and kept.
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
except ImportError:  # no POSIX system: without locks, no leftovers are removed either
    fcntl = None

ENDING = ".part"
"""Ending of the names of unfinished files."""
LONGEST = 200
"""Bytes of a name that fit, with the token and the ending, into the 255 bytes of a file system."""
COPIED = 1 << 23
"""Bytes that are copied at once."""


def write(path: str | os.PathLike[str], fill: Callable[[str], object]) -> None:
    """Write an unfinished file beside the target, then rename it, so that a reader never sees a part of it.

    Args:
        path: the target, in a folder that exists.
        fill: called with the name of the unfinished file, which it writes.

    Raises:
        PruneError: `path` is a folder, a disk, a socket, or a pipe that nobody reads.
        OSError: the file cannot be written, such as on a full disk; an existing file is kept.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/a", lambda name: Path(name).write_text("whole"))
    ...     Path(f"{folder}/a").read_text(), os.listdir(folder)
    ('whole', ['a'])
    """
    target = _resolve(path)
    with _name_in_errors(path):
        if target.special:
            with tempfile.TemporaryDirectory() as folder:
                fill(os.path.join(folder, "whole"))
                _copy_to_device(Path(folder, "whole"), target.file)
            return
        _remove_leftovers(target.file)
        part, handle = _locked_file(target.file, target.mode)
        try:
            fill(str(part))
            _rename(part, target)
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
    """Create a folder beside a target, for writers of several files, and remove it at the end.

    Raises:
        PruneError, OSError: as for `write`.
    """
    target = _resolve(path)
    beside = Path(tempfile.gettempdir(), target.file.name) if target.special else target.file
    with _name_in_errors(path):
        _remove_leftovers(beside)
        room, handle = _locked_folder(beside)
    try:
        yield room
    finally:
        os.close(handle)
        shutil.rmtree(room, ignore_errors=True)


def move(file: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Move a finished file of a `workroom` to its target, by the rules of `write`."""
    target = _resolve(path)
    with _name_in_errors(path):
        if target.special:
            _copy_to_device(Path(file), target.file)
        else:
            _rename(Path(file), target)


# ---- the target


class _Target(NamedTuple):
    """The file to write, with all links followed."""

    file: Path
    mode: int | None
    """Mode of the existing file; None if it does not exist."""
    special: bool
    """Whether the target is a device or a pipe, which is written to and not replaced."""


def _resolve(path: str | os.PathLike[str]) -> _Target:
    """Follow all links, and return the target with its kind and mode.

    Raises:
        PruneError, OSError: as for `write`.
    """
    requested = Path(path)
    try:
        mode = os.stat(requested).st_mode
    except FileNotFoundError:
        return _Target(Path(os.path.realpath(requested)), None, False)
    folder = os.path.realpath(requested.parent)
    if stat.S_ISDIR(mode):
        raise PruneError(f"{requested} is a folder; give the name of a file in it")
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise PruneError(f"{requested} is a {'disk' if stat.S_ISBLK(mode) else 'socket'}; give the name of a file")
    if not stat.S_ISREG(mode) or folder == "/dev" or folder.startswith("/proc/"):  # /dev/stdout may be any file
        return _Target(requested, None, True)
    if not os.access(requested, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is read-only", str(requested))
    return _Target(Path(os.path.realpath(requested)), stat.S_IMODE(mode), False)


def _copy_to_device(file: Path, target: Path) -> None:
    """Copy a finished file into a device or a pipe."""
    try:
        # without O_NONBLOCK, opening a pipe that has no reader would block for ever
        handle = os.open(target, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise PruneError(f"{target} is a pipe that nobody reads; start its reader first") from error
        raise
    os.set_blocking(handle, True)
    with open(handle, "wb") as sink, file.open("rb") as source:
        shutil.copyfileobj(source, sink, COPIED)


@contextmanager
def _name_in_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make errors of the system name the requested file, not the unfinished one beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not (error.filename is None or str(error.filename).endswith(ENDING)):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


# ---- unfinished files


def _prefix(target: Path) -> str:
    """Return how the names of the target's unfinished files begin, unlike those of any other file."""
    name = os.fsencode(target.name)
    if len(name) <= LONGEST:
        return target.name
    return f"{name[: LONGEST // 2].decode(errors='ignore')}.{blake2b(name, digest_size=16).hexdigest()}"


def _new_part_name(target: Path) -> Path:
    """Return a random name for an unfinished file of the target."""
    return target.parent / f"{_prefix(target)}.{token_hex(4)}{ENDING}"


def _locked_file(target: Path, mode: int | None) -> tuple[Path, int]:
    """Create and lock an unfinished file beside the target, with the mode, or that of the umask; return it and its handle."""
    while True:
        part = _new_part_name(target)
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode | 0o600)
        _lock(handle, wait=True)
        if part.exists():  # else another writer removed it as a leftover before it was locked
            return part, handle
        os.close(handle)


def _locked_folder(target: Path) -> tuple[Path, int]:
    """Create and lock an unfinished folder beside the target; return it and its handle."""
    while True:
        part = _new_part_name(target)
        part.mkdir(mode=0o700)
        with suppress(FileNotFoundError):
            handle = os.open(part, os.O_RDONLY)
            _lock(handle, wait=True)
            if part.exists():
                return part, handle
            os.close(handle)


def _lock(handle: int, *, wait: bool = False) -> bool:
    """Lock a handle, and return whether that worked; False if another process holds it or locks are not supported."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_leftovers(target: Path) -> None:
    """Remove the unfinished files of this target that no running writer has locked."""
    pattern = re.compile(rf"{re.escape(_prefix(target))}\.[0-9a-f]{{8}}{re.escape(ENDING)}")
    try:
        names = os.listdir(target.parent)
    except PermissionError:  # a folder may be writable and not readable
        return
    for name in filter(pattern.fullmatch, names):
        part = target.parent / name
        with suppress(OSError):  # another process removed it first, or it belongs to another user
            handle = os.open(part, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if not _lock(handle):
                    continue
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            finally:
                os.close(handle)


def _rename(part: Path, target: _Target) -> None:
    """Rename an unfinished file to its target after its bytes, owner and mode are on the disk."""
    if target.mode is not None:
        with suppress(OSError):  # only root may change the owner
            existing = os.stat(target.file)
            os.chown(part, existing.st_uid, existing.st_gid)
        os.chmod(part, target.mode)  # after chown, which clears the set-user-ID and set-group-ID bits
    handle = os.open(part, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(part, target.file)
