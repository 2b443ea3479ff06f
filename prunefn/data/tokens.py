"""Tokens of documents: text files, JSON lines, chats, and files of tokens; nothing is downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..display.progress import progress_bar
from ..errors import FormatError, PruneError, nearest
from ..files.tensors import Reader as Safetensors
from ..stats.weights import IGNORED

Tokenizer = Callable[[str], Any]
"""Text → tokens: a tokenizer of transformers or tokenizers, or any function that returns whole numbers."""
Documents = str | os.PathLike[str] | Iterable[Any]
"""A path, or documents in memory: texts, chats (lists of messages), or tokens."""
JSON_LINES = (".jsonl", ".ndjson")
TOKENS = (".npy", ".bin", ".safetensors")
MESSAGES = "messages"
"""Field of a chat in JSON lines: a list of dicts with `role` and `content`."""


class Reader:
    """Reads documents as tokens.

    Args:
        tokenizer: needed for text.
        field: of JSON lines; None: `text`, else `messages`.
        dtype: numbers in a `.bin` file.
        answers_only: whether labels are those of the assistant's messages alone, so that all documents are chats.
    """

    def __init__(self, tokenizer: Tokenizer | None, field: str | None, dtype: str, answers_only: bool = False) -> None:
        self.tokenizer, self.field, self.dtype, self.answers_only = tokenizer, field, dtype, answers_only

    def documents(self, source: Documents, *, progress: bool) -> Iterator[Tensor]:
        """Yield the tokens of each document, int64 [tokens]; with `answers_only`, tokens and labels, [2, tokens].

        Raises:
            PruneError: a file is missing, empty or malformed, or the tokenizer is missing or gives no tokens; names the document.
        """
        read = self._files(source) if isinstance(source, str | os.PathLike) else enumerate_texts(source)
        for place, value in progress_bar(read, text="tokens", unit=" documents", show=progress):
            yield self._answers(value, place) if self.answers_only else self._tokens(value, place)

    def _files(self, source: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
        path = Path(source)
        if path.is_dir():
            files = sorted(
                p for p in path.rglob("*") if p.is_file() and p.suffix in (*JSON_LINES, *TOKENS, ".txt", ".md")
            )
            if not files:
                raise PruneError(f"the folder {path} has no .txt, .md, {', '.join((*JSON_LINES, *TOKENS))} file")
            for file in files:
                yield from self._files(file)
        elif not path.is_file():
            raise PruneError(
                f"there is no file {path}; give the path of a text, of JSON lines or of tokens, or documents in a list"
            )
        elif path.suffix in JSON_LINES:
            yield from self._lines(path)
        elif path.suffix in TOKENS:
            yield from self._arrays(path)
        else:
            yield str(path), _text_of(path)

    def _lines(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Yield the text or chat of each line of a file of JSON lines; empty lines are skipped."""
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                place = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise PruneError(f"{place} is no JSON ({error})") from error
                if not isinstance(row, Mapping):
                    raise PruneError(
                        f"{place} is a {type(row).__name__}; it must be an object with a field of text or messages"
                    )
                name = self.field or ("text" if "text" in row else MESSAGES)
                if name not in row:
                    raise PruneError(f"{place} has no field {name!r}{nearest(name, row)}; give field=")
                yield place, row[name]

    def _arrays(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Yield the tokens of a file without reading them all: one document, or one for each row."""
        try:
            arrays = dict(_tensors_of(path)) if path.suffix == ".safetensors" else {str(path): self._array(path)}
        except (FormatError, ValueError, TypeError, OSError) as error:
            raise PruneError(
                f"{path} is no array of tokens ({error}); a .bin file has numbers of dtype={self.dtype!r}"
            ) from error
        for name, array in arrays.items():
            if array.ndim not in (1, 2) or array.dtype.kind not in "iu":
                raise PruneError(
                    f"{name} has shape {array.shape} and type {array.dtype}; it must have whole numbers in 1 or 2 dims"
                )
            for i, row in enumerate(array[None] if array.ndim == 1 else array):
                yield f"{name}, row {i}", row

    def _array(self, path: Path) -> Any:
        return np.load(path, mmap_mode="r") if path.suffix == ".npy" else np.memmap(path, np.dtype(self.dtype), "r")

    def _tokens(self, value: Any, place: str) -> Tensor:
        """Return the tokens of a text, a chat or an array."""
        if isinstance(value, str):
            encoded = self._call(self._needed(place), value)
        elif isinstance(value, list | tuple) and value and all(isinstance(m, Mapping) for m in value):
            encoded = self._chat(list(value), place)
        else:
            encoded = value
        return self._plain(encoded, place)

    def _plain(self, encoded: Any, place: str) -> Tensor:
        """Return what a tokenizer gives as tokens, int64 [tokens]."""
        ids = encoded["input_ids"] if isinstance(encoded, Mapping) else getattr(encoded, "ids", encoded)
        try:
            tokens = torch.from_numpy(np.array(ids)) if not isinstance(ids, Tensor) else ids.detach().cpu()
        except (TypeError, ValueError):
            tokens = torch.zeros(0)
        if tokens.ndim == 2 and len(tokens) == 1:
            tokens = tokens[0]  # of a tokenizer that returns batches
        if tokens.ndim != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool or tokens.is_complex():
            raise PruneError(
                f"{place} gives {type(encoded).__name__}, not a list of whole numbers; give tokenizer= for texts"
            )
        return tokens.long()

    def _answers(self, value: Any, place: str) -> Tensor:
        """Return the tokens of a chat, and the labels: −100 but in the messages of the assistant, [2, tokens]."""
        if not isinstance(value, list | tuple) or not value or not all(isinstance(m, Mapping) for m in value):
            raise PruneError(
                f"{place} is no chat, but answers_only=True needs messages; give a list of dicts with role and content"
            )
        tokens = self._tokens(value, place)
        labels = torch.full_like(tokens, IGNORED)
        for i, message in enumerate(value):
            if message.get("role") != "assistant":
                continue
            before, after = (
                self._plain(self._chat(list(value[:n]), place, add_generation_prompt=n == i), place) for n in (i, i + 1)
            )
            if not torch.equal(tokens[: len(before)], before) or not torch.equal(tokens[: len(after)], after):
                raise PruneError(
                    f"{place}: the chat template writes the first {i + 1} messages in another way than in the whole chat, so its answers "
                    "cannot be found; give chats with a single answer, or labels of your own"
                )
            labels[len(before) : len(after)] = tokens[len(before) : len(after)]
        return torch.stack([tokens, labels])

    def _chat(self, messages: list[Any], place: str, **options: Any) -> Any:
        template = getattr(self._needed(place), "apply_chat_template", None)
        if template is None:
            raise PruneError(
                f"{place} is a chat, but the tokenizer has no apply_chat_template; give a tokenizer of transformers that has a chat "
                "template, or a field with text by field="
            )
        return template(messages, tokenize=True, **options)

    def _needed(self, place: str) -> Tokenizer:
        if self.tokenizer is None:
            raise PruneError(
                f"{place} is text; give tokenizer=, such as transformers.AutoTokenizer.from_pretrained(folder)"
            )
        return self.tokenizer

    @staticmethod
    def _call(tokenizer: Any, text: str) -> Any:
        return tokenizer(text) if callable(tokenizer) else tokenizer.encode(text)


def enumerate_texts(documents: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield documents in memory with their places; a single tensor or array is one document, or one for each row."""
    if isinstance(documents, Tensor | np.ndarray) and documents.ndim == 1:
        documents = [documents]
    for i, document in enumerate(documents):
        yield f"document {i}", document


def _tensors_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file and name, array) of each tensor of a safetensors file, by name."""
    with Safetensors(path) as file:
        for name in sorted(file.entries):
            yield f"{path}, {name}", file.tensor(name).numpy()


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PruneError(f"{path} is no text in UTF-8 ({error})") from error
