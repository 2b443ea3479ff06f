"""What is computed, kept as it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent.parent / "results"
ROWS = RESULTS / "after.jsonl"
DENSE = "dense"
"""The method that leaves a network as it is."""


class Job(NamedTuple):
    """A cell of the table, or one that is computed to choose."""

    network: str
    method: str
    variant: str
    keep: float
    """Share of the MACs."""
    steps: int
    """Of training."""
    distilled: bool
    lr: float
    seed: int
    """Of the calibration images and of training."""
    part: str
    """`validation` or `test`."""


class Row(NamedTuple):
    """A job, done."""

    job: Job
    macs: int
    top1: float | None
    """None: the method did not reach these MACs."""
    prune_seconds: float
    train_seconds: float


def rows() -> dict[Job, Row]:
    """Return what has been computed."""
    if not ROWS.exists():
        return {}
    lines = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    found = [Row(Job(*job), *rest) for job, *rest in lines]
    return {r.job: r for r in found}


def add(row: Row) -> None:
    """Append a row at once."""
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    with ROWS.open("a", encoding="utf-8") as file:
        file.write(json.dumps([list(row.job), *row[1:]]) + "\n")
