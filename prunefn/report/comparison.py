"""Compare the runs of a directory: the dense network, and the pruned network of every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..display.units import quantity
from ..errors import PruneError
from ..files.yaml_text import read_yaml_file
from ..tables import Table, write_csv
from .goal import COLUMNS, COMPARISON, Dense, Goal
from .pareto import pareto
from .run_folder import METRICS

DENSE = "best_model.safetensors"
"""The file that only the run of the dense network has."""


class Entry(NamedTuple):
    """The results of a run."""

    name: str
    accuracy: float
    """Accuracy, from 0 to 1."""
    macs: float
    """MACs in billions."""
    params: float
    """Parameters in millions."""
    zeros: float
    """Fraction of the weights that are zero."""


class Comparison(NamedTuple):
    """The runs of a directory with the dense network."""

    dense: Entry
    runs: tuple[Entry, ...]
    skipped: tuple[str, ...] = ()
    """Folders of runs without an accuracy."""
    goal: Goal = Goal()

    def rows(self) -> list[list[str]]:
        """Return a row for each run.

        The columns: method, params_removed (fraction of the parameters that are removed or zero), percent of the MACs removed, points
        lost, whether the goal is met.
        """
        return [
            [
                r.name,
                f"{self.params_removed(r):.4f}",
                f"{100 * self.macs_removed(r):.2f}",
                f"{self.points_lost(r):.2f}",
                str(self.met(r)),
            ]
            for r in self.runs
        ]

    def params_removed(self, run: Entry) -> float:
        """Return the fraction of the dense network's parameters that are removed or zero."""
        return 1 - run.params * (1 - run.zeros) / self.dense.params

    def macs_removed(self, run: Entry) -> float:
        """Return the fraction of the MACs that is removed."""
        return 1 - run.macs / self.dense.macs

    def points_lost(self, run: Entry) -> float:
        """Return the percentage points of accuracy that are lost."""
        return 100 * (self.dense.accuracy - run.accuracy)

    def met(self, run: Entry) -> bool:
        """Return whether a run meets the goal."""
        return self.goal.met({"macs_removed": self.macs_removed(run), "points_lost": self.points_lost(run)})

    def table(self) -> Table:
        """Return the table for the terminal."""
        return Table(
            f"dense: {self.dense.accuracy:.2%}, {quantity(1e9 * self.dense.macs, 'MACs')}", COLUMNS, self.rows()
        )

    def write(self, folder: Path) -> None:
        """Write `final_comparison.csv` and `pareto.png` into a folder."""
        write_csv(folder / COMPARISON, COLUMNS, self.rows())
        points = [(r.name, round(1e9 * r.macs), r.accuracy) for r in self.runs]
        dense = Dense(1e9 * self.dense.macs, self.dense.accuracy)
        pareto(points, folder / "pareto.png", dense=dense, goal=self.goal)


def is_results(folder: Path) -> bool:
    """Return whether a folder contains runs and is not itself a run."""
    return not (folder / METRICS).exists() and any(folder.glob(f"*/{METRICS}"))


def compare_runs(folder: Path) -> Comparison:
    """Read the `metrics.yaml` of every run below a directory.

    Args:
        folder: a folder with one run of `prunefn train` (the dense network) and runs of prune, sparsify, finetune, pat.

    Raises:
        PruneError: the folder does not have exactly one run of the dense network, or no run to compare with it.
    """
    runs: list[Entry] = []
    dense: list[Entry] = []
    skipped: list[str] = []
    for path in sorted(folder.glob(f"*/{METRICS}")):
        entry = _entry(path)
        if entry is None:
            skipped.append(path.parent.name)
        else:
            (dense if (path.parent / DENSE).exists() else runs).append(entry)
    if len(dense) != 1:
        raise PruneError(
            f"{folder} has {len(dense)} runs with {DENSE}; to compare, it needs one such run, that of prunefn train (the dense network)"
        )
    if not runs:
        raise PruneError(f"{folder} has no run beside {dense[0].name} to compare; prune into a folder in it")
    return Comparison(dense[0], tuple(sorted(runs, key=lambda r: (-r.macs, -r.accuracy, r.name))), tuple(skipped))


def _entry(path: Path) -> Entry | None:
    """Return the results of a run; None if the run was not measured on data."""
    results: dict[str, Any] = read_yaml_file(path) or {}
    if any(results.get(k) is None for k in ("accuracy", "flops_g", "params_m")):
        return None
    zeros = results.get("sparsity") or 0.0
    return Entry(path.parent.name, results["accuracy"], results["flops_g"], results["params_m"], zeros)
