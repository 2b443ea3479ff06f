"""The results of a folder as one list: the trials of a sweep, or the runs beside the dense network."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..display.units import scale_word
from .cells import MET, MISSED, Cell, Table, cell, heading, shown
from .comparison import Comparison, compare_runs, is_results
from .goal import Dense, Goal, dense_of
from .run_folder import numbers, read, read_json
from .scatter import Dot, Line, Plot

ROWS = 500
"""Maximal number of rows of a table, which then states how many more there are."""
FIRST = ("top1", "points_lost", "macs", "macs_removed", "params", "params_removed")
"""Results whose columns come first."""
LAST = ("same_as", "seconds", "error")
"""Columns of `trials.csv` after the results."""
PAGE = "report.html"


class Row(NamedTuple):
    """A network."""

    name: str
    values: Mapping[str, Any]
    """Settings and results by name."""
    folder: str
    """Folder of its own, below that of the results."""
    met: bool | None = None
    """Whether it meets the goal; None: it cannot be said."""
    words: str = ""
    """Its settings in words."""
    on_front: bool = False


class Results(NamedTuple):
    """Networks, the best first: those that meet the goal, then by points lost, then by MACs removed."""

    rows: Sequence[Row]
    columns: Sequence[str]
    """Names of settings and results, in the order of the table."""
    objectives: Sequence[str]
    """Names of the results that are drawn: upwards, then across."""
    goal: Goal
    dense: Row | None = None
    """The dense network."""
    what: str = "runs"
    states: Mapping[str, int] = {}
    """State → number of trials that are not finished."""
    failed: Mapping[str, str] = {}
    """Name → error."""

    @property
    def limits(self) -> Dense | None:
        """Return what the goal is relative to."""
        known = self.dense is not None and {"macs", "top1"} <= set(self.dense.values)
        return Dense(self.dense.values["macs"], self.dense.values["top1"]) if self.dense is not None and known else None

    @property
    def verdict(self) -> str:
        """Return the line at the top of the page."""
        return " ".join([_verdict(self), *(f"{n} {self.what} {state}." for state, n in self.states.items() if n)])


def read_results(folder: Path) -> Results | None:
    """Return the results of the folder of a sweep, or of a directory of runs; None if it is neither.

    Raises:
        PruneError: the directory has no run of the dense network, or a file cannot be read.
    """
    if (folder / "sweep.json").exists() and (folder / "trials.csv").exists():
        return _of_sweep(folder)
    return _of_runs(compare_runs(folder), folder) if is_results(folder) else None


def _of_sweep(folder: Path) -> Results | None:
    """Return the trials of a sweep; None if none is finished."""
    summary = read_json(folder / "sweep.json")
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        lines = read(folder / "trials.csv", lambda _: list(csv.DictReader(file)))
    goal, settings = Goal(**summary["goal"]), list(summary["space"])
    front = {str(t["trial"]) for t in summary["front"]}
    found = [c for c in (lines[0] if lines else {}) if c not in ("trial", "state", *settings, *LAST)]
    rows = []
    for line in lines:
        if line["state"] == "finished" and not line["same_as"]:
            values = {k: _value(v) for k, v in line.items() if v != "" and k not in ("state", "same_as", "error")}
            folder_of = f"trials/{int(line['trial']):04d}"
            rows.append(_row(f"trial {line['trial']}", values, folder_of, goal, settings, line["trial"] in front))
    if not rows:
        return None
    columns = [*(c for c in FIRST if c in found), *settings, *(c for c in found if c not in FIRST), "seconds"]
    dense = next((Row("dense", d, ".") for r in rows if (d := _dense_values(r.values))), None)
    states = {state: n for state, n in summary["trials"].items() if state != "finished"}
    drawn = list(summary["objectives"])[:2]
    failed = {f"trial {line['trial']}": line["error"] for line in lines if line["state"] == "failed"}
    return Results(sorted(rows, key=_order), columns, drawn, goal, dense, "trials", states, failed)


def _of_runs(compared: Comparison, folder: Path) -> Results:
    """Return the runs of a directory."""
    from .pareto import pareto_front

    values = {"top1": compared.dense.accuracy, "macs": round(1e9 * compared.dense.macs)}
    dense = Row(compared.dense.name, {**values, "params": round(1e6 * compared.dense.params)}, compared.dense.name)
    front = pareto_front([(r.name, r.macs, r.accuracy) for r in compared.runs])
    rows = []
    for run, on_front in zip(compared.runs, front, strict=True):
        values = {
            "top1": run.accuracy,
            "points_lost": compared.points_lost(run),
            "macs": round(1e9 * run.macs),
            "macs_removed": compared.macs_removed(run),
            "params": round(1e6 * run.params),
            "params_removed": compared.params_removed(run),
        }
        if "latency_ms" in (more := numbers(folder / run.name)):
            values["latency"] = more["latency_ms"] / 1e3
        rows.append(_row(run.name, values, run.name, compared.goal, (), on_front))
    columns = [*FIRST, *(["latency"] if any("latency" in r.values for r in rows) else [])]
    return Results(sorted(rows, key=_order), columns, ("top1", "macs"), compared.goal, dense)


def _dense_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return top-1, MACs and parameters of the dense network that a trial is relative to; empty if it does not say."""
    dense = dense_of(values)
    if dense is None:
        return {}
    out: dict[str, Any] = {"top1": dense.top1, "macs": round(dense.macs)}
    if {"params", "params_removed"} <= set(values) and values["params_removed"] < 1:
        out["params"] = round(values["params"] / (1 - values["params_removed"]))
    return out


def _row(name: str, values: dict[str, Any], folder: str, goal: Goal, settings: Sequence[str], on_front: bool) -> Row:
    met = goal.met(values) if {"macs_removed", "points_lost"} <= set(values) else None
    words = ", ".join(f"{heading(s)} {cell(s, values[s]).text}" for s in settings if s in values)
    return Row(name, values, folder, met, words, on_front)


def _value(text: str) -> Any:
    """Return the number that a text is, or the text."""
    try:
        return float(text) if any(c in text for c in ".en") else int(text)
    except ValueError:
        return text


def _order(row: Row) -> tuple[bool, float, float]:
    """Return the key by which rows are sorted; rows of one key keep their order."""
    return not row.met, row.values.get("points_lost", 0.0), -row.values.get("macs_removed", 0.0)


def _verdict(results: Results) -> str:
    comparable = [r for r in results.rows if r.met is not None]
    n = len(results.rows)
    if not comparable:
        return f"{n} {results.what} finished; {sum(r.on_front for r in results.rows)} on the Pareto front."
    met = [r for r in comparable if r.met]
    if met:
        verb = "met" if results.what == "runs" or n > 1 else "meets"
        return f"{len(met)} of {n} {results.what} {verb} the goal ({results.goal}); best: {_described(met[0])}."
    enough = [r for r in comparable if r.values["macs_removed"] >= results.goal.macs_removed]
    least = min(enough or comparable, key=lambda r: (r.values["points_lost"], -r.values["macs_removed"]))
    word = "nearest of those with enough MACs removed" if enough else "fewest points lost"
    return f"None of {n} {results.what} met the goal ({results.goal}); {word}: {_described(least)}."


def _described(row: Row) -> str:
    """Return a row in words, with what it removes and costs."""
    removed, lost = row.values["macs_removed"], row.values["points_lost"]
    price = f"{lost:.2f} points lost" if lost > 0 else f"{-lost:.2f} points gained"
    price = "no points lost" if abs(lost) < 0.005 else price
    name = f"{row.name} ({row.words})" if row.words else row.name
    return f"{name}: {shown('macs_removed', removed)} of the MACs removed, {price}"


# ---- for the page


def table_of(results: Results, links: Mapping[str, str]) -> Table:
    """Return the table of the results, the best first.

    Args:
        results: the results.
        links: name of a row → address of its page.
    """
    judged = any(r.met is not None for r in results.rows)
    columns = ["", *(["goal"] if judged else []), *map(heading, results.columns)]
    rows = []
    if (dense := results.dense) is not None:
        name = Cell(f"{dense.name} ★", link=links.get(dense.name, ""))
        rows.append([name, *([Cell("")] if judged else []), *(cell(c, dense.values.get(c)) for c in results.columns)])
    for row in results.rows[:ROWS]:
        mark = Cell("") if row.met is None else MET if row.met else MISSED
        cells = [cell(c, row.values.get(c), results.goal) for c in results.columns]
        name = Cell(row.name + (" ◆" if row.on_front else ""), link=links.get(row.name, ""))
        rows.append([name, *([mark] if judged else []), *cells])
    order = "Sorted by goal, then points lost, then MACs removed. " if judged else ""
    note = f"{order}★ the dense network. ◆ on the Pareto front: no other is better in one and as good in the other."
    return Table(columns, rows, max(0, len(results.rows) - ROWS), note)


def plot_of(results: Results, links: Mapping[str, str]) -> Plot | None:
    """Return the picture of two results against each other; None if there is only one.

    Args:
        results: the results.
        links: name of a row → address of its page.
    """
    if len(results.objectives) < 2:
        return None
    up, across = results.objectives[:2]
    dense = results.limits if (up, across) == ("top1", "macs") else None
    rows = [r for r in results.rows if {up, across} <= set(r.values)]
    largest = max([abs(float(r.values[across])) for r in rows] + ([dense.macs] if dense else []), default=1.0)
    unit, word = scale_word(largest) if across in ("macs", "params") else (_factor(across), "")
    factor = _factor(up)
    best = next((r.name for r in results.rows if r.met), "")
    dots = [
        Dot(
            r.values[across] / unit,
            r.values[up] / factor,
            f"{r.name}: {r.words}" if r.words else r.name,
            ", ".join(
                f"{heading(c)} {cell(c, r.values[c]).text}" for c in results.columns if c in r.values and c in FIRST
            ),
            "met" if r.met else "missed" if r.on_front else "other",
            f"best: {r.name}" if r.name == best else r.name if r.on_front or len(rows) <= 12 else "",
            links.get(r.name, ""),
        )
        for r in rows
    ]
    front = sorted({(d.x, d.y) for d, r in zip(dots, rows, strict=True) if r.on_front})
    region = None
    if dense is not None:
        note = f"top-1 {100 * dense.top1:.2f} %, MACs {cell('macs', dense.macs).text}"
        link = links.get(results.dense.name, "") if results.dense is not None else ""
        dots.append(Dot(dense.macs / unit, dense.top1 / factor, "the dense network", note, "dense", "dense", link))
        most, least = results.goal.corner(dense)
        region = (most / unit, least / factor)
    return Plot(_axis(across, word), _axis(up, ""), dots, [Line(front, "front")], region, "goal")


def _factor(name: str) -> float:
    """Return what a value is divided by for an axis: fractions are shown in percent."""
    return 0.01 if name in ("top1", "macs_removed", "params_removed") else 1.0


def _axis(name: str, word: str) -> str:
    unit = "%" if _factor(name) != 1.0 else word
    return f"{heading(name)} ({unit})" if unit else heading(name)
