"""Rows → page, table and picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean

from prunefn.drawing.canvas import COLOURS, GRID, canvas, head, save

from ..timing import markdown, write
from .methods import METHODS, ROUNDS
from .rows import DENSE, RESULTS, Job, Row
from .sparse_peer import SPARSE_STEPS
from .tuning import ALPHA, BATCH, TEMPERATURE

NAMES = [m.name for m in METHODS]
MARKERS = ("o", "P", "*", "s", "v", "^", "D", "X", "<")
HEADER = [
    *("network", "method", "variant", "MACs kept", "steps", "distilled", "learning rate", "seeds", "top-1"),
    *("seconds to prune", "seconds to train"),
]
KEEP, STEPS = (0.65, 0.5, 0.35, 0.2), (0, 200, 2000)
"""Of the whole bench."""
LOWEST = 60
"""Lowest top-1 (%) that the picture shows."""
ABOUT = (
    "Top-1 on 5000 test images of two small networks (a ResNet-18 at a quarter of its width, a ViT of four blocks of width 64) that "
    "are pruned to a share of their MACs, by `pf.cost`, and trained for a number of steps: AdamW at the rate of one cycle, batch "
    f"{BATCH}, labels smoothed by .1, images augmented as for the dense network; distilled: {ALPHA:g} of the labels' loss and the rest "
    f"KL to the dense network at temperature {TEMPERATURE:g}. One seed of calibration images (1024, without labels for ours) and "
    "training unless a cell says more: differences below about .5 points are noise. Variants and the learning rate (1e-3 or 2e-4) were "
    "chosen for each method on 2000 validation images at 35 % after 200 steps. `recover` is 200 more steps on the calibration images "
    f"alone, without labels. Torch-Pruning 1.6.1: the best of global or uniform magnitude and isomorphic Taylor; its group norm had "
    f"{SPARSE_STEPS} steps of sparse training before pruning, which no other method has. Its BatchNorms, too, were measured anew. "
    f"`{ROUNDS} rounds`: half of the steps between rounds of pruning, the other half at the end."
)
FINDINGS = """What the first run (one seed) says:

* **Right after pruning**, the methods are close on the ViT at 65 and 50 %. Below, `recipes.best` leads: by 1.4 and 8.7 points over the
  next method on the ViT at 35 and 20 %, by 1.4 to 28 over those that were run on the ResNet. `recover` adds up to 1.1 points.
* **After 200 steps** it leads at 35 % by .2 to .9 points on the ViT and by .3 to 2.9 on the ResNet; at 20 % by .1 to
  2.5 and by .8 to 1.3. On the ResNet at 65 %, magnitude is level. What `recover` had gained is gone.
  Torch-Pruning's group norm is ahead by .5 and .6 on the ViT at 65 and 50 %; it had 500 steps more.
* Where little was lost, 200 steps at the rate that is best at 35 % do harm: at 65 %, the ViT falls from 87.4 to 86.8, the ResNet by .3.
  Group norm has the lower rate there, and does not fall. Choose the rate at the budget, and keep the better of before and after.
* **After 2000 steps** at 35 %, the lead is gone: plain magnitude is ahead by .3 on both networks, and Torch-Pruning on the ViT. This is
  within the noise; all are within .4 points of the dense networks or above them: the ViT had not converged.
* **Rounds** cost five prunings, and after 2000 steps are .2 and .1 points behind pruning at once. With the eight pairs of `bench.pat`,
  pruning at once is ahead in seven of ten, by up to .7 points, level in one, and behind in two, by .3 at most. These are test images.
* Distillation gives -.1 to +.3 points after 200 steps at 35 %.

Seconds are of a machine with other work, and not comparable."""
"""What the numbers say."""


def report(rows: Sequence[Row]) -> None:
    """Write bench/results/after.{md,csv,png} of the rows on test images."""
    dense = {r.job.network: r for r in rows if r.job.method == DENSE}
    shown = [r for r in rows if r.job.part == "test" and r.job.method != DENSE]
    shown.sort(key=lambda r: (r.job.network, r.job.steps, r.job.distilled, NAMES.index(r.job.method), -r.job.keep))
    lines = [_line(cell, dense[cell[0].job.network].macs) for cell in _cells(shown)]
    write(RESULTS, "after", "Top-1 after training", HEADER, lines, _remarks(shown, dense))
    _draw(shown, dense)


def _cells(rows: Iterable[Row]) -> Iterable[list[Row]]:
    """Return the rows of all seeds of each cell."""
    cells: dict[Job, list[Row]] = {}
    for r in rows:
        cells.setdefault(r.job._replace(seed=0), []).append(r)
    return cells.values()


def _line(cell: Sequence[Row], dense_macs: int) -> list[str]:
    job, found = cell[0].job, [r for r in cell if r.top1 is not None]
    macs = f"{mean(r.macs for r in found) / dense_macs:.1%}" if found else f"– ({job.keep:.0%})"
    spent = (f"{mean(getattr(r, f'{what}_seconds') for r in cell):.0f}" for what in ("prune", "train"))
    return [
        *(job.network, job.method, job.variant, macs, str(job.steps), "yes" if job.distilled else "no"),
        *(f"{job.lr:g}" if job.steps else "", str(len(cell)), _top1(cell), *spent),
    ]


def _top1(cell: Sequence[Row]) -> str:
    """Return the mean top-1 of a cell in percent; – if the method did not reach the MACs."""
    found = [r.top1 for r in cell if r.top1 is not None]
    return f"{100 * mean(found):.1f}" if found else "–"


def _remarks(rows: Sequence[Row], dense: dict[str, Row]) -> str:
    """Return what the numbers are, and a small table for each network and training; the best of a column is bold."""
    text = [ABOUT, FINDINGS, _missing(rows, list(dense))]
    for network, top in dense.items():
        for steps, distilled in sorted({(r.job.steps, r.job.distilled) for r in rows}):
            cells = {
                (c[0].job.method, c[0].job.keep): _top1(c)
                for c in _cells(r for r in rows if r.job[:1] + r.job[4:6] == (network, steps, distilled))
            }
            if cells:
                training = f"{steps} steps{', distilled' if distilled else ''}" if steps else "nothing trained"
                text += [
                    f"## {network}, {training}",
                    f"Dense: {100 * (top.top1 or 0):.1f} %, {top.macs / 1e6:.2f} MMACs.",
                ]
                text.append(_table(cells))
    return "\n\n".join([*text, "## All cells"])


def _missing(rows: Sequence[Row], networks: Sequence[str]) -> str:
    """Return which cells of the whole bench have not been run."""
    found = {r.job[:2] + r.job[3:6] for r in rows}
    missing: dict[tuple[str, int, bool, str], list[str]] = {}
    for network in networks:
        for steps, distilled in [(s, d) for s in STEPS for d in (False, True) if s or not d]:
            for m in METHODS:
                gone = [
                    k for k in KEEP if (network, m.name, k, steps, distilled) not in found and (steps or m.rounds == 1)
                ]
                if gone:
                    at = ", ".join(f"{k:.0%}" for k in gone)
                    missing.setdefault((network, steps, distilled, at), []).append(m.name)
    if not missing:
        return "All cells were run."
    lines = []
    for (network, steps, distilled, at), names in missing.items():
        which = ", ".join(names) if len(names) < len(METHODS) - 1 else "all methods"
        lines.append(f"* {network}, {steps} steps{', distilled' if distilled else ''}, {at}: {which}")
    return "Not run here (`python -m bench.after` runs what is missing, and keeps the rest):\n\n" + "\n".join(lines)


def _table(cells: dict[tuple[str, float], str]) -> str:
    keeps = sorted({k for _, k in cells}, reverse=True)
    best = {k: max((v for (_, at), v in cells.items() if at == k and v != "–"), key=float, default="") for k in keeps}
    lines = []
    for method in [n for n in NAMES if any(m == n for m, _ in cells)]:
        values = [cells.get((method, k), "") for k in keeps]
        lines.append([method, *(f"**{v}**" if v and v == best[k] else v for k, v in zip(keeps, values, strict=True))])
    return markdown(["method", *(f"{k:.0%}" for k in keeps)], lines)


def _draw(rows: Sequence[Row], dense: dict[str, Row]) -> None:
    """Draw a panel for each network and number of steps, without distillation: a line for each method, dense dotted."""
    steps = sorted({r.job.steps for r in rows})
    figure = canvas(4.3 * len(steps) + 2.6, 3.9 * len(dense))
    for i, (network, top) in enumerate(dense.items()):
        for j, n in enumerate(steps):
            axes = figure.add_subplot(len(dense), len(steps), i * len(steps) + j + 1)
            lowest = 100.0
            for k, name in enumerate(NAMES):
                mine = [r for r in rows if (r.job.network, r.job.method, r.job.steps) == (network, name, n)]
                cells = list(_cells(r for r in mine if not r.job.distilled and r.top1 is not None))
                points = sorted((100 * mean(r.macs for r in c) / top.macs, float(_top1(c))) for c in cells)
                if points:
                    x, y = zip(*points, strict=True)
                    axes.plot(x, y, color=COLOURS[k], marker=MARKERS[k], label=name, linewidth=2.4 if k < 3 else 1.5)
                    lowest = min(lowest, *y)
            axes.axhline(100 * (top.top1 or 0), color="#888888", linestyle=":", linewidth=1.6, label="dense")
            axes.set_ylim(bottom=max(LOWEST, lowest - 1))
            axes.set_xlim(15, 70)
            axes.set_xlabel("MACs kept (% of dense)")
            axes.set_ylabel("top-1 on test images (%)")
            axes.grid(color=GRID)
            head(axes, f"{network}, {f'{n} steps' if n else 'right after pruning'}")
    lines = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = [n for n in (*NAMES, "dense") if n in lines]
    figure.legend([lines[n] for n in names], names, loc="outside center right", frameon=False, fontsize=9)
    save(figure, RESULTS / "after.png")
