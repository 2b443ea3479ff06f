"""The command `prunefn report`."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import PruneError
from ...report.page import page
from ..command import Command, Job, Result
from ..sections import Config


def run(job: Job) -> Result:
    """Write report.html into folders of results: everything that is there, on one page that needs nothing beside it."""
    from pathlib import Path

    if not job.files:
        raise PruneError("give the folder of a run, such as runs/pat")
    pages = [str(page(Path(folder))) for folder in job.files]
    job.show("Written: " + ", ".join(pages))
    return {"pages": pages}


def plan(config: Config) -> Iterable[str]:
    """Lines."""
    yield "read the results of each folder, write its report.html"


COMMAND = Command("report", run, plan, (), files="Folders of results.", model=False)
