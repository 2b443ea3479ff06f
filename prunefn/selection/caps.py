"""Limits of what is removed from each group: globs on names, multiples for tensor cores, caps."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from ..errors import PruneError, nearest

log = logging.getLogger(__name__)

TINY = 1e-9
"""Added before rounding down, so that 0.29 · 100 = 28.999… counts as 29."""

RoundTo = int | torch.dtype | Mapping[str, int | torch.dtype]
"""A multiple; a dtype, for the multiple that tensor cores need for it; or either for each glob."""

TENSOR_CORE_BYTES = 16
"""NVIDIA, Matrix Multiplication Background User's Guide (DU-09799-001), section 2.2, Tensor Core Requirements."""

TENSOR_CORE_DTYPES = (
    torch.float64,
    torch.float32,  # as TF32
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)

V = TypeVar("V")


class Caps(NamedTuple):
    """For each group: how many units may be removed at most, and the number that the kept count is a multiple of."""

    most: np.ndarray
    round_to: np.ndarray


def multiple(round_to: int | torch.dtype) -> int:
    """Return the multiple of channels that tensor cores need for a dtype, 16 bytes; an int is returned unchanged.

    Raises:
        PruneError: tensor cores do not support this dtype.

    Source: NVIDIA, Matrix Multiplication Background User's Guide, section 2.2.

    >>> [multiple(d) for d in (torch.float16, torch.int8, torch.float32, torch.float64, 6)]
    [8, 16, 4, 2, 6]
    """
    if not isinstance(round_to, torch.dtype):
        return round_to
    if round_to not in TENSOR_CORE_DTYPES:
        supported = ", ".join(str(d).removeprefix("torch.") for d in TENSOR_CORE_DTYPES)
        raise PruneError(
            f"round_to={round_to}: tensor cores do not take this dtype; give a number, or one of {supported}"
        )
    return TENSOR_CORE_BYTES // round_to.itemsize


def caps(
    names: Sequence[str],
    sizes: np.ndarray,
    *,
    round_to: RoundTo,
    max_ratio: float | Mapping[str, float],
    min_units: int | Mapping[str, int],
    may_vanish: Collection[str] = (),
) -> Caps:
    """Return the caps of `select` for each group; those that may vanish have one unit, which rounding leaves alone.

    Raises:
        PruneError: a value is out of its range, or a pattern matches nothing.
    """
    counts = [multiple(r) for r in _values(round_to)] + list(_values(min_units))
    if any(n < 1 for n in counts) or any(not 0 <= m <= 1 for m in _values(max_ratio)):
        raise PruneError(
            f"round_to ({round_to}) and min_units ({min_units}) must be at least 1, max_ratio ({max_ratio}) in [0, 1]"
        )
    multiples = [multiple(r) for r in per_group("round_to", round_to, names, 1)]
    max_ratios = per_group("max_ratio", max_ratio, names, 1.0)
    floors = per_group("min_units", min_units, names, 1)
    whole = np.array([n in may_vanish for n in names], dtype=bool)
    for name, n, r in zip(names, sizes.tolist(), multiples, strict=True):
        if n < r:
            log.info("group %r has %d units, fewer than round_to=%d: it stays whole", name, n, r)
    rounded = np.where(whole, 1, np.array(multiples, dtype=np.int64))
    floor = np.minimum(sizes, np.maximum(np.array(floors, dtype=np.int64), rounded))
    most = (np.array(max_ratios, dtype=np.float64) * sizes + TINY).astype(np.int64)
    floor = np.where(whole & (np.array(floors) == 1), 0, floor)
    return Caps(np.minimum(sizes - floor, most), rounded)


def per_group(what: str, value: V | Mapping[str, V], names: Sequence[str], default: V) -> list[V]:
    """Return the value for each group, `default` where no pattern matches.

    Raises:
        PruneError: a pattern matches nothing.

    >>> per_group("max_ratio", {"a": 0.5, "a*": 0.2}, ["a", "ab", "c"], 1.0)
    [0.5, 0.2, 1.0]
    """
    if not isinstance(value, Mapping):
        return [value] * len(names)
    deciding = patterns(what, value, names)
    return [default if p is None else value[p] for p in deciding]


def patterns(what: str, given: Mapping[str, V], names: Sequence[str]) -> list[str | None]:
    """Return the pattern that decides for each group: its own name, else the first glob that matches, else None.

    Raises:
        PruneError: a pattern matches no group.
    """
    for p in given:
        if p not in names and not any(fnmatchcase(n, p) for n in names):
            raise PruneError(f"{what}: {p!r} matches none of the {len(names)} scored groups{nearest(p, names)}")
    return [n if n in given else next((p for p in given if fnmatchcase(n, p)), None) for n in names]


def _values(value: V | Mapping[str, V]) -> Iterable[V]:
    return value.values() if isinstance(value, Mapping) else [value]
