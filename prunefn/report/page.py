"""Write a folder of results as one HTML page without other files, network or scripts."""

from __future__ import annotations

import base64
import csv
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from ..errors import PruneError
from ..files.nest import read_nest
from ..spec.picture import themed
from .beside import BESIDE
from .beside import beside as write_beside
from .cells import Cell, Table, cell, heading
from .goal import COMPARISON
from .html import Section, render
from .results import PAGE, ROWS, Results, plot_of, read_results, table_of
from .run_folder import SUMMARY, TRIAL, cards, numbers, read, read_json, verdict
from .scatter import scatter

PICTURES = {
    "pareto.png": "Accuracy against MACs",
    "accuracy.png": "Top-1 over the epochs",
    "accuracy_macs.png": "Accuracy against MACs",
    "importance.png": "What matters",
    "norms.png": "Norms over the checkpoints",
    "scores.png": "Scores",
    "residuals.png": "Predicted errors",
    "widths.png": "What is left of each group",
    "layers.png": "MACs and parameters by layer",
}
"""Name of a picture file → heading, in the order on the page; other pictures follow under their own names."""
LINES = "metrics.jsonl"
COLUMNS = ("phase", "epoch", "macs", "params", "lr", "train_loss", "loss", "top1")
"""Columns of `metrics.jsonl`, in the order on the page."""
LONG = 12
"""Texts of more lines are folded."""
SHOWN = ("pareto.png", "final_comparison.csv", "trials.csv")
"""Files of a sweep or a directory of runs that the page's picture and table of all results show."""
POINTS = "Every point is named where the pointer rests; a click opens its page. Green: the goal is met. Star: the dense network."
PACKAGES = ("prunefn", "torchvision", "timm", "transformers", "accelerate", "optuna", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results, without those that are not installed."""
    by_package = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in PACKAGES:
        try:
            by_package[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return by_package


def page(folder: Path | str, *, beside: Sequence[str] = ()) -> Path:
    """Write `report.html` into the folder of a run, a sweep, or a directory of runs, and into those folders of its runs or trials
    that have none.

    The page starts with one line that says how the results meet the goal. The results of a sweep or of several runs follow as a
    picture, in which every point is named where the pointer rests, and as a table with links to the runs' pages. There is a
    section for every other file: `summary.json` as numbers, `metrics.jsonl` and `*.csv` as tables, `*.png` (also those of each
    round), `spec.svg`, `mask.safetensors`, `config.json`. The page is light or dark, like the reader's browser.

    Args:
        folder: folder of results.
        beside: names of published tables, such as `vbp_table_10`; the results are set beside them on a page of its own,
            `published.html`, which the page links to.

    Returns:
        Path of the page.

    Raises:
        PruneError: the folder has no files of a run, a file is damaged (names it), or the directory has runs but not exactly one of
            the dense network; or there is no such table, or nothing to set beside it.
    """
    where = Path(folder)
    if beside:
        write_beside(where, beside, up=PAGE)
    results = read_results(where)
    links = {} if results is None else _links(where, results)
    return _write(where, results, links)


def _links(where: Path, results: Results) -> dict[str, str]:
    """Return name of a row → address of its page; missing pages are written."""
    links = {}
    rows = [*results.rows, *([results.dense] if results.dense is not None and results.dense.folder != "." else [])]
    for row in rows:
        folder = where / row.folder
        if not (folder / PAGE).exists() and (numbers(folder) or any(folder.glob("*.png"))):
            _write(folder, None, {}, up="../" * (row.folder.count("/") + 1) + PAGE)
        if (folder / PAGE).exists():
            links[row.name] = f"{quote(row.folder)}/{PAGE}"
    return links


def _write(where: Path, results: Results | None, links: Mapping[str, str], up: str = "") -> Path:
    """Write the page of a folder.

    Args:
        where: the folder.
        results: of its runs or trials; None: it is one run.
        links: name of a run or trial → address of its page.
        up: address of the page of all runs or trials.
    """
    config, found = read_json(where / "config.json"), numbers(where)
    makers = (_picture_sections, _graph_section, _epoch_section, _table_sections, _group_section)
    sections = [] if results is None else list(_result_sections(results, links))
    shown = () if results is None else SHOWN
    sections += [s for make in makers for s in make(where, shown)]
    if not sections and not found:
        raise PruneError(
            f"{where} has no files of a run (summary.json, metrics.jsonl, a mask, a picture, a table): is it the right folder?"
        )
    run_versions = config.pop("versions", None) or read_json(where / "spec.json").get("versions") or versions()
    if options := config or read_json(where / "settings.json"):
        text = json.dumps(options, indent=2, ensure_ascii=False)
        sections.append(Section("What was asked", text=text, folded=text.count("\n") > LONG))
    rows = [(Cell(k), Cell(str(v))) for k, v in run_versions.items()]
    sections.append(Section("Versions", table=Table(("package", "version"), rows), folded=True))
    render(
        where / PAGE,
        title=_title(where, config, found),
        verdict=verdict(found) if results is None else results.verdict,
        cards=cards(found),
        sections=sections,
        up=up,
        others=_others(where, results, links),
    )
    return where / PAGE


def _others(where: Path, results: Results | None, links: Mapping[str, str]) -> dict[str, str]:
    """Return name → address of pages that no table links to: published results, and those below a directory of runs."""
    out = {"beside published results": BESIDE} if (where / BESIDE).exists() else {}
    if results is not None and results.what == "runs":
        pages = (p for p in sorted(where.glob(f"*/{PAGE}")) if p.parent.name not in links)
        out |= {p.parent.name: f"{quote(p.parent.name)}/{PAGE}" for p in pages}
    return out


def _title(where: Path, config: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the title of the page."""
    if "prune" in config and "macs_removed" in found:
        method = str(config["prune"] or "pruning").removesuffix("()")
        return f"{100 * found['macs_removed']:.1f} % of the MACs removed by {method}"
    if "macs_removed" in found and "macs_dense" in found and (where / SUMMARY).exists():
        return f"{100 * found['macs_removed']:.1f} % of the MACs removed by pruning"
    name = where.resolve().name
    if (where / TRIAL).exists() and name.isdecimal():
        return f"trial {int(name)}"
    return str(config.get("name") or name)


# ---- sections


def _result_sections(results: Results, links: Mapping[str, str]) -> Iterator[Section]:
    """Yield the picture and the table of the results."""
    plot = plot_of(results, links)
    if plot is not None:
        names = [results.objectives[i] for i in (0, 1)]
        title = (
            "Accuracy against MACs" if names == ["top1", "macs"] else " against ".join(map(heading, names)).capitalize()
        )
        yield Section(title, svg=scatter(plot), note=POINTS)
    yield Section("Results", table=table_of(results, links))
    if results.failed:
        yield Section("Failed", table=Table(("", "error"), [(Cell(n), Cell(e)) for n, e in results.failed.items()]))


def _picture_sections(where: Path, shown: Sequence[str]) -> Iterator[Section]:
    """Yield a section for each name of a picture, with those of all rounds; names of `PICTURES` come first, in its order."""
    by_name: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(where.glob("*.png")):
        by_name.setdefault(path.name, []).append((_as_words(path.stem), path))
    rounds = {int(p.name[6:]): p for p in where.glob("round_*") if p.name[6:].isdecimal()}
    for number in sorted(rounds):
        for path in sorted(rounds[number].glob("*.png")):
            by_name.setdefault(path.name, []).append((f"round {number}", path))
    order = [*(n for n in PICTURES if n in by_name), *(n for n in by_name if n not in PICTURES)]
    for name in (n for n in order if n not in shown):
        heading = PICTURES.get(name) or _as_words(Path(name).stem).capitalize()
        yield Section(heading, [(title, _data_uri(path)) for title, path in by_name[name]])


def _data_uri(path: Path) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _as_words(name: str) -> str:
    """Return a name with spaces for underscores."""
    return name.replace("_", " ")


def _graph_section(where: Path, _: Sequence[str]) -> Iterator[Section]:
    """Yield the graph of the groups, if the folder has it."""
    path = where / "spec.svg"
    if path.exists():
        svg = read(path, lambda p: themed(p.read_text(encoding="utf-8")))
        yield Section("Graph of the groups", svg=svg, note="Members and sites of a group show where the pointer rests.")


def _epoch_section(where: Path, _: Sequence[str]) -> Iterator[Section]:
    """Yield the table of phases and epochs, if the folder or its training has one."""
    path = next((p for p in (where / LINES, where / "train" / LINES) if p.exists()), None)
    if path is None:
        return
    rows = read(path, lambda p: [json.loads(line) for line in p.read_text(encoding="utf-8").splitlines() if line])
    names = dict.fromkeys(k for r in rows for k in r)
    columns = [*(c for c in COLUMNS if c in names), *(k for k in names if k not in (*COLUMNS, "round", "update"))]
    if rows:
        trained = any("epoch" in r or "train_loss" in r for r in rows)
        cells = [[cell(c, r.get(c)) for c in columns] for r in rows]
        yield Section(
            "Phases and epochs" if trained else "Dense and pruned", table=_shortened(list(map(heading, columns)), cells)
        )


def _table_sections(where: Path, shown: Sequence[str]) -> Iterator[Section]:
    """Yield a table for each CSV file, `final_comparison.csv` first."""
    paths = (p for p in where.glob("*.csv") if p.name not in shown)
    for path in sorted(paths, key=lambda p: (p.name != COMPARISON, p.name)):
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = read(path, lambda _, f=file: list(csv.reader(f))) or [[]]
        if rows:
            cells = [[cell(c, v) for c, v in zip(head, row, strict=False)] for row in rows]
            yield Section(_as_words(path.stem).capitalize(), table=_shortened(list(map(heading, head)), cells))


def _shortened(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """Return a table with at most `ROWS` rows."""
    return Table(columns, rows[:ROWS], max(0, len(rows) - ROWS))


def _group_section(where: Path, _: Sequence[str]) -> Iterator[Section]:
    """Yield the bars of the units kept in each group, if the folder has a mask."""
    path = where / "mask.safetensors"
    if path.exists() and (mask := read(path, read_nest)["mask"]):
        yield Section("Units kept", bars=[(g, int(m.sum()), len(m)) for g, m in mask.items()])
