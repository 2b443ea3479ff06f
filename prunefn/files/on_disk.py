"""Tensors that stay on disk until an op reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import trees
from ..errors import FormatError, ParamsError
from .tensors import DTYPES, Entry, Reader

aten: Any = torch.ops.aten


class OnDisk(Tensor):
    """A tensor of a safetensors file with known shape and type; an op reads the numbers and drops them when it is done."""

    path: Path
    called: str
    """Name of the tensor in the file; `name` is an attribute of torch's tensors."""
    entry: Entry
    stamp: tuple[int, int]
    """Size and time of modification of the file when it was opened."""

    @staticmethod
    def __new__(
        cls: type[OnDisk], path: Path, name: str, entry: Entry, dtype: torch.dtype | None, device: torch.device
    ) -> OnDisk:
        t = Tensor._make_wrapper_subclass(cls, entry.shape, dtype=dtype or DTYPES[entry.dtype], device=device)
        t.path, t.called, t.entry, t.stamp = path, name, entry, _file_stamp(path)
        return t

    def to_type(self, dtype: torch.dtype) -> OnDisk:
        """Return the tensor in another type, without reading it."""
        return OnDisk(self.path, self.called, self.entry, dtype, self.device)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def read(self) -> Tensor:
        """Read the tensor into memory.

        Raises:
            ParamsError: the file has changed since it was opened.
        """
        try:
            if _file_stamp(self.path) != self.stamp:
                raise FormatError("its size or its time of modification differs")
            with Reader(self.path) as reader:
                if reader.entries.get(self.called) != self.entry:
                    raise FormatError("its header differs")
                return reader.tensor(self.called).to(self.device, self.dtype)
        except (FormatError, OSError) as error:
            raise ParamsError(f"{self.path} has changed since it was opened: {error}; open it again") from error

    def __repr__(self, **_: Any) -> str:
        return f"OnDisk({self.called!r}, {tuple(self.shape)}, {self.dtype}, {str(self.path)!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> OnDisk:
        return memo.setdefault(id(self), self)

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if op in (aten.detach.default, aten.alias.default):
            return args[0]
        for value, argument in zip(args, op._schema.arguments, strict=False):
            if isinstance(value, OnDisk) and argument.alias_info is not None and argument.alias_info.is_write:
                raise ParamsError(f"{value.called!r} is on disk and cannot be written to by {op}; take value.read()")
        read_tensors: dict[int, Tensor] = {}

        def in_memory(t: Any) -> Any:
            if not isinstance(t, OnDisk):
                return t
            if id(t) not in read_tensors:
                read_tensors[id(t)] = t.read()
            return read_tensors[id(t)]

        return op(*trees.map_leaves(in_memory, tuple(args)), **trees.map_leaves(in_memory, kwargs or {}))


class Assembled(OnDisk):
    """A tensor that is made of tensors on disk when it is read, such as one that is stored as one matrix an expert."""

    parts: Mapping[str, OnDisk]
    make: Callable[[dict[str, Tensor]], Tensor]

    @staticmethod
    def __new__(
        cls: type[Assembled],
        parts: Mapping[str, OnDisk],
        name: str,
        entry: Entry,
        make: Callable[[dict[str, Tensor]], Tensor],
        dtype: torch.dtype | None = None,
    ) -> Assembled:
        first = next(iter(parts.values()))
        t = OnDisk.__new__(cls, first.path, name, entry, dtype, first.device)
        assert isinstance(t, Assembled)
        t.parts, t.make = parts, make
        return t

    def to_type(self, dtype: torch.dtype) -> Assembled:
        """Return the tensor in another type, without reading it."""
        return Assembled(self.parts, self.called, self.entry, self.make, dtype)

    def read(self) -> Tensor:
        """Read the parts, and make the tensor of them.

        Raises:
            ParamsError: a file has changed since it was opened.
        """
        return self.make({n: part.read() for n, part in self.parts.items()}).to(self.device, self.dtype)


def _file_stamp(path: Path) -> tuple[int, int]:
    """Return the size of a file in bytes and its time of modification in nanoseconds."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
