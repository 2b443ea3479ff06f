"""The command `prunefn llm recover`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...errors import PruneError
from ...pretrained.recovered import recover_pretrained
from ..command import Job, Result
from ..llm_section import Llm, dtype_of, folder_of
from ..sections import Config


def run(job: Job) -> Result:
    """Run the command."""
    section, source = job.config.llm, folder_of(job.files)
    if job.config.out is None:
        raise PruneError("give --out, the folder to write")
    if section.dense is None:
        raise PruneError("give --dense, the folder of the dense model")
    if section.text is None:
        raise PruneError("give --text, the file or folder of texts to train on")
    done = recover_pretrained(
        source,
        job.config.out,
        dense=section.dense,
        text=Path(section.text),
        steps=section.steps,
        lr=section.lr,
        seed=section.seed,
        length=section.length,
        batch_size=section.batch_size,
        sequences=_sequences(section),
        dtype=dtype_of(section),
        progress=not job.quiet,
    )
    job.show(f"distance from the dense model on held-out sequences: {done.before:.4g} → {done.after:.4g}")
    if done.difference is not None:
        job.show(f"{done.folder} loads, and its outputs are those of the program within {done.difference:.1e}")
    job.show(f"Next: prunefn llm perplexity {done.folder} --text OTHER_TEXT")
    return {
        "folder": str(done.folder),
        "before": done.before,
        "after": done.after,
        "difference": done.difference,
        "steps": section.steps,
    }


def _sequences(section: Llm) -> int | None:
    """Return the number of sequences, if the user has said it."""
    return section.sequences if "sequences" in section.model_fields_set else None


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    section = config.llm
    size = section.batch_size * section.length
    yield f"load the model, and the dense one of {section.dense or '--dense'}"
    yield f"train {section.steps} steps of {size} tokens of {section.text or '--text'} towards it; a fiftieth is held out"
    yield f"write {config.out or 'the folder of --out'}, load it, and compare"
