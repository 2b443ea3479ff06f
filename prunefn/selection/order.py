"""The order in which units are removed, and the masks of its beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..types import Mask
from .caps import Caps
from .corresponding import equal_counts


class Order(NamedTuple):
    """All units that may be removed, in order of removal; within a group from the lowest score up, ties by index."""

    names: list[str]
    sizes: np.ndarray
    """Number of units of each group."""
    round_to: np.ndarray
    """For each group, the number that its kept count is a multiple of."""
    classes: np.ndarray
    """Class number of each group; −1: the group is not pruned."""
    group: np.ndarray
    """Group number of each unit in the order."""
    unit: np.ndarray
    """Index of each unit in its group."""
    rank: np.ndarray
    """For each unit in the order, the number of units of its group before it."""
    uniform: bool = False
    """Whether all groups of a class lose equally many: a unit goes when its class has one to remove from every group."""

    def first(self, k: int) -> np.ndarray:
        """Return how many units each group loses when the first k of the order are removed: int [groups]."""
        lost = np.bincount(self.group[:k], minlength=len(self.names))
        return equal_counts(self.classes, lost) if self.uniform else lost

    def first_of_classes(self, counts: Sequence[int]) -> np.ndarray:
        """Return how many units each group loses when the first `counts[c]` of each class c are removed: int [groups]."""
        if len(counts) == 1 and not (self.classes < 0).any():
            return self.first(counts[0])
        lost = np.zeros(len(self.names), dtype=np.int64)
        of_class = self.classes[self.group].astype(np.int32)
        by_class = self.group[np.argsort(of_class, kind="stable")]
        start = 0
        for units, count in zip(np.bincount(of_class, minlength=len(counts)).tolist(), counts, strict=True):
            lost += np.bincount(by_class[start : start + count], minlength=len(self.names))
            start += units
        return equal_counts(self.classes, lost) if self.uniform else lost

    def kept(self, lost: np.ndarray) -> np.ndarray:
        """Return the number of units that each group keeps, rounded up to multiples of `round_to`."""
        remaining = self.sizes - lost
        return np.minimum(self.sizes, -(-remaining // self.round_to) * self.round_to)

    def mask(self, lost: np.ndarray) -> Mask:
        """Return the mask when each group loses `lost` units, less those that rounding keeps."""
        flat = np.ones(self.sizes.sum(), dtype=bool)
        removed = self.rank < (self.sizes - self.kept(lost))[self.group]
        starts = np.cumsum(self.sizes) - self.sizes
        flat[starts[self.group[removed]] + self.unit[removed]] = False
        parts = torch.from_numpy(flat).split(self.sizes.tolist())
        return {name: part.clone() for name, part in zip(self.names, parts, strict=True)}


def by_share(names: list[str], values: list[np.ndarray], classes: np.ndarray, caps: Caps) -> Order:
    """Rank units within classes, and merge classes by the fraction of the class up to and including the unit.

    For one class this is the order by score. Equal scores are ordered by group, then by index; equal fractions by class.
    """
    sizes = np.array([len(v) for v in values], dtype=np.int64)
    flat = np.concatenate(values) if values else np.zeros(0)
    group = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    order = np.argsort(flat, kind="stable")
    if len(classes) and classes.max() > 0:
        of_unit = narrow(classes, len(sizes))[group[order]]
        order = order[np.argsort(of_unit, kind="stable")]
        units = np.bincount(classes[classes >= 0], weights=sizes[classes >= 0]).astype(np.int64)
        # Units of class −1 come first in the sort by class: they get inf, so that they go last.
        unranked = np.full(len(flat) - units.sum(), np.inf)
        order = order[np.argsort(np.concatenate([unranked, *(np.arange(1, n + 1) / n for n in units)]), kind="stable")]
    unit = order - (np.cumsum(sizes) - sizes)[group[order]]
    group = group[order]
    rank = np.empty_like(unit)
    rank[np.argsort(narrow(group, len(sizes)), kind="stable")] = counts(sizes)
    allowed = rank < np.where(classes >= 0, caps.most, 0)[group]
    return Order(names, sizes, caps.round_to, classes, group[allowed], unit[allowed], rank[allowed])


def narrow(numbers: np.ndarray, groups: int) -> np.ndarray:
    """Return numbers in 16 bits where they fit, as numpy sorts those by radix."""
    return numbers.astype(np.int16) if groups < 2**15 else numbers


def counts(sizes: np.ndarray) -> np.ndarray:
    """Return 0, 1, … up to each size, concatenated.

    >>> counts(np.array([2, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
