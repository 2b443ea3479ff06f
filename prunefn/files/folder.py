"""Checkpoints of one file or of many: a folder with an index, as transformers writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..errors import ParamsError
from .tensors import SEAL, Entry, FormatError, Reader, check_seal

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Shard(NamedTuple):
    """What the header of a file says."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]


def shards(source: str | os.PathLike[str]) -> tuple[Shard, ...]:
    """The headers of a checkpoint: a safetensors file, or a folder that has `model.safetensors` or its index.

    Raises:
        ParamsError: a file is none of this, or the index says something else than the files; names the file.
    """
    path = Path(source)
    if not path.is_dir():
        return (shard(path),)
    index = path / INDEX
    if not index.exists():
        if not (path / SINGLE).exists():
            raise ParamsError(f"the folder {path} has neither {SINGLE} nor {INDEX}; give a file, or such a folder")
        return (shard(path / SINGLE),)
    places = _places(index)
    found = tuple(shard(path / name) for name in dict.fromkeys(places.values()))
    there = {name: s.path.name for s in found for name in s.entries}
    if wrong := [n for n in {**places, **there} if places.get(n) != there.get(n)]:
        says, has = (p.get(wrong[0], "none") for p in (places, there))
        raise ParamsError(f"{index} says that {wrong[0]!r} is in {says}, but it is in {has}; {AGAIN}")
    if len(there) != sum(len(s.entries) for s in found):
        raise ParamsError(f"a tensor stands in two files of {path}; {AGAIN}")
    return found


AGAIN = "write or fetch it again"


def _places(index: Path) -> dict[str, str]:
    """Tensor → file name."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(places, dict) or not places:
            raise ValueError("it has no weight_map")
        for name, file in places.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise ValueError(f"the file of {name!r} is {file!r}, which is no name of a file")
        return places
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ParamsError(f"{index} is damaged, or no index ({type(error).__name__}: {error}); {AGAIN}") from error


def shard(path: Path) -> Shard:
    """The header of one file.

    Raises:
        ParamsError: it is no safetensors file; a FileNotFoundError where there is none.
    """
    try:
        with Reader(path) as reader:
            return Shard(path, reader.entries, reader.metadata)
    except FileNotFoundError:
        raise
    except (FormatError, OSError) as error:
        raise ParamsError(f"{path} is damaged, or no safetensors file: {error}; {AGAIN}") from error


def verify(files: tuple[Shard, ...]) -> None:
    """Every bit of those that are sealed is as it was written.

    Raises:
        ParamsError: names the file.
    """
    for s in files:
        if SEAL in s.metadata or "prunefn" in s.metadata:
            try:
                check_seal(s.path)
            except (FormatError, OSError) as error:
                raise ParamsError(f"{s.path} is damaged: {error}; {AGAIN}") from error


def read_all(files: tuple[Shard, ...]) -> dict[str, Tensor]:
    """All tensors, in memory of their own."""
    out: dict[str, Tensor] = {}
    for s in files:
        with Reader(s.path) as reader:
            out |= {name: reader.tensor(name) for name in reader.entries}
    return out


def entries_of(files: tuple[Shard, ...]) -> Mapping[str, tuple[Path, Entry]]:
    """Tensor → its file and its entry there, in the order of the files."""
    return {name: (s.path, s.entries[name]) for s in files for name in s.entries}
