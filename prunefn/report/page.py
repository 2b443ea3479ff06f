"""Write a folder of results as one HTML page without other files, network or scripts."""

from __future__ import annotations

import base64
import csv
import json
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError

import torch

from .._extras import needs
from ..display.units import quantity
from ..errors import PruneError
from ..files.atomic import write_text
from ..files.nest import read_nest
from ..spec.picture import themed

PAGE = "report.html"
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
COLUMNS = {
    "phase": "phase",
    "epoch": "epoch",
    "macs": "MACs",
    "params": "params",
    "lr": "lr",
    "train_loss": "training loss",
    "loss": "loss",
    "top1": "top-1",
}
"""Column of `metrics.jsonl` → heading, in the order on the page."""
ROWS = 500
"""Maximal number of rows of a table, which then states how many more there are."""
PACKAGES = ("prunefn", "torchvision", "timm", "transformers", "accelerate", "optuna", "numpy", "safetensors")


class Table(NamedTuple):
    """A table of formatted cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    more: int = 0
    """Number of rows that are left out."""


class Section(NamedTuple):
    """A part of the page; everything except the heading is optional."""

    heading: str
    pictures: Sequence[tuple[str, str]] = ()
    """(name, data URI); all after the first are folded."""
    svg: str = ""
    table: Table | None = None
    bars: Sequence[tuple[str, int, int]] = ()
    """(group, units kept, units)"""
    text: str = ""

    @property
    def id(self) -> str:
        """The anchor for links within the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.heading.lower()).strip("-")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results, without those that are not installed."""
    by_package = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in PACKAGES:
        try:
            by_package[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return by_package


def page(folder: Path | str) -> Path:
    """Write `report.html` into the folder of a run of `pat`, a sweep or a single pruning.

    The page has a section for every file that exists: `summary.json` as numbers, `metrics.jsonl` and `*.csv` as tables, `*.png`
    (also those of each round), `spec.svg`, `mask.safetensors`, `config.json`. The page is light or dark, like the reader's
    browser.

    Args:
        folder: folder of results.

    Returns:
        Path of the page.

    Raises:
        PruneError: the folder has no files of a run, or a file is damaged (names it).
    """
    where = Path(folder)
    config, summary = _read_json(where / "config.json"), _read_json(where / "summary.json")
    sections = [
        s
        for make in (_picture_sections, _graph_section, _epoch_section, _table_sections, _group_section)
        for s in make(where)
    ]
    if not sections and not summary:
        raise PruneError(
            f"{where} has no files of a run (summary.json, metrics.jsonl, a mask, a picture, a table): is it the right folder?"
        )
    run_versions = config.pop("versions", None) or _read_json(where / "spec.json").get("versions") or versions()
    if config:
        sections.append(Section("What was asked", text=json.dumps(config, indent=2, ensure_ascii=False)))
    table = Table(("package", "version"), [(k, str(v)) for k, v in run_versions.items()])
    sections.append(Section("Versions", table=table))
    with needs("train", "report.html"):
        from jinja2 import Environment
    template = Environment(autoescape=True).from_string(
        files("prunefn.report").joinpath("page.html").read_text("utf-8")
    )
    title = _title(where, config, summary)
    write_text(where / PAGE, template.render(title=title, cards=_cards(summary), sections=sections))
    return where / PAGE


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if the file does not exist."""
    content = _read(path, lambda p: json.loads(p.read_text(encoding="utf-8"))) if path.exists() else {}
    return content if isinstance(content, dict) else {"value": content}


def _read(path: Path, parse: Callable[[Path], Any]) -> Any:
    """Return the parsed file.

    Raises:
        PruneError: it cannot be parsed.
    """
    try:
        return parse(path)
    except (ValueError, ParseError, csv.Error) as error:
        raise PruneError(f"{path} cannot be read ({error}); delete it, or write it again") from error


# ---- numbers at the top


def _title(where: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Return the title of the page."""
    if "macs_removed" in summary:
        return f"{summary['macs_removed']:.1%} of the MACs removed by {config.get('prune') or 'pruning'}"
    return str(config.get("name") or where.resolve().name)


def _cards(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (name, value, note) for every number of the summary that has a dense counterpart."""
    cards = []
    pairs = {k: (summary[f"{k}_dense"], summary[k]) for k in summary if f"{k}_dense" in summary}
    for name, word in (("macs", "MACs removed"), ("params", "Parameters removed")):
        if name in pairs:
            dense, pruned = pairs.pop(name)
            removed = f"{1 - pruned / dense:.1%}" if dense else ""
            cards.append((word, removed, f"{quantity(dense, '')} → {quantity(pruned, '')}"))
    for name, (dense, pruned) in pairs.items():
        if name == "top1":
            cards.append(("Top-1", f"{pruned:.2%}", f"dense {dense:.2%}, {100 * (pruned - dense):+.2f} points"))
        else:
            cards.append((name.capitalize(), f"{pruned:.4g}", f"dense {dense:.4g}"))
    return cards


# ---- sections


def _picture_sections(where: Path) -> Iterator[Section]:
    """Yield a section for each name of a picture, with those of all rounds; names of `PICTURES` come first, in its order."""
    by_name: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(where.glob("*.png")):
        by_name.setdefault(path.name, []).append((_as_words(path.stem), path))
    rounds = {int(p.name[6:]): p for p in where.glob("round_*") if p.name[6:].isdecimal()}
    for number in sorted(rounds):
        for path in sorted(rounds[number].glob("*.png")):
            by_name.setdefault(path.name, []).append((f"round {number}", path))
    order = [*(n for n in PICTURES if n in by_name), *(n for n in by_name if n not in PICTURES)]
    for name in order:
        heading = PICTURES.get(name) or _as_words(Path(name).stem).capitalize()
        yield Section(heading, [(title, _data_uri(path)) for title, path in by_name[name]])


def _data_uri(path: Path) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _as_words(name: str) -> str:
    """Return a name with spaces for underscores."""
    return name.replace("_", " ")


def _graph_section(where: Path) -> Iterator[Section]:
    """Yield the graph of the groups, if the folder has it."""
    path = where / "spec.svg"
    if path.exists():
        yield Section("Graph of the groups", svg=_read(path, lambda p: themed(p.read_text(encoding="utf-8"))))


def _epoch_section(where: Path) -> Iterator[Section]:
    """Yield the table of phases and epochs, if the folder has one."""
    path = where / "metrics.jsonl"
    if not path.exists():
        return
    rows = _read(path, lambda p: [json.loads(line) for line in p.read_text(encoding="utf-8").splitlines() if line])
    names = dict.fromkeys(k for r in rows for k in r)
    columns = [*(c for c in COLUMNS if c in names), *(k for k in names if k not in (*COLUMNS, "round", "update"))]
    cells = [[_cell(c, r.get(c)) for c in columns] for r in rows]
    if rows:
        yield Section("Phases and epochs", table=_shortened([COLUMNS.get(c, _as_words(c)) for c in columns], cells))


def _cell(column: str, value: Any) -> str:
    """Return a value as text, in the format of its column."""
    if value is None or isinstance(value, str):
        return value or ""
    if column in ("macs", "params"):
        return quantity(value, "")
    if column == "top1":
        return f"{value:.2%}"
    if column == "lr":
        return f"{value:.3g}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table_sections(where: Path) -> Iterator[Section]:
    """Yield a table for each CSV file, `final_comparison.csv` first."""
    for path in sorted(where.glob("*.csv"), key=lambda p: (p.stem != "final_comparison", p.name)):
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = _read(path, lambda _, f=file: list(csv.reader(f))) or [[]]
        if rows:
            yield Section(_as_words(path.stem).capitalize(), table=_shortened(head, rows))


def _shortened(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table with at most `ROWS` rows."""
    return Table(columns, rows[:ROWS], max(0, len(rows) - ROWS))


def _group_section(where: Path) -> Iterator[Section]:
    """Yield the bars of the units kept in each group, if the folder has a mask."""
    path = where / "mask.safetensors"
    if path.exists() and (mask := _read(path, read_nest)["mask"]):
        yield Section("Units kept", bars=[(g, int(m.sum()), len(m)) for g, m in mask.items()])
