"""The command `prunefn report`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...errors import PruneError
from ...report.comparison import compare_runs, is_results
from ...report.page import page
from ...tables import terminal
from ..command import Job, Result
from ..sections import Config


def run(job: Job) -> Result:
    """Run the command."""
    if not job.files:
        raise PruneError("give the folder of a run, such as runs/pat")
    pages, met = [], {}
    for folder in map(Path, job.files):
        if is_results(folder):
            compared = compare_runs(folder)
            compared.write(folder)
            job.show(terminal(compared.table()))
            job.show(f"goal: {compared.goal}")
            if compared.skipped:
                job.note(f"left out, without an accuracy: {', '.join(compared.skipped)}")
            met |= {r.name: compared.met(r) for r in compared.runs}
        pages.append(str(page(folder)))
    job.show("Written: " + ", ".join(pages))
    return {"pages": pages, "goal_met": met}


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    yield "read the results of each folder, write its report.html"
