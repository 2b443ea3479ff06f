"""Latency beside MACs: dense networks and the same at half the MACs, with the causes of the difference: python -m bench.profiles

Rows are kept as they are measured, so that a run that is interrupted goes on where it was (--fresh: from the start).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from torch import nn

import prunefn as pf
from prunefn.costs.excess import CAUSES
from prunefn.costs.profiling import Profiled
from prunefn.drawing.canvas import COLOURS, DENSE, GRID, INK, canvas, head, save

from .rows import CACHE, Key, work
from .timing import markdown, versions, write

HERE = Path(__file__).parent
NETWORKS = ("resnet50", "mobilenet_v2", "convnext_tiny", "deit_tiny_patch16_224", "swin_t")
VARIANTS = {"half the MACs": 1, "round_to=16": 16}
BATCHES = (1, 8)
HEADER = ["network", "batch", "variant", "GMACs", "MACs saved", "median ms", "mean ± std", "p10 / p90 / p99"]
HEADER += ["speed-up", "samples a second", "weights MB", "peak MB"]
ACCOUNT = ["network", "batch", "variant", "share of MACs", *CAUSES, "share of latency"]
CAUSE_COLOURS = ("#64B5CD", "#E3B04B", "#444444", "#55A868", "#C44E52", "#937860")
"""As long as `CAUSES`, but for what is faster."""
LEAST = 6
"""Rounds at large batches."""
WORST = ["network", "batch", "layer", "ms", "why"]
TEXT = (
    "Every group of every kind loses the same share of its units, lowest magnitudes first, until half of the MACs are left; once "
    "as it comes, once with sizes that are multiples of 16. Random weights, images of 224 pixels, eager mode, all variants timed "
    "in turns by torch.utils.benchmark (`pf.profile`). Numbers that do not improve are shown as they are. Other work on "
    "the machine disturbs caches and memory: two runs differed by up to 5 points of the dense latency (mobilenet_v2 at batch 1)."
)
CAUSES_TEXT = (
    "Where the latency beyond the share of MACs comes from, in % of the dense latency; a line adds up from the share of MACs "
    "to the share of latency (`Profile.account`). More of their MACs kept: layers that lost fewer MACs than the network, or "
    "that take long for each. No MACs: norms, activations, sums, softmax, copies. Smaller kernels: fewer MACs a second than "
    "the same layer did at its dense size, though neither memory nor widths say why. Faster: more than the MACs promise. A layer "
    "that is slower counts under one cause, the first that holds, from the left: bandwidth where it has fewer MACs a byte than "
    "before, and than the machine does while it moves one; unaligned where a width is no multiple of 8, and none was."
)
WORST_TEXT = "The layers that cost most of it, at half the MACs as they come (`Profile.excess`)."


def build(name: str) -> nn.Module:
    """A network of torchvision, or else of timm."""
    found = getattr(torchvision.models, name, None)
    return (found() if found else timm.create_model(name)).eval()


def variants(name: str) -> dict[str, tuple[pf.Params, pf.Spec]]:
    """Dense, and at half the MACs."""
    torch.manual_seed(0)
    model = build(name)
    spec, params = pf.trace(model, (torch.randn(2, 3, 224, 224),)), pf.params(model)
    scores = pf.score(pf.collect_stats(params, None, spec=spec), criterion=pf.criteria.magnitude())
    out = {"dense": (params, spec)}
    for variant, multiple in VARIANTS.items():
        mask = pf.select(scores, pf.budget.macs(0.5), spec=spec, scope=pf.scope.local(), round_to=multiple)
        out[variant] = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    return out


def measured(key: Key, device: str, rounds: int) -> dict[str, Any]:
    """A network at a batch size: rows of the three tables, and numbers for the picture."""
    name, batch = str(key[1]), int(key[2])
    found = pf.profile(variants(name), batch=batch, device=device, rounds=rounds, progress=True)
    accounts = {n.name: found.account(n.name) for n in found.networks[1:]}
    before = found.networks[0].timing.median
    return {
        "on": found.table().title,
        "rows": [[name, str(batch), *cells(n, found.networks[0])] for n in found.networks],
        "shares": {v: [a.expected / before, a.latency / before] for v, a in accounts.items()},
        "causes": {v: {c: s / before for c, s in a.causes.items()} for v, a in accounts.items()},
        "worst": [
            [name, str(batch), e.layer or "(the network)", f"{1e3 * e.seconds:.2f}", e.reason]
            for e in found.excess("half the MACs", most=3)
        ],
    }


def cells(n: Profiled, dense: Profiled) -> list[str]:
    """A network's numbers in the units of `HEADER`, whatever their size: `Profile.table` has those that fit."""
    t = n.timing
    mean, std, *percentiles = (f"{1e3 * s:.2f}" for s in (t.mean, t.std, t.p10, t.p90, t.p99))
    macs = f"{n.cost.macs / 1e9:.3f}", f"{1 - n.cost.macs / dense.cost.macs:.1%}"
    times = (
        f"{1e3 * t.median:.2f}",
        f"{mean} ± {std}",
        " / ".join(percentiles),
        f"{dense.timing.median / t.median:.2f}×",
    )
    return [n.name, *macs, *times, f"{n.throughput:.1f}", f"{n.weights / 1e6:.1f}", f"{n.peak / 1e6:.1f}"]


def account_rows(found: dict[Key, dict[str, Any]]) -> list[list[str]]:
    """A line for each network, batch size and variant."""
    rows = []
    for (_, name, batch), f in found.items():
        for variant, (share, latency) in f["shares"].items():
            causes = [f"{100 * f['causes'][variant][c]:+.1f}" for c in CAUSES]
            rows.append([str(name), str(batch), variant, f"{share:.1%}", *causes, f"{latency:.1%}"])
    return rows


def picture(found: dict[Key, dict[str, Any]], path: Path) -> None:
    """A row for each batch size: latency against MACs, and the latency that is left, by cause."""
    batches = list(dict.fromkeys(int(batch) for _, _, batch in found))
    figure = canvas(13.0, 1.0 + 3.6 * len(batches))
    for i, batch in enumerate(batches):
        here = {str(name): f for (_, name, b), f in found.items() if b == batch}
        left, right = (figure.add_subplot(len(batches), 2, 2 * i + k) for k in (1, 2))
        points(left, here, f"batch {batch}")
        bars(right, here, f"batch {batch}: what is left of the latency, by cause")
    labels: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    place: Any = "outside lower center"
    figure.legend(labels.values(), labels.keys(), loc=place, frameon=False, fontsize=8, ncols=6)
    save(figure, path)


def points(axes: Any, here: dict[str, dict[str, Any]], title: str) -> None:
    """From each dense network to the pruned ones; the dotted line is where half the MACs would be half the time."""
    for (name, f), colour in zip(here.items(), COLOURS, strict=False):
        macs, ms = ([float(row[k]) for row in f["rows"]] for k in (3, 5))
        axes.plot(
            [macs[0], macs[0] / 2], [ms[0], ms[0] / 2], color=INK, linestyle=":", linewidth=1, label="as the MACs"
        )
        axes.plot(macs[:2], ms[:2], color=colour, linewidth=1.4)
        axes.plot(macs[:1], ms[:1], "*", color=colour, markersize=11, label=short(name))
        axes.plot(macs[1:2], ms[1:2], "o", color=colour, markersize=5)
        axes.plot(macs[2:], ms[2:], "s", color=colour, markersize=5, fillstyle="none")
    axes.plot([], [], "*", color=INK, markersize=11, linestyle="none", label="dense")
    axes.plot([], [], "o", color=INK, markersize=5, linestyle="none", label="half the MACs")
    axes.plot([], [], "s", color=INK, markersize=5, fillstyle="none", linestyle="none", label="the same, round_to=16")
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("MACs of a sample (billion)")
    axes.set_ylabel("latency (ms)")
    axes.grid(color=GRID)
    head(axes, title)


def bars(axes: Any, here: dict[str, dict[str, Any]], title: str) -> None:
    """Two for each network; the line is the share of MACs that is left."""
    drawn = [(n, v, f["shares"][v], f["causes"][v]) for n, f in here.items() for v in f["shares"]]
    at = [k + 0.5 * (k // len(VARIANTS)) for k in range(len(drawn))]
    for k, (_, _, (share, latency), causes) in zip(at, drawn, strict=True):
        top = share + sum(s for s in causes.values() if s < 0)
        axes.bar(k, 100 * top, 0.85, color=DENSE, label="by the MACs, less what is faster")
        for cause, colour in zip(CAUSES, CAUSE_COLOURS, strict=False):
            if causes[cause] > 0:
                axes.bar(k, 100 * causes[cause], 0.85, bottom=100 * top, color=colour, label=cause)
                top += causes[cause]
        axes.plot([k - 0.45, k + 0.45], [100 * share] * 2, color=INK, linewidth=1.6, label="share of MACs left")
        axes.text(k, 100 * max(latency, share) + 1.5, f"{latency:.0%}", ha="center", fontsize=8, color=INK)
    axes.set_xticks(at, ["any" if v == "half the MACs" else "×16" for _, v, *_ in drawn], fontsize=8)
    for k, name in zip(at[:: len(VARIANTS)], here, strict=True):
        axes.text(
            k + 0.5, -0.09, short(name), transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=8.5
        )
    axes.set_ylabel("latency left (% of dense)")
    axes.set_ylim(0, max(102, 110 * max(latency for *_, (_, latency), _ in drawn)))
    axes.axhline(100, color=INK, linestyle=":", linewidth=1)
    axes.grid(axis="y", color=GRID)
    head(axes, title)


def short(name: str) -> str:
    """Without what says nothing here."""
    return name.removesuffix("_patch16_224")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=20, help="at batch 1; fewer at larger ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs measured")
    parser.add_argument("--out", action="store_true", help="write bench/results/profile.{md,csv,png}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = CACHE / "profile.jsonl"
    if args.fresh:
        kept.unlink(missing_ok=True)

    def rounds(batch: int) -> int:
        return max(LEAST, args.rounds // batch)

    jobs: list[Key] = [(args.device, n, b) for b in args.batch for n in args.only]
    found = work(kept, jobs, lambda key: measured(key, args.device, rounds(int(key[2]))), "networks")
    rows = [row for f in found.values() for row in f["rows"]]
    on = ", ".join(dict.fromkeys(f["on"].replace(f", batch {b}", "") for (_, _, b), f in found.items()))
    causes = f"## Causes\n\n{CAUSES_TEXT}\n\n{markdown(ACCOUNT, account_rows(found))}"
    worst = f"## Layers\n\n{WORST_TEXT}\n\n{markdown(WORST, [row for f in found.values() for row in f['worst']])}"
    text = ", ".join(f"{rounds(b)} rounds at batch {b}" for b in args.batch)
    remarks = (
        f"{TEXT} Measured on: {on}; {text}.\n\n![latency by cause](profile.png)\n\n{causes}\n\n{worst}\n\n## Networks"
    )
    print(f"{remarks}\n\n{markdown(HEADER, rows)}\n\n{versions()}")
    if args.out:
        picture(found, HERE / "results" / "profile.png")
        write(HERE / "results", "profile", "Latency beside MACs", HEADER, rows, remarks)


if __name__ == "__main__":
    main()
