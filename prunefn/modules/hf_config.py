"""Models of the transformers library: their config follows the new sizes if one config can state them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..spec.axis import leaves
from ..spec.spec import Spec
from .confirm import confirm_fresh, confirm_without_numbers
from .fields import Changes, changed, find_fields
from .plan import Plan
from .pretrained import save_with_plan
from .problem import Problem


def is_transformers(module: nn.Module) -> bool:
    """Return whether a module is a model of transformers, whose class builds a fresh model from a config.

    Other classes may have a `save_pretrained` and a `config`, too: classes of users, of huggingface_hub, of diffusers.
    """
    transformers = sys.modules.get("transformers")  # if nobody imported it, no module is a model of it
    return transformers is not None and isinstance(module, transformers.PreTrainedModel)


def settle_config(module: nn.Module, spec: Spec, judge: Callable[[nn.Module], Problem | None]) -> Plan:
    """Set the fields of `module.config` so that a fresh model of it is the same as the module.

    If no config states the sizes (layers of different sizes), the config does not change, and `save_pretrained` writes the
    weights and the attributes for `load`.

    Returns:
        Attributes that were also set because a fresh model has other numbers in them. They belong to code that did not run,
        such as another implementation of the attention.
    """
    if not is_transformers(module) or all(spec.sizes[g] == n for g, n in spec.traced.items()):
        return []
    changes, problem = fit_config(module, spec)
    if problem:
        save_with_plan(module, problem)
        return []
    fresh = fresh_model(type(module), changed(module.config, changes))
    _change_configs(module, changes)
    vars(module).pop("save_pretrained", None)  # an earlier round may have set it, when no config stated the sizes
    return _settle_unused(module, fresh, judge)


def fit_config(module: nn.Module, spec: Spec) -> tuple[Changes, str]:
    """Return the fewest config changes that make a fresh model the same as the module, and the reason if there are none."""
    if reason := table_reason(spec):
        return {}, reason

    def check(config: Any) -> Problem | None:
        if any(t.is_meta for t in module.parameters()):
            return confirm_without_numbers(fresh_model(type(module), config).to(_dtype(module)), spec)
        return confirm_fresh(module, config, spec)

    return find_fields(module, spec, check)


def _dtype(module: nn.Module) -> torch.dtype:
    """Return the type of the first floating-point parameter; float32 if there is none."""
    return next((t.dtype for t in module.parameters() if t.is_floating_point()), torch.float32)


def _change_configs(module: nn.Module, changes: Changes) -> None:
    """Set the fields in the config of the module, and in the copies of this config that submodules hold."""
    own: Any = module.config
    before = {f: f.get(own) for f in changes}
    configs = {id(c): c for m in module.modules() if hasattr(c := getattr(m, "config", None), "to_dict")}
    for field, value in changes.items():
        same_class = [c for c in configs.values() if type(c) is type(field.owner(own))]
        owners = {id(owner): owner for owner in [field.owner(own), *same_class]}
        for owner in owners.values():
            own_field = field._replace(path=())
            if own_field.get(owner) == before[field]:
                own_field.set(owner, value)


def _settle_unused(module: nn.Module, fresh: nn.Module, judge: Callable[[nn.Module], Problem | None]) -> Plan:
    """Set whole numbers as a fresh model has them; if the judge then finds a problem, restore all of them."""
    modules, changes = dict(module.named_modules()), []
    for path, fresh_module in fresh.named_modules():
        own = vars(modules[path]) if path in modules else {}
        for name, value in vars(fresh_module).items():
            if type(value) is int is type(own.get(name)) and value != own[name] and not name.startswith("_"):
                changes.append((path, name, own[name], value))
    for path, name, _, value in changes:
        setattr(modules[path], name, value)
    if not changes or judge(module) is None:
        return [(path, name, value) for path, name, _, value in changes]
    for path, name, before, _ in changes:
        setattr(modules[path], name, before)
    return []


def fresh_model(cls: type[nn.Module], config: Any) -> nn.Module:
    """Return a new model of a copy of the config, on `meta`."""
    with torch.device("meta"):
        return cls(copy.deepcopy(config))


def table_reason(spec: Spec) -> str:
    """Return why a fresh model would compute other numbers; empty if it would not.

    The reason is a table that is in no state dict and lost some of its values: the class computes it for its own size.
    """
    for name, axes in spec.constants.axes.items():
        if any(spec.sizes[g] != spec.traced[g] for a in axes for g in leaves(a)):
            source = spec.constants.sources.get(name, name)
            return f"the class computes {source!r} again for its own size, not for the units that were kept"
    return ""
