"""The state of an optimizer goes on with what is left of the parameters; under a mask, what is removed stays exactly zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..doors import door
from ..errors import MaskError, ParamsError, nearest
from ..params import check_mask
from ..trace.expr import keep, leaves
from ..trace.spec import Spec, take
from ..types import Mask

State = Mapping[str, Any]
"""What `optimizer.state_dict()` gives."""


@door
def slice_optimizer(state: State, mask: Mask, *, spec: Spec, names: Sequence[str]) -> dict[str, Any]:
    """Remove units from the state of an optimizer as `apply` removes them from the parameters.

    Momentum of SGD, moments of the Adam family and all else that has the shape of its parameter is sliced; numbers such as
    `step` stay. All tensors are copies: `load_state_dict` does not copy, and two optimizers would count the same `step`.

    Args:
        state: `optimizer.state_dict()` of an optimizer over the parameters before they were pruned.
        mask: group → bool [units], as for `apply`.
        spec: before it is shrunk.
        names: the parameters' names in the order in which the optimizer has them: `[n for n, _ in model.named_parameters()]`
            where it was made of `model.parameters()`.

    Returns:
        A new state for `optimizer.load_state_dict` of an optimizer over the pruned parameters in the same order.

    Raises:
        ParamsError: the names do not fit, or a state has neither the shape of its parameter nor is a number (Adafactor's
            factored moments): start that optimizer anew.
        MaskError: the mask does not fit the spec.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> model(torch.randn(2, 4)).sum().backward()
    >>> optimizer.step()
    >>> mask, names = {"0": torch.tensor([True, False, True])}, [n for n, _ in model.named_parameters()]
    >>> small = slice_optimizer(optimizer.state_dict(), mask, spec=spec, names=names)
    >>> [tuple(s["exp_avg"].shape) for s in small["state"].values()]
    [(2, 4), (2,), (2, 2), (2,)]
    """
    check_mask(mask, spec)
    by_index = _names(state, names, spec)
    out = {i: {k: _sliced(v, k, by_index[i], mask, spec) for k, v in of.items()} for i, of in state["state"].items()}
    return {**state, "state": out, "param_groups": [{**g} for g in state["param_groups"]]}


@door
def slice_state(state: Mapping[str, State], mask: Mask, *, spec: Spec) -> dict[str, dict[str, Any]]:
    """As `slice_optimizer`, of what an optimizer remembers by parameter: name → key → tensor or number.

    Raises:
        ParamsError, MaskError: as for `slice_optimizer`.
    """
    check_mask(mask, spec)
    if unknown := [n for n in state if n not in spec.axes]:
        raise ParamsError(f"the spec has no parameter {unknown[0]!r}{nearest(unknown[0], spec.axes)}")
    return {n: {k: _sliced(v, k, n, mask, spec) for k, v in of.items()} for n, of in state.items()}


@door
def weight_masks(mask: Mask, *, spec: Spec) -> dict[str, Tensor]:
    """Which elements of each parameter a mask keeps: parameter → bool of its shape; parameters that are whole are left out.

    Raises:
        MaskError: the mask does not fit the spec.

    >>> import prunefn as pf
    >>> spec = pf.trace(torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Linear(3, 1)), (torch.randn(2, 1),))
    >>> {n: m.tolist() for n, m in weight_masks({"0": torch.tensor([True, False, True])}, spec=spec).items()}
    {'0.weight': [[True], [False], [True]], '0.bias': [True, False, True], '1.weight': [[True, False, True]]}
    """
    check_mask(mask, spec)
    out: dict[str, Tensor] = {}
    for name, axes in spec.axes.items():
        if name not in spec.parameters:
            continue
        kept = [keep(a, mask, spec.sizes) if any(g in mask for g in leaves(a)) else None for a in axes]
        if all(k is None or bool(k.all()) for k in kept):
            continue
        both = torch.ones(spec.shape(name), dtype=torch.bool)
        for d, k in enumerate(kept):
            if k is not None:
                both &= k.reshape(-1, *(1,) * (len(axes) - d - 1))
        out[name] = both
    return out


@door
@torch.no_grad()
def hold_zero(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, masks: Mapping[str, Tensor]) -> None:
    """Set removed weights and what the optimizer remembers of them to zero, in place; call it after every step.

    Weight decay, momentum and Adam's moments would bring removed weights back, or push them about; so they never count.

    Args:
        parameters: name → the tensor that is trained, such as `dict(model.named_parameters())`.
        optimizer: over these.
        masks: of `weight_masks`, on the same device.

    Raises:
        ParamsError: a mask's name is unknown.
        MaskError: a mask is not bool.
    """
    for name, kept in masks.items():
        if name not in parameters:
            raise ParamsError(f"there is no parameter {name!r} to mask{nearest(name, parameters)}")
        if kept.dtype != torch.bool:
            raise MaskError(f"the weight mask of {name!r} is {kept.dtype}; it must be bool, True = kept")
        p = parameters[name]
        for t in (p, *optimizer.state.get(p, {}).values()):
            if isinstance(t, Tensor) and t.shape == kept.shape:
                t.masked_fill_(~kept.to(t.device), 0)


def _names(state: State, names: Sequence[str], spec: Spec) -> dict[int, str]:
    """Index in the state → name."""
    order = [i for g in state["param_groups"] for i in g["params"]]
    if len(order) != len(names):
        raise ParamsError(
            f"the optimizer has {len(order)} parameters, but {len(names)} names were given; give the names in its order, such as "
            "[n for n, _ in model.named_parameters()]"
        )
    if unknown := [n for n in names if n not in spec.axes]:
        raise ParamsError(f"the spec has no parameter {unknown[0]!r}{nearest(unknown[0], spec.axes)}")
    return dict(zip(order, names, strict=True))


def _sliced(value: Any, key: str, name: str, mask: Mask, spec: Spec) -> Any:
    if not isinstance(value, Tensor):
        return value
    if not value.ndim:
        return value.clone()
    shape = spec.shape(name)
    if tuple(value.shape) == shape:
        return take(value, spec.axes[name], mask, spec.sizes).clone()
    if any(not bool(keep(a, mask, spec.sizes).all()) for a in spec.axes[name]):
        raise ParamsError(
            f"the optimizer's {key!r} of {name!r} has shape {tuple(value.shape)}, not the parameter's {shape}, so that nobody "
            "knows what to remove from it; start the optimizer anew"
        )
    return value.clone()
