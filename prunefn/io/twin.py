"""What a pruned network must compute where there is no program to run: the traced model with zeros for what was removed."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from ..params import expand
from ..trace.spec import Spec
from ..types import FrozenDict, Params


def dense_twin(model: nn.Module, params: Params, spec: Spec) -> nn.Module | None:
    """A copy of the traced model, at its sizes of then, that computes what the smaller params do.

    Which units were removed does not matter: zeros stand in the last places.

    Args:
        model: the module that was traced.
        params: of the spec.
        spec: at the sizes of the params.

    Returns:
        The twin; None where a group that lost units is not exact, so that zeros are not the same as removal.

    >>> import prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec, mask = pf.trace(model, (torch.randn(2, 4),)), {"0": torch.tensor([True, False, True])}
    >>> twin = dense_twin(model, pf.apply(pf.params(model), mask, spec=spec), pf.shrink(spec, mask))
    >>> twin[2].weight[:, 2].tolist()
    [0.0, 0.0]
    """
    if any(spec.sizes[g] != spec.traced[g] and not spec.groups[g].exact for g in spec.groups):
        return None
    dense = replace(
        spec,
        sizes=spec.traced,
        groups=FrozenDict({n: g._replace(size=spec.traced[n]) for n, g in spec.groups.items()}),
    )
    first = {g: torch.arange(n) < spec.sizes[g] for g, n in spec.traced.items()}
    twin = copy.deepcopy(model)
    twin.load_state_dict(expand(params, first, spec=dense), strict=False)
    return twin
