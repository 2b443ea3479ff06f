"""Scale of a unit's norm: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..stats import Stats
from ..trace.program import Ref, target
from ..trace.spec import Spec
from ..types import Criterion, Scores
from .base import groups_of, per_unit, spec_of


def bn_scale() -> Criterion:
    """|γ| of the norms over the unit (BatchNorm above all; GroupNorm, LayerNorm, RMSNorm), averaged over norms; needs no data.

    Units that stand at several positions of a norm have their mean. Groups without a norm that has a weight get no score.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Conv2d(2, 1, 1))
    >>> model[1].weight.data = torch.tensor([0.5, -2.0])
    >>> spec = pf.trace(model, (torch.randn(2, 1, 3, 3),))
    >>> pf.score(pf.collect_stats(pf.params(model), None, spec=spec), criterion=bn_scale())
    {'0': tensor([0.5000, 2.0000], dtype=torch.float64)}
    """
    return Criterion("bn_scale", _score, needs=())


def _score(stats: Stats) -> Scores:
    spec = spec_of(stats)
    found: dict[str, list[torch.Tensor]] = {}
    for tensor in dict.fromkeys(_norm_weights(spec)):
        (axis,) = spec.axes[tensor]
        for group in groups_of(axis, spec):
            values = per_unit(stats.params[tensor].detach().double().abs(), axis, group, spec)
            found.setdefault(group, []).append(values.mean(1))
    return {g: torch.stack(found[g]).mean(0) for g in spec.groups if g in found}


def _norm_weights(spec: Spec) -> Iterator[str]:
    """Parameters of one dim that are the weight of a norm op."""
    for i in spec.program.instructions:
        schema = getattr(target(i.op), "_schema", None) if "_norm" in i.op else None
        if schema is None:
            continue
        names = [a.name for a in schema.arguments]
        given = {**dict(zip(names, i.args, strict=False)), **dict(i.kwargs)}
        weight = given.get("weight")
        if isinstance(weight, Ref) and weight.name in spec.parameters and len(spec.axes[weight.name]) == 1:
            yield weight.name
