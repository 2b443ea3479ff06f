"""Pictures of a run: accuracy over the epochs, remaining widths, scores, residuals, norms."""

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
    """Write the pictures for which there are data.

    `accuracy.png` needs epochs with measured top-1; `widths.png` and `layers.png` a mask; `scores.png` in the folder of a round its scores;
    `residuals.png` compensation; `norms.png` checkpoints. `spec.svg` is always written.

    Args:
        rows: of metrics.
        spec: of the dense network.
        mask: over the groups of the dense network.
        folder: of the run.
        dense: params of the dense network, whose norms come first; None: without them.

    Returns:
        Paths of the pictures.
    """
    drawings: dict[str, Callable[[Path], None]] = {"spec.svg": spec.picture}
    if any("top1" in r and "macs" not in r for r in rows):  # an epoch was measured
        drawings["accuracy.png"] = partial(_draw_accuracy, rows)
    if mask:
        after = {g: int(m.sum()) for g, m in mask.items()}
        drawings["widths.png"] = partial(plots.widths, {g: spec.sizes[g] for g in mask}, after)
        drawings["layers.png"] = partial(plots.layers, spec, shrink(spec, mask))
    lost: dict[str, Mapping[str, Residual]] = {}
    for number, state in _read_rounds(folder).items():
        if scores := state.get("scores"):
            draw = partial(plots.scores, scores, state["mask"], title=f"Scores in round {number}")
            drawings[f"round_{number}/scores.png"] = draw
        if stored := state.get("residuals"):
            lost[f"round {number}"] = {site: Residual(*r) for site, r in stored.items()}
    if lost:
        drawings["residuals.png"] = partial(plots.residuals, lost)
    if any(folder.glob("*/last.safetensors")):
        drawings["norms.png"] = partial(_draw_norms, folder, spec, dense)
    for name, draw in drawings.items():
        draw(folder / name)
    return [folder / name for name in drawings]


def _read_rounds(folder: Path) -> dict[int, Any]:
    """Return number of the round → what is in its file, without params."""
    files = {int(p.parent.name.partition("_")[2]): p for p in folder.glob(f"round_*/{PRUNED}")}
    return {n: {k: v for k, v in read_nest(files[n]).items() if k != "params"} for n in sorted(files)}


def _draw_norms(folder: Path, spec: Spec, dense: Params | None, path: Path) -> None:
    """Draw the norms of units over the checkpoints of a run."""
    checkpoints = of_run(folder)
    chosen = {name: checkpoints[name] for name in thinned(list(checkpoints), MOST - 1)}
    first = {} if dense is None else {"dense": group_norms(dense, spec=spec)}
    plots.norms({**first, **analyze(chosen, spec=spec)}, path)


def _draw_accuracy(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw top-1 over the epochs of all phases, with the remaining MACs at each pruning."""
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
    for at, top1, fraction in cuts:
        axes.annotate(
            f"{100 * fraction:.0f} %", (at, top1), (4, -11), textcoords="offset points", fontsize=8, color=plots.INK
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
