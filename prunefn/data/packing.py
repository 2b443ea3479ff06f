"""Batches of tokens: packed into sequences of one length, or one document each, padded to the longest of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..doors import door
from ..errors import PruneError
from ..stats.weights import IGNORED
from .tokens import Documents, Reader


class TextBatches(Sequence[dict[str, Tensor]]):
    """Batches of tokens as dicts: `input_ids`, `attention_mask` and `labels`, int64 [batch, length].

    Padding is on the right; its mask is 0 and its label −100. The batches are the same in every iteration. Sequences are tokens,
    int64 [tokens], or tokens and labels, [2, tokens].
    """

    def __init__(self, sequences: Sequence[Tensor], batch_size: int, pad_id: int) -> None:
        self.sequences, self.batch_size, self.pad_id = tuple(sequences), batch_size, pad_id

    def __len__(self) -> int:
        return -(-len(self.sequences) // self.batch_size)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return padded(self.sequences[i * self.batch_size : (i + 1) * self.batch_size], self.pad_id)

    @property
    def tokens(self) -> int:
        """Return the number of tokens, without padding."""
        return sum(s.shape[-1] for s in self.sequences)

    def __repr__(self) -> str:
        return f"TextBatches({len(self)} batches, {len(self.sequences)} sequences, {self.tokens} tokens)"


@door
def text(
    source: Documents,
    *,
    tokenizer: Any = None,
    length: int = 512,
    batch_size: int = 8,
    pack: bool = True,
    shuffle: bool = False,
    seed: int = 0,
    sequences: int | None = None,
    drop_last: bool = False,
    field: str | None = None,
    answers_only: bool = False,
    eos_id: int | None = None,
    pad_id: int | None = None,
    dtype: str = "uint16",
    progress: bool = False,
) -> TextBatches:
    """Return batches of tokens for `collect_stats`, `pipeline`, `recover`, `perplexity` and `train`; nothing is downloaded.

    A source is a path, or documents in memory. By the suffix of the file: `.jsonl` has a document in each line, in the field `text`
    or a chat in `messages`; `.npy` has tokens in one dim, or documents in rows, and so has each tensor of `.safetensors`; `.bin` has
    tokens as raw numbers; any other file is one document of text in UTF-8; a folder has several such files, in the order of their
    names. In memory: texts, chats (lists of
    dicts with role and content), or tokens.

    Args:
        source: a path, or documents.
        tokenizer: for text: a tokenizer of transformers (which chats need) or of tokenizers, or a function text → tokens.
        length: most tokens of a sequence.
        batch_size: sequences of a batch.
        pack: concatenate the documents and cut sequences of `length` tokens, the last one shorter, so that sequences may run over
            the ends of documents. False: each document is a sequence of its own, and a longer one is cut into several.
        shuffle: put the sequences into a random order, by the seed.
        seed: of the order; the same seed gives the same batches, whatever the state of torch's generators.
        sequences: use so many sequences, after shuffling; None: all.
        drop_last: leave out sequences that are shorter than `length`.
        field: of JSON lines.
        answers_only: give labels to the assistant's messages of chats alone, as for fine-tuning on answers; all other labels are −100.
        eos_id: token put after each document where they are packed; default: the tokenizer's `eos_token_id`, if it has one.
        pad_id: token of padding; default: the tokenizer's `pad_token_id`, else 0.
        dtype: numbers in `.bin` files.
        progress: show a progress bar.

    Raises:
        PruneError: a file is missing or malformed, a tokenizer is needed, or there are no sequences.

    >>> batches = text(["a cat", "a dog"], tokenizer=lambda words: [len(w) for w in words.split()], length=3, eos_id=9)
    >>> {name: t.tolist() for name, t in batches[0].items() if name != "attention_mask"}
    {'input_ids': [[1, 3, 9], [1, 3, 9]], 'labels': [[1, 3, 9], [1, 3, 9]]}
    """
    documents = Reader(tokenizer, field, dtype, answers_only).documents(source, progress=progress)
    if eos_id is None and not isinstance(source, Tensor):
        eos_id = getattr(tokenizer, "eos_token_id", None)
    every = packed(documents, length, eos_id) if pack else apart(documents, length)
    every = (s for s in every if s.shape[-1] == length) if drop_last else every
    cut = list(every if shuffle else islice(every, sequences))
    if not cut:
        raise PruneError(f"the source has no sequence of tokens{f' of length={length}' if drop_last else ''}")
    if shuffle:
        order = torch.randperm(len(cut), generator=torch.Generator().manual_seed(seed))
        cut = [cut[i] for i in order.tolist()]
    pad = getattr(tokenizer, "pad_token_id", None) if pad_id is None else pad_id
    return TextBatches(cut[:sequences], batch_size, 0 if pad is None else pad)


def packed(documents: Iterable[Tensor], length: int, eos_id: int | None) -> Iterator[Tensor]:
    """Yield sequences of one length from documents that follow each other; the last one may be shorter.

    >>> [s.tolist() for s in packed([torch.tensor([1, 2, 3]), torch.tensor([4])], 2, 0)]
    [[1, 2], [3, 0], [4, 0]]
    """
    waiting: list[Tensor] = []
    for document in documents:
        end = [] if eos_id is None else [torch.full((*document.shape[:-1], 1), eos_id)]
        joined = torch.cat([*waiting, document, *end], -1)
        whole = joined.shape[-1] // length * length
        yield from joined[..., :whole].split(length, -1) if whole else ()
        waiting = [joined[..., whole:].clone()] if whole < joined.shape[-1] else []
    yield from waiting


def apart(documents: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """Yield each document as sequences of its own, none longer than `length`; empty documents are skipped."""
    for document in documents:
        yield from document.split(length, -1) if document.shape[-1] else ()


def padded(sequences: Sequence[Tensor], pad_id: int) -> dict[str, Tensor]:
    """Return a batch of sequences, padded on the right to the longest.

    >>> {n: t.tolist() for n, t in padded([torch.tensor([5, 6]), torch.tensor([7])], 0).items()}
    {'input_ids': [[5, 6], [7, 0]], 'attention_mask': [[1, 1], [1, 0]], 'labels': [[5, 6], [7, -100]]}
    """
    longest = max(s.shape[-1] for s in sequences)
    ids = torch.full((len(sequences), longest), pad_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for i, s in enumerate(sequences):
        n, (tokens, own) = s.shape[-1], (s, s) if s.ndim == 1 else s
        ids[i, :n], mask[i, :n], labels[i, :n] = tokens, 1, own
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
