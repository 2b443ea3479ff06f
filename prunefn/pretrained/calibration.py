"""Batches for a model in a folder: texts through its own tokenizer, or batches of the user."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._extras import needs
from ..data.packing import TextBatches, text
from ..data.tokens import Documents
from ..errors import BatchError, PruneError
from ..program.batches import each
from ..types import Batch

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files of which a tokenizer has at least one."""
MASK = "attention_mask"


class Cut(NamedTuple):
    """How texts are cut into batches."""

    length: int = 512
    batch_size: int = 8
    sequences: int | None = 64


def text_batches(folder: Path, source: Documents, cut: Cut, *, progress: bool) -> TextBatches:
    """Return batches of tokens of texts, by the tokenizer of a folder; a shorter last sequence is left out.

    Raises:
        PruneError: the folder has no tokenizer, or the source no text.
    """
    with needs("hf", "a tokenizer of transformers"):
        import transformers
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise PruneError(
            f"{folder} has no tokenizer ({', '.join(TOKENIZERS)}); put it there, or give batches of tokens"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise PruneError(f"the tokenizer of {folder} cannot be read: {str(error)[:300]}") from error
    found = text(
        source,
        tokenizer=tokenizer,
        length=cut.length,
        batch_size=cut.batch_size,
        sequences=cut.sequences,
        progress=progress,
    )
    whole = [s for s in found.sequences if len(s) == cut.length]
    return TextBatches(whole, cut.batch_size, found.pad_id) if whole else found


def inputs_by_name(batches: Iterable[Batch], cls: Any) -> list[dict[str, Tensor]]:
    """Return batches as dicts of what the class takes, without labels; a mask that masks nothing is left out.

    Args:
        batches: dicts by input name, or tensors, or tuples that begin with one: the model's main input.
        cls: a class of transformers.

    Raises:
        BatchError: there are no batches, or one is of another kind.
    """
    accepted = inspect.signature(cls.forward).parameters.keys() - {"labels"}
    main = cls.main_input_name
    out = []
    for batch in each(batches):
        first = batch if isinstance(batch, Mapping | Tensor) else batch[0] if len(batch) else None
        named = {main: first} if isinstance(first, Tensor) else first
        if not isinstance(named, Mapping) or not isinstance(named.get(main), Tensor):
            raise BatchError(
                f"a batch is a {type(batch).__name__} without {main!r}; give a dict by input name, or a tensor"
            )
        out.append({n: t for n, t in named.items() if n in accepted and isinstance(t, Tensor)})
    if all(bool((batch[MASK] == 1).all()) for batch in out if MASK in batch):
        out = [{n: t for n, t in batch.items() if n != MASK} for batch in out]
    else:
        out = [{MASK: torch.ones_like(batch[main]), **batch} for batch in out]
    return out
