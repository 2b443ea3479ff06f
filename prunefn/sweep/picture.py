"""Draw two objectives of a sweep against each other, and the importance of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..drawing.canvas import COLOURS, DENSE, GRID, INK, canvas, head, save
from ..report import pareto as networks
from ..report.goal import Goal, dense_of
from .result import Sweep, Trial, describe_method

NETWORKS = {"top1": "maximize", "macs": "minimize"}
"""Objectives of a sweep over pruned networks."""


def pareto(sweep: Sweep, path: Path, goal: Goal = Goal()) -> None:  # noqa: B008
    """Draw the first two objectives against each other, with the numbers of the front's trials; two objectives: the front is a line.

    If they are top-1 and MACs, the dense network and the goal are marked.

    Args:
        sweep: of two objectives or more, with a finished trial.
        path: path of the PNG.
        goal: the region to mark.
    """
    own = [t for t in sweep.finished if t.same_as is None]
    if sweep.objectives == NETWORKS:
        points = [(_name(t), float(t.results["macs"]), t.results["top1"]) for t in own]
        dense = next((d for t in own if (d := dense_of(t.results)) is not None), None)
        title = f"{sweep.name}: accuracy against MACs"
        networks.pareto(points, path, title=title, dense=dense, goal=None if dense is None else goal)
        return
    up, across = list(sweep.objectives)[:2]
    front = sorted(sweep.front, key=lambda t: t.results[across])
    joined: dict[str, Any] = {"linestyle": "-" if len(sweep.objectives) == 2 else "none"}
    figure = canvas(7.2, 4.4)
    axes = figure.add_subplot(1, 1, 1)
    axes.plot([t.results[across] for t in own], [t.results[up] for t in own], "o", color=DENSE, markersize=5)
    points = [t.results[across] for t in front], [t.results[up] for t in front]
    axes.plot(*points, marker="o", color=COLOURS[0], markersize=6, linewidth=1.5, **joined)
    for t, *at in zip(front, *points, strict=True):
        axes.annotate(str(t.number), (at[0], at[1]), (5, -10), textcoords="offset points", fontsize=7.5, color=INK)
    axes.margins(0.06, 0.1)
    axes.set_xlabel(f"{_words(across)} ({_better(sweep, across)})")
    axes.set_ylabel(f"{_words(up)} ({_better(sweep, up)})")
    axes.grid(color=GRID)
    head(axes, f"{sweep.name}: Pareto front of {len(own)} trials, with their numbers")
    save(figure, path)


def importance(importances: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw bars of the importance of each setting for each objective.

    Args:
        importances: objective → setting → fraction.
        path: path of the PNG.
    """
    figure = canvas(4.2 * len(importances) + 0.6, 1.3 + 0.42 * max(map(len, importances.values())))
    for i, (objective, by_setting) in enumerate(importances.items()):
        axes = figure.add_subplot(1, len(importances), i + 1)
        values = [100 * v for v in by_setting.values()]
        axes.barh(range(len(values)), values, 0.7, color=COLOURS[i % len(COLOURS)])
        for at, v in enumerate(values):
            axes.text(v, at, f" {v:.0f} %", va="center", fontsize=8, color=INK)
        axes.set_yticks(range(len(values)), list(by_setting), fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, 118)
        axes.set_xticks(range(0, 101, 25))
        axes.set_xlabel("% of what settings explain, each on its own", fontsize=9)
        axes.grid(axis="x", color=GRID)
        head(axes, f"importance of the settings for {_words(objective)}")
    save(figure, path)


def _name(trial: Trial) -> str:
    ratio = trial.settings.get("macs_ratio")
    amount = f"{100 * ratio:.3g} %, " if isinstance(ratio, float) else ""
    return f"trial {trial.number}: {amount}{describe_method(trial.settings)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _better(sweep: Sweep, name: str) -> str:
    return "more is better" if sweep.objectives[name] == "maximize" else "less is better"
