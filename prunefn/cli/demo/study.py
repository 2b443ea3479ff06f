"""One network of the demo, from training to the numbers: all pruning goes through prunefn's public functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

import prunefn as pf

from ...data import Split
from ...types import Budget, Compensation, Scope
from .latency import Latency, latencies
from .models import ResNet, Vit
from .train import Recipe, train

SWEEP = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Shares of the MACs that are kept."""
BATCH = 256
"""Images in a batch of the statistics pass."""


class DemoError(Exception):
    """The run is not worth reporting; the message says why."""


class Method(NamedTuple):
    """A way to prune."""

    name: str
    criterion: pf.Criterion
    compensation: Compensation
    recalibrate: bool = False
    """Whether the BatchNorms are measured anew on the training images."""
    sweep: bool = True
    """Whether it has a line in the picture of accuracy against MACs."""


class Network(NamedTuple):
    """A network of the demo, and how it is trained and pruned."""

    name: str
    build: Callable[[], nn.Module]
    recipe: Recipe
    ratio: float | Budget
    scope: Scope
    asked: str
    """`ratio` and `scope` in words."""
    methods: tuple[Method, ...]
    enough: float = 0.95
    """Least top-1 of the dense network on the held-out images."""


class Result(NamedTuple):
    """A network, dense or pruned."""

    name: str
    params: pf.Params
    spec: pf.Spec
    mask: pf.Mask
    correct: int
    """Held-out images that it gets right."""
    cost: pf.Cost


class Point(NamedTuple):
    """A point of the sweep."""

    macs: int
    top1: float


class Study(NamedTuple):
    """All that is reported about a network."""

    network: Network
    dense: Result
    pruned: tuple[Result, ...]
    """One for each method."""
    sweep: Mapping[str, tuple[Point, ...]]
    """Method → points."""
    images: int
    """Number of held-out images."""
    latency: Mapping[str, Latency]
    """Name of a result → seconds for a batch."""
    from_mean: float
    """Share of the mean square of the removed units that their mean accounts for, in the variance variants."""

    def top1(self, result: Result) -> float:
        """Share of the held-out images that it gets right."""
        return result.correct / self.images


MAGNITUDE = Method("magnitude", pf.criteria.magnitude(), pf.compensation.none())
VARIANCE = Method("variance", pf.criteria.variance(), pf.compensation.none())
COMPENSATED = Method("variance + mean", pf.criteria.variance(), pf.compensation.mean())
RECALIBRATED = Method("variance + mean + BN", pf.criteria.variance(), pf.compensation.mean(), recalibrate=True)
CONTROL = Method("magnitude + mean", pf.criteria.magnitude(), pf.compensation.mean(), sweep=False)

VIT = Network(
    "ViT",
    partial(Vit, dim=32, depth=3, heads=4, hidden=192),
    Recipe(partial(torch.optim.AdamW, lr=5e-3, weight_decay=0.1), epochs=40, batch=32),
    0.5,
    pf.scope.global_(),
    "half of the hidden units of the MLPs, ranked over all blocks",
    (MAGNITUDE, CONTROL, VARIANCE, COMPENSATED),
)
RESNET = Network(
    "ResNet",
    partial(ResNet, widths=(48, 96), depth=2),
    Recipe(partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4), epochs=8, batch=64),
    pf.budget.macs(0.6),
    pf.scope.global_(normalize=True),
    "hidden channels, down to 60 % of the MACs, ranked over all blocks by score over the block's mean score",
    (MAGNITUDE, CONTROL, VARIANCE, COMPENSATED, RECALIBRATED),
)


def study(network: Network, split: Split, *, seed: int) -> Study:
    """Train, trace once, measure once, prune in every way.

    Raises:
        DemoError: the dense network gets fewer of the held-out images right than `network.enough`.
    """
    model = train(network.build, split, network.recipe, seed=seed, name=network.name)
    spec, params = pf.trace(model, (split.images[:2],)), pf.params(model)
    dense = Result("dense", params, spec, {}, correct(params, spec, split), pf.cost(spec))
    images = len(split.held_out_labels)
    if dense.correct < network.enough * images:
        raise DemoError(
            f"the dense {network.name} gets {dense.correct} of {images} held-out images right, "
            f"{dense.correct / images:.1%}; at least {network.enough:.0%} are needed: try another --seed"
        )
    batches = split.images.split(BATCH)
    criteria = {m.criterion.name: m.criterion for m in network.methods}
    hidden = pf.kind("hidden")
    stats = pf.collect_stats(params, batches, spec=spec, criterion=list(criteria.values()), where=hidden)
    scores = {name: pf.only(pf.score(stats, criterion=c), hidden, spec=spec) for name, c in criteria.items()}

    def run(method: Method, ratio: float | Budget) -> Result:
        return prune(method, stats, scores[method.criterion.name], ratio, network.scope, split, spec=spec)

    pruned = tuple(run(m, network.ratio) for m in network.methods)
    sweep = {
        m.name: tuple(_point(run(m, pf.budget.macs(keep)), images) for keep in SWEEP)
        for m in network.methods
        if m.sweep
    }
    masks = [r.mask for m, r in zip(network.methods, pruned, strict=True) if m.criterion.name == "variance"]
    latency = latencies({r.name: (r.params, r.spec) for r in (dense, *pruned)}, split.held_out_images)
    return Study(network, dense, pruned, sweep, images, latency, explained(stats, masks[0]))


def prune(
    method: Method,
    stats: pf.Stats,
    scores: Mapping[str, Tensor],
    ratio: float | Budget,
    scope: Scope,
    split: Split,
    *,
    spec: pf.Spec,
) -> Result:
    """Scores → mask → compensated, smaller params, measured on the held-out images."""
    params = dict(stats.params)
    mask = pf.select(dict(scores), ratio, spec=spec, scope=scope)
    params = pf.compensate(params, stats, mask, spec=spec, method=method.compensation)
    small = pf.shrink(spec, mask)
    params = pf.apply(params, mask, spec=spec)
    if method.recalibrate:
        params = pf.recalibrate(params, split.images.split(BATCH), spec=small)
    return Result(method.name, params, small, mask, correct(params, small, split), pf.cost(small))


def correct(params: pf.Params, spec: pf.Spec, split: Split) -> int:
    """How many held-out images the network gets right."""
    with torch.no_grad():
        guess = pf.forward(params, split.held_out_images, spec=spec).argmax(1)
    return int((guess == split.held_out_labels).sum())


def explained(stats: pf.Stats, mask: pf.Mask) -> float:
    """Σ μ² / Σ (μ² + σ²) over removed units: what mean compensation can make up for. 0 where none are removed."""
    assert stats.spec is not None
    means, squares = 0.0, 0.0
    for name, kept in mask.items():
        for site in stats.spec.groups[name].sites:
            moments = stats.sites[site]
            removed = ~kept.to(moments.mean.device)
            mean = float(moments.mean[removed].square().sum())
            means += mean
            squares += mean + float(moments.variance[removed].sum())
    return means / squares if squares else 0.0


def _point(result: Result, images: int) -> Point:
    return Point(result.cost.macs, result.correct / images)
