"""The fields of a config that count layers, or that hold a value for each layer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .fields import Changes, Field

COUNT = re.compile(r"layers?$|depth|blocks?$")
"""Names of fields that count layers."""
WAYS = 64
"""Maximal number of ways to set the counts that are built."""


def layer_changes(
    config: Any, lost: Sequence[tuple[int, Sequence[int]]], names_fit: Callable[[Changes], bool]
) -> Changes | None:
    """Return the changes of a config after which a fresh model has the tensors of the module; None if there are none.

    Args:
        config: with the layers that have gone.
        lost: for each container, its number of children before and the positions that left it.
        names_fit: whether a fresh model of the config with some changes has tensors of the right names.
    """
    if not lost:
        return {}
    lists: Changes = {}
    for n, positions in lost:
        lists |= {f: shortened(f.get(config), positions) for f in lists_of(config, n)}
    options = [[(f, n - len(positions)) for f in _counts(config, n)] for n, positions in lost]
    for choice in itertools.islice(itertools.product(*options), WAYS):
        changes = {**lists, **dict(choice)}
        if names_fit(changes):
            return changes
    return None


def shortened(values: Any, positions: Sequence[int]) -> Any:
    """Return a list or tuple without some positions."""
    return type(values)([v for i, v in enumerate(values) if i not in positions])


def _counts(config: Any, n: int, path: tuple[str, ...] = ()) -> Iterator[Field]:
    """Yield the numbers of a config, also in its lists and the configs in it, that may count n layers."""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from _counts(value, n, (*path, name))
        elif COUNT.search(name) and type(value) is int and value == n:
            yield Field(path, name)
        elif isinstance(value, list | tuple) and COUNT.search(name.removesuffix("s")):
            yield from (Field(path, name, i) for i, v in enumerate(value) if type(v) is int and v == n)


def lists_of(config: Any, n: int, path: tuple[str, ...] = ()) -> Iterator[Field]:
    """Yield the lists of a config that hold a value for each of n layers."""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from lists_of(value, n, (*path, name))
        elif type(value) in (list, tuple) and len(value) == n and "layer" in name:
            yield Field(path, name)
