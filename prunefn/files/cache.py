"""What was measured, on disk: a measurement that was stopped goes on where it was."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import PruneError
from .sealed_json import read_sealed, write_sealed

EVERY = 3.0
"""Seconds from one writing to the next."""
FORMAT = 2


def folder_of(cache: str | os.PathLike[str] | None, kind: str = "latency") -> Path:
    """The folder that is asked for, or the user's: PRUNEFN_CACHE if set, else prunefn in the system's folder of caches."""
    if cache is not None:
        return Path(cache)
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunefn"
    return Path(os.environ.get("PRUNEFN_CACHE") or users) / kind


def file_name(*parts: str) -> str:
    """A file name that tells these apart.

    >>> file_name("AMD EPYC 7B13", "torch 2.15.0+cpu", "1 threads")
    'AMD-EPYC-7B13_torch-2.15.0-cpu_1-threads.json'
    """
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", p).strip("-") for p in parts) + ".json"


class Cache:
    """Key → seconds, in memory and in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds = read(path)
        self.written = time.monotonic()

    def get(self, key: str, measure: Callable[[], float]) -> float:
        """What is known, or else measured now."""
        if key not in self.seconds:
            self.seconds[key] = measure()
            if time.monotonic() - self.written > EVERY:
                self.write()
        return self.seconds[key]

    def write(self) -> None:
        """To another file first, which is then renamed; what another process has written meanwhile stays."""
        self.seconds = {**read(self.path), **self.seconds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(self.path, {"format": FORMAT, "seconds": self.seconds})
        self.written = time.monotonic()


def read(path: Path) -> dict[str, float]:
    """The entries of a file; none where there is no file.

    Raises:
        PruneError: it is damaged, or something else.
    """
    if not path.exists():
        return {}
    try:
        found = read_sealed(path)
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r} instead of {FORMAT}")
        seconds = {str(k): float(v) for k, v in found["seconds"].items()}
        if bad := [k for k, v in seconds.items() if not (math.isfinite(v) and v >= 0)]:
            raise ValueError(f"{seconds[bad[0]]} seconds for {bad[0]!r}")
        return seconds
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise PruneError(
            f"the latency cache {path} is damaged, or is something else ({type(e).__name__}: {e}); delete it, and it is "
            "measured again, or give another folder by cache="
        ) from e
