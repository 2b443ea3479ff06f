"""The goal of pruning, and the columns of the comparison that checks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

COMPARISON = "final_comparison.csv"
"""File name of a comparison."""
COLUMNS = ("Method", "Params_Removed", "FLOPs_Reduction", "Accuracy_Drop", "Goal_Met")
"""Columns of this file: a name, a fraction of the parameters, percent of the MACs, percentage points, and whether the goal is met."""


class Dense(NamedTuple):
    """The dense network, where results are compared with it."""

    macs: float
    top1: float
    """From 0 to 1."""


def dense_of(results: Mapping[str, float]) -> Dense | None:
    """Return the dense network that results are relative to; None if they do not say.

    >>> dense_of({"macs": 50.0, "macs_removed": 0.5, "top1": 0.75, "points_lost": 5.0})
    Dense(macs=100.0, top1=0.8)
    """
    if not {"macs", "macs_removed", "top1", "points_lost"} <= set(results) or results["macs_removed"] >= 1:
        return None
    return Dense(results["macs"] / (1 - results["macs_removed"]), results["top1"] + results["points_lost"] / 100)


class Goal(NamedTuple):
    """The requirements on a pruned network."""

    macs_removed: float = 0.4
    """Minimal fraction of the MACs that is removed."""
    points_lost: float = 1.5
    """Maximal number of percentage points of top-1 that are lost."""

    def __str__(self) -> str:
        """Return the goal in words.

        >>> str(Goal())
        'at least 40 % of the MACs removed, at most 1.5 points of accuracy lost'
        """
        return (
            f"at least {100 * self.macs_removed:g} % of the MACs removed, "
            f"at most {self.points_lost:g} points of accuracy lost"
        )

    def met(self, results: Mapping[str, float]) -> bool:
        """Return whether results meet the goal.

        >>> Goal().met({"macs_removed": 0.45, "points_lost": 0.3}), Goal().met({"macs_removed": 0.45, "points_lost": 2.0})
        (True, False)
        """
        return results["macs_removed"] >= self.macs_removed and results["points_lost"] <= self.points_lost

    def corner(self, dense: Dense) -> tuple[float, float]:
        """Return (most MACs, least top-1) of a network that meets the goal.

        >>> Goal(0.5, 2.0).corner(Dense(800.0, 0.75))
        (400.0, 0.73)
        """
        return dense.macs * (1 - self.macs_removed), dense.top1 - self.points_lost / 100
