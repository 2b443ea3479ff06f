"""List the images of a folder of classes, with a cache on disk, because listing ImageNet's 1.3 million files takes minutes.

The cached list of a class is valid as long as its folders keep their modification times; any file or folder that is added,
removed or renamed changes one. A class that changed within two seconds before it was listed is not cached, because the coarse
time stamps of a file system may not show a later change.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..errors import FormatError, PruneError, warn
from ..files.cache import file_name, folder_of
from ..files.sealed_json import read_sealed, write_sealed

FORMAT = 2
SETTLED = 2 * 10**9
"""Nanoseconds that must have passed since the last change of a class for its list to be cached."""


class Listed(NamedTuple):
    """The list of a class: folders with modification times in nanoseconds, and images; paths are relative to the root."""

    folders: dict[str, int]
    files: list[str]


def samples(
    root: Path, classes: Mapping[str, int], extensions: tuple[str, ...], cache: str | os.PathLike[str] | None = None
) -> list[tuple[str, int]]:
    """Return path and class number of every image, by class name and then by path, in the order of torchvision's ImageFolder.

    Args:
        root: a folder with one folder per class.
        classes: name → number.
        extensions: endings of image files, in lower case, with the dot.
        cache: folder of the cached lists; default: the user's cache folder.

    Raises:
        PruneError: a class has no images, or the cached list is damaged.
    """
    root = root.resolve()
    path = cache_file(root, cache)
    cached, begin = _read(path, root), time.time_ns()
    listed = {c: cached[c] for c in classes if c in cached and _is_current(root, cached[c])}
    todo = [c for c in classes if c not in listed]
    for name in tqdm(todo, desc=f"listing {root.name}", unit=" classes", leave=False, disable=None):
        listed[name] = scan(root, name, extensions)
    settled = {c: v for c, v in listed.items() if max(v.folders.values()) < begin - SETTLED}
    if settled != cached:
        _write(path, root, settled)
    return [(os.path.join(root, file), classes[c]) for c in sorted(classes) for file in listed[c].files]


def scan(root: Path, name: str, extensions: Iterable[str]) -> Listed:
    """List a class, following links.

    Raises:
        PruneError: the class has no images.
    """
    endings = tuple(extensions)
    folders, files = {}, []
    for folder, _, names in sorted(os.walk(root / name, followlinks=True)):
        relative = os.path.relpath(folder, root)
        folders[relative] = os.stat(folder).st_mtime_ns
        files += [os.path.join(relative, n) for n in sorted(names) if n.lower().endswith(endings)]
    if not files:
        raise PruneError(
            f"the class folder {root / name} has no images ({', '.join(endings)}); remove it, on both sides, or fill it"
        )
    return Listed(folders, files)


def cache_file(root: Path, cache: str | os.PathLike[str] | None) -> Path:
    """Return the path of the cached list of a root."""
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return folder_of(cache, "images") / file_name(root.parent.name, root.name, digest)


def _is_current(root: Path, listed: Listed) -> bool:
    """Return whether no folder has changed since it was listed."""
    try:
        return all(os.stat(root / folder).st_mtime_ns == mtime for folder, mtime in listed.folders.items())
    except OSError:
        return False


def _read(path: Path, root: Path) -> dict[str, Listed]:
    """Return the cached lists by class; empty if the file does not exist.

    Raises:
        PruneError: the file is damaged, or no list of this root.
    """
    if not path.exists():
        return {}
    try:
        content = read_sealed(path)
        if (content["format"], content["root"]) != (FORMAT, str(root)):
            raise FormatError(
                f"format {content['format']!r} of {content['root']!r} instead of format {FORMAT} of {str(root)!r}"
            )
        cached = {
            name: Listed({str(k): int(v) for k, v in entry["folders"].items()}, [str(f) for f in entry["files"]])
            for name, entry in content["classes"].items()
        }
        for name, listed in cached.items():
            _check_inside(name, [*listed.folders, *listed.files])
        return cached
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise PruneError(
            f"the list of images {path} is damaged, or no such list ({type(e).__name__}: {e}); delete it, and "
            f"{root} is listed again, or give another folder by cache="
        ) from e


def _check_inside(name: str, paths: Iterable[str]) -> None:
    """Check that a list names no path outside of its class.

    Raises:
        FormatError: it does; names the path.
    """
    for path in paths:
        parts = Path(path).parts
        if parts[:1] != (name,) or ".." in parts:
            raise FormatError(f"the path {path!r} is not in the folder of class {name!r}")


def _write(path: Path, root: Path, listed: Mapping[str, Listed]) -> None:
    """Write the lists atomically; warn if the file cannot be written."""
    content = {"format": FORMAT, "root": str(root), "classes": {c: v._asdict() for c, v in listed.items()}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, content)
    except OSError as e:
        warn(
            f"the list of images of {root} cannot be kept in {path.parent} ({e.strerror}) and is made again every time; "
            "set PRUNEFN_CACHE to a folder that can be written to, or give it by cache=",
        )
