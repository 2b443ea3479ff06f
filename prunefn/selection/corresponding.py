"""Corresponding groups: those in the same role of each layer, which one number of a config sizes."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from ..spec.spec import Spec
from .caps import Caps
from .isomorphic import signatures

LAYER = re.compile(r"\.\d+(?=\.)")
"""A layer's index within a path."""


def roles(groups: Sequence[str], spec: Spec) -> list[Hashable]:
    """Return the class of each group: groups of one kind and size correspond if they are in the same role.

    Two groups are in the same role if they have the same structural signature, or if their names differ in the indices of layers
    only: the first layer of a stack may have a member that the others lack, such as T5's table of positions.
    """
    by_group = signatures(spec)
    keys: list[tuple[Hashable, ...]] = []
    for name in groups:
        kind, units = spec.groups[name].kind, spec.sizes[name]
        keys.append(((kind, units, by_group[name]), (kind, units, LAYER.sub(".*", f".{name}"))))
    return _components(keys)


def _components(keys: Iterable[tuple[Hashable, ...]]) -> list[Hashable]:
    """Return a number for each item; items that share a key, directly or through others, have the same number.

    >>> _components([("a", 1), ("b", 1), ("c", 2), ("b", 3)])
    [0, 0, 2, 0]
    """
    first: dict[Hashable, int] = {}
    number: list[int] = []
    for i, own in enumerate(keys):
        joined = {number[first[k]] for k in own if k in first} | {i}
        number.append(i)
        number = [min(joined) if n in joined else n for n in number]
        for k in own:
            first.setdefault(k, i)
    return list(number)


def equal_caps(classes: np.ndarray, caps: Caps) -> Caps:
    """Return caps that are the same for all groups of a class: the lowest limit and the least common multiple."""
    most, round_to = caps.most.copy(), caps.round_to.copy()
    for c in range(int(classes.max(initial=-1)) + 1):
        members = classes == c
        round_to[members] = np.lcm.reduce(round_to[members])
        most[members] = most[members].min()
    return Caps(most, round_to)


def equal_counts(classes: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Return how many units each group loses if every group of a class loses as few as the one that loses the fewest.

    >>> equal_counts(np.array([0, 0, 1]), np.array([3, 2, 5])).tolist()
    [2, 2, 5]
    """
    least = np.full(int(classes.max(initial=-1)) + 2, np.iinfo(np.int64).max)  # the last is that of class −1
    np.minimum.at(least, classes, lost)
    return least[classes]
