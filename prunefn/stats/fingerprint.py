"""Fingerprints of values: identical in every process and on every machine, unlike `hash`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import StatsError
from ..files.on_disk import OnDisk
from ..program.sharded import gather, is_sharded
from ..spec.spec import Spec
from ..types import Stats

PARTS = (
    "program",
    "axes",
    "sizes",
    "groups",
    "sites",
    "branches",
    "constants",
    "costs",
    "parameters",
    "tied",
    "train",
    "capture",
)
"""Fields by which specs are compared."""

SMALL = 4096
"""Tensors of at most this many bytes are hashed directly, without sums of words."""
ROW = 1 << 14
"""Number of 8-byte words that are summed up at a time, so that they stay in the processor's cache."""
ROWS = 512
"""Number of rows at a time on devices other than the CPU: the intermediate results take 64 MB."""
WEIGHTS = np.random.Generator(np.random.PCG64(0)).integers(-(2**63), 2**63, ROW, dtype=np.int64) | 1
"""Weight of each word in a row; odd, so that a change of a single word always changes the sum."""

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Origin(NamedTuple):
    """Fingerprints of a spec and its parameters, part by part, so that a difference can be named."""

    spec: dict[str, str]
    """Field → fingerprint"""
    params: dict[str, str]
    """Tensor → fingerprint"""


def spec_of(stats: Stats) -> Spec:
    """Return the spec of the statistics.

    Raises:
        StatsError: the statistics are empty.
    """
    if stats.spec is None:
        raise StatsError("the statistics are empty; use collect_stats(params, batches, spec=spec)")
    return stats.spec


def origin(spec: Spec, params: Mapping[str, Tensor], measured: Mapping[str, str] | None = None) -> Origin:
    """Return fingerprints of a spec and its parameters.

    DTensors are gathered, so that all processes must call this.

    Args:
        spec, params: of the statistics.
        measured: fingerprints by `taken` of the parameters as they were measured; those are not computed again.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec, params = pf.trace(model, (torch.randn(2, 4),)), pf.params(model)
    >>> a, b = origin(spec, params), origin(spec, {**params, "2.bias": params["2.bias"] + 1})
    >>> difference(a, b)
    "other parameters: '2.bias' differs"
    """
    reusable = {n: f for n, f in (measured or {}).items() if not f.startswith(PART)}
    return Origin(
        {part: fingerprint(getattr(spec, part)) for part in PARTS},
        {n: reusable.get(n) or fingerprint(gather(params[n])) for n in sorted(params)},
    )


PART = "part "
"""Prefix of the fingerprint of this process's part of a DTensor."""


def taken(params: Mapping[str, Tensor]) -> dict[str, str]:
    """Return fingerprints of the parameters' current values, without communication between processes.

    Tensors on disk are left out: reading them raises if their file has changed.
    """
    by_storage: dict[tuple[Any, ...], str] = {}
    out = {}
    for name, t in params.items():
        if isinstance(t, OnDisk):
            continue
        key: tuple[Any, ...] = (id(t),)  # tied tensors are hashed once
        if type(t) in (Tensor, torch.nn.Parameter):
            key = (t.data_ptr(), t.shape, t.stride(), t.dtype, t.device)
        if key not in by_storage:
            by_storage[key] = f"{PART}{t.placements} {fingerprint(t.to_local())}" if is_sharded(t) else fingerprint(t)
        out[name] = by_storage[key]
    return out


def difference(a: Origin, b: Origin) -> str:
    """Return a text that says what differs between two origins; empty if nothing does."""
    if parts := _differing(a.spec, b.spec):
        return f"another spec: {_differ_text(parts)}"
    if names := _differing(a.params, b.params):
        return f"other parameters: {_differ_text([repr(n) for n in names])}"
    return ""


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    return [n for n in {**a, **b} if a.get(n) != b.get(n)]


def _differ_text(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} differ{'s' if len(names) == 1 else ''}"


def fingerprint(value: Any) -> str:
    """Return a 128-bit hash of a value as 32 hex digits.

    The value is a nest of tuples, lists, mappings and sets (in any order), dataclasses, tensors and plain values.

    >>> fingerprint({"a": torch.zeros(2), "b": 1}) == fingerprint({"b": 1, "a": torch.zeros(2)})
    True
    >>> fingerprint(torch.zeros(2)) == fingerprint(torch.zeros(1, 2))
    False
    """
    digest = hashlib.sha256()
    for piece in _pieces(value):
        digest.update(piece)
    return digest.hexdigest()[:32]


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a value; type and length come first, so that no two different nests give the same bytes."""
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}:".encode()
        if value.numel() and not value.is_meta:
            yield from _sums(value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8))
    elif (items := _items(value)) is not None:
        yield f"{type(value).__qualname__} {len(items)}:".encode()
        for item in items:
            yield from _pieces(item)
    else:
        text = ADDRESS.sub("", repr(value)).encode()
        yield f"{type(value).__qualname__} {len(text)}:".encode() + text


def _sums(data: Tensor) -> Iterator[bytes]:
    """Yield a digest of a tensor's bytes: sums of its words times fixed weights, identical on every device.

    Integer sums overflow and lose their highest bits; so the upper halves of the words are summed up once more.
    """
    n = 0 if len(data) <= SMALL else len(data) // 8 * 8
    if n and data.device.type == "cpu":
        words = data[:n].numpy().view(np.int64)
        for start in range(0, len(words), ROW):
            row = words[start : start + ROW]
            yield np.array([row @ WEIGHTS[: len(row)], (row >> 32) @ WEIGHTS[: len(row)]]).tobytes()
    elif n:
        part = data[:n] if data.storage_offset() % 8 == 0 else data[:n].clone()  # a view as int64 must be aligned
        words, weights = part.view(torch.int64), torch.from_numpy(WEIGHTS).to(data.device)
        whole = len(words) // ROW * ROW
        for rows in [*words[:whole].view(-1, ROW).split(ROWS), words[whole:][None]]:
            w = weights[: rows.shape[1]]
            if rows.numel():
                yield torch.stack([(rows * w).sum(1), ((rows >> 32) * w).sum(1)], 1).cpu().numpy().tobytes()
    yield data[n:].cpu().numpy().tobytes()


def _items(value: Any) -> list[Any] | None:
    """Return the elements of a nested value in a fixed order; None for a plain value."""
    if isinstance(value, Mapping):
        return [x for key in sorted(value, key=repr) for x in (key, value[key])]
    if isinstance(value, Set):
        return sorted(value, key=repr)
    if isinstance(value, tuple | list):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, f.name) for f in fields(value)]
    return None
