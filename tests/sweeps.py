"""Trials for tests of sweeps, in a module of their own: processes that are spawned import it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPACE: dict[str, Any] = {
    "macs_ratio": {"low": 0.0, "high": 0.9},
    "width": {"low": 1, "high": 9},
    "kind": ["a", "b"],
}
GRID: dict[str, Any] = {"macs_ratio": [0.1, 0.2, 0.4, 0.8], "kind": ["a", "b", "c"]}


def smooth(settings: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """A hill: best at half, and one kind is better than the others; a lower ratio costs more."""
    s, w = settings["macs_ratio"], settings.get("width", 3)
    top1 = 0.9 - (s - 0.5) ** 2 - 0.01 * abs(w - 3) + 0.05 * (settings["kind"] == "b")
    return {"top1": top1, "macs": 1e6 * (1 - s), "macs_removed": s, "points_lost": 100 * (0.95 - top1)}


def noted(settings: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """The same, which leaves its process in its folder, and takes a while, so that two processes share the work."""
    with open(folder / "ran", "a") as f:
        f.write(f"{os.getpid()}\n")
    time.sleep(0.15)
    return smooth(settings, folder)


def stuck(settings: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """The same; the third trial waits for ever, the first time that it runs."""
    begun = folder / "begun"
    if folder.name == "0002" and not begun.exists():
        begun.touch()
        time.sleep(600)
    return smooth(settings, folder)


if __name__ == "__main__":
    import sys

    from prunefn.sweep import sweep

    sweep(stuck, SPACE, folder=sys.argv[1], sampler="random", trials=6)
