"""Scale of a unit's norm: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017."""

from __future__ import annotations

import torch

from ..parameters.effective import Effective, effective
from ..spec.spec import Spec
from ..types import Criterion, Scores, Stats
from .base import groups_of, per_unit, spec_of, weight_reader


def bn_scale() -> Criterion:
    """Score units by |γ| of the norms over them, averaged over norms; needs no data.

    The norms are BatchNorm above all, and GroupNorm, LayerNorm and RMSNorm. γ is the weight that the op uses, even if it is
    computed (see `magnitude`). A unit with several positions in a norm has their mean. Groups without a norm that has a weight
    get no score.

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
    scales: dict[str, list[torch.Tensor]] = {}
    weight = weight_reader(stats)
    for tensor in _norm_weights(spec):
        (axis,) = tensor.axes
        for group in groups_of(axis, spec):
            values = per_unit(weight(tensor.name).abs(), axis, group, spec)
            scales.setdefault(group, []).append(values.mean(1))
    return {g: torch.stack(scales[g]).mean(0) for g in spec.groups if g in scales}


def _norm_weights(spec: Spec) -> list[Effective]:
    """Return the effective tensors of one dim that are the weight of a norm op."""
    vectors = {e.name: e for e in effective(spec) if len(e.axes) == 1}
    names = [spec.tied.get(n, n) for n in spec.scales]
    return [vectors[n] for n in dict.fromkeys(names) if n in vectors]
