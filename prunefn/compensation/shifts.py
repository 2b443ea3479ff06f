"""Shifts of the outputs of a contraction, and what scales its outputs on their way to a sum."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import ParamsError
from ..names import ancestors
from ..program.compiled import value_of
from ..program.sharded import gather, spread
from ..spec.parts import Site
from ..spec.spec import Spec
from ..tracing.branches import Scale
from ..types import Params

LEAST_SCALE = 1e-3
"""Outputs that are scaled by less than this fraction of the largest factor do not repair what was lost before."""


def output_scale(scales: Iterable[Scale], params: Params, spec: Spec) -> Tensor:
    """Return the product of the factors of a site's outputs, [o] or [1], float64."""
    out = torch.ones(1, dtype=torch.float64)
    for s in scales:
        factor = _factor(s, params, spec)
        out = out.to(factor.device) * factor
    return out


def _factor(scale: Scale, params: Params, spec: Spec) -> Tensor:
    """Return the factors of a site's outputs, [o] or [1], float64."""
    factor = torch.ones(1, dtype=torch.float64)
    if scale.weight:
        factor = value_of(params, scale.weight, spec=spec).detach().double().flatten()
    if scale.variance:
        factor = factor / (value_of(params, scale.variance, spec=spec).double() + scale.eps).sqrt()
    return factor


def may_shift(site: Site, spec: Spec) -> bool:
    """Return whether the class of the model has room for a shift: not for a new bias, if it is built from a config."""
    if site.expert is not None:  # the program has no place for a new bias of each expert
        return site.bias is not None
    is_configured = not set(spec.configured).isdisjoint(ancestors(site.name))
    return site.bias is not None or site.norm is not None or not is_configured


def add_shift(out: Params, site: Site, shift: Tensor, spec: Spec) -> None:
    """Add a shift of the outputs to the bias, the running mean of a BatchNorm, or a new bias in `out`.

    Raises:
        ParamsError: the bias is shared with another contraction.
    """
    if site.expert is not None:
        _add_to_expert(out, site, shift)
        return
    if site.bias is not None:
        target, sign = site.bias, 1.0
        users = [i for i in spec.program.instructions if site.bias in i.reads()]
        if others := [i.module or i.name for i in users if i.name not in site.calls]:
            raise ParamsError(
                f"bias {site.bias!r} serves {site.name!r} and {others[0]!r}, which need different shifts; "
                "use method=compensation.none(), or give each a separate bias"
            )
    elif site.norm is not None:
        target, sign = site.norm, -1.0
    else:
        target, sign = site.slot, 1.0
    current = out.get(target)
    shifted = sign * shift if current is None else gather(current).double() + sign * shift
    like = (
        current
        if current is not None
        else next(t for n, t in out.items() if n in spec.parameters and t.is_floating_point())
    )
    shifted = spread(shifted.to(like.dtype).to(like.device), like)
    for name in [target, *(n for n, first in spec.tied.items() if first == target and n in out)]:
        out[name] = shifted


def _add_to_expert(out: Params, site: Site, shift: Tensor) -> None:
    """Add a shift to an expert's row of the stacked biases."""
    assert site.bias is not None and site.expert is not None
    biases = out[site.bias].detach().clone()
    biases[site.expert] += shift.to(biases)
    out[site.bias] = biases
