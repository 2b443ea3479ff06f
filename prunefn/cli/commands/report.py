"""The command `prunefn report`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...errors import PruneError
from ...report.beside import BESIDE, beside
from ...report.comparison import compare_runs, is_results
from ...report.page import page
from ...tables import terminal
from ..command import Job, Result
from ..sections import Config


def run(job: Job) -> Result:
    """Run the command."""
    if not job.files:
        raise PruneError("give the folder of a run, such as runs/pat")
    tables, pages, met = job.config.report.beside, [], {}
    for path in map(Path, job.files):
        if path.is_file():
            if not tables:
                raise PruneError(f"{path} is a file: give its folder, or --beside vbp_table_10 for a log")
            pages.append(str(beside(path, tables)))
            continue
        if is_results(path):
            compared = compare_runs(path)
            compared.write(path)
            job.show(terminal(compared.table()))
            job.show(f"goal: {compared.goal}")
            if compared.skipped:
                job.note(f"left out, without an accuracy: {', '.join(compared.skipped)}")
            met |= {r.name: compared.met(r) for r in compared.runs}
        pages.append(str(page(path, beside=tables)))
        pages += [str(path / BESIDE)] if tables else []
    job.show("Written: " + ", ".join(pages))
    return {"pages": pages, "goal_met": met}


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    yield "read the results of each folder, write its report.html"
    if config.report.beside:
        yield f"set its pruned networks beside {', '.join(config.report.beside)}: published.html"
