"""Published ways to prune, each a pipeline of a few lines: read them, and compose your own.

Every recipe takes a ratio (share of units removed) or a budget, and any option of `pipeline`, which wins over the recipe's.

>>> import torch, prunefn as pf
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
>>> spec = pf.trace(model, (torch.randn(2, 4),))
>>> prune = pf.recipes.vbp(pf.budget.params(0.6), round_to=2)
>>> prune(pf.params(model), [torch.randn(16, 4)], spec=spec).info.removed
{'0': (4, 8)}
"""

from __future__ import annotations

from typing import Any

from . import compensation, criteria
from .criteria import normalizer, reduction
from .criteria.gradients import Loss, cross_entropy
from .doors import door
from .pipelines import Prune, pipeline
from .selection import scope
from .selection.budget import macs
from .types import Budget
from .where import kind

__all__ = [
    "corp",
    "depgraph_group_norm",
    "dvbp_ob2c",
    "fpgm",
    "isomorphic",
    "l1_channels",
    "lamp",
    "mac_aware",
    "network_slimming",
    "taylor",
    "vbp",
]


Ratio = float | Budget


@door
def vbp(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Variance-based pruning: least variance goes, its mean stays (Berisha et al., ICCV 2025, arXiv 2507.12988)."""
    given = {
        "criterion": criteria.variance(),
        "where": kind("hidden"),
        "scope": scope.global_(),
        "compensation": compensation.mean(),
    }
    return pipeline(ratio=ratio, **given | options)


@door
def dvbp_ob2c(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Denoised variance, and the optimal-brain update with a bias (arXiv 2608.17657)."""
    given = {
        "criterion": criteria.denoised_variance(),
        "where": kind("hidden"),
        "scope": scope.global_(),
        "compensation": compensation.affine(otherwise=compensation.mean()),
    }
    return pipeline(ratio=ratio, **given | options)


@door
def corp(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """The same share of every MLP, kept units take over affinely what the others gave (CORP, arXiv 2602.05243)."""
    given = {
        "criterion": criteria.weighted_variance(),
        "where": kind("hidden"),
        "scope": scope.local(),
        "compensation": compensation.affine(otherwise=compensation.mean()),
    }
    return pipeline(ratio=ratio, **given | options)


@door
def network_slimming(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Smallest scales of BatchNorm (Liu et al., ICCV 2017, arXiv 1708.06519); train with `bn_l1` first."""
    given = {"criterion": criteria.bn_scale(), "scope": scope.global_(), "compensation": compensation.none()}
    return pipeline(ratio=ratio, **given | options)


@door
def l1_channels(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Smallest L1 norm of each layer's filters (Li et al., ICLR 2017, arXiv 1608.08710)."""
    given = {
        "criterion": criteria.magnitude(1.0),
        "where": kind("hidden"),
        "scope": scope.local(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **given | options)


@door
def taylor(ratio: Ratio = 0.5, *, loss: Loss = cross_entropy, **options: Any) -> Prune:
    """Smallest change of the loss to first order (Molchanov et al., CVPR 2019, arXiv 1906.10771)."""
    given = {
        "criterion": criteria.normalized(criteria.taylor(loss), normalizer.mean),
        "scope": scope.global_(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **given | options)


@door
def isomorphic(ratio: Ratio = 0.5, *, loss: Loss = cross_entropy, **options: Any) -> Prune:
    """Groups of the same structure are ranked among themselves (Fang et al., ECCV 2024, arXiv 2407.04616)."""
    given = {
        "criterion": criteria.taylor(loss),
        "scope": scope.isomorphic(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **given | options)


@door
def depgraph_group_norm(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """L2 norm of all coupled tensors of a unit, the same share of every group (Fang et al., CVPR 2023, arXiv 2301.12900)."""
    given = {
        "criterion": criteria.normalized(criteria.magnitude(2.0, reduction=reduction.sum), normalizer.mean),
        "scope": scope.local(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **given | options)


@door
def lamp(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Layer-adaptive magnitude, one ranking over all (Lee et al., ICLR 2021, arXiv 2010.07611)."""
    given = {"criterion": criteria.lamp(), "scope": scope.global_(), "compensation": compensation.none()}
    return pipeline(ratio=ratio, **given | options)


@door
def fpgm(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Filters nearest to all others of their layer (He et al., CVPR 2019, arXiv 1811.00250)."""
    given = {
        "criterion": criteria.fpgm(),
        "where": kind("hidden"),
        "scope": scope.local(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **given | options)


@door
def mac_aware(ratio: Ratio | None = None, **options: Any) -> Prune:
    """Magnitude, lowered where MACs are dear; by default to half of the MACs."""
    given = {
        "criterion": criteria.mac_aware(criteria.normalized(criteria.magnitude(), normalizer.mean)),
        "scope": scope.global_(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=macs(0.5) if ratio is None else ratio, **given | options)


def __dir__() -> list[str]:
    return __all__
