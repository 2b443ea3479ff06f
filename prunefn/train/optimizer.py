"""Optimizer states of pruned models: slice them with the parameters, or hold masked weights and their state at zero."""

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
"""State dict of an optimizer, or what it stores for one parameter."""


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

    All tensors with the shape of their parameter are sliced, such as SGD's momentum and Adam's moments; numbers such as `step` stay.
    All tensors are copies: `load_state_dict` does not copy, and two optimizers would share one `step`. States are matched to parameters
    by identity or by name, so the order of parameter groups does not matter, and some parameters may be frozen. Learning rate
    schedulers hold no tensors; load their own state.

    Args:
        optimizer: over the parameters before pruning; or its `state_dict()`, if it was made from `model.named_parameters()`, so
            that the state has names (`param_names`).
        mask: group → bool [units], as for `apply`.
        spec: before it is shrunk.
        model: of the optimizer's parameters, before pruning; not needed for a state with names.
        names: of the parameters in the order of the optimizer's groups, to check that order.

    Returns:
        State for `load_state_dict` of an optimizer over the pruned parameters, in equal groups and order.

    Raises:
        ParamsError: a state cannot be matched to a parameter, names or shapes do not fit, or a state has another shape than its
            parameter (Adafactor's factored moments, L-BFGS).
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
        state, own = optimizer.state_dict(), _match_names(optimizer, model, spec)
    else:
        state, own = optimizer, _read_names(optimizer)
    if unknown := [n for n in own if n not in spec.axes]:
        raise ParamsError(f"the spec has no parameter {unknown[0]!r}{nearest(unknown[0], spec.axes)}")
    _check_order(names, own, spec)
    order = [i for g in state["param_groups"] for i in g["params"]]
    by_index = dict(zip(order, own, strict=True))
    out = {i: {k: _slice(v, k, by_index[i], mask, spec) for k, v in of.items()} for i, of in state["state"].items()}
    return {**state, "state": out, "param_groups": [{**g} for g in state["param_groups"]]}


@door
def slice_state(state: Mapping[str, State], mask: Mask, *, spec: Spec) -> dict[str, dict[str, Any]]:
    """Remove units from the state of an optimizer by parameter: name → key → tensor or number, such as `Trained.optimizer`.

    Args:
        state: of the parameters before pruning.
        mask, spec: as for `slice_optimizer`.

    Raises:
        ParamsError, MaskError: as for `slice_optimizer`.

    >>> import prunefn as pf
    >>> spec = pf.trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.randn(2, 4),))
    >>> state = {"0.bias": {"step": 5, "exp_avg": torch.tensor([1.0, 2.0, 3.0])}}
    >>> slice_state(state, {"0": torch.tensor([True, False, True])}, spec=spec)
    {'0.bias': {'step': 5, 'exp_avg': tensor([1., 3.])}}
    """
    check_mask(mask, spec)
    if unknown := [n for n in state if n not in spec.axes]:
        raise ParamsError(f"the spec has no parameter {unknown[0]!r}{nearest(unknown[0], spec.axes)}")
    return {n: {k: _slice(v, k, n, mask, spec) for k, v in of.items()} for n, of in state.items()}


@door
def weight_masks(mask: Mask, *, spec: Spec) -> dict[str, Tensor]:
    """Return parameter → bool of its shape, True = kept by the mask; whole parameters are absent.

    False elements are those that `zero` sets to zero; of weight norm, these are the gain's, not the direction's.

    Raises:
        MaskError: the mask does not fit the spec.
        ParamsError: a computed weight cannot be zero, as for `zero`.

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
    """Set masked weights and their optimizer state to zero, in place; call it after every step of the optimizer.

    Otherwise momentum and Adam's moments move masked weights away from zero.

    Args:
        parameters: name → trained tensor, such as `dict(model.named_parameters())`.
        optimizer: over these.
        masks: parameter → bool of its shape, such as those of `weight_masks`.

    Raises:
        ParamsError: a mask has no parameter of its name.
        MaskError: a mask is not bool.

    >>> weight = nn.Parameter(torch.ones(3))
    >>> hold_zero({"weight": weight}, torch.optim.SGD([weight]), {"weight": torch.tensor([True, False, True])})
    >>> weight.tolist()
    [1.0, 0.0, 1.0]
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


def _match_names(optimizer: torch.optim.Optimizer, model: nn.Module | None, spec: Spec) -> list[str]:
    """Return the names of the optimizer's parameters in the order of its groups, matched by identity."""
    if model is None:
        raise ParamsError(
            "slice_optimizer needs the optimizer's model, to know the names of its parameters; write slice_optimizer(optimizer, "
            "mask, spec=spec, model=model), with the model before pruning"
        )
    by_id = {id(p): n for n, p in model.named_parameters()}
    out: list[str] = []
    for at, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            if id(p) not in by_id:
                raise ParamsError(
                    f"parameter group {at} of the optimizer has a tensor of shape {tuple(p.shape)} that is no parameter of the "
                    "model; give the model of the optimizer, before pruning"
                )
            name = by_id[id(p)]
            if name in spec.axes and tuple(p.shape) != spec.shape(name):
                raise ParamsError(
                    f"{name!r} has shape {tuple(p.shape)}, but the spec says {spec.shape(name)}; give the spec before it is shrunk"
                )
            out.append(name)
    return out


def _read_names(state: State) -> list[str]:
    """Return the names in a state, in the order of its groups."""
    groups = state["param_groups"]
    if any(len(g.get("param_names", ())) != len(g["params"]) for g in groups):
        raise ParamsError(
            "this state_dict has no names of parameters, so its states cannot be matched; give the optimizer itself and its model, "
            "slice_optimizer(optimizer, mask, spec=spec, model=model), or make the optimizer from model.named_parameters(), whose "
            "state has names"
        )
    return [n for g in groups for n in g["param_names"]]


def _check_order(names: Sequence[str] | None, own: Sequence[str], spec: Spec) -> None:
    """Check that names are those of the optimizer, in its order; a tied parameter may have any of its names."""
    if names is None:
        return
    if len(names) != len(own):
        raise ParamsError(
            f"names has {len(names)} names, but the optimizer {len(own)} parameters; leave names out, or give one for each, in the "
            "order of its parameter groups"
        )
    for at, (first, second) in enumerate(zip(names, own, strict=True)):
        if spec.tied.get(first, first) != spec.tied.get(second, second):
            raise ParamsError(
                f"names[{at}] is {first!r}, but this parameter of the optimizer is {second!r}; leave names out, or give them in the "
                "order of its parameter groups"
            )


def _slice(value: Any, key: str, name: str, mask: Mask, spec: Spec) -> Any:
    """Return a copy of what an optimizer stores for a parameter, without the removed units."""
    if not isinstance(value, Tensor):
        inside = [t for t in trees.leaves(value) if isinstance(t, Tensor) and t.ndim]
        if inside and any(not bool(m.all()) for m in mask.values()):  # L-BFGS keeps all parameters in one vector
            raise ParamsError(
                f"the optimizer's {key!r} of {name!r} is a {type(value).__name__} of tensors, which cannot be sliced; "
                "start a new optimizer"
            )
        return trees.map_tensors(lambda t: t.clone(), value)
    if not value.ndim:
        return value.clone()
    shape = spec.shape(name)
    if tuple(value.shape) == shape:
        return take(value, spec.axes[name], mask, spec.sizes).clone()
    if any(not bool(keep(a, mask, spec.sizes).all()) for a in spec.axes[name]):
        raise ParamsError(
            f"the optimizer's {key!r} of {name!r} has shape {tuple(value.shape)}, not the parameter's {shape}, so it "
            "cannot be sliced; start a new optimizer"
        )
    return value.clone()


def __dir__() -> list[str]:
    return __all__
