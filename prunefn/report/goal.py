"""The goal of pruning, and the columns of the comparison that checks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

COMPARISON = "final_comparison.csv"
"""File name of a comparison."""
COLUMNS = ("Method", "Params_Removed", "FLOPs_Reduction", "Accuracy_Drop", "Goal_Met")
"""Columns of this file: a name, a fraction of the parameters, percent of the MACs, percentage points, and whether the goal is met."""


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
