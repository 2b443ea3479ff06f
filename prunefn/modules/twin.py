"""The reference for a pruned network without a program: the traced model with zeros for the removed units."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import PruneError
from ..frozen_dict import FrozenDict
from ..parameters.transforms import expand
from ..spec.axis import leaves
from ..spec.spec import Spec
from ..types import Params
from .interface_sizes import lost_interfaces
from .places import parts, with_parts


def dense_twin(model: nn.Module, params: Params, spec: Spec) -> nn.Module | None:
    """Return a copy of the traced model, at its traced sizes, that computes the same as the smaller params.

    Which units were removed does not matter: the zeros take the last places of each group.

    Args:
        model: the module that was traced.
        params: params of the spec.
        spec: the spec at the sizes of the params.

    Returns:
        The twin; None if a group that lost units is not exact, because zeroing is not the same as removal there, or if an
        interface lost some, because the twin has other inputs or outputs.

    >>> import prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec, mask = pf.trace(model, (torch.randn(2, 4),)), {"0": torch.tensor([True, False, True])}
    >>> twin = dense_twin(model, pf.apply(pf.params(model), mask, spec=spec), pf.shrink(spec, mask))
    >>> twin[2].weight[:, 2].tolist()
    [0.0, 0.0]
    """
    if any(spec.sizes[g] != spec.traced[g] and not spec.groups[g].exact for g in spec.groups) or lost_interfaces(spec):
        return None
    leading_units = {g: torch.arange(n) < spec.sizes[g] for g, n in spec.traced.items()}
    twin = copied(model, {})
    twin.load_state_dict(expand(params, leading_units, spec=_resized(spec)), strict=False)
    return twin


def dense(spec: Spec) -> Spec | None:
    """Return the spec at its traced sizes; None if units of its constants or interfaces were removed, which are not known."""
    constants = {g for axes in spec.constants.axes.values() for a in axes for g in leaves(a)}
    if lost_interfaces(spec) or any(spec.sizes[g] != spec.traced[g] for g in constants):
        return None
    return _resized(spec)


def _resized(spec: Spec) -> Spec:
    """Return the spec at its traced sizes, with the constants that it has."""
    groups = {n: g._replace(size=spec.traced[n]) for n, g in spec.groups.items()}
    return replace(spec, sizes=spec.traced, groups=FrozenDict(groups))


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a deep copy of a module, also if hooks keep computed weights in it, which torch does not copy.

    Args:
        model: the module, which is not changed.
        memo: id of an object → its replacement in the copy, as for `copy.deepcopy`.

    Raises:
        PruneError: an attribute of a module cannot be copied; names it.
    """
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    try:
        copied_model = copy.deepcopy(model, memo)
    except Exception as error:  # an attribute may be of any class and raise any error
        culprit = next((n for n in _attributes(model) if not _can_copy(model, n)), "one of its attributes")
        raise PruneError(
            f"{type(model).__name__} cannot be copied because of {culprit!r}: {type(error).__name__}: {error!s:.200}; delete that "
            "attribute of the model, or leave model= out, for a graph module"
        ) from error
    for module in copied_model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value.__closure__:
                setattr(module, name, _rebound(value, memo))
            elif isinstance(getattr(type(module), name, None), cached_property):
                delattr(module, name)  # it was computed from the sizes of the model
    return copied_model


def _rebound(function: FunctionType, memo: Mapping[int, Any]) -> FunctionType:
    """Return a function that reads the copies of what it reads from outside, such as of the module that defines it."""
    filled = {i: cell for i, cell in enumerate(function.__closure__ or ()) if parts(cell)}
    changes = {i: memo[id(c.cell_contents)] for i, c in filled.items() if id(c.cell_contents) in memo}
    if not changes:
        return function
    cells = {i: CellType(value) for i, value in changes.items()}
    return with_parts(function, {"__closure__": with_parts(function.__closure__, cells)})


def _attributes(model: nn.Module) -> Iterator[str]:
    """Yield the paths of the public attributes of modules that are no parameters, buffers or modules."""
    for path, module in model.named_modules():
        yield from (f"{path}.{name}".lstrip(".") for name in vars(module) if not name.startswith("_"))


def _can_copy(model: nn.Module, name: str) -> bool:
    """Return whether `copy.deepcopy` copies an attribute."""
    path, _, leaf = name.rpartition(".")
    try:
        copy.deepcopy(vars(model.get_submodule(path))[leaf])
    except Exception:  # as above
        return False
    return True


def recompute(module: nn.Module) -> None:
    """Run the hooks of `torch.nn.utils` (`weight_norm`, `prune`), which compute weights from the module's parameters."""
    hooks = (WeightNorm, SpectralNorm, BasePruningMethod)
    with torch.no_grad():
        for m in module.modules():
            for hook in [h for h in m._forward_pre_hooks.values() if isinstance(h, hooks)]:
                if isinstance(hook, SpectralNorm):
                    setattr(m, hook.name, hook.compute_weight(m, do_power_iteration=False))
                else:
                    hook(m, None)
