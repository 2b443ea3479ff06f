"""A network of the demo: train it, prune it in several ways, measure what is left, by prunefn's public functions alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import prunefn as pf

from ...costs.profiling import Timing
from ...types import Budget, Pruned, Scope

SWEEP = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Fractions of the MACs that the points of the curves keep."""
BATCH, TIMED_BATCH = 256, 64
"""Images in a batch of statistics or evaluation, and in a timed batch."""
ROUNDS = 30
"""Timed batches of each network."""


class Method(NamedTuple):
    """A way to prune."""

    name: str
    options: Mapping[str, Any]
    """Options of `pf.recipes.vbp`, which removes hidden units of least variance and compensates their means."""
    curve: bool = True
    """Whether the picture of accuracy against MACs has a line for it."""


class Network(NamedTuple):
    """A network of the demo, with the ways to train and to prune it."""

    name: str
    build: Callable[[], nn.Module]
    recipe: Any
    """A `pf.train.Recipe`."""
    ratio: float | Budget
    scope: Scope
    removed: str
    """`ratio` and `scope` in words."""
    methods: tuple[Method, ...]
    min_top1: float = 0.95
    """Minimal top-1 of the dense network on the held-out images."""


class Result(NamedTuple):
    """A network, dense or pruned, and its accuracy."""

    name: str
    params: pf.Params
    spec: pf.Spec
    mask: pf.Mask
    top1: float

    @property
    def cost(self) -> pf.Cost:
        """MACs, parameters and activations."""
        return pf.cost(self.spec)


class Study(NamedTuple):
    """All that is reported about a network."""

    network: Network
    dense: Result
    pruned: tuple[Result, ...]
    """One for each method."""
    curves: Mapping[str, tuple[tuple[int, float], ...]]
    """Method → points, each (MACs, top-1)."""
    images: int
    """Number of held-out images."""
    timings: Mapping[str, Timing]
    """Name of a result → seconds for a batch."""
    mean_fraction: float
    """Fraction of the mean square of the units removed by variance that their means account for."""


MAGNITUDE = Method("magnitude", {"criterion": pf.criteria.magnitude(), "compensation": pf.compensation.none()})
VARIANCE = Method("variance", {"compensation": pf.compensation.none()})
COMPENSATED = Method("variance + mean", {})
RECALIBRATED = Method("variance + mean + BN", {"recalibrate": True})
CONTROL = Method("magnitude + mean", {"criterion": pf.criteria.magnitude()}, curve=False)


def networks() -> tuple[Network, Network]:
    """Return the two networks, wider than the task needs: a ViT and a ResNet for images of 8 × 8."""
    recipe = pf.train.Recipe
    vit = Network(
        "ViT",
        partial(pf.nets.small_vit, depth=2, mlp_ratio=6.0),
        recipe(
            epochs=60,
            batch_size=64,
            optimizer="adamw",
            lr=3e-3,
            weight_decay=0.1,
            warmup=6,
            cutmix=0.5,
            mixup=0.2,
        ),
        0.5,
        pf.scope.global_(),
        "half of the hidden units of the MLPs, ranked over all blocks",
        (MAGNITUDE, CONTROL, VARIANCE, COMPENSATED),
    )
    resnet = Network(
        "ResNet",
        partial(pf.nets.small_resnet, widths=(32, 64)),
        recipe(epochs=8, batch_size=64, optimizer="sgd", lr=0.1, weight_decay=5e-4, warmup=1.6),
        pf.budget.macs(0.6),
        pf.scope.global_(normalize=True),
        "hidden channels, down to 60 % of the MACs, ranked over all blocks by score over the block's mean score",
        (MAGNITUDE, CONTROL, VARIANCE, COMPENSATED, RECALIBRATED),
    )
    return vit, resnet


def study(network: Network, data: pf.data.Data, *, seed: int, device: str = "cpu") -> Study:
    """Train the network, trace it once, collect statistics once, prune it in every way, then measure all networks.

    The epoch is chosen by the validation images. The held-out images are read when nothing is left to choose.

    Raises:
        PruneError: the dense network's top-1 is below `network.min_top1`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = trained(network, data, seed=seed, device=device)
        batches = [images for images, _ in DataLoader(data.train, batch_size=BATCH)]
        spec, params = pf.trace(model, (batches[0],)), pf.params(model)
        stats = pf.collect_stats(params, batches, spec=spec, where=pf.kind("hidden"))

        def prune(method: Method, ratio: float | Budget) -> Pruned:
            pipeline = pf.recipes.vbp(ratio, scope=network.scope, **method.options)
            return pipeline(params, batches, spec=spec, stats=stats)

        pruned = {m.name: prune(m, network.ratio) for m in network.methods}
        curves = {m.name: [prune(m, pf.budget.macs(keep)) for keep in SWEEP] for m in network.methods if m.curve}

        held_out = list(DataLoader(data.held_out, batch_size=BATCH))
        top1 = partial(_top1, batches=held_out, device=device)
        dense = Result("dense", params, spec, {}, top1(params, spec))
        _check(network, dense.top1, images := sum(len(labels) for _, labels in held_out))
        results = tuple(Result(n, p.params, p.spec, p.mask, top1(p.params, p.spec)) for n, p in pruned.items())
        points = {
            name: tuple((p.info.after.macs, top1(p.params, p.spec)) for p in line) for name, line in curves.items()
        }
        pairs = {r.name: (r.params, r.spec) for r in (dense, *results)}
        profiled = pf.profile(pairs, batch=TIMED_BATCH, rounds=ROUNDS)
    timings = {n.name: n.timing for n in profiled.networks}
    return Study(network, dense, results, points, images, timings, mean_fraction(stats, pruned[COMPENSATED.name].mask))


def trained(network: Network, data: pf.data.Data, *, seed: int, device: str = "cpu") -> nn.Module:
    """Return the network at the epoch of least loss on the validation images, in eval mode on the device."""
    setup = pf.train.Setup(
        data.train,
        data.validation,
        better="loss",
        classes=len(data.classes),
        device=device,
        progress=sys.stderr.isatty(),
    )
    recipe = network.recipe.model_copy(update={"seed": seed})
    return pf.train.train(network.build(), setup, recipe, name=f"training the {network.name}").model.to(device)


def mean_fraction(stats: pf.Stats, mask: pf.Mask) -> float:
    """Return Σ μ² / Σ (μ² + σ²) over removed units, the part that mean compensation restores; 0 if none is removed."""
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


def _top1(params: pf.Params, spec: pf.Spec, *, batches: list[tuple[Tensor, Tensor]], device: str) -> float:
    return pf.train.evaluate(pf.to_module(params, spec=spec), batches, device=device)["top1"]


def _check(network: Network, top1: float, images: int) -> None:
    """Raise a PruneError if the dense network's top-1 is too low for a report."""
    if top1 < network.min_top1:
        raise pf.PruneError(
            f"the dense {network.name} gets {round(top1 * images)} of {images} held-out images right, {top1:.1%}; "
            f"at least {network.min_top1:.0%} are needed: try another --seed"
        )
