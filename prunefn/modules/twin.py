"""What a pruned network must compute where there is no program to run: the traced model with zeros for what was removed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import PruneError
from ..frozen_dict import FrozenDict
from ..parameters.transforms import expand
from ..spec.spec import Spec
from ..types import Params


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
    twin = copied(model, {})
    twin.load_state_dict(expand(params, first, spec=dense), strict=False)
    return twin


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy of a module, also where hooks keep computed weights in it, which torch does not copy.

    Args:
        model: is not changed.
        memo: id of an object → what stands for it in the copy, as for `copy.deepcopy`.

    Raises:
        PruneError: an attribute of a module cannot be copied; names it.
    """
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # attributes may be anything, and refuse in their own ways
        culprit = next((n for n in _attributes(model) if not _copies(model, n)), "one of its attributes")
        raise PruneError(
            f"{type(model).__name__} cannot be copied, for {culprit!r}: {type(error).__name__}: {error!s:.200}; delete that "
            "attribute of the model, or leave model= out, for a graph module"
        ) from error


def _attributes(model: nn.Module) -> Iterator[str]:
    """Paths of the attributes of modules that are no parameters, buffers or modules."""
    for path, module in model.named_modules():
        yield from (f"{path}.{name}".lstrip(".") for name in vars(module) if not name.startswith("_"))


def _copies(model: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    try:
        copy.deepcopy(vars(model.get_submodule(path))[leaf])
    except Exception:  # as above
        return False
    return True


def recompute(module: nn.Module) -> None:
    """Let the hooks of `torch.nn.utils` compute their weights of the parameters that the module has: `weight_norm`, `prune`."""
    hooks = (WeightNorm, SpectralNorm, BasePruningMethod)
    with torch.no_grad():
        for m in module.modules():
            for hook in [h for h in m._forward_pre_hooks.values() if isinstance(h, hooks)]:
                if isinstance(hook, SpectralNorm):
                    setattr(m, hook.name, hook.compute_weight(m, do_power_iteration=False))
                else:
                    hook(m, None)
