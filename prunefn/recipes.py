"""Published pruning methods, each a pipeline of a few lines: read them, and compose your own.

Every recipe takes a ratio (fraction of units removed) or a budget, and any option of `pipeline`, which overrides the recipe's.

>>> import torch, prunefn as pf
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
>>> spec = pf.trace(model, (torch.randn(2, 4),))
>>> prune = pf.recipes.vbp(pf.budget.params(0.6), round_to=2)
>>> prune(pf.params(model), [torch.randn(16, 4)], spec=spec).info.removed
{'0': (4, 8)}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import compensation, criteria
from .criteria import normalizer, reduction
from .criteria.gradients import Loss, cross_entropy
from .doors import door
from .pipelines import pipeline
from .plans import Prune
from .selection import scope
from .selection.budget import macs
from .spec.spec import Spec
from .tracing.rules.families import is_batch_norm
from .types import Batch, Budget, Count, Params, Pruned, TargetSizes
from .where import kind

__all__ = [
    "best",
    "corp",
    "depgraph_group_norm",
    "dvbp_ob2c",
    "flap",
    "fpgm",
    "isomorphic",
    "l1_channels",
    "lamp",
    "mac_aware",
    "minitron",
    "network_slimming",
    "taylor",
    "vbp",
    "wanda_sp",
]


Ratio = float | Budget | Count | TargetSizes


@door
def best(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Remove what the optimal brain surgeon finds to cost least per saved MAC, and fit what is left block by block.

    With batches: greedy OBS, weighted by the Fisher information where outputs are classes (`criteria.obs`), `scope.knapsack`, and
    affine compensation over all taps towards the dense outputs, of the residual stream, too (`sequential=True`). Without batches:
    magnitudes, divided by their mean in each group.
    """
    return pipeline(ratio=ratio, **options)


@door
def vbp(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Remove units of least variance and compensate their means (VBP, Berisha et al., ICCV 2025, arXiv 2507.12988).

    As published, all units are ranked together by their variance. With BatchNorm, scales of layers mean nothing: variances are
    divided by their mean in each group, unless `scope` or `criterion` is given, and `recalibrate=True` keeps much more accuracy.
    """
    defaults = {
        "criterion": criteria.variance(),
        "where": kind("hidden"),
        "scope": scope.global_(),
        "compensation": compensation.mean(),
    }
    return _normalized_with_batch_norm(ratio, defaults, options)


@door
def dvbp_ob2c(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Remove units of least denoised variance, with the optimal-brain update and a bias (DVBP, OB²C, arXiv 2608.17657)."""
    defaults = {
        "criterion": criteria.denoised_variance(),
        "where": kind("hidden"),
        "scope": scope.global_(),
        "compensation": compensation.affine(fallback=compensation.mean()),
    }
    return pipeline(ratio=ratio, **defaults | options)


@door
def corp(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Remove the same fraction of every MLP, with affine compensation by the kept units (CORP, arXiv 2602.05243)."""
    defaults = {
        "criterion": criteria.weighted_variance(),
        "where": kind("hidden"),
        "scope": scope.local(),
        "compensation": compensation.affine(fallback=compensation.mean()),
    }
    return pipeline(ratio=ratio, **defaults | options)


@door
def network_slimming(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Remove units of the smallest BatchNorm scales (Liu et al., ICCV 2017, arXiv 1708.06519); train with `bn_l1` first."""
    defaults = {"criterion": criteria.bn_scale(), "scope": scope.global_(), "compensation": compensation.none()}
    return pipeline(ratio=ratio, **defaults | options)


@door
def l1_channels(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Remove the filters of the smallest L1 norm in each layer (Li et al., ICLR 2017, arXiv 1608.08710)."""
    defaults = {
        "criterion": criteria.magnitude(1.0),
        "where": kind("hidden"),
        "scope": scope.local(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **defaults | options)


@door
def taylor(ratio: Ratio = 0.5, *, loss: Loss = cross_entropy, **options: Any) -> Prune:
    """Remove units that change the loss least to first order (Molchanov et al., CVPR 2019, arXiv 1906.10771)."""
    defaults = {
        "criterion": criteria.normalized(criteria.taylor(loss), normalizer.mean),
        "scope": scope.global_(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **defaults | options)


@door
def isomorphic(ratio: Ratio = 0.5, *, loss: Loss = cross_entropy, **options: Any) -> Prune:
    """Rank units by Taylor scores within groups of the same structure (Fang et al., ECCV 2024, arXiv 2407.04616)."""
    defaults = {
        "criterion": criteria.taylor(loss),
        "scope": scope.isomorphic(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **defaults | options)


@door
def depgraph_group_norm(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Remove the same fraction of every group by the L2 norm of units' coupled tensors (Fang et al., CVPR 2023, arXiv 2301.12900)."""
    defaults = {
        "criterion": criteria.normalized(criteria.magnitude(2.0, reduction=reduction.sum), normalizer.mean),
        "scope": scope.local(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **defaults | options)


@door
def lamp(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Rank all units together by layer-adaptive magnitude (Lee et al., ICLR 2021, arXiv 2010.07611)."""
    defaults = {"criterion": criteria.lamp(), "scope": scope.global_(), "compensation": compensation.none()}
    return pipeline(ratio=ratio, **defaults | options)


@door
def fpgm(ratio: Ratio = 0.5, **options: Any) -> Prune:
    """Remove the filters nearest to all others of their layer (He et al., CVPR 2019, arXiv 1811.00250)."""
    defaults = {
        "criterion": criteria.fpgm(),
        "where": kind("hidden"),
        "scope": scope.local(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **defaults | options)


@door
def flap(ratio: Ratio = 0.2, **options: Any) -> Prune:
    """Rank MLP units and heads together by standardised fluctuation, and compensate their means (FLAP, arXiv 2312.11983)."""
    defaults = {
        "criterion": criteria.flap(),
        "where": kind("hidden", "heads"),
        "scope": scope.global_(normalize=normalizer.z_score),
        "compensation": compensation.mean(),
    }
    return pipeline(ratio=ratio, **defaults | options)


@door
def wanda_sp(ratio: Ratio = 0.2, **options: Any) -> Prune:
    """Remove the same fraction of every MLP and of all heads by weights times activations (Wanda-sp, arXiv 2312.11983)."""
    defaults = {
        "criterion": criteria.wanda_sp(),
        "where": kind("hidden", "heads"),
        "scope": scope.local(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **defaults | options)


@door
def minitron(ratio: Ratio = 0.25, **options: Any) -> Prune:
    """Keep one width in all layers by norms of activations (Minitron, arXiv 2407.14679); distil afterwards, as by `pf.recover`."""
    defaults = {
        "criterion": criteria.activation_norm(),
        "where": kind("hidden"),
        "scope": scope.uniform(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=ratio, **defaults | options)


@door
def mac_aware(ratio: Ratio | None = None, **options: Any) -> Prune:
    """Remove units of least magnitude, lowered where MACs are expensive; by default down to half of the MACs."""
    defaults = {
        "criterion": criteria.mac_aware(criteria.normalized(criteria.magnitude(), normalizer.mean)),
        "scope": scope.global_(),
        "compensation": compensation.none(),
    }
    return pipeline(ratio=macs(0.5) if ratio is None else ratio, **defaults | options)


def _normalized_with_batch_norm(ratio: Ratio, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> Prune:
    """Return a recipe's pipeline, in which networks with BatchNorm get normalised scores, unless options choose how to rank."""
    published = pipeline(ratio=ratio, **{**defaults, **options})
    if {"scope", "criterion"} & options.keys():
        return published
    normalized = pipeline(ratio=ratio, **{**defaults, "scope": scope.global_(normalize=True), **options})

    @door
    def prune(params: Params, batches: Iterable[Batch] | None, *, spec: Spec, **options: Any) -> Pruned:
        has_batch_norm = any(is_batch_norm(i.op) for i in spec.program.instructions)
        return (normalized if has_batch_norm else published)(params, batches, spec=spec, **options)

    return published.running(prune)


def __dir__() -> list[str]:
    return __all__
