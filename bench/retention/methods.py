"""How each method of the table prunes: ours from statistics that one pass collected, the peer's by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.types import Compensation, Scope, Where

from . import torch_pruning as peer
from .data import Images

BATCH = 128
KINDS = pf.kind("hidden", "heads", "head_dim")
"""What is measured: all but the residual streams."""
GLOBAL = pf.scope.global_(normalize=pf.normalizer.mean)
VARIANTS: dict[str, tuple[Scope, Where]] = {
    "local": (pf.scope.local(), pf.kind("hidden", "heads")),
    "global": (GLOBAL, pf.kind("hidden", "heads")),
    "local, head_dim": (pf.scope.local(), pf.kind("hidden", "head_dim")),
    "global, head_dim": (GLOBAL, pf.kind("hidden", "head_dim")),
}
"""The same share of every group, or one ranking of scores that are divided by their group's mean; in attention, whole heads go, or
the width of all of them. The peer, too, is tried in several ways."""
SEQUENTIAL = "sequential affine"


class Case(NamedTuple):
    """A network, and the images that it is calibrated on."""

    model: nn.Module
    spec: pf.Spec
    params: pf.Params
    calibration: Images

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Images and labels."""
        return list(self.calibration.batches(BATCH))


class Result(NamedTuple):
    """A pruned network: images → logits, its cost, and the same with its BatchNorms measured anew."""

    network: Callable[[Tensor], Tensor]
    macs: int
    recalibrated: Callable[[], Callable[[Tensor], Tensor]]


class Method(NamedTuple):
    """A row of the table."""

    name: str
    criterion: pf.Criterion
    compensation: Compensation
    sequential: bool = False
    scope: Scope | None = None
    """Instead of the variant's."""


METHODS = (
    Method("magnitude", pf.criteria.magnitude(), pf.compensation.none()),
    Method("LAMP", pf.criteria.lamp(), pf.compensation.none()),
    Method("Taylor", pf.criteria.taylor(), pf.compensation.none()),
    Method("variance", pf.criteria.variance(), pf.compensation.none()),
    Method("VBP (variance + mean)", pf.criteria.variance(), pf.compensation.mean()),
    Method("variance + affine", pf.criteria.variance(), pf.compensation.affine()),
    Method("CORP (weighted variance + affine)", pf.criteria.weighted_variance(), pf.compensation.affine()),
    Method("DVBP + OB²C (denoised variance + affine)", pf.criteria.denoised_variance(), pf.compensation.affine()),
    Method(f"{SEQUENTIAL} (weighted variance)", pf.criteria.weighted_variance(), pf.compensation.affine(), True),
    Method(
        f"{SEQUENTIAL} (greedy OBS per MAC)", pf.criteria.obs(), pf.compensation.affine(), True, pf.scope.knapsack()
    ),
)
PEERS = tuple(peer.methods(rankings=("uniform", "global"), layers=("everything", "interior")))


def collect(case: Case) -> pf.Stats:
    """All that our methods need, in one pass."""
    criteria = [m.criterion for m in METHODS]
    return pf.collect_stats(case.params, case.batches, spec=case.spec, criterion=criteria, covariance=True, where=KINDS)


def ours(case: Case, stats: pf.Stats, method: Method, variant: str, keep: float) -> Result:
    """Scores, mask, compensation and removal from statistics at hand; only the sequential mode measures again."""
    spec = case.spec
    scope, where = VARIANTS[variant]
    scores = pf.only(pf.score(stats, criterion=method.criterion), where, spec=spec)
    if method.sequential:
        given = pf.Criterion(method.name, lambda _: scores, needs=(), increments=method.criterion.increments)
        prune = pf.pipeline(
            criterion=given,
            where=where,
            ratio=pf.budget.macs(keep),
            scope=method.scope or scope,
            compensation=method.compensation,
            sequential=True,
        )
        params, spec, _, _ = prune(case.params, case.batches, spec=spec)
    else:
        mask = pf.select(scores, pf.budget.macs(keep), spec=spec, scope=scope)
        params = pf.compensate(case.params, stats, mask, spec=spec, method=method.compensation)
        params, spec = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)

    def anew() -> Callable[[Tensor], Tensor]:
        return _network(pf.recalibrate(params, case.batches, spec=spec), spec)

    return Result(_network(params, spec), pf.cost(spec).macs, anew)


def _network(params: pf.Params, spec: pf.Spec) -> Callable[[Tensor], Tensor]:
    return lambda x: pf.forward(params, x, spec=spec)


def theirs(case: Case, method: peer.Method, keep: float) -> Result:
    """Torch-Pruning's."""
    pruned = peer.prune(case.model, keep, method, case.calibration)
    return Result(pruned.module, pruned.macs, lambda: recalibrated(pruned.module, case.batches))


@torch.no_grad()
def recalibrated(module: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """Measure the BatchNorms of a module anew, in place, as torch's users do: running statistics afresh, by cumulative averages."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
    module.train()
    for x, _ in batches:
        module(x)
    return module.eval()
