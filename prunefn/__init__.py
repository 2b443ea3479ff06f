"""prunefn: functional pruning for PyTorch. Trace once, then pure functions on dicts of tensors.

model ──trace──▶ spec      model ──params─▶ params

params, batches ─collect_stats▶ stats ─score▶ scores ─select▶ mask
params, stats, mask ─compensate▶ params
params, mask ─apply▶ smaller params   ;   spec, mask ─shrink▶ smaller spec
params, x ─forward▶ y                 ;   params ─to_module▶ nn.Module
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import compensation, criteria, data, distances, export, gates, nets, pruning, recipes, sparse, sweep, train
    from .checkpoints.checkpoint import load, load_params, save
    from .checkpoints.lazy import lazy_params
    from .checkpoints.spec_file import load_spec, save_spec
    from .checkpoints.stats_file import load_stats, save_stats
    from .checkpoints.stream import apply_checkpoint
    from .checkpoints.tokenizer_files import needed_tokens, shrink_tokenizer
    from .compensation.batch_norm import recalibrate
    from .compensation.repair import compensate, residual
    from .costs.analytic import Memory, cost, memory
    from .costs.network_metrics import Metrics, compare, metrics
    from .costs.profiling import Profile, profile
    from .costs.soft import SoftCost, soft_cost, soft_latency
    from .costs.timing import Call, Clock, LatencyTable, latency, latency_table
    from .criteria import normalizer, reduction
    from .criteria.scoring import score
    from .distillation.dense_logits import DenseLogits, load_logits, save_logits
    from .distillation.recovery import recover
    from .errors import (
        BatchError,
        BudgetError,
        MaskError,
        ParamsError,
        PruneError,
        PruneWarning,
        StatsError,
        TraceError,
    )
    from .modules.convert import to_module
    from .modules.targets import target
    from .parameters.positions import remap
    from .parameters.transforms import apply, compose, expand, kept, kept_positions, params, shrink, zero
    from .pipelines import pipeline
    from .pretrained.api import prune_pretrained
    from .pretrained.recovered import recover_pretrained
    from .program import sharded
    from .program.run import forward, forward_train
    from .selection import budget, scope
    from .selection.budget import uniform_ratio
    from .selection.by_hand import mask
    from .selection.choose import select
    from .sensitivities.effects import Effect, Sensitivity
    from .sensitivities.elimination import Eliminated, eliminate
    from .sensitivities.groups import sensitivity
    from .spec.parts import Cost
    from .spec.spec import Spec
    from .stats import collect_stats, merge_stats, stats_bytes, sync_stats
    from .submodules import prune_submodule
    from .tokens.measuring import perplexity
    from .tracing.api import trace
    from .types import Collector, Criterion, Mask, Params, Scores, Stats
    from .where import exact, glob, kind, module, only, touches

# Everything is imported when it is first used, so that `import prunefn` is quick; the imports above tell type checkers the same.
_NAMESPACES = {
    "budget": ".selection.budget",
    "compensation": ".compensation",
    "criteria": ".criteria",
    "data": ".data",
    "distances": ".distances",
    "export": ".export",
    "gates": ".gates",
    "nets": ".nets",
    "normalizer": ".criteria.normalizer",
    "pruning": ".pruning",
    "recipes": ".recipes",
    "reduction": ".criteria.reduction",
    "scope": ".selection.scope",
    "sharded": ".program.sharded",
    "sparse": ".sparse",
    "sweep": ".sweep",
    "train": ".train",
}
"""Name of a public namespace → its module."""
_MODULES = {
    ".checkpoints.checkpoint": "load load_params save",
    ".checkpoints.lazy": "lazy_params",
    ".checkpoints.spec_file": "load_spec save_spec",
    ".checkpoints.stats_file": "load_stats save_stats",
    ".checkpoints.stream": "apply_checkpoint",
    ".checkpoints.tokenizer_files": "needed_tokens shrink_tokenizer",
    ".compensation.batch_norm": "recalibrate",
    ".compensation.repair": "compensate residual",
    ".costs.analytic": "Memory cost memory",
    ".costs.network_metrics": "Metrics compare metrics",
    ".costs.profiling": "Profile profile",
    ".costs.soft": "SoftCost soft_cost soft_latency",
    ".costs.timing": "Call Clock LatencyTable latency latency_table",
    ".criteria.scoring": "score",
    ".distillation.dense_logits": "DenseLogits load_logits save_logits",
    ".distillation.recovery": "recover",
    ".errors": "BatchError BudgetError MaskError ParamsError PruneError PruneWarning StatsError TraceError",
    ".modules.convert": "to_module",
    ".modules.targets": "target",
    ".parameters.positions": "remap",
    ".parameters.transforms": "apply compose expand kept kept_positions params shrink zero",
    ".pipelines": "pipeline",
    ".pretrained.api": "prune_pretrained",
    ".pretrained.recovered": "recover_pretrained",
    ".program.run": "forward forward_train",
    ".selection.budget": "uniform_ratio",
    ".selection.by_hand": "mask",
    ".selection.choose": "select",
    ".sensitivities.effects": "Effect Sensitivity",
    ".sensitivities.elimination": "Eliminated eliminate",
    ".sensitivities.groups": "sensitivity",
    ".spec.parts": "Cost",
    ".spec.spec": "Spec",
    ".stats": "collect_stats merge_stats stats_bytes sync_stats",
    ".submodules": "prune_submodule",
    ".tokens.measuring": "perplexity",
    ".tracing.api": "trace",
    ".types": "Collector Criterion Mask Params Scores Stats",
    ".where": "exact glob kind module only touches",
}
"""Module → public names that it defines."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "BatchError",
    "BudgetError",
    "Call",
    "Clock",
    "Collector",
    "Cost",
    "Criterion",
    "DenseLogits",
    "Effect",
    "Eliminated",
    "LatencyTable",
    "Mask",
    "MaskError",
    "Memory",
    "Metrics",
    "Params",
    "ParamsError",
    "Profile",
    "PruneError",
    "PruneWarning",
    "Scores",
    "Sensitivity",
    "SoftCost",
    "Spec",
    "Stats",
    "StatsError",
    "TraceError",
    "__version__",
    "apply",
    "apply_checkpoint",
    "budget",
    "collect_stats",
    "compare",
    "compensate",
    "compensation",
    "compose",
    "cost",
    "criteria",
    "data",
    "distances",
    "eliminate",
    "exact",
    "expand",
    "export",
    "forward",
    "forward_train",
    "gates",
    "glob",
    "kept",
    "kept_positions",
    "kind",
    "latency",
    "latency_table",
    "lazy_params",
    "load",
    "load_logits",
    "load_params",
    "load_spec",
    "load_stats",
    "mask",
    "memory",
    "merge_stats",
    "metrics",
    "module",
    "needed_tokens",
    "nets",
    "normalizer",
    "only",
    "params",
    "perplexity",
    "pipeline",
    "profile",
    "prune_pretrained",
    "prune_submodule",
    "pruning",
    "recalibrate",
    "recipes",
    "recover",
    "recover_pretrained",
    "reduction",
    "remap",
    "residual",
    "save",
    "save_logits",
    "save_spec",
    "save_stats",
    "scope",
    "score",
    "select",
    "sensitivity",
    "sharded",
    "shrink",
    "shrink_tokenizer",
    "soft_cost",
    "soft_latency",
    "sparse",
    "stats_bytes",
    "sweep",
    "sync_stats",
    "target",
    "to_module",
    "touches",
    "trace",
    "train",
    "uniform_ratio",
    "zero",
]


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name in _NAMESPACES:
            value = import_module(_NAMESPACES[name], __name__)
        elif name in _MODULE_OF:
            value = getattr(import_module(_MODULE_OF[name], __name__), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
