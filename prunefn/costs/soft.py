"""Costs at expected sizes, which a loss can be differentiated by: for gates or widths that are trained under a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..doors import door
from ..errors import MaskError, nearest
from ..spec.costs import Polynomial
from ..spec.spec import Spec
from .timing.table import LatencyTable


class SoftCost(NamedTuple):
    """The cost of one sample at expected sizes; each is a float64 scalar that can be differentiated by the sizes."""

    macs: Tensor
    params: Tensor
    activations: Tensor


@door
def soft_cost(spec: Spec, units: Mapping[str, Tensor], *, sizes: Mapping[str, int] | None = None) -> SoftCost:
    """Return the cost of one sample at numbers of units that need not be whole, differentiable by them.

    It is the polynomial of `cost`, so both agree at whole numbers. If gates open independently, it is the expected cost at the
    sums of their probabilities, up to terms with the square of a size.

    Args:
        spec: spec of the network.
        units: group → number of units that stay, a scalar tensor, such as the sum of the probabilities of its gates; other
            groups keep all.
        sizes: sizes of the inputs, such as `{"length": 4096}`; default: those of the spec.

    Raises:
        MaskError: a name is no group, or a value is no real scalar.
        TraceError: a size cannot change.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> probabilities = torch.full((8,), 0.5, requires_grad=True)
    >>> macs = soft_cost(spec, {"0": probabilities.sum()}).macs
    >>> macs.item(), torch.autograd.grad(macs, probabilities)[0][0]  # 4 + 2 for each unit
    (24.0, tensor(6.))
    """
    spec = spec.at(sizes) if sizes else spec
    expected = read_units(units, spec)
    macs, params, activations = (_evaluate(p, expected) for p in spec.costs)
    return SoftCost(macs, params, activations)


@door
def soft_latency(table: LatencyTable, units: Mapping[str, Tensor]) -> Tensor:
    """Return the predicted seconds of a forward at numbers of units that need not be whole, differentiable by them.

    It is `table.interpolate`, which equals `latency` where every size is a multiple of `table.multiple` or that of the dense network.

    Args:
        table: of `latency_table`.
        units: as for `soft_cost`.

    Returns:
        A float64 scalar.

    Raises:
        MaskError: a name is no group, or a value is no real scalar.
    """
    return torch.as_tensor(table.interpolate(read_units(units, table.spec)), dtype=torch.float64)


def read_units(units: Mapping[str, Tensor], spec: Spec) -> dict[str, Any]:
    """Return the sizes of all groups, those of `units` in float64.

    Raises:
        MaskError: a name is no group, or a value is no real scalar.
    """
    for name, u in units.items():
        if name not in spec.groups:
            raise MaskError(f"the spec has no group {name!r}, but units has one{nearest(name, spec.groups)}")
        if u.ndim or u.is_complex() or u.dtype == torch.bool:
            raise MaskError(
                f"units[{name!r}] is a {str(u.dtype).removeprefix('torch.')} tensor of shape {tuple(u.shape)}; it must be the "
                f"number of units that stay, a scalar up to {spec.sizes[name]}, such as the sum of probabilities"
            )
    return {**spec.sizes, **{name: u.double() for name, u in units.items()}}


def _evaluate(polynomial: Polynomial, sizes: Mapping[str, Any]) -> Tensor:
    return torch.as_tensor(polynomial(sizes), dtype=torch.float64)
