"""The command `prunefn llm perplexity`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...errors import PruneError
from ...pretrained.calibration import Cut
from ...pretrained.evaluation import folder_perplexity
from ..command import Job, Result
from ..llm_section import dtype_of, folder_of
from ..sections import Config


def run(job: Job) -> Result:
    """Run the command."""
    section, source = job.config.llm, folder_of(job.files)
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


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    section = config.llm
    yield f"load the model, read {section.text}"
    yield f"measure {section.sequences or 'all'} sequences of {section.length} tokens"
