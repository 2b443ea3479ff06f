"""A cache of measurements on disk, so that a measurement can resume after it was interrupted."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import FormatError, PruneError
from .sealed_json import read_sealed, write_sealed

EVERY = 3.0
"""Seconds between two writes of the file."""
FORMAT = 2


def folder_of(cache: str | os.PathLike[str] | None, kind: str = "latency") -> Path:
    """Return the folder of a cache.

    Args:
        cache: the folder itself; default: the folder `kind` in PRUNEFN_CACHE if that is set, else in `prunefn` in the user's
            folder of caches (XDG_CACHE_HOME, or ~/.cache).
        kind: name of the cache.
    """
    if cache is not None:
        return Path(cache)
    user_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunefn"
    return Path(os.environ.get("PRUNEFN_CACHE") or user_folder) / kind


def file_name(*parts: str) -> str:
    """Return a file name that contains all parts.

    >>> file_name("AMD EPYC 7B13", "torch 2.15.0+cpu", "1 threads")
    'AMD-EPYC-7B13_torch-2.15.0-cpu_1-threads.json'
    """
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", p).strip("-") for p in parts) + ".json"


class Cache:
    """Measurements by key, in seconds, in memory and in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds = read(path)
        self.last_write = time.monotonic()

    def get(self, key: str, measure: Callable[[], float]) -> float:
        """Return the cached seconds of a key; measure and cache them if there are none."""
        if key not in self.seconds:
            self.seconds[key] = measure()
            if time.monotonic() - self.last_write > EVERY:
                self.write()
        return self.seconds[key]

    def write(self) -> None:
        """Write the file atomically; entries that another process has written meanwhile are kept."""
        self.seconds = {**read(self.path), **self.seconds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(self.path, {"format": FORMAT, "seconds": self.seconds})
        self.last_write = time.monotonic()


def read(path: Path) -> dict[str, float]:
    """Return the entries of a file; empty if the file does not exist.

    Raises:
        PruneError: the file is damaged, or no cache.
    """
    if not path.exists():
        return {}
    try:
        content = read_sealed(path)
        if content["format"] != FORMAT:
            raise FormatError(f"its format is {content['format']!r} instead of {FORMAT}")
        seconds = {str(k): float(v) for k, v in content["seconds"].items()}
        if bad := [k for k, v in seconds.items() if not (math.isfinite(v) and v >= 0)]:
            raise FormatError(f"{seconds[bad[0]]} seconds for {bad[0]!r}")
        return seconds
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise PruneError(
            f"the latency cache {path} is damaged, or no cache ({type(e).__name__}: {e}); delete it, and it is "
            "measured again, or give another folder by cache="
        ) from e
