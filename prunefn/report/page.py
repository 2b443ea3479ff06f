"""A folder of results as one page of HTML that needs nothing beside it: no other file, no network, no script."""

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
"""Name of a file → heading; others come after them, under their own names."""
COLUMNS = {
    "phase": "phase",
    "epoch": "epoch",
    "macs": "MMACs",
    "params": "M params",
    "lr": "lr",
    "train_loss": "training loss",
    "loss": "loss",
    "top1": "top-1",
}
ROWS = 500
"""A table shows so many rows, and says how many more there are."""
PACKAGES = ("prunefn", "torchvision", "timm", "transformers", "accelerate", "optuna", "numpy", "safetensors")


class Table(NamedTuple):
    """Cells as they are shown."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    more: int = 0
    """Rows that are left out."""


class Section(NamedTuple):
    """A part of the page; all of it but the heading may be missing."""

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
        """For links within the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.heading.lower()).strip("-")


def versions() -> dict[str, str]:
    """Python and the packages that matter, with their versions; those that are not installed are left out."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def page(folder: Path | str) -> Path:
    """Write `report.html` into a folder: of a run of `pat`, a sweep, a single pruning.

    A section for everything that is there, and none for what is not: `summary.json` as numbers, `metrics.jsonl` and `*.csv` as
    tables, `*.png` (of each round, too), `spec.svg`, `mask.safetensors`, `config.json`. The page is light or dark, as the
    reader's browser is.

    Args:
        folder: of results.

    Returns:
        Where the page is.

    Raises:
        PruneError: nothing of a run is there, or a file is broken; names it.
    """
    where = Path(folder)
    config, summary = _json(where / "config.json"), _json(where / "summary.json")
    sections = [s for make in (_pictures, _graph, _epochs, _tables, _groups) for s in make(where)]
    if not sections and not summary:
        raise PruneError(
            f"{where} has nothing of a run (summary.json, metrics.jsonl, a mask, a picture, a table): is it the right folder?"
        )
    known = config.pop("versions", None) or _json(where / "spec.json").get("versions") or versions()
    if config:
        sections.append(Section("What was asked", text=json.dumps(config, indent=2, ensure_ascii=False)))
    sections.append(Section("Versions", table=Table(("package", "version"), [(k, str(v)) for k, v in known.items()])))
    with needs("train", "report.html"):
        from jinja2 import Environment
    template = Environment(autoescape=True).from_string(
        files("prunefn.report").joinpath("page.html").read_text("utf-8")
    )
    title = _title(where, config, summary)
    write_text(where / PAGE, template.render(title=title, cards=_cards(summary), sections=sections))
    return where / PAGE


def _json(path: Path) -> dict[str, Any]:
    """A file's content; empty where there is no such file."""
    found = _read(path, lambda p: json.loads(p.read_text(encoding="utf-8"))) if path.exists() else {}
    return found if isinstance(found, dict) else {"value": found}


def _read(path: Path, how: Callable[[Path], Any]) -> Any:
    try:
        return how(path)
    except (ValueError, ParseError, csv.Error) as error:
        raise PruneError(f"{path} cannot be read ({error}); delete it, or write it again") from error


# ---- numbers at the top


def _title(where: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    if "macs_removed" in summary:
        return f"{summary['macs_removed']:.1%} of the MACs removed by {config.get('prune') or 'pruning'}"
    return str(config.get("name") or where.resolve().name)


def _cards(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, note) of each pair of a number and the dense network's."""
    cards = []
    pairs = {k: (summary[f"{k}_dense"], summary[k]) for k in summary if f"{k}_dense" in summary}
    for name, word in (("macs", "MACs removed"), ("params", "Parameters removed")):
        if name in pairs:
            old, new = pairs.pop(name)
            cards.append((word, f"{1 - new / old:.1%}" if old else "", f"{old / 1e6:.4g} → {new / 1e6:.4g} M"))
    for name, (old, new) in pairs.items():
        if name == "top1":
            cards.append(("Top-1", f"{new:.2%}", f"dense {old:.2%}, {100 * (new - old):+.2f} points"))
        else:
            cards.append((name.capitalize(), f"{new:.4g}", f"dense {old:.4g}"))
    return cards


# ---- sections


def _pictures(where: Path) -> Iterator[Section]:
    """The known ones in their order, then the others; those of rounds under one heading."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(where.glob("*.png")):
        found.setdefault(path.name, []).append((_words(path.stem), path))
    rounds = {int(p.name[6:]): p for p in where.glob("round_*") if p.name[6:].isdecimal()}
    for number in sorted(rounds):
        for path in sorted(rounds[number].glob("*.png")):
            found.setdefault(path.name, []).append((f"round {number}", path))
    order = [*(n for n in PICTURES if n in found), *(n for n in found if n not in PICTURES)]
    for name in order:
        heading = PICTURES.get(name) or _words(Path(name).stem).capitalize()
        yield Section(heading, [(title, _uri(path)) for title, path in found[name]])


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _words(name: str) -> str:
    return name.replace("_", " ")


def _graph(where: Path) -> Iterator[Section]:
    path = where / "spec.svg"
    if path.exists():
        yield Section("Graph of the groups", svg=_read(path, lambda p: themed(p.read_text(encoding="utf-8"))))


def _epochs(where: Path) -> Iterator[Section]:
    path = where / "metrics.jsonl"
    if not path.exists():
        return
    rows = _read(path, lambda p: [json.loads(line) for line in p.read_text(encoding="utf-8").splitlines() if line])
    names = dict.fromkeys(k for r in rows for k in r)
    columns = [*(c for c in COLUMNS if c in names), *(k for k in names if k not in (*COLUMNS, "round", "update"))]
    cells = [[_cell(c, r.get(c)) for c in columns] for r in rows]
    if rows:
        yield Section("Phases and epochs", table=_cut([COLUMNS.get(c, _words(c)) for c in columns], cells))


def _cell(column: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if column in ("macs", "params"):
        return f"{value / 1e6:.4g}"
    if column == "top1":
        return f"{value:.2%}"
    if column == "lr":
        return f"{value:.3g}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _tables(where: Path) -> Iterator[Section]:
    """`final_comparison.csv` first."""
    for path in sorted(where.glob("*.csv"), key=lambda p: (p.stem != "final_comparison", p.name)):
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = _read(path, lambda _, f=file: list(csv.reader(f))) or [[]]
        if rows:
            yield Section(_words(path.stem).capitalize(), table=_cut(head, rows))


def _cut(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(columns, rows[:ROWS], max(0, len(rows) - ROWS))


def _groups(where: Path) -> Iterator[Section]:
    path = where / "mask.safetensors"
    if path.exists() and (mask := _read(path, read_nest)["mask"]):
        yield Section("Units kept", bars=[(g, int(m.sum()), len(m)) for g, m in mask.items()])
