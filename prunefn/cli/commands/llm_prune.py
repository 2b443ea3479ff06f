"""The command `prunefn llm prune`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...by_name.tables import compensation_of, criterion_of, where_of
from ...display.units import quantity
from ...errors import PruneError
from ...pretrained.api import OF_EXPERTS, PrunedFolder, prune_pretrained
from ...selection import budget
from ...tables import Table, terminal
from ...types import Budget
from ..command import Job, Result
from ..llm_section import Llm, dtype_of, folder_of
from ..sections import Config

READ = {"criterion": criterion_of, "compensation": compensation_of, "where": where_of}
"""Options that are written as text."""


def run(job: Job) -> Result:
    """Run the command."""
    section, source = job.config.llm, folder_of(job.files)
    if job.config.out is None:
        raise PruneError("give --out, the folder to write")
    if section.text is None:
        raise PruneError("give --text, the file or folder of texts that calibrates the model")
    options = {n: read(text) for n, read in READ.items() if (text := getattr(section, n)) is not None}
    done = prune_pretrained(
        source,
        job.config.out,
        text=Path(section.text),
        budget=budgets_of(section) or None,
        target=section.target or None,
        round_to=section.round_to,
        length=section.length,
        batch_size=section.batch_size,
        sequences=section.sequences,
        dtype=dtype_of(section),
        progress=not job.quiet,
        **options,
    )
    _show(done, job)
    return {
        "folder": str(done.folder),
        "params": done.after.params,
        "params_dense": done.before.params,
        "macs": done.after.macs,
        "macs_dense": done.before.macs,
        "sizes": {g: list(pair) for g, pair in done.sizes.items()},
        "rewritten": done.rewritten,
        "difference": done.difference,
    }


def _show(done: PrunedFolder, job: Job) -> None:
    """Show the sizes, the costs, and how the loaded model compares."""
    rows = [[g, str(n), str(left)] for g, (left, n) in done.sizes.items()]
    job.show(terminal(Table("", ["group", "units", "left"], _folded(rows))))
    before, after = done.before, done.after
    job.show(
        f"{quantity(before.params, 'params')} → {quantity(after.params, 'params')} ({after.params / before.params:.1%}), "
        f"{quantity(before.macs, 'MACs')} → {quantity(after.macs, 'MACs')} ({after.macs / before.macs:.1%}) a sequence; "
        f"{done.rewritten} tensors fitted anew"
    )
    if done.difference is None:
        job.note(
            f"{done.folder} does not fit into memory, so that it was not loaded; what was written was not compared"
        )
    else:
        job.show(f"{done.folder} loads, and its outputs are those of the pruned program within {done.difference:.1e}")
    job.show(
        f"Next: prunefn llm recover {done.folder} --dense {job.files[0]} --text TEXT --out BETTER, or prunefn llm perplexity"
    )


def budgets_of(section: Llm) -> list[Budget]:
    """Return the budgets of the section."""
    return [getattr(budget, n)(k) for n in ("params", "macs") if (k := getattr(section, n)) is not None]


def _folded(rows: list[list[str]], most: int = 12) -> list[list[str]]:
    """Return the rows, of which those in the middle of many are left out."""
    half = most // 2
    return rows if len(rows) <= most else [*rows[:half], [f"… {len(rows) - most} more", "", ""], *rows[-half:]]


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    section = config.llm
    sizes = ", ".join(f"{n} = {v}" for n, v in section.target.items())
    kept = " and ".join(f"{b.keep:.0%} of the {b.quantity}" for b in budgets_of(section))
    yield "trace the model without its weights"
    yield f"measure layer by layer on {section.sequences or 'all'} sequences of {section.length} tokens of {section.text}"
    experts = next((n for n in OF_EXPERTS if (section.criterion or "").startswith(n)), OF_EXPERTS[0])
    by = f"; experts by {experts}" if any("experts" in n for n in section.target) else ""
    yield f"choose the units: {sizes or kept or 'nothing is given: --params or --target'}{by}"
    yield "fit the contractions that lose inputs, layer by layer"
    yield f"write {config.out or 'the folder of --out'}, load it, and compare"
