"""How each method prunes a network to a share of the MACs, in each of its variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

import prunefn as pf
from prunefn.criteria import normalizer
from prunefn.errors import PruneError
from prunefn.plans import Prune

from ..retention import data, networks
from ..retention import torch_pruning as peer
from ..retention.methods import recalibrated
from . import sparse_peer
from .sparse_peer import SPARSE_STEPS

BATCH = 128
RECOVERY = 200
"""Steps of `recover`, label-free, on the calibration images."""
ROUNDS = 5
GLOBAL = pf.scope.global_(normalize=normalizer.mean)
LOCAL = pf.scope.local()
KINDS = pf.kind("hidden", "head_dim")
"""In attention, the width of all heads was better than whole heads for every method of bench/retention."""
Network = Callable[["Case", float], nn.Module]


class Case(NamedTuple):
    """A dense network, and the images that it is calibrated on."""

    name: str
    model: nn.Module
    spec: pf.Spec
    params: pf.Params
    calibration: data.Images

    @property
    def norms(self) -> bool:
        """Whether the network has BatchNorms."""
        return any("running_mean" in name for name in self.params)


class Method(NamedTuple):
    """A line of the figure."""

    name: str
    variants: Callable[[Case], Mapping[str, Network]]
    """Variant → function that returns a pruned network in eval mode for a share of the MACs, or raises PruneError or ValueError."""
    same_as: str | None = None
    """The method whose variant and learning rate it takes."""
    rounds: int = 1
    """Above 1, half of the steps are spent between rounds of pruning."""


class Pruned(NamedTuple):
    """A pruned network and its MACs by `pf.cost`."""

    model: nn.Module
    macs: int


def case(name: str, seed: int, calibration: int) -> Case:
    """Load a network and draw calibration images."""
    model, train = networks.load(name).model, data.training()
    chosen = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))[:calibration]
    images = data.Images(train.images[chosen], train.labels[chosen])
    return Case(name, model, pf.trace(model, (images.images[:2],)), pf.params(model), images)


def prune(found: Case, method: Method, variant: str, keep: float) -> Pruned | None:
    """Return the pruned network; None if the method does not reach the share of the MACs."""
    try:
        model = method.variants(found)[variant](found, keep)
    except (PruneError, ValueError) as error:
        print(f"{found.name}, {method.name}, {variant}, {keep:.0%}: {error}", flush=True)
        return None
    return Pruned(model, pf.cost(pf.trace(model, (found.calibration.images[:2],))).macs)


def in_rounds(
    found: Case, method: Method, variant: str, keep: float, steps: int, learn: Callable[[nn.Module, int], nn.Module]
) -> tuple[nn.Module, int]:
    """Prune by the same share in each round, train after each, and spend the other half of the steps at the end.

    Returns:
        (trained network, its MACs)
    """
    dense, between, model = pf.cost(found.spec).macs, steps // (2 * method.rounds), found.model
    for n in range(1, method.rounds + 1):
        spec = pf.trace(model, (found.calibration.images[:2],))
        now = found._replace(model=model, spec=spec, params=pf.params(model))
        share = keep ** (n / method.rounds) * dense / pf.cost(spec).macs
        model = learn(method.variants(now)[variant](now, share), between)
    macs = pf.cost(pf.trace(model, (found.calibration.images[:2],))).macs
    return learn(model, steps - between * method.rounds), macs


def by_pipeline(make: Callable[[float], Prune], found: Case, keep: float) -> nn.Module:
    """Prune with a pipeline, and return the original class."""
    batches = list(found.calibration.batches(BATCH))
    params, spec, _, _ = make(keep)(found.params, batches, spec=found.spec)
    return pf.to_module(params, spec=spec, model=found.model).eval()


def ours(found: Case, make: Callable[..., Prune], ways: Mapping[str, dict[str, object]]) -> dict[str, Network]:
    """Return the variants of a pipeline of hidden units and the width of heads, a variant for each way."""

    def network(options: dict[str, object]) -> Network:
        return partial(by_pipeline, lambda keep: make(ratio=pf.budget.macs(keep), **{"where": KINDS} | options))

    return {way: network(options) for way, options in ways.items()}


def torch_pruning(found: Case) -> dict[str, Network]:
    """Return the variants of Torch-Pruning: magnitude or isomorphic Taylor."""
    chosen = [
        *peer.methods(["magnitude"], ["global", "uniform"], ["interior"]),
        *peer.methods(["Taylor"], ["isomorphic"], ["interior"]),
    ]
    return {m.name: partial(_by_peer, method=m) for m in chosen}


def _by_peer(found: Case, keep: float, method: peer.Method) -> nn.Module:
    """Prune with Torch-Pruning, and measure the BatchNorms anew, as for ours."""
    pruned = peer.prune(found.model, keep, method, found.calibration).module
    return recalibrated(pruned, list(found.calibration.batches(BATCH))) if found.norms else pruned


def group_norm(found: Case) -> dict[str, Network]:
    """Return the variants of Torch-Pruning's group norm, after its sparse training of the dense network."""
    return {m.name: partial(_by_sparse_peer, method=m) for m in sparse_peer.methods()}


def _by_sparse_peer(found: Case, keep: float, method: peer.Method) -> nn.Module:
    model = sparse_peer.trained(found.name, found.model, found.calibration.images[:1])
    return _by_peer(found._replace(model=model), keep, method)


NO_REPAIR = {"compensation": pf.compensation.none(), "recalibrate": True}
BEST = {"interior": {}, "everything": {"where": None}}
MAGNITUDE = {
    f"L{p}, {way}": {"criterion": pf.criteria.magnitude(float(p)), "scope": scope, **NO_REPAIR}
    for p, way, scope in ((1, "global", GLOBAL), (2, "global", GLOBAL), (2, "local", LOCAL))
}
PER_GROUP = {way: {"scope": s, "recalibrate": True} for way, s in (("global", GLOBAL), ("local", LOCAL))}
RECOVERED = {way: {**options, "recover_steps": RECOVERY} for way, options in BEST.items()}
METHODS = (
    Method("ours (recipes.best)", partial(ours, make=pf.recipes.best, ways=BEST)),
    Method("ours + recover", partial(ours, make=pf.recipes.best, ways=RECOVERED), same_as="ours (recipes.best)"),
    Method(
        f"ours in {ROUNDS} rounds", partial(ours, make=pf.recipes.best, ways=BEST), "ours (recipes.best)", rounds=ROUNDS
    ),
    Method("magnitude + BatchNorm anew", partial(ours, make=pf.pipeline, ways=MAGNITUDE)),
    Method("VBP (paper)", partial(ours, make=pf.recipes.vbp, ways={"raw, global": {}})),
    Method("VBP per group + BatchNorm anew", partial(ours, make=pf.recipes.vbp, ways=PER_GROUP)),
    Method("CORP", partial(ours, make=pf.recipes.corp, ways={"local": {}})),
    Method("Torch-Pruning", torch_pruning),
    Method(f"Torch-Pruning, {SPARSE_STEPS} sparse steps", group_norm),
)
