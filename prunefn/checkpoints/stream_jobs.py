"""The tensors of a streamed checkpoint: where each comes from, and its kept bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..errors import ParamsError
from ..files.folder import Shard
from ..files.tensors import NAMES, PIECE, Entry, Reader, bytes_of
from ..frozen_dict import FrozenDict
from ..program.sharded import gather
from ..spec.axis import keep
from ..spec.spec import Spec
from ..types import Mask


@runtime_checkable
class Layout(Protocol):
    """How the tensors of a model lie in files that have other names, or several tensors for one."""

    def bundle(self, name: str) -> tuple[str, ...]:
        """Return the tensors of the model that are stored in one with this one; none if it is stored as it is."""
        ...

    def store(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors by their names in the files, in the parts that the files have."""
        ...


class Source(NamedTuple):
    """The tensors that are pruned, at the sizes of the spec."""

    files: tuple[Shard, ...]
    """With the names of the spec."""
    rewritten: Mapping[str, tuple[Path, Entry]] = FrozenDict()
    """Tensor → the file that has its new values, of the same shape and type."""
    rename: Callable[[str], str] | None = None
    """Name → the name in the model without the layers that are removed; None: names stay."""
    layout: Layout | None = None
    """Of the files that are written; None: the tensors are stored as they are."""
    params: Mapping[str, Tensor] = FrozenDict()
    """The tensors that are not in the files as they are, in their types."""

    def renamed(self, name: str) -> str:
        """Return a name in the smaller model."""
        return name if self.rename is None else self.rename(name)


@runtime_checkable
class Job(Protocol):
    """A tensor to write."""

    @property
    def name(self) -> str:
        """Its name in the file that is written."""
        ...

    @property
    def small(self) -> Entry:
        """The entry of the pruned tensor."""
        ...

    @property
    def dense_bytes(self) -> int:
        """Bytes that are read for it."""
        ...

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes of the pruned tensor."""
        ...


class Kept:
    """The indices that a mask keeps of each axis."""

    def __init__(self, mask: Mask, spec: Spec) -> None:
        self.mask, self.spec = mask, spec
        self._by_axis: dict[object, np.ndarray] = {}

    def __call__(self, name: str) -> tuple[np.ndarray, ...]:
        """Return a bool array for each dim of a tensor."""
        axes = self.spec.axes[name]
        for axis in axes:
            if axis not in self._by_axis:
                self._by_axis[axis] = keep(axis, self.mask, self.spec.sizes).numpy()
        return tuple(self._by_axis[a] for a in axes)


def jobs_of(s: Shard, name: str, tensors: Source, kept: Kept) -> list[Job]:
    """Return the jobs of a tensor of the spec: several where it is stored in parts; none where it goes with an earlier one."""
    bundle = () if tensors.layout is None else tensors.layout.bundle(name)
    if bundle:
        return [*Bundle(bundle, tensors, kept).jobs()] if name == bundle[0] else []
    path, entry = tensors.rewritten.get(name, (s.path, s.entries[name]))
    if (entry.dtype, entry.shape) != (s.entries[name].dtype, s.entries[name].shape):
        raise ParamsError(f"{path}: {name!r} is {entry.dtype} {entry.shape}, but it is another in {s.path}")
    new = tensors.renamed(name)
    if tensors.layout is not None:
        (new,) = tensors.layout.store({new: torch.empty(_small(entry, kept(name)).shape, device="meta")})
    return [TensorJob(new, path, entry, kept(name))]


def _small(dense: Entry, kept: tuple[np.ndarray, ...]) -> Entry:
    return Entry(dense.dtype, tuple(int(k.sum()) for k in kept))


class TensorJob(NamedTuple):
    """A tensor that is in a file as it is: some rows at a time are in memory."""

    name: str
    source: Path
    dense: Entry
    kept: tuple[np.ndarray, ...]
    """For each dim, a bool array of the indices to keep."""

    @property
    def small(self) -> Entry:
        """The entry of the pruned tensor."""
        return _small(self.dense, self.kept)

    @property
    def dense_bytes(self) -> int:
        """Bytes that are read for it."""
        return self.dense.nbytes

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes of the kept part of the tensor, some rows at a time."""
        dense, (rows, *rest) = self.dense, self.kept or (np.ones(1, dtype=bool),)
        if not self.small.nbytes:
            return
        row = dense.nbytes // len(rows)
        step = max(PIECE // row, 1)
        columns = [None if k.all() else k.nonzero()[0] for k in rest]
        with Reader(self.source) as reader:
            for first in range(0, len(rows), step):
                kept_rows = rows[first : first + step].nonzero()[0]
                if not len(kept_rows):
                    continue
                low, high = int(kept_rows[0]), int(kept_rows[-1]) + 1
                # unsigned integers of the same width, because numpy lacks bfloat16 and float8
                data = np.empty((high - low, *dense.shape[1:]), dtype=f"u{dense.itemsize}")
                reader.fill(data.reshape(-1).view(np.uint8).data, dense.start + (first + low) * row)
                if len(kept_rows) < high - low:
                    data = data[kept_rows - low]
                for d, index in enumerate(columns, 1):
                    if index is not None:
                        data = np.take(data, index, axis=d)
                yield np.ascontiguousarray(data).reshape(-1).view(np.uint8).data


class Bundle:
    """Tensors of a model that are stored in parts; they are in memory from the first part that is written to the last.

    Args:
        names: of the tensors.
        tensors: all tensors, with a layout.
        kept: what is kept of them.
    """

    def __init__(self, names: tuple[str, ...], tensors: Source, kept: Kept) -> None:
        self.names, self.tensors, self.kept = names, tensors, kept
        self._parts: dict[str, Tensor] = {}

    def _store(self, small: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self.tensors.layout is not None
        return self.tensors.layout.store({self.tensors.renamed(n): t for n, t in small.items()})

    def jobs(self) -> Iterator[PartJob]:
        """Yield a job for each part."""
        dense = {n: self.tensors.params[n] for n in self.names}
        outlines = {
            n: torch.empty([int(k.sum()) for k in self.kept(n)], dtype=t.dtype, device="meta") for n, t in dense.items()
        }
        parts = self._store(outlines)
        share = sum(t.numel() * t.element_size() for t in dense.values()) // len(parts)
        for n, t in parts.items():
            yield PartJob(n, Entry(NAMES[t.dtype], tuple(t.shape)), share, self)

    def part(self, name: str) -> Tensor:
        """Return a part, and forget it."""
        if name not in self._parts:
            self._parts = self._store({n: self._small(n) for n in self.names})
        return self._parts.pop(name)

    def _small(self, name: str) -> Tensor:
        t = _rewritten(name, self.tensors)
        for d, k in enumerate(self.kept(name)):
            if not k.all():
                t = t.index_select(d, torch.from_numpy(k.nonzero()[0]))
        return t


def _rewritten(name: str, tensors: Source) -> Tensor:
    """Return a tensor at its dense size, with its new values if it has some."""
    if name not in tensors.rewritten:
        return gather(tensors.params[name])
    path, _ = tensors.rewritten[name]
    with Reader(path) as reader:
        return reader.tensor(name)


class PartJob(NamedTuple):
    """A part of a bundle."""

    name: str
    small: Entry
    dense_bytes: int
    bundle: Bundle

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes of the part."""
        yield bytes_of(self.bundle.part(self.name))
