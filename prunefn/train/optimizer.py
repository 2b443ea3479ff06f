"""The state of an optimizer goes on with what is left of the parameters; under a mask, what is removed stays exactly zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import trees
from ..doors import door
from ..errors import MaskError, ParamsError, nearest
from ..parameters.transforms import check_mask
from ..parameters.zeroing import check_zeroable, fill, zeroed_groups
from ..spec.axis import keep, leaves
from ..spec.spec import Spec, take
from ..types import Mask

__all__ = ["hold_zero", "slice_optimizer", "slice_state", "weight_masks"]


State = Mapping[str, Any]
"""What `optimizer.state_dict()` gives."""


@door
def slice_optimizer(
    optimizer: torch.optim.Optimizer | State,
    mask: Mask,
    *,
    spec: Spec,
    model: nn.Module | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Remove units from the state of an optimizer as `apply` removes them from the parameters.

    Momentum of SGD, moments of the Adam family and all else that has the shape of its parameter is sliced; numbers such as
    `step` stay. All tensors are copies: `load_state_dict` does not copy, and two optimizers would count the same `step`.
    Which state belongs to which parameter is known from the parameters themselves, whatever the order of the parameter groups,
    and also where only some of them are trained. Learning rate schedulers hold no tensors, and go on with their own state.

    Args:
        optimizer: over the parameters before they were pruned; or its `state_dict()`, where it was made of
            `model.named_parameters()`, so that the state has the names (`param_names`).
        mask: group → bool [units], as for `apply`.
        spec: before it is shrunk.
        model: whose parameters the optimizer has, before it was pruned; not needed with a state that has names.
        names: of the parameters in the order of the optimizer's groups, only to be checked.

    Returns:
        A new state for `load_state_dict` of an optimizer over the pruned parameters, in the same groups and order.

    Raises:
        ParamsError: nothing says which parameter a state belongs to, names or shapes do not fit, or a state has neither the shape
            of its parameter nor is a number (Adafactor's factored moments, L-BFGS): start that optimizer anew.
        MaskError: the mask does not fit the spec.

    >>> import prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> model(torch.randn(2, 4)).sum().backward()
    >>> optimizer.step()
    >>> small = slice_optimizer(optimizer, {"0": torch.tensor([True, False, True])}, spec=spec, model=model)
    >>> [tuple(s["exp_avg"].shape) for s in small["state"].values()]
    [(2, 4), (2,), (2, 2), (2,)]
    """
    check_mask(mask, spec)
    if isinstance(optimizer, torch.optim.Optimizer):
        state, known = optimizer.state_dict(), _names_by_identity(optimizer, model, spec)
    else:
        state, known = optimizer, _names_in_state(optimizer)
    if unknown := [n for n in known if n not in spec.axes]:
        raise ParamsError(f"the spec has no parameter {unknown[0]!r}{nearest(unknown[0], spec.axes)}")
    _check_order(names, known, spec)
    order = [i for g in state["param_groups"] for i in g["params"]]
    by_index = dict(zip(order, known, strict=True))
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

    What is False is what `zero` sets to zero: of weight norm the gain, not the direction.

    Raises:
        MaskError: the mask does not fit the spec.
        ParamsError: a weight is computed such that nothing makes it zero, as for `zero`.

    >>> import prunefn as pf
    >>> spec = pf.trace(torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Linear(3, 1)), (torch.randn(2, 1),))
    >>> {n: m.tolist() for n, m in weight_masks({"0": torch.tensor([True, False, True])}, spec=spec).items()}
    {'0.weight': [[True], [False], [True]], '0.bias': [True, False, True], '1.weight': [[True, False, True]]}
    """
    check_mask(mask, spec)
    check_zeroable(spec, mask)
    out: dict[str, Tensor] = {}
    for name, axes in spec.axes.items():
        zeros = zeroed_groups(spec, name, mask) if name in spec.parameters else {}
        if any(not bool(keep(a, zeros, spec.sizes).all()) for a in axes if any(g in zeros for g in leaves(a))):
            out[name] = fill(torch.ones(spec.shape(name), dtype=torch.bool), axes, zeros, spec)
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


def _names_by_identity(optimizer: torch.optim.Optimizer, model: nn.Module | None, spec: Spec) -> list[str]:
    """The names of the optimizer's parameters, in the order of its groups."""
    if model is None:
        raise ParamsError(
            "slice_optimizer needs the model that the optimizer is over, to know its parameters: slice_optimizer(optimizer, mask, "
            "spec=spec, model=model), with the model before it was pruned"
        )
    known = {id(p): n for n, p in model.named_parameters()}
    out: list[str] = []
    for at, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            if id(p) not in known:
                raise ParamsError(
                    f"parameter group {at} of the optimizer has a tensor of shape {tuple(p.shape)} that is no parameter of the "
                    "model; give the model that the optimizer was made of, before it was pruned"
                )
            name = known[id(p)]
            if name in spec.axes and tuple(p.shape) != spec.shape(name):
                raise ParamsError(
                    f"{name!r} has shape {tuple(p.shape)}, but the spec says {spec.shape(name)}; give the spec before it is shrunk"
                )
            out.append(name)
    return out


def _names_in_state(state: State) -> list[str]:
    """The names that a state keeps, in the order of its groups."""
    groups = state["param_groups"]
    if any(len(g.get("param_names", ())) != len(g["params"]) for g in groups):
        raise ParamsError(
            "a state_dict does not say which parameter a state belongs to, and the order of names cannot be checked; give the "
            "optimizer itself and its model, slice_optimizer(optimizer, mask, spec=spec, model=model), or make the optimizer of "
            "model.named_parameters(), whose state keeps the names"
        )
    return [n for g in groups for n in g["param_names"]]


def _check_order(names: Sequence[str] | None, known: Sequence[str], spec: Spec) -> None:
    """The names that were given are those of the optimizer, in its order; tied parameters go by any of their names."""
    if names is None:
        return
    if len(names) != len(known):
        raise ParamsError(
            f"the optimizer has {len(known)} parameters, but {len(names)} names were given; leave names out, or give them in its order"
        )
    for at, (given, name) in enumerate(zip(names, known, strict=True)):
        if spec.tied.get(given, given) != spec.tied.get(name, name):
            raise ParamsError(
                f"names[{at}] is {given!r}, but the optimizer has {name!r} there; leave names out, or give them in the order of its "
                "parameter groups"
            )


def _sliced(value: Any, key: str, name: str, mask: Mask, spec: Spec) -> Any:
    if not isinstance(value, Tensor):
        inside = [t for t in trees.leaves(value) if isinstance(t, Tensor) and t.ndim]
        if inside and any(not bool(m.all()) for m in mask.values()):  # L-BFGS keeps all parameters in one vector
            raise ParamsError(
                f"the optimizer's {key!r} of {name!r} is a {type(value).__name__} of tensors, so that nobody knows what to remove "
                "from it; start the optimizer anew"
            )
        return trees.map_tensors(lambda t: t.clone(), value)
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


def __dir__() -> list[str]:
    return __all__
