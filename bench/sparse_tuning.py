"""Zeros in weights, all at once or little by little, before and after the same number of epochs of training with the zeros held.

python -m bench.sparse_tuning [--only NETWORK …] [--images N] [--out]

The networks are those of bench/retention, trained on Fashion-MNIST. `at once`: remove, then train three epochs. `in rounds`: three
times, remove a third of it (of what the schedule still wants) and train one epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import prunefn as pf
from prunefn import sparse
from prunefn.report import plots
from prunefn.sparse import criteria, pattern, scope
from prunefn.train import Recipe, Setup, evaluate, schedule, train

from .pat import Augmented, dense
from .retention import data, networks
from .retention.train import RECIPES
from .retention.train import Recipe as Dense
from .rows import CACHE, Key, work
from .timing import write

HERE = Path(__file__).parent
NETWORKS = ("resnet", "vit")
SHARES = (0.5, 0.7, 0.9)
METHODS: dict[str, tuple[Callable[[pf.Params], pf.Criterion], sparse.scope.WeightScope]] = {
    "magnitude, layerwise": (lambda start: criteria.magnitude(), scope.layerwise()),
    "magnitude, global": (lambda start: criteria.magnitude(), scope.global_()),
    "Taylor, global": (lambda start: criteria.taylor(), scope.global_()),
    "movement, global": (criteria.movement_since, scope.global_()),
    "movement at the end, global": (lambda start: criteria.movement(), scope.global_()),
}
"""Name → (params before training → criterion, scope)."""
N_M = "magnitude, 2:4"
WAYS = ("at once", "in rounds")
EPOCHS, TEST = 3, 5000
HEADER = ["network", "zeros", "method", "way", "top-1 before the last training", "top-1", "points lost"]
RECIPE = Recipe(epochs=1, lr=5e-4, batch_size=128, weight_decay=0.0, grad_clip=1.0)


def jobs(only: list[str], images: int) -> list[Key]:
    """All cells."""
    plain = [(images, n, s, m, w) for n in only for s in SHARES for m in METHODS for w in WAYS]
    return [*plain, *[(images, n, 0.5, N_M, "at once") for n in only]]


def one(job: Key) -> list[float]:
    """(top-1 before the last training, after it)"""
    images, name, share, method, way = job
    model, every = dense(str(name)), data.training()
    chosen = torch.randperm(len(every.labels), generator=torch.Generator().manual_seed(0))
    some = data.Images(every.images[chosen[: int(images)]], every.labels[chosen[: int(images)]])
    learnt = Augmented(some, RECIPES.get(str(name), Dense()).margin)
    clean = data.Images(some.images[:1024], some.labels[:1024])
    spec = pf.trace(model, (clean.images[:2],))
    epochs = EPOCHS if way == "at once" else 1
    before: list[float] = []

    def between(step: int, params: pf.Params, masks: sparse.Masks) -> pf.Params:
        module = pf.to_module(params, spec=spec, model=model)
        before.append(tested(module))
        recipe = RECIPE.model_copy(update={"epochs": epochs, "seed": step})
        return pf.params(train(module, Setup(learnt, device="cpu"), recipe, masks=masks).model)

    n_m = method == N_M
    make, among = METHODS["magnitude, layerwise" if n_m else str(method)]
    criterion = make(untrained(str(name)))
    steps = 1 if way == "at once" else EPOCHS
    params, _ = sparse.rounds(
        pf.params(model),
        list(clean.batches(128)),
        schedule.linear(float(share), steps),
        steps,
        spec=spec,
        criterion=criterion,
        scope=among,
        pattern=pattern.n_m(2, 4) if n_m else None,
        between=between,
    )
    return [before[-1], tested(pf.to_module(params, spec=spec, model=model))]


def untrained(name: str) -> pf.Params:
    """The params with which the training of the dense network began."""
    torch.manual_seed(RECIPES.get(name, Dense()).seed)
    return pf.params(networks.NETWORKS[name]())


def tested(model: nn.Module) -> float:
    """Top-1 on the first test images."""
    images = data.test()
    return evaluate(model, TensorDataset(images.images[:TEST], images.labels[:TEST]), device="cpu")["top1"]


def lines(found: dict[Key, list[float]], accuracy: dict[str, float]) -> list[list[str]]:
    """The table."""
    out = [[name, "0%", "dense", "", "", f"{top1:.1%}", ""] for name, top1 in accuracy.items()]
    for (_, name, share, method, way), (before, after) in found.items():
        lost = 100 * (accuracy[str(name)] - after)
        out.append([str(name), f"{share:.0%}", str(method), str(way), f"{before:.1%}", f"{after:.1%}", f"{lost:.1f}"])
    return out


def plot(found: dict[Key, list[float]], accuracy: dict[str, float], path: Path) -> None:
    """Top-1 against the share of weights that are left, after training."""
    figure = plots.canvas(5.6 * len(accuracy) + 2.4, 4.4)
    for n, (name, top1) in enumerate(accuracy.items()):
        axes = figure.add_subplot(1, len(accuracy), n + 1)
        for i, method in enumerate(METHODS):
            for way, style in zip(WAYS, ("--", "-"), strict=True):
                points = [
                    (100 * float(k[2]), 100 * v[1]) for k, v in found.items() if k[1:2] + k[3:] == (name, method, way)
                ]
                if points:
                    axes.plot(
                        *zip(*points, strict=True), style, marker="o", color=plots.COLOURS[i], label=f"{method}, {way}"
                    )
        for key, (_, after) in found.items():
            if key[1] == name and key[3] == N_M:
                axes.plot([50], [100 * after], "k^", markersize=8, label=N_M)
        axes.axhline(100 * top1, color="#888888", linestyle=":", label="dense")
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("weights that are zero (%)")
        axes.set_ylabel("top-1 on test images (%)")
        axes.grid(color="#E8E8E8")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    plots.save(figure, path)


def remarks(images: int, found: dict[Key, list[float]]) -> str:
    """What the numbers are, and what they say."""

    def gain(name: str, share: float) -> float:
        pairs = [
            (v[1], found[(*k[:4], "at once")][1])
            for k, v in found.items()
            if k[1] == name and k[2] == share and k[4] == WAYS[1]
        ]
        return 100 * mean(a - b for a, b in pairs)

    names: list[Any] = list(dict.fromkeys(k[1] for k in found))
    gains = "; ".join(f"{n}: " + ", ".join(f"{gain(n, s):+.1f} at {s:.0%}" for s in SHARES) for n in names)
    return (
        f"{EPOCHS} epochs of {images} training images in every row, AdamW at 5e-4, removed weights and their moments held at "
        "zero. Gradients of Taylor and movement are those of 1024 training images at each removal. Top-1 of 5000 test "
        "images. Movement is scored along the whole dense training, from its start (`criteria.movement_since`); movement at the end is "
        "−w·∂L/∂w of the trained network, which is noise. In rounds, the last third goes one epoch before the end, and that epoch is "
        "too short for it: all at once wins at equal epochs. MACs are those of the dense network in every row: zeros alone do not "
        f"lower them. Rounds against all at once, mean over methods, points: {gains}."
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=4000, help="training images of an epoch")
    parser.add_argument("--out", action="store_true", help="write bench/results/sparse_tuning.{md,csv,png}")
    args = parser.parse_args()
    found: dict[Key, list[float]] = {}
    for name in args.only:
        found |= work(CACHE / f"sparse-tuning-{name}.jsonl", jobs([name], args.images), one, f"sparse, {name}")
    accuracy = {name: tested(networks.load(name).model) for name in args.only}
    rows = lines(found, accuracy)
    for row in rows:
        print("  ".join(row))
    if args.out:
        write(HERE / "results", "sparse_tuning", "Zeros in weights, trained", HEADER, rows, remarks(args.images, found))
        plot(found, accuracy, HERE / "results" / "sparse_tuning.png")


if __name__ == "__main__":
    main()
