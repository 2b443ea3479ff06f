"""What a pruned network should reach, and the columns in which it is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

COMPARISON = "final_comparison.csv"
COLUMNS = ("Method", "Sparsity", "FLOPs_Reduction", "Accuracy_Drop", "Goal_Met")
"""Of this file: a name, a share, percent of the MACs, percentage points, and whether the goal is met."""


class Goal(NamedTuple):
    """What a pruned network should reach."""

    macs_removed: float = 0.4
    """At least this share of the MACs is gone."""
    points_lost: float = 1.5
    """At most so many percentage points of top-1 are."""

    def __str__(self) -> str:
        """Say it in words.

        >>> str(Goal())
        'at least 40 % of the MACs removed, at most 1.5 points of accuracy lost'
        """
        return (
            f"at least {100 * self.macs_removed:g} % of the MACs removed, "
            f"at most {self.points_lost:g} points of accuracy lost"
        )

    def met(self, results: Mapping[str, float]) -> bool:
        """Whether it is.

        >>> Goal().met({"macs_removed": 0.45, "points_lost": 0.3}), Goal().met({"macs_removed": 0.45, "points_lost": 2.0})
        (True, False)
        """
        return results["macs_removed"] >= self.macs_removed and results["points_lost"] <= self.points_lost
