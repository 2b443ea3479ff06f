"""What is computed, kept as it comes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..rows import append, read

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
    found = [Row(Job(*job), *rest) for job, *rest in read(ROWS)]
    return {r.job: r for r in found}


def add(row: Row) -> None:
    """Append a row at once."""
    append(ROWS, [list(row.job), *row[1:]])
