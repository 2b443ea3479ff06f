"""The commands `prunefn llm …`: models of transformers from folder to folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...by_name.tables import compensation_of, criterion_of, where_of
from ...display.units import quantity
from ...errors import PruneError
from ...pretrained.api import PrunedFolder, prune_pretrained
from ...pretrained.calibration import Cut
from ...pretrained.evaluation import folder_perplexity
from ...selection import budget
from ...tables import Table, terminal
from ...types import Budget
from ..command import Command, Job, Result
from ..llm_section import Llm
from ..sections import Config

FOLDER = "Folder of a model of transformers: config.json, safetensors, tokenizer."
READ = {"criterion": criterion_of, "compensation": compensation_of, "where": where_of}
"""Options that are written as text."""


def run_prune(job: Job) -> Result:
    """Prune a language model from a folder to a smaller folder that transformers loads: layer by layer, never whole in memory.

    Give --params 0.75 (equal sizes in all layers that meet it) or --target intermediate_size=1152,num_hidden_layers=24 (fields of
    config.json), and --text for calibration. The folder is loaded afresh and compared in the end. An interrupted run resumes when
    the same command is called again.
    """
    section, source = job.config.llm, _folder(job.files)
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
    job.show(f"Next: prunefn llm perplexity {done.folder} --text OTHER_TEXT")


def run_perplexity(job: Job) -> Result:
    """Measure the perplexity of a language model in a folder on a text that did not calibrate it."""
    section, source = job.config.llm, _folder(job.files)
    if section.text is None:
        raise PruneError("give --text, the file or folder of texts to measure on")
    found = folder_perplexity(
        source,
        Path(section.text),
        Cut(section.length, section.batch_size, section.sequences),
        dtype=dtype_of(section),
        progress=not job.quiet,
    )
    job.show(f"perplexity {found.perplexity:.2f} on {found.tokens} tokens in sequences of {section.length}")
    return {"perplexity": found.perplexity, "tokens": found.tokens, "length": section.length}


def budgets_of(section: Llm) -> list[Budget]:
    """Return the budgets of the section."""
    return [getattr(budget, n)(k) for n in ("params", "macs") if (k := getattr(section, n)) is not None]


def dtype_of(section: Llm) -> Any:
    """Return the type of the computation."""
    import torch

    return getattr(torch, section.dtype)


def _folder(files: list[str]) -> Path:
    """Return the one folder of the call.

    Raises:
        PruneError: there is none, or there are several.
    """
    if len(files) != 1:
        raise PruneError(f"give one folder of a model: {', '.join(files) or 'none is given'}")
    return Path(files[0])


def _folded(rows: list[list[str]], most: int = 12) -> list[list[str]]:
    """Return the rows, of which those in the middle of many are left out."""
    half = most // 2
    return rows if len(rows) <= most else [*rows[:half], [f"… {len(rows) - most} more", "", ""], *rows[-half:]]


def plan_prune(config: Config) -> Iterable[str]:
    """Yield the steps."""
    section = config.llm
    sizes = ", ".join(f"{n} = {v}" for n, v in section.target.items())
    kept = " and ".join(f"{b.keep:.0%} of the {b.quantity}" for b in budgets_of(section))
    yield "trace the model without its weights"
    yield f"measure layer by layer on {section.sequences or 'all'} sequences of {section.length} tokens of {section.text}"
    yield f"choose the units: {sizes or kept or 'nothing is given: --params or --target'}"
    yield "fit the contractions that lose inputs, layer by layer"
    yield f"write {config.out or 'the folder of --out'}, load it, and compare"


def plan_perplexity(config: Config) -> Iterable[str]:
    """Yield the steps."""
    section = config.llm
    yield f"load the model, read {section.text}"
    yield f"measure {section.sequences or 'all'} sequences of {section.length} tokens"


OPTIONS = {"sections": ("llm",), "own": ("llm",), "files": FOLDER, "files_name": "FOLDER", "model": False}
PRUNE = Command("prune", run_prune, plan_prune, whole=True, **OPTIONS)
PERPLEXITY = Command("perplexity", run_perplexity, plan_perplexity, whole=True, **OPTIONS)
