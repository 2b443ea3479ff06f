"""What is computed, kept as it comes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..rows import append, read

RESULTS = Path(__file__).parent.parent / "results"
ROWS = RESULTS / "retention.jsonl"
DENSE = "dense"
"""The method that leaves a network as it is."""


class Job(NamedTuple):
    """A cell of the table, or one that is computed to choose."""

    network: str
    method: str
    variant: str
    """What is ranked against what: our scope, or the peer's ranking and layers."""
    keep: float
    seed: int
    part: str
    """`validation` or `test`."""


class Row(NamedTuple):
    """A job, done."""

    job: Job
    macs: int
    top1: float | None
    """None: the peer did not reach these MACs."""
    recalibrated: float | None
    """With BatchNorms measured anew; None where there are none."""


def rows() -> dict[Job, Row]:
    """Return what has been computed."""
    found = [Row(Job(*job), *rest) for job, *rest in read(ROWS)]
    return {r.job: r for r in found}


def add(row: Row) -> None:
    """Append a row at once."""
    append(ROWS, [list(row.job), *row[1:]])
