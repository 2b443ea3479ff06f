"""What a model in a folder is worth: its perplexity on a text."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from ..data.tokens import Documents
from ..errors import PruneError
from ..tokens.measuring import perplexity
from .calibration import Cut, text_batches
from .confirmed import load_folder
from .opened import config_of


class Evaluation(NamedTuple):
    """A perplexity, and of how many tokens it is."""

    perplexity: float
    tokens: int


def is_causal(cls: type) -> bool:
    """Return whether a class of transformers predicts the next token."""
    import transformers

    return cls in transformers.MODEL_FOR_CAUSAL_LM_MAPPING.values()


def folder_perplexity(folder: Path, text: Documents, cut: Cut, *, dtype: torch.dtype, progress: bool) -> Evaluation:
    """Load the model of a folder as its users do, and return its perplexity on a text.

    Raises:
        PruneError: the folder is not that of a causal language model, does not load, or has no tokenizer.
    """
    _, cls = config_of(folder)
    if not is_causal(cls):
        raise PruneError(
            f"{folder} has a {cls.__name__}, which does not predict the next token; a causal language model does"
        )
    batches = text_batches(folder, text, cut, progress=progress)
    module = load_folder(folder, cls, dtype)
    return Evaluation(perplexity(module, batches, progress=progress), batches.tokens)
