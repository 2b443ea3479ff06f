"""Checkpoints of one safetensors file, or of several with an index in a folder, as transformers writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..errors import FormatError, ParamsError
from .tensors import SEAL, Entry, Reader, check_seal

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Shard(NamedTuple):
    """The header of a file of a checkpoint."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]


def shards(source: str | os.PathLike[str]) -> tuple[Shard, ...]:
    """Return the headers of a checkpoint: a safetensors file, or a folder that has `model.safetensors` or its index.

    Raises:
        ParamsError: a file is of another kind, or the index contradicts the files; names the file.
    """
    path = Path(source)
    if not path.is_dir():
        return (shard(path),)
    index = path / INDEX
    if not index.exists():
        if not (path / SINGLE).exists():
            raise ParamsError(f"the folder {path} has neither {SINGLE} nor {INDEX}; give a file, or such a folder")
        return (shard(path / SINGLE),)
    indexed = _read_index(index)
    files = tuple(shard(path / name) for name in dict.fromkeys(indexed.values()))
    actual = {name: s.path.name for s in files for name in s.entries}
    if wrong := [n for n in {**indexed, **actual} if indexed.get(n) != actual.get(n)]:
        indexed_file, actual_file = (names.get(wrong[0], "none") for names in (indexed, actual))
        raise ParamsError(f"{index} says that {wrong[0]!r} is in {indexed_file}, but it is in {actual_file}; {AGAIN}")
    if len(actual) != sum(len(s.entries) for s in files):
        raise ParamsError(f"a tensor stands in two files of {path}; {AGAIN}")
    return files


AGAIN = "write or fetch it again"
"""Advice in errors about damaged files."""


def _read_index(index: Path) -> dict[str, str]:
    """Return tensor → file name.

    Raises:
        ParamsError: the index is damaged.
    """
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(places, dict) or not places:
            raise FormatError("it has no weight_map")
        for name, file in places.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise FormatError(f"the file of {name!r} is {file!r}, which is no name of a file")
        return places
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ParamsError(f"{index} is damaged, or no index ({type(error).__name__}: {error}); {AGAIN}") from error


def shard(path: Path) -> Shard:
    """Return the header of one file.

    Raises:
        ParamsError: the file is damaged, or no safetensors file.
        FileNotFoundError: the file does not exist.
    """
    try:
        with Reader(path) as reader:
            return Shard(path, reader.entries, reader.metadata)
    except FileNotFoundError:
        raise
    except (FormatError, OSError) as error:
        raise ParamsError(f"{path} is damaged, or no safetensors file: {error}; {AGAIN}") from error


def verify(files: tuple[Shard, ...]) -> None:
    """Check that no bit of the sealed files has changed since they were written.

    Raises:
        ParamsError: a file has changed; names it.
    """
    for s in files:
        if SEAL in s.metadata or "prunefn" in s.metadata:
            try:
                check_seal(s.path)
            except (FormatError, OSError) as error:
                raise ParamsError(f"{s.path} is damaged: {error}; {AGAIN}") from error


def read_all(files: tuple[Shard, ...]) -> dict[str, Tensor]:
    """Read all tensors into new memory."""
    out: dict[str, Tensor] = {}
    for s in files:
        with Reader(s.path) as reader:
            out |= {name: reader.tensor(name) for name in reader.entries}
    return out


def entries_of(files: tuple[Shard, ...]) -> Mapping[str, tuple[Path, Entry]]:
    """Return tensor → its file and its entry in the file, in the order of the files."""
    return {name: (s.path, s.entries[name]) for s in files for name in s.entries}
