"""Rows that are kept as they are computed, so that a run that is interrupted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

CACHE = Path(__file__).parent / "cache"
Key = tuple[str | int | float, ...]


def work(path: Path, jobs: Iterable[Key], run: Callable[[Key], list[float]], text: str) -> dict[Key, list[float]]:
    """Job → its numbers; those that the file has are read, the others are computed and appended, a line of JSON each."""
    done: dict[Key, list[float]] = {}
    if path.exists():
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        done = {tuple(key): numbers for key, numbers in lines}
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = list(jobs)
    for key in tqdm([k for k in wanted if k not in done], desc=text):
        done[key] = run(key)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, done[key]], ensure_ascii=False) + "\n")
    return {key: done[key] for key in wanted}
