"""Fingerprints: the same in every process and on every machine, unlike `hash`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..sharded import gather
from ..trace.spec import Spec

PARTS = ("program", "axes", "sizes", "groups", "sites", "constants", "costs", "parameters", "tied", "train", "capture")
"""Fields by which specs are compared."""

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Origin(NamedTuple):
    """Fingerprints of what was measured, part by part, so that a difference has a name."""

    spec: dict[str, str]
    """Field → fingerprint"""
    params: dict[str, str]
    """Tensor → fingerprint"""


def origin(spec: Spec, params: Mapping[str, Tensor]) -> Origin:
    """Fingerprints of a spec and its parameters; DTensors are gathered, so that all processes must call this.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec, params = pf.trace(model, (torch.randn(2, 4),)), pf.params(model)
    >>> a, b = origin(spec, params), origin(spec, {**params, "2.bias": params["2.bias"] + 1})
    >>> difference(a, b)
    "other parameters: '2.bias' differs"
    """
    return Origin(
        {part: fingerprint(getattr(spec, part)) for part in PARTS},
        {n: fingerprint(gather(params[n])) for n in sorted(params)},
    )


def difference(a: Origin, b: Origin) -> str:
    """What differs, in words; empty where nothing does."""
    if parts := _differing(a.spec, b.spec):
        return f"another spec: {_listed(parts)}"
    if names := _differing(a.params, b.params):
        return f"other parameters: {_listed([repr(n) for n in names])}"
    return ""


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    return [n for n in {**a, **b} if a.get(n) != b.get(n)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} differ{'s' if len(names) == 1 else ''}"


def fingerprint(value: Any) -> str:
    """128 bits of the sha256 of a value: nested tuples, lists, mappings and sets (in any order), dataclasses, tensors, plain values.

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
    """Every value is preceded by its type and length, so that no two nests read alike."""
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}:".encode()
        if value.numel() and not value.is_meta:
            yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif (items := _items(value)) is not None:
        yield f"{type(value).__qualname__} {len(items)}:".encode()
        for item in items:
            yield from _pieces(item)
    else:
        text = ADDRESS.sub("", repr(value)).encode()
        yield f"{type(value).__qualname__} {len(text)}:".encode() + text


def _items(value: Any) -> list[Any] | None:
    if isinstance(value, Mapping):
        return [x for key in sorted(value, key=repr) for x in (key, value[key])]
    if isinstance(value, Set):
        return sorted(value, key=repr)
    if isinstance(value, tuple | list):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, f.name) for f in fields(value)]
    return None
