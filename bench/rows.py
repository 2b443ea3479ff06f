"""Rows that are kept as they are computed, so that a run that is interrupted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

CACHE = Path(__file__).parent / "cache"
Key = tuple[str | int | float, ...]
Found = TypeVar("Found")


def work(path: Path, jobs: Iterable[Key], run: Callable[[Key], Found], text: str) -> dict[Key, Found]:
    """Job → what was found, as JSON keeps it; what the file has is read, the rest is computed and appended, a line of JSON each."""
    done: dict[Key, Found] = {tuple(key): found for key, found in read(path)}
    wanted = list(jobs)
    for key in tqdm([k for k in wanted if k not in done], desc=text):
        done[key] = run(key)
        append(path, [key, done[key]])
    return {key: done[key] for key in wanted}


def read(path: Path) -> list[Any]:
    """Return the values of all lines of a file of JSON lines; none if it is not there."""
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def append(path: Path, value: Any) -> None:
    """Append a value to a file of JSON lines at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")
