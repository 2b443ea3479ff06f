"""A directory of results side by side: the dense network, and what every run made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..errors import PruneError
from ..files.yaml_text import read_yaml_file
from ..tables import Table, write_csv
from .goal import COLUMNS, COMPARISON, Goal
from .pareto import pareto

METRICS, DENSE = "metrics.yaml", "best_model.safetensors"


class Entry(NamedTuple):
    """A run."""

    name: str
    accuracy: float
    """A share."""
    macs: float
    params: float
    """In millions."""
    zeros: float
    """Share of the weights."""


class Comparison(NamedTuple):
    """The runs of a directory."""

    dense: Entry
    runs: tuple[Entry, ...]
    skipped: tuple[str, ...] = ()
    """Folders of runs without an accuracy."""
    goal: Goal = Goal()

    def rows(self) -> list[list[str]]:
        """Method, sparsity (share of the weights that are gone or zero), percent of the MACs removed, points lost, whether the
        goal is met."""
        return [
            [r.name, f"{self.sparsity(r):.4f}", f"{100 * self.removed(r):.2f}", f"{self.lost(r):.2f}", str(self.met(r))]
            for r in self.runs
        ]

    def sparsity(self, run: Entry) -> float:
        """Share of the dense network's parameters that are gone or zero."""
        return 1 - run.params * (1 - run.zeros) / self.dense.params

    def removed(self, run: Entry) -> float:
        """Share of the MACs."""
        return 1 - run.macs / self.dense.macs

    def lost(self, run: Entry) -> float:
        """Points of accuracy."""
        return 100 * (self.dense.accuracy - run.accuracy)

    def met(self, run: Entry) -> bool:
        """Whether the goal is."""
        return self.goal.met({"macs_removed": self.removed(run), "points_lost": self.lost(run)})

    def table(self) -> Table:
        """For the terminal."""
        return Table(f"dense: {self.dense.accuracy:.2%}, {self.dense.macs:.4g} GMACs", COLUMNS, self.rows())

    def write(self, folder: Path) -> None:
        """`final_comparison.csv` and `pareto.png`."""
        write_csv(folder / COMPARISON, COLUMNS, self.rows())
        points = [(r.name, round(1e9 * r.macs), r.accuracy) for r in (self.dense, *self.runs)]
        pareto(points, folder / "pareto.png")


def is_results(folder: Path) -> bool:
    """Whether it holds runs, instead of being one."""
    return not (folder / METRICS).exists() and any(folder.glob(f"*/{METRICS}"))


def compare_runs(folder: Path) -> Comparison:
    """Read the `metrics.yaml` of every run below a directory.

    Args:
        folder: with a run of `prunefn train` (the dense network) and runs of prune, sparsify, finetune, pat.

    Raises:
        PruneError: no run is that of the dense network, or none is there to compare with it.
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
            f"{folder} has {len(dense)} runs with {DENSE}; one is needed, the dense network's of prunefn train, to compare with"
        )
    if not runs:
        raise PruneError(f"{folder} has no run beside {dense[0].name} to compare; prune into a folder in it")
    return Comparison(dense[0], tuple(sorted(runs, key=lambda r: (-r.macs, -r.accuracy, r.name))), tuple(skipped))


def _entry(path: Path) -> Entry | None:
    """None for a run that was not measured on data."""
    found: dict[str, Any] = read_yaml_file(path) or {}
    if any(found.get(k) is None for k in ("accuracy", "flops_g", "params_m")):
        return None
    return Entry(path.parent.name, found["accuracy"], found["flops_g"], found["params_m"], found.get("sparsity") or 0.0)
