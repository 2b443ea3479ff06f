"""Rows → Markdown, CSV and the plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from prunefn.report import plots

from ..timing import write
from .methods import METHODS
from .rows import DENSE, RESULTS, Row

HEADER = ["network", "method", "variant", "MACs kept", "top-1", "spread", "top-1, BatchNorm anew", "spread"]
SHORT = {"VBP (variance + mean)": "VBP", "variance + affine": "affine"}


def report(rows: Sequence[Row], calibration: int) -> None:
    """Write bench/results/retention.{md,csv,png}.

    Args:
        rows: of all jobs; those on test images are shown.
        calibration: images of the statistics.
    """
    dense = {r.job.network: (r.top1, r.macs) for r in rows if r.job.method == DENSE}
    order = [DENSE, *(m.name for m in METHODS)]  # the peer's last
    rows = sorted(rows, key=lambda r: order.index(r.job.method) if r.job.method in order else len(order))
    shown = [r for r in rows if r.job.part == "test" and r.job.network in dense and r.job.method != DENSE]
    lines = [_line(cell) for cell in _cells(shown)]
    write(RESULTS, "retention", "Retention on Fashion-MNIST", HEADER, lines, _remarks(shown, dense, calibration))
    plots.accuracy([_curves(n, shown, *dense[n]) for n in dense], RESULTS / "retention.png")


def _cells(rows: Iterable[Row]) -> Iterable[list[Row]]:
    """The seeds of each network, method and budget."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for r in rows:
        cells.setdefault((r.job.network, r.job.method, r.job.variant, r.job.keep), []).append(r)
    return cells.values()


def _line(cell: list[Row]) -> list[str]:
    job = cell[0].job
    return [
        job.network,
        job.method,
        job.variant,
        f"{job.keep:.0%}",
        *_numbers([r.top1 for r in cell]),
        *_numbers([r.recalibrated for r in cell]),
    ]


def _numbers(values: Sequence[float | None]) -> tuple[str, str]:
    """Mean, and the range over seeds."""
    found = [v for v in values if v is not None]
    if not found:
        return "–", ""
    return f"{mean(found):.1%}", f"±{(max(found) - min(found)) / 2:.1%}" if len(found) > 1 else ""


def _remarks(rows: Sequence[Row], dense: Mapping[str, tuple[float, int]], calibration: int) -> str:
    """What the numbers are, and a small table for each network."""
    text = [
        f"Top-1 on 5000 test images right after pruning, without any training. Calibration: {calibration} training "
        "images, drawn anew for each of three seeds (mean, and half of the range); methods that see no images have one run. "
        "The variant of every method, Torch-Pruning's included, was chosen on 1000 validation images. Our methods prune "
        "hidden units, and in attention either whole heads or the width of all of them; the peer prunes what its variant says. "
        "–: the peer did not come within 1 % of the MACs. "
        "One pass of statistics serves all budgets and methods of ours but the sequential one.",
        "LAMP, ranked within each group, is magnitude. With BatchNorm, the mean alone helps down to 65 % of the MACs; below, errors pile "
        "up from layer to layer until the network is at chance, with and without it: each layer is compensated for dense inputs that it "
        "no longer gets. Measuring the BatchNorms anew undoes most of that for every method, and the sequential mode, which compensates "
        "each layer on the inputs that it really gets and towards its dense outputs, needs no such repair.",
        "On the ViT, VBP and variance are the same within the spread: the mean is little of what removed units give there. As "
        "`pf.residual` predicts it at 35 % of the MACs, the mean error of a layer relative to its output is .088 without "
        "compensation, .083 with the mean, .003 with the affine map; on the ResNet .94, .43 and .25.",
    ]
    keeps = sorted({r.job.keep for r in rows}, reverse=True)
    for network, (top1, macs) in dense.items():
        for column, what in ((2, ""), (3, ", BatchNorms measured anew")):
            mine = [r for r in rows if r.job.network == network and r[column] is not None]
            if not mine:
                continue
            text += [f"## {network}{what}", f"Dense: {top1:.1%}, {macs / 1e6:.1f} MMACs."]
            table = ["| method | " + " | ".join(f"{k:.0%}" for k in keeps) + " |", "|---|" + "--:|" * len(keeps)]
            for method in dict.fromkeys(r.job.method for r in mine):
                cells = [
                    _numbers([r[column] for r in mine if (r.job.method, r.job.keep) == (method, k)]) for k in keeps
                ]
                table.append(f"| {method} | " + " | ".join(f"{a} {b}".strip() for a, b in cells) + " |")
            text.append("\n".join(table))
    return "\n\n".join([*text, "## All cells"])


def _curves(network: str, rows: Sequence[Row], top1: float, macs: int) -> plots.Curves:
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in _cells(r for r in rows if r.job.network == network and r.top1 is not None):
        point = (mean(r.macs for r in cell), mean(r.top1 or 0.0 for r in cell))
        lines.setdefault(SHORT.get(cell[0].job.method, cell[0].job.method.partition(" (")[0]), []).append(point)
    return plots.Curves(network, (macs, top1), lines, chance=0.1)
