"""Sweeps of settings, on optuna: a grid, TPE, NSGA-II or random trials; resumable, in many processes and on many machines.

    sweep(trial, space, folder=…) → Sweep: trials, Pareto front, the best under a goal, tables and pictures

A trial is any function of (settings, folder); `prune_trial` makes the one that prunes, trains and measures a network.

>>> import tempfile
>>> def trial(settings, folder):
...     return {"top1": 0.9 - settings["macs_ratio"] ** 4, "macs": 1 - settings["macs_ratio"]}
>>> space = {"macs_ratio": {"low": 0.0, "high": 0.9}}
>>> done = sweep(trial, space, folder=tempfile.mkdtemp(), trials=12)
>>> len(done.front) == len(done.finished) == 12  # neither gains without losing
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .._extras import needs

with needs("sweep", "prunefn.sweep"):
    from ..report.goal import Goal as Goal
    from .result import Sweep as Sweep
    from .result import Trial as Trial
    from .run import read_sweep as read_sweep
    from .run import sweep as sweep
    from .write import write_results as write_results

if TYPE_CHECKING:
    from .prune import PruneTrial as PruneTrial
    from .prune import prune_trial as prune_trial

__all__ = ["Goal", "PruneTrial", "Sweep", "Trial", "prune_trial", "read_sweep", "sweep", "write_results"]


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name not in ("PruneTrial", "prune_trial"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with needs("train", f"prunefn.sweep.{name}"):
            return getattr(import_module(".prune", __name__), name)


def __dir__() -> list[str]:
    return __all__
