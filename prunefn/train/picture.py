"""Pictures of a run: accuracy over the epochs, what is left, what was chosen by, what was lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..files.nest import read_nest
from ..parameters.transforms import shrink
from ..report import plots
from ..report.norms import MOST, PRUNED, analyze, group_norms, of_run, thinned
from ..spec.spec import Spec
from ..types import Mask, Params, Residual


def pictures(
    rows: Sequence[dict[str, Any]], spec: Spec, mask: Mask, folder: Path, dense: Params | None = None
) -> list[Path]:
    """Write the pictures that there are data for, and no others.

    `accuracy.png` where a top-1 was measured; `widths.png` and `layers.png` where something was removed; `scores.png` in the
    folder of each round; `residuals.png` where something was compensated; `norms.png` where something was trained; `spec.svg`.

    Args:
        rows: what was measured.
        spec, mask: of the dense network, and over its groups.
        folder: of the run.
        dense: the dense network's, which the norms begin with.

    Returns:
        What was written.
    """
    wanted: dict[str, Callable[[Path], None]] = {"spec.svg": spec.picture}
    if any("top1" in r for r in rows):
        wanted["accuracy.png"] = partial(_accuracy, rows)
    if mask:
        after = {g: int(m.sum()) for g, m in mask.items()}
        wanted["widths.png"] = partial(plots.widths, {g: spec.sizes[g] for g in mask}, after)
        wanted["layers.png"] = partial(plots.layers, spec, shrink(spec, mask))
    lost: dict[str, Mapping[str, Residual]] = {}
    for number, state in _rounds(folder).items():
        if scores := state.get("scores"):
            draw = partial(plots.scores, scores, state["mask"], title=f"Scores in round {number}")
            wanted[f"round_{number}/scores.png"] = draw
        if found := state.get("residuals"):
            lost[f"round {number}"] = {site: Residual(*r) for site, r in found.items()}
    if lost:
        wanted["residuals.png"] = partial(plots.residuals, lost)
    if any(folder.glob("*/last.safetensors")):
        wanted["norms.png"] = partial(_norms, folder, spec, dense)
    for name, draw in wanted.items():
        draw(folder / name)
    return [folder / name for name in wanted]


def _rounds(folder: Path) -> dict[int, Any]:
    """Number of the round → what it wrote."""
    files = {int(p.parent.name.partition("_")[2]): p for p in folder.glob(f"round_*/{PRUNED}")}
    return {n: {k: v for k, v in read_nest(files[n]).items() if k != "params"} for n in sorted(files)}


def _norms(folder: Path, spec: Spec, dense: Params | None, path: Path) -> None:
    there = of_run(folder)
    chosen = {name: there[name] for name in thinned(list(there), MOST - 1)}
    first = {} if dense is None else {"dense": group_norms(dense, spec=spec)}
    plots.norms({**first, **analyze(chosen, spec=spec)}, path)


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
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("epochs of training")
    axes.set_ylabel("top-1 on held-out data (%)")
    axes.grid(color="#E8E8E8")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Top-1, with the share of the MACs that is left", loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, fontsize=9)
    plots.save(figure, path)
