"""Pictures of a run: accuracy over the epochs, and what is left of each group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..report import plots
from ..trace.spec import Spec
from ..types import Mask


def pictures(rows: Sequence[dict[str, Any]], spec: Spec, mask: Mask, folder: Path) -> list[Path]:
    """Write `accuracy.png` (where a top-1 was measured) and `widths.png` (where something was removed)."""
    written = []
    if any("top1" in r for r in rows):
        written.append(folder / "accuracy.png")
        _accuracy(rows, written[-1])
    if mask:
        written.append(folder / "widths.png")
        before = {g: spec.sizes[g] for g in mask}
        after = {g: int(m.sum()) for g, m in mask.items()}
        plots.widths(before, after, written[-1])
    return written


def _accuracy(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Top-1 over all epochs of all phases; a line falls where something is removed."""
    figure = plots.canvas(8.0, 4.4)
    axes = figure.add_subplot(1, 1, 1)
    epoch, colours, lines = 0, iter(plots.COLOURS * 9), {}
    cuts: list[tuple[int, float, float]] = []
    for row in rows:
        if "top1" not in row or row["phase"].endswith(", best"):
            continue
        top1 = 100 * row["top1"]
        if "macs" in row:
            cuts.append((epoch, top1, row["macs"] / rows[0]["macs"]))
            lines.setdefault("dense, and right after pruning", []).append((epoch, top1))
            continue
        epoch += 1
        name = "training between" if row["phase"].startswith("round_") else row["phase"]
        lines.setdefault(name, []).append((epoch, top1))
    for name, points in lines.items():
        style: dict[str, Any] = (
            {"linestyle": "none", "marker": "D"} if name.startswith("dense") else {"marker": "o", "linewidth": 1.6}
        )
        axes.plot(*zip(*points, strict=True), label=name, color=next(colours), markersize=5, **style)
    for at, top1, share in cuts:
        axes.annotate(
            f"{100 * share:.0f} %", (at, top1), (4, -11), textcoords="offset points", fontsize=8, color=plots.INK
        )
    axes.margins(0.06, 0.12)
    axes.set_xlabel("epochs of training")
    axes.set_ylabel("top-1 on held-out data (%)")
    axes.grid(color="#E8E8E8")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Top-1, with the share of the MACs that is left", loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, fontsize=9)
    plots.save(figure, path)
