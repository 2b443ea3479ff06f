"""The sample list of a folder of classes, kept on disk: listing ImageNet's 1.3 million files takes minutes.

The list of a class holds as long as no folder of it has another modification time; any file or folder that is added, removed
or renamed changes one. What was changed within two seconds before it was listed is not kept, since a later change may not
show in the time stamps of a coarse file system.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..errors import PruneError, warn
from ..files.cache import file_name, folder_of
from ..files.sealed_json import read_sealed, write_sealed

FORMAT = 2
SETTLED = 2 * 10**9
"""Nanoseconds."""


class Listed(NamedTuple):
    """A class: its folders with their modification times in nanoseconds, and its images; paths are relative to the root."""

    folders: dict[str, int]
    files: list[str]


def samples(
    root: Path, classes: Mapping[str, int], extensions: tuple[str, ...], cache: str | os.PathLike[str] | None = None
) -> list[tuple[str, int]]:
    """Path and class number of every image, by class name and then by path, as torchvision's ImageFolder orders them.

    Args:
        root: a folder with one folder per class.
        classes: name → number.
        extensions: endings of image files, in lower case, with the dot.
        cache: folder of the kept lists; the user's unless given.

    Raises:
        PruneError: a class has no images, or the kept list is damaged.
    """
    root = root.resolve()
    path = cache_file(root, cache)
    known, begin = _read(path, root), time.time_ns()
    listed = {c: known[c] for c in classes if c in known and _holds(root, known[c])}
    todo = [c for c in classes if c not in listed]
    for name in tqdm(todo, desc=f"listing {root.name}", unit=" classes", leave=False, disable=None):
        listed[name] = scan(root, name, extensions)
    kept = {c: v for c, v in listed.items() if max(v.folders.values()) < begin - SETTLED}
    if kept != known:
        _write(path, root, kept)
    return [(os.path.join(root, file), classes[c]) for c in sorted(classes) for file in listed[c].files]


def scan(root: Path, name: str, extensions: Iterable[str]) -> Listed:
    """List a class; links are followed.

    Raises:
        PruneError: it has no images.
    """
    endings = tuple(extensions)
    folders, files = {}, []
    for folder, _, names in sorted(os.walk(root / name, followlinks=True)):
        below = os.path.relpath(folder, root)
        folders[below] = os.stat(folder).st_mtime_ns
        files += [os.path.join(below, n) for n in sorted(names) if n.lower().endswith(endings)]
    if not files:
        raise PruneError(
            f"the class folder {root / name} has no images ({', '.join(endings)}); remove it, on both sides, or fill it"
        )
    return Listed(folders, files)


def cache_file(root: Path, cache: str | os.PathLike[str] | None) -> Path:
    """Where the list of a root is kept."""
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return folder_of(cache, "images") / file_name(root.parent.name, root.name, digest)


def _holds(root: Path, listed: Listed) -> bool:
    """Whether every folder is as it was."""
    try:
        return all(os.stat(root / folder).st_mtime_ns == then for folder, then in listed.folders.items())
    except OSError:
        return False


def _read(path: Path, root: Path) -> dict[str, Listed]:
    """What is kept; nothing where there is no file.

    Raises:
        PruneError: it is damaged, or something else.
    """
    if not path.exists():
        return {}
    try:
        found = read_sealed(path)
        if (found["format"], found["root"]) != (FORMAT, str(root)):
            raise ValueError(
                f"format {found['format']!r} of {found['root']!r} instead of format {FORMAT} of {str(root)!r}"
            )
        known = {
            name: Listed({str(k): int(v) for k, v in entry["folders"].items()}, [str(f) for f in entry["files"]])
            for name, entry in found["classes"].items()
        }
        for name, listed in known.items():
            _check_inside(name, [*listed.folders, *listed.files])
        return known
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise PruneError(
            f"the list of images {path} is damaged, or is something else ({type(e).__name__}: {e}); delete it, and "
            f"{root} is listed again, or give another folder by cache="
        ) from e


def _check_inside(name: str, paths: Iterable[str]) -> None:
    """A list names nothing outside its class.

    Raises:
        ValueError: names a path that is.
    """
    for path in paths:
        parts = Path(path).parts
        if parts[:1] != (name,) or ".." in parts:
            raise ValueError(f"the path {path!r} is not in the folder of class {name!r}")


def _write(path: Path, root: Path, listed: Mapping[str, Listed]) -> None:
    """To another file first, which is then renamed. Where it cannot be written, a warning says so."""
    content = {"format": FORMAT, "root": str(root), "classes": {c: v._asdict() for c, v in listed.items()}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, content)
    except OSError as e:
        warn(
            f"the list of images of {root} cannot be kept in {path.parent} ({e.strerror}) and is made anew every time; "
            "set PRUNEFN_CACHE to a folder that can be written to, or give it by cache=",
        )
