"""Set runs beside published tables, on a page: the same columns, the published line, and what is not comparable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from ..display.units import quantity
from ..errors import PruneError
from .cells import Cell, Table
from .html import Section, render
from .measured import HIDDEN, Measured, measured
from .published import COLUMNS, DENSE, Published, published
from .results import PAGE
from .scatter import Dot, Line, Plot, scatter

BESIDE = "published.html"
"""File name of the page."""
PHASES = {"before": "before fine-tuning", "after": "after fine-tuning"}
OURS = "ours"
"""Class of the rows of runs."""
CLOSE = 0.5
"""Difference of dense networks that rounding and other weights of the same network explain: points of top-1, percent of the MACs."""
POINTS = (
    "Top-1 in percent of the dense network's, so that networks on other data can be compared. Pale: published. Blue: right after "
    "pruning. Green: after fine-tuning. Every point is named where the pointer rests."
)


class Difference(NamedTuple):
    """Why a run is not comparable with a published table."""

    run: str
    what: str
    published: str
    here: str


def beside(source: Path | str, tables: Sequence[str], up: str = "") -> Path:
    """Write `published.html`: pruned networks of a folder beside published tables.

    For each table, the page has a section with the published rows and the runs in the same columns, with the units and decimals
    of the paper, and, where the table has MACs, a picture. Of a table of one network at several ratios, it says how far each run
    is from the published line. The last section says what is not comparable: network, data set, epochs, rounds, groups, device.

    Args:
        source: folder of a run, directory of runs, folder of a sweep, or a log (`metrics.jsonl`), beside which the page is
            written.
        tables: names of published tables: `vbp_table_10`, `vbp_models`, `vbp_methods`, `without_training`.
        up: address of the page of the results.

    Returns:
        Path of the page.

    Raises:
        PruneError: there is no such table; the source has no pruned network with an accuracy, or a file of it is damaged.
    """
    where = Path(source)
    chosen = [published(name) for name in tables]
    if not chosen:
        raise PruneError(f"beside {where}: name a published table, such as vbp_table_10")
    runs = measured(where)
    if not runs:
        raise PruneError(
            f"{where} has no pruned network with an accuracy to set beside published ones; prune with --data"
        )
    folder = where.parent if where.is_file() else where
    differences = {t.name: [d for m in runs for d in differences_of(m, t)] for t in chosen}
    sections = [s for t in chosen for s in _sections(t, runs, differences[t.name], folder)]
    rows = [[Cell(x) for x in (d.run, t.title, *d[1:])] for t in chosen for d in differences[t.name]]
    if rows:
        note = "Numbers of these runs and of the table do not say which method is better: they were measured on different things."
        table = Table(("run", "table", "what", "published", "here"), rows, note=note)
        sections.append(Section("What is not comparable", table=table))
    title = f"{folder.resolve().name} beside published results"
    render(folder / BESIDE, title=title, verdict=_verdict(chosen[0], runs, differences), sections=sections, up=up)
    return folder / BESIDE


# ---- numbers


def differences_of(m: Measured, table: Published) -> list[Difference]:
    """Return why a run is not comparable with a table.

    >>> run = Measured("a", model="DeiT-T", data="digits", results={"top1_before": 0.5})
    >>> [(d.what, d.published, d.here) for d in differences_of(run, table=published("without_training"))]
    [('data set', 'ImageNet-1k', 'digits')]
    """
    here = m.numbers()
    out = [] if m.model in table.models else [("network", ", ".join(table.models), m.model or "not stated")]
    out += [] if m.data == table.data else [("data set", table.data, m.data or "not stated")]
    trained = "top1_after" in here and table.epochs is not None
    if trained and m.epochs != table.epochs:
        out.append(("epochs of fine-tuning", str(table.epochs), "not stated" if m.epochs is None else str(m.epochs)))
    if m.rounds > 1:
        out.append(("rounds of pruning", "1", f"{m.rounds}, with training between them"))
    if m.other_kinds:
        out.append(("groups that lose units", HIDDEN, ", ".join((HIDDEN, *m.other_kinds))))
    if "speed_up" in here and "speed_up" in table.columns:
        out.append(("device of the speed-up", table.device, "see the run"))
    return [Difference(m.name, *d) for d in (*out, *_dense_differences(m, table))]


def _dense_differences(m: Measured, table: Published) -> Iterator[tuple[str, str, str]]:
    """Yield what differs between the dense networks, if the table has its own."""
    dense = next((n for n, row in zip(table.numbers(), table.rows, strict=True) if row[1] == DENSE), None)
    if dense is None:
        return
    top1, macs = m.results.get("top1_dense"), m.results.get("macs_dense")
    if top1 is not None and abs(100 * top1 - dense["top1_before"]) > CLOSE:
        yield "top-1 of the dense network", f"{dense['top1_before']:.2f} %", f"{100 * top1:.2f} %"
    if macs is not None and abs(macs / (1e9 * dense["gmacs"]) - 1) > CLOSE / 100:
        yield "MACs of the dense network", f"{dense['gmacs']:.2f} G", quantity(macs, "")


def on_line(table: Published, macs_removed: float, when: str) -> float | None:
    """Return top-1 in percent of the dense network's on the published line, between its points; None beyond its ends.

    Args:
        table: one network at several ratios.
        macs_removed: percent of the MACs.
        when: `before` or `after` fine-tuning.

    >>> round(on_line(published("vbp_table_10"), 100 * (1 - 0.94 / 1.26), "after"), 2)
    97.31
    """
    points = sorted((n["macs_removed"], n[f"kept_{when}"]) for n in table.numbers())
    xs, ys = zip(*points, strict=True)
    return float(np.interp(macs_removed, xs, ys)) if xs[0] <= macs_removed <= xs[-1] + 1e-9 else None


# ---- the page


def _sections(
    table: Published, runs: Sequence[Measured], differences: Sequence[Difference], folder: Path
) -> Iterator[Section]:
    """Yield the sections of a published table."""
    has_shares = any({"macs_removed", "kept_after"} <= n.keys() for n in table.numbers())
    svg = scatter(_plot(table, runs, folder)) if has_shares else ""
    marked = {d.run for d in differences}
    sign = " †: what is not comparable is listed at the end." if marked else ""
    note = f"{table.source}; {table.data}. Units: hidden ones; before and after fine-tuning. Rows in colour: the runs here.{sign}"
    rows = Table(("", *_headings(table)), _rows(table, runs, marked, folder), note=note)
    yield Section(table.title, svg=svg, note=POINTS if svg else "", table=rows)
    if table.line and (lines := [*_line_rows(table, runs)]):
        columns = (
            "run",
            "fine-tuning",
            "MACs removed (%)",
            "top-1 (% of dense)",
            "published line there",
            "difference (points)",
        )
        yield Section(f"Beside the line of {table.title}", table=Table(columns, lines))


def _headings(table: Published) -> list[str]:
    return [COLUMNS[c][0] if c in COLUMNS else c for c in table.columns]


def _rows(table: Published, runs: Sequence[Measured], marked: set[str], folder: Path) -> list[list[Cell]]:
    """Return the published rows and those of the runs: those of known networks by network, by what they remove."""
    order = {name: i for i, name in enumerate(table.models)}
    size = "macs_removed" if any("macs_removed" in n for n in table.numbers()) else "units_removed"
    listed: list[tuple[tuple[int, float], list[Cell]]] = []
    for row, numbers in zip(table.rows, table.numbers(), strict=True):
        listed.append(((order[row[0]], numbers.get(size, 0.0)), [Cell("published"), *map(Cell, row)]))
    for m in runs:
        numbers = m.numbers()
        cells = [_text(c, numbers[c]) if c in numbers else "" for c in table.columns[2:]]
        name = Cell(m.name + (" †" if m.name in marked else ""), OURS, _link(m, folder))
        cells = [name, *(Cell(x, OURS) for x in (m.model, m.method, *cells))]
        place = order.get(m.model, 0 if table.line else len(order))
        listed.append(((place, numbers.get(size, 0.0)), cells))
    return [cells for _, cells in sorted(listed, key=lambda x: x[0])]


def _text(column: str, value: float) -> str:
    """Return a number with the decimals of its column, or with two digits where these would say nothing.

    >>> _text("gmacs", 1.2567), _text("gmacs", 5.24e-05), _text("units_removed", 45.2)
    ('1.26', '0.000052', '45')
    """
    text = f"{value:.{COLUMNS[column][1]}f}"
    if value and not float(text):
        return np.format_float_positional(float(f"{value:.1e}"), trim="-")
    return text


def _link(m: Measured, folder: Path) -> str:
    """Return the address of the page of a run, if there is one."""
    return f"{quote(m.folder)}/{PAGE}" if m.folder and (folder / m.folder / PAGE).exists() else ""


def _plot(table: Published, runs: Sequence[Measured], folder: Path) -> Plot:
    """Return top-1, in percent of the dense network's, against MACs removed: the published points and the runs."""
    dots: list[Dot] = []
    lines = []
    for when, words in PHASES.items():
        rows = [(row, n) for row, n in zip(table.rows, table.numbers(), strict=True) if f"kept_{when}" in n]
        points = [(n["macs_removed"], n[f"kept_{when}"]) for _, n in rows]
        for (row, n), (x, y) in zip(rows, points, strict=True):
            if row[1] != DENSE or not dots:
                dense = row[1] == DENSE
                name = f"{row[0]}, dense" if dense else f"{row[0]}, {row[2]} % of the hidden units removed, {words}"
                label = "" if table.line else row[0]
                dots.append(Dot(x, y, name, _note(n, when), "dense" if dense else "other", label))
        lines += [Line(points, "" if when == "before" else "second")] if table.line else []
        for m in runs:
            n = m.numbers()
            if {"macs_removed", f"kept_{when}"} <= n.keys():
                place = n["macs_removed"], n[f"kept_{when}"]
                dots.append(Dot(*place, f"{m.name}, {words}", _note(n, when), when, m.name, _link(m, folder)))
    return Plot("MACs removed (%)", "top-1 (% of the dense network's)", dots, lines)


def _note(numbers: Mapping[str, float], when: str) -> str:
    """Return what is shown below the name of a point."""
    parts = [f"{numbers['macs_removed']:.2f} % of the MACs removed"] if "macs_removed" in numbers else []
    return ", ".join([*parts, f"{numbers[f'kept_{when}']:.2f} % of the dense top-1"])


def _line_rows(table: Published, runs: Sequence[Measured]) -> Iterator[list[Cell]]:
    """Yield a row for each run and phase within the ends of the line."""
    for m in runs:
        n = m.numbers()
        for when, words in PHASES.items():
            if not {"macs_removed", f"kept_{when}"} <= n.keys():
                continue
            line = on_line(table, n["macs_removed"], when)
            gap = "" if line is None else f"{n[f'kept_{when}'] - line:+.2f}".replace("-", "−")
            there = "beyond its ends" if line is None else f"{line:.2f}"
            cells = (
                m.name,
                words.partition(" ")[0],
                f"{n['macs_removed']:.2f}",
                f"{n[f'kept_{when}']:.2f}",
                there,
                gap,
            )
            yield [Cell(x) for x in cells]


def _verdict(table: Published, runs: Sequence[Measured], differences: Mapping[str, Sequence[Difference]]) -> str:
    """Return the line on top: the best run beside the line, and how many runs are comparable."""
    count = f"{len(runs)} pruned network{'s' if len(runs) > 1 else ''}"
    odd = {d.run for found in differences.values() for d in found}
    rest = "all of them comparable" if not odd else f"{len(runs) - len(odd)} of them comparable with all tables"
    best = _best(table, runs)
    if best is None:
        return f"{count} beside {table.title}; {rest}."
    m, when, line = best
    n = m.numbers()
    return (
        f"{count}; {rest}. {m.name} keeps {n[f'kept_{when}']:.2f} % of its dense top-1 {PHASES[when]} with "
        f"{n['macs_removed']:.1f} % of the MACs removed; the published line of {table.models[0]} keeps {line:.2f} % there."
    )


def _best(table: Published, runs: Sequence[Measured]) -> tuple[Measured, str, float] | None:
    """Return the run that is furthest above the published line (after fine-tuning, if any was fine-tuned), and the line there."""
    for when in ("after", "before") if table.line else ():
        found = []
        for m in runs:
            n = m.numbers()
            line = on_line(table, n.get("macs_removed", -1.0), when)
            if line is not None and f"kept_{when}" in n:
                found.append((n[f"kept_{when}"] - line, m, line))
        if found:
            _, m, line = max(found, key=lambda f: f[0])
            return m, when, line
    return None
