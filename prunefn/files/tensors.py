"""Read and write files in the safetensors format piece by piece, without memory mapping and without executing anything.

A file is eight bytes (length of the header, little-endian), the header (JSON: tensor → dtype, shape, place; and
`__metadata__`, text → text), and the data. The header is checked before the data are read: it must fit the file, and the
tensors must be contiguous and fill the rest, so that no file can ask for more memory than it has bytes.

Files that `Writer` wrote are sealed: the metadata hold the BLAKE2b hash of the whole file, computed with zeros in place of the
hash, and `check_seal` detects every bit that changed later. A seal shows damage; it is no signature: somebody who changes a
file on purpose can seal it again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import blake2b
from math import prod
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import FormatError

SEAL = "prunefn_seal"
"""Key of the seal in the metadata."""
BLANK = "0" * 64
"""Placeholder of the seal while the hash is computed."""
LONGEST = 100_000_000
"""Maximal bytes of a header, as in the safetensors library."""
DIMS = 64
"""Maximal number of dims of a tensor, as in torch."""
PIECE = 1 << 23
"""Bytes that are read at once."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """A tensor in a file."""

    dtype: str
    """A key of `DTYPES`."""
    shape: tuple[int, ...]
    start: int = 0
    """Byte of the file at which the data begin."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * self.itemsize


# ---- reading


class Reader:
    """An open file: its entries and metadata, and access to one tensor, or a part of one, at a time.

    Raises:
        FormatError: the file does not have this format.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file: BinaryIO = open(path, "rb")  # noqa: SIM115 (closed by `__exit__`)
        try:
            self.head = _read_head(self.file)
            self.entries, self.metadata = _parse_head(self.head, os.fstat(self.file.fileno()).st_size)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.file.close()

    def tensor(self, name: str) -> Tensor:
        """Read a tensor into new memory on the CPU."""
        entry = self.entries[name]
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        data = np.empty(
            entry.nbytes, dtype=np.uint8
        )  # numpy's, because torch.func.grad wraps tensors that torch creates
        self.fill(data.data, entry.start)
        return torch.from_numpy(data).view(DTYPES[entry.dtype]).reshape(entry.shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read the rows `start` … `stop` − 1 of a tensor into new memory on the CPU."""
        entry = self.entries[name]
        row = prod(entry.shape[1:]) * entry.itemsize
        data = np.empty((stop - start) * row, dtype=np.uint8)
        if data.size:
            self.fill(data.data, entry.start + start * row)
        return torch.from_numpy(data).view(DTYPES[entry.dtype]).reshape(stop - start, *entry.shape[1:])

    def fill(self, buffer: memoryview, start: int) -> None:
        """Fill the buffer with the bytes of the file from `start` on.

        Raises:
            FormatError: the file ends before the buffer is full.
        """
        self.file.seek(start)
        if (n := self.file.readinto(buffer)) != len(buffer):  # type: ignore[attr-defined]
            raise FormatError(f"it ended after {start + n} bytes while it was read")


def _read_head(file: BinaryIO) -> bytes:
    """Read the eight bytes of the length and the header."""
    size = os.fstat(file.fileno()).st_size
    if size < 10:  # the length, and {} as the shortest header
        raise FormatError(f"it has {size} bytes, too few for a header")
    length_bytes = file.read(8)
    length = int.from_bytes(length_bytes, "little")
    if length > min(size - 8, LONGEST):
        raise FormatError(f"its header would have {length} bytes, but the file has {size} (a header at most {LONGEST})")
    return length_bytes + file.read(length)


def _parse_head(head: bytes, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the entries in the order of the header, and the metadata; `size` is that of the file.

    Raises:
        FormatError: the header is no JSON object, or the tensors do not fill the file exactly.
    """
    try:
        header = json.loads(head[8:].decode(), object_pairs_hook=_dict_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"its header is no JSON: {str(error)[:100]}") from error
    if not isinstance(header, dict):
        raise FormatError("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("its metadata are not text by name")
    entries, ends = {}, []
    for name, value in header.items():
        entries[name], end = _parse_entry(name, value, len(head))
        ends.append((entries[name].start, end, name))
    at = len(head)
    for start, end, name in sorted(ends):
        if start != at:
            raise FormatError(f"tensor {name[:60]!r} begins at byte {start} instead of {at}")
        at = end
    if at != size:
        raise FormatError(f"its tensors end at byte {at}, but the file has {size}")
    return entries, metadata


def _dict_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; raise if a key comes twice, which `json` would accept."""
    by_name = dict(pairs)
    if len(by_name) != len(pairs):
        raise FormatError("a name stands in its header twice")
    return by_name


def _parse_entry(name: str, value: Any, base: int) -> tuple[Entry, int]:
    """Return the entry of a header, and the byte of the file at which its data end."""
    try:
        dtype, shape, (start, end) = value["dtype"], value["shape"], value["data_offsets"]
        if (
            len(value) != 3
            or len(shape) > DIMS
            or not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, end))
        ):
            raise TypeError
        entry = Entry(str(dtype), tuple(shape), base + start)
    except (TypeError, KeyError, ValueError) as error:
        raise FormatError(f"tensor {name[:60]!r} has no dtype, shape and place") from error
    if entry.dtype not in DTYPES:
        raise FormatError(f"tensor {name[:60]!r} has the dtype {entry.dtype[:20]!r}; known are {', '.join(DTYPES)}")
    if entry.nbytes != end - start:
        raise FormatError(f"tensor {name[:60]!r} has {end - start} bytes, but its shape {shape} takes {entry.nbytes}")
    return entry, base + end


# ---- seals


def check_seal(path: str | os.PathLike[str]) -> None:
    """Check that no bit of a file has changed since `Writer` wrote it.

    Raises:
        FormatError: a bit has changed, or the file has no seal.
    """
    with Reader(path) as reader:
        seal = reader.metadata.get(SEAL)
        if seal is None:
            raise FormatError("it has no seal: it was written by another program, or is damaged")
        if reader.head.count(seal.encode()) != 1 or len(seal) != len(BLANK):
            raise FormatError("its seal is damaged")
        digest = blake2b(reader.head.replace(seal.encode(), BLANK.encode()), digest_size=32)
        reader.file.seek(len(reader.head))
        while piece := reader.file.read(PIECE):
            digest.update(piece)
    if digest.hexdigest() != seal:
        raise FormatError("its bytes do not match its seal: some of them have changed")


# ---- writing


class Writer:
    """A sealed file whose tensors are written one after the other; the same tensors and metadata give the same bytes.

        with Writer(path, entries, metadata) as writer:
            for name in writer.entries:
                writer.write(…)                    # its bytes, in as many pieces as you like

    Args:
        path: the file, which exists half-written at first: give a temporary one and rename it.
        entries: the tensors to write, by name. Those with wider elements come first, so that all are aligned: `self.entries` has
            the order.
        metadata: text by name.
    """

    def __init__(self, path: str | os.PathLike[str], entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
        self.entries = dict(sorted(entries.items(), key=lambda item: -item[1].itemsize))
        header: dict[str, Any] = {"__metadata__": {**metadata, SEAL: BLANK}}
        offset = 0
        for name, entry in self.entries.items():
            if name in header:
                raise FormatError(f"no tensor can be called {name!r}")
            header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [offset, offset + entry.nbytes]}
            offset += entry.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
        if len(text) > LONGEST:
            raise FormatError(f"the header takes {len(text)} bytes; the format allows {LONGEST}")
        self.seal_at = 8 + text.index(f'"{SEAL}":"{BLANK}"'.encode()) + len(SEAL) + 4
        self.remaining, self.digest = offset, blake2b(digest_size=32)
        self.file = open(path, "wb")  # noqa: SIM115 (closed by `__exit__`)
        self._write_and_hash(len(text).to_bytes(8, "little") + text)

    def _write_and_hash(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.file.write(data)

    def write(self, data: bytes | memoryview) -> None:
        """Write the next bytes of the tensors."""
        self.remaining -= memoryview(data).nbytes
        self._write_and_hash(data)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self.file:
            if kind is None:
                if self.remaining:
                    raise FormatError(f"{self.remaining} bytes of its tensors were not written")
                self.file.seek(self.seal_at)
                self.file.write(self.digest.hexdigest().encode())


def save_sealed(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a sealed file of these tensors; `path` is half-written at first, so give a temporary one and rename it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_sealed(f"{folder}/a", {"x": torch.ones(2)}, {"text": "metadata"})
    ...     check_seal(f"{folder}/a")
    ...     with Reader(f"{folder}/a") as reader:
    ...         print(reader.tensor("x"), reader.metadata["text"])
    tensor([1., 1.]) metadata
    """
    for name, t in tensors.items():
        if t.dtype not in NAMES:
            raise FormatError(f"{name!r} has the dtype {t.dtype}, which the format does not know")
    entries = {n: Entry(NAMES[t.dtype], tuple(t.shape)) for n, t in tensors.items()}
    with Writer(path, entries, metadata) as writer:
        for name in writer.entries:
            writer.write(bytes_of(tensors[name]))


def bytes_of(t: Tensor) -> memoryview:
    """Return the bytes of a tensor, row-major."""
    flat = t.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
