"""A run's folder as one page of HTML that needs nothing beside it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from ..errors import PruneError
from ..files.atomic import write_text
from ..io.nest import read_nest

PICTURES = {"accuracy.png": "Top-1 over the epochs", "widths.png": "What is left of each group"}
COLUMNS = {
    "phase": "phase",
    "epoch": "epoch",
    "macs": "MMACs",
    "params": "M params",
    "train_loss": "training loss",
    "loss": "loss",
    "top1": "top-1",
}


def page(folder: Path | str) -> Path:
    """Write `report.html` into the folder of a run of `pat`.

    Args:
        folder: with config.json, metrics.jsonl, summary.json; pictures and masks where there are any.

    Returns:
        Where the page is.

    Raises:
        PruneError: the folder is not that of a run that has ended; names the file that is missing.
    """
    where = Path(folder)
    if missing := [n for n in ("config.json", "metrics.jsonl", "summary.json") if not (where / n).exists()]:
        raise PruneError(f"{where} has no {missing[0]}: it is no folder of a run, or the run has not ended")
    config = json.loads((where / "config.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((where / "summary.json").read_text(encoding="utf-8"))
    template = Environment(autoescape=True).from_string(
        files("prunefn.report").joinpath("page.html").read_text("utf-8")
    )
    columns = [c for c in COLUMNS if any(c in r for r in rows)]
    text = template.render(
        title=f"{summary['macs_removed']:.1%} of the MACs removed by {config.get('prune', 'pruning')}",
        subtitle=", ".join(f"{p} {metadata.version(p)}" for p in ("prunefn", "torch")),
        cards=_cards(summary),
        pictures=[(text, _inline(where / name)) for name, text in PICTURES.items() if (where / name).exists()],
        columns=[COLUMNS[c] for c in columns],
        rows=[[_cell(c, r.get(c)) for c in columns] for r in rows],
        groups=_groups(where / "mask.safetensors"),
        config=json.dumps(config, indent=2),
    )
    write_text(where / "report.html", text)
    return where / "report.html"


def _cards(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    cards = [
        (
            "MACs removed",
            f"{summary['macs_removed']:.1%}",
            f"{summary['macs_dense'] / 1e6:.4g} → {summary['macs'] / 1e6:.4g} M",
        ),
        (
            "Parameters removed",
            f"{1 - summary['params'] / summary['params_dense']:.1%}",
            f"{summary['params_dense'] / 1e6:.4g} → {summary['params'] / 1e6:.4g} M",
        ),
    ]
    for name in [k for k in summary if f"{k}_dense" in summary and k not in ("macs", "params")]:
        old, new = summary[f"{name}_dense"], summary[name]
        if name == "top1":
            cards.append(("Top-1", f"{new:.2%}", f"dense {old:.2%}, {100 * (new - old):+.2f} points"))
        else:
            cards.append((name.capitalize(), f"{new:.4g}", f"dense {old:.4g}"))
    return cards


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column in ("macs", "params"):
        return f"{value / 1e6:.4g}"
    if column == "top1":
        return f"{value:.2%}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _groups(path: Path) -> Sequence[tuple[str, int, int]]:
    if not os.path.exists(path):
        return []
    return [(g, int(m.sum()), len(m)) for g, m in read_nest(path)["mask"].items()]
