"""`recover_pretrained`: a pruned model in a folder is trained towards the dense one in another, into a third."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import distances
from .._version import __version__
from ..checkpoints.stream import WriteOptions, write_checkpoint
from ..checkpoints.stream_jobs import Source
from ..data.tokens import Documents
from ..distances import Distance
from ..distillation.dense_logits import DenseLogits
from ..distillation.recovery import Options, Recovered, Saving, recovered
from ..doors import door
from ..errors import PruneError
from ..files.folder import shard
from ..frozen_dict import FrozenDict
from ..modules.hf_config_file import CONFIG
from ..modules.layers import renaming
from ..stats.by_layer import held
from ..stats.fingerprint import fingerprint
from ..types import Batch
from .calibration import Cut, inputs_by_name, text_batches
from .confirmed import confirm_folder
from .evaluation import is_causal
from .opened import Opened, config_of, open_folder
from .repaired import write_values
from .work import Work

STATE, VALUES = "recovery.safetensors", "values.safetensors"


class RecoveredFolder(NamedTuple):
    """The result of `recover_pretrained`."""

    folder: Path
    before: float
    """Distance from the dense model on held-out batches, of the model in the source folder."""
    after: float
    """The same of the model in the new folder, before its tensors are rounded to their types."""
    difference: float | None
    """Largest difference of the outputs of the loaded model and of the program; None if the model did not fit into memory."""

    def __repr__(self) -> str:
        return f"RecoveredFolder({str(self.folder)!r}: held-out distance {self.before:.4g} → {self.after:.4g})"


@door
def recover_pretrained(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dense: str | os.PathLike[str] | DenseLogits,
    batches: Iterable[Batch] | None = None,
    text: Documents | None = None,
    distance: Distance | None = None,
    steps: int = 200,
    lr: float = 3e-4,
    weight_decay: float = 0.01,
    grad_clip: float | None = 1.0,
    held_out: float = 0.02,
    freeze: Sequence[str] | str = (),
    seed: int = 0,
    length: int = 512,
    batch_size: int = 8,
    sequences: int | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = 4_000_000_000,
    save_every: int = 50,
    progress: bool = True,
) -> RecoveredFolder:
    """Train a pruned model of transformers in a folder towards the dense one, without labels, and write a third folder.

    Both models are in memory, and AdamW's state beside the pruned one: 16 bytes a parameter of it in float32. The files keep names,
    layout and types; config, tokenizer and all other files are copied. In the end the folder is loaded afresh and compared with the
    program; if they differ, nothing is kept.

    A work folder beside `dst` keeps the state. The same call resumes there after an interruption; at the end, and after other
    errors, it is removed.

    Args:
        src: folder of the pruned model, such as one by `prune_pretrained`.
        dst: folder that is written; it must not exist.
        dense: folder of the dense model; or its logits on disk, by `save_logits` or `load_logits`.
        batches: of tokens: dicts by input name, or tensors. They are read once and kept.
        text: instead of batches: a file, a folder or texts, as in `pf.data.text`, for the tokenizer in `src`.
        distance: as in `recover`; default: `distances.tokens()` for causal language models, else `distances.auto()`.
        steps, lr, weight_decay, grad_clip, freeze, seed: as in `recover`.
        held_out: fraction of the batches that is held out, rounded up to whole batches; it is measured 20 times on the way.
        length: tokens of a sequence of `text`.
        batch_size: sequences of a batch of `text`.
        sequences: number of sequences of `text`; default: as many as one pass over them needs.
        dtype: in which it is computed and trained; the files keep their types.
        max_shard_bytes: size in bytes at which a new file begins.
        save_every: number of steps between two writes of the state.
        progress: show progress bars.

    Returns:
        The folder, the held-out distances before and after, and how the loaded model compares.

    Raises:
        PruneError: a folder is not that of a model, or has no tokenizer for `text`; `dst` exists; an option is out of range; the
            work folder is of another job; or what was written computes something else.
        BatchError: no batches, or too few to hold a part out; or the vocabularies of both models differ.

    >>> import tempfile, prunefn as pf
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    >>> tokens = torch.randint(50, (8, 4, 16), generator=torch.Generator().manual_seed(0))
    >>> with tempfile.TemporaryDirectory() as f:
    ...     LlamaForCausalLM(config).save_pretrained(f"{f}/dense")
    ...     options = {"batches": [*tokens], "progress": False}
    ...     _ = pf.prune_pretrained(f"{f}/dense", f"{f}/small", target={"intermediate_size": 32}, **options)
    ...     done = recover_pretrained(f"{f}/small", f"{f}/better", dense=f"{f}/dense", steps=20, **options)
    >>> done.after < done.before
    True
    """
    if (batches is None) == (text is None):
        raise PruneError("give batches= of tokens, or text=: one of the two")
    source, out = Path(src), Path(dst)
    _, cls = config_of(source)
    if text is not None:
        wanted = -int(-steps * batch_size / (1 - min(held_out, 0.9)) // 1)
        batches = text_batches(source, text, Cut(length, batch_size, sequences or wanted), progress=progress)
    named = inputs_by_name(batches or (), cls)
    opened = open_folder(source, named, dtype)
    teacher = dense if isinstance(dense, DenseLogits) else open_folder(Path(dense), named, dtype)
    if distance is None and is_causal(cls):
        distance = distances.tokens()
    options = Options(False, None, distance, steps, lr, weight_decay, grad_clip, held_out, freeze, seed)
    work = Work(out, _job(opened, teacher, options, named, max_shard_bytes))
    with work.removed_after_errors():
        found = _train(opened, teacher, options, named, Saving(progress, work.folder / STATE, save_every))
        return _write(found, opened, out, named[0], work, WriteOptions(progress, max_shard_bytes))


def _job(
    opened: Opened, teacher: Opened | DenseLogits, options: Options, named: list[dict[str, Tensor]], limit: int
) -> str:
    """Return a hash of all that a run depends on."""
    import transformers

    networks = [opened.stamp(), teacher.fingerprint if isinstance(teacher, DenseLogits) else teacher.stamp()]
    versions = (__version__, str(torch.__version__), transformers.__version__)
    settings = [repr(options._replace(distance=None)), _text_of(options.distance)]
    return fingerprint([networks, settings, str(opened.dtype), limit, named, versions])


def _text_of(distance: Distance | None) -> str:
    """Return a text that is the same in the next process, as the repr of a function is not."""
    name = getattr(distance, "__qualname__", None)
    return repr(distance) if name is None else f"{getattr(distance, '__module__', '')}.{name}"


def _train(
    opened: Opened, teacher: Opened | DenseLogits, options: Options, batches: list[dict[str, Tensor]], saving: Saving
) -> Recovered:
    """Return the recovered params of the model, in memory."""
    params = held(opened.params, opened.params)
    dense = teacher if isinstance(teacher, DenseLogits) else (held(teacher.params, teacher.params), teacher.spec)
    return recovered(params, batches, opened.spec, dense, options, saving)


def _write(
    found: Recovered, opened: Opened, out: Path, batch: Mapping[str, Tensor], work: Work, options: WriteOptions
) -> RecoveredFolder:
    """Write the params into a folder, load it, and compare."""
    spec, values, result = opened.spec, work.folder / VALUES, work.folder / "result"
    write_values(values, {n: t for n, t in found.params.items() if n in spec.parameters}, opened)
    rewritten = {n: (values, e) for n, e in shard(values).entries.items()}
    everything = {g: torch.ones(n, dtype=torch.bool) for g, n in spec.sizes.items() if g in spec.groups}
    config = (opened.folder / CONFIG).read_text("utf-8")
    rename = renaming(opened.model, spec)
    tensors = Source(opened.files, FrozenDict(rewritten), rename, opened.layout.at(opened.model), opened.stored)
    write_checkpoint(opened.folder, result, everything, spec, tensors, options._replace(config=config))
    difference = confirm_folder(result, opened, spec, rename, batch)
    work.finish(result, out)
    return RecoveredFolder(out, found.before, found.after, difference)
