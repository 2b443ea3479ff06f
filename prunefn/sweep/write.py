"""Write the tables, pictures and summary of a sweep."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..files import atomic
from ..report.goal import COLUMNS, COMPARISON, Goal
from ..tables import write_csv
from .picture import importance, pareto
from .result import Sweep, Trial, describe_method, is_comparable

STATES = ("finished", "failed", "running", "stopped")


def write_results(sweep: Sweep, goal: Goal = Goal()) -> dict[str, str]:  # noqa: B008
    """Write tables, pictures and a summary into the sweep's folder.

    `trials.csv`, all trials; `final_comparison.csv`, those that are finished (Method, Params_Removed, FLOPs_Reduction in percent,
    Accuracy_Drop in points, Goal_Met), by macs_ratio and MACs; `pareto.png`, the first two objectives; `importance.png`;
    `sweep.json`. A file without content is removed if an earlier call wrote it.

    Returns:
        File that was not written → reason.
    """
    folder, importances = sweep.folder, sweep.importances()
    rows = [t for t in sweep.finished if is_comparable(t) and t.same_as is None]
    nothing = "no trial is finished" if not sweep.finished else ""
    lacking = {
        COMPARISON: nothing or ("" if rows else "no finished trial gave macs_removed and points_lost"),
        "pareto.png": nothing or ("" if len(sweep.objectives) > 1 else "there is one objective"),
        "importance.png": "" if importances else "no setting or no result varied in the finished trials",
    }
    left_out = {name: why for name, why in lacking.items() if why}
    for name in left_out:
        (folder / name).unlink(missing_ok=True)
    write_trials(sweep)
    if COMPARISON not in left_out:
        write_csv(folder / COMPARISON, COLUMNS, comparison_rows(rows, goal))
    if "pareto.png" not in left_out:
        pareto(sweep, folder / "pareto.png", goal)
    if importances:
        importance(importances, folder / "importance.png")
        left_out |= {f"importance for {o}": "it did not vary" for o in sweep.objectives if o not in importances}
    summary = {
        "name": sweep.name,
        "space": sweep.space,
        "objectives": sweep.objectives,
        "trials": {state: sum(t.state == state for t in sweep.trials) for state in STATES},
        "front": [_plain(t) for t in sweep.front],
        "goal": goal._asdict(),
        "best": _best(sweep, goal),
        "importances": importances,
        "left_out": left_out,
    }
    atomic.write_text(folder / "sweep.json", json.dumps(summary, indent=1) + "\n")
    return left_out


def write_trials(sweep: Sweep) -> None:
    """Write `trials.csv`: all trials, with their settings, results, states and errors."""
    settings, results = list(sweep.space), list(dict.fromkeys(k for t in sweep.trials for k in t.results))
    reserved = {"trial", "state", *settings}
    header = ["trial", "state", *settings, *(f"result {r}" if r in reserved else r for r in results)]
    rows = []
    for t in sweep.trials:
        values = [*(t.settings.get(s, "") for s in settings), *(t.results.get(r, "") for r in results)]
        same, seconds = "" if t.same_as is None else t.same_as, "" if t.seconds is None else f"{t.seconds:.3f}"
        rows.append([t.number, t.state, *values, same, seconds, t.error])
    write_csv(sweep.folder / "trials.csv", [*header, "same_as", "seconds", "error"], rows)


def comparison_rows(trials: Iterable[Trial], goal: Goal) -> list[list[str]]:
    """Return the rows of `final_comparison.csv`, by macs_ratio, then MACs removed, then points lost."""

    def order(t: Trial) -> tuple[float, float, float, int]:
        return _macs_ratio(t), t.results["macs_removed"], t.results["points_lost"], t.number

    return [
        [
            describe_method(t.settings),
            _fraction(t.results.get("params_removed")),
            f"{100 * t.results['macs_removed']:.2f}",
            f"{t.results['points_lost']:.2f}",
            str(goal.met(t.results)),
        ]
        for t in sorted(trials, key=order)
    ]


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _macs_ratio(trial: Trial) -> float:
    value = trial.settings.get("macs_ratio")
    return float(value) if isinstance(value, int | float) else 0.0


def _best(sweep: Sweep, goal: Goal) -> Mapping[str, Any] | None:
    comparable = bool(sweep.finished) and all(map(is_comparable, sweep.finished))
    best = sweep.best(goal) if comparable else None
    return None if best is None else _plain(best)


def _plain(trial: Trial) -> dict[str, Any]:
    return {"trial": trial.number, "settings": dict(trial.settings), "results": dict(trial.results)}
