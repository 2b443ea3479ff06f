"""Models of the transformers library: their config follows the new sizes where one config can say them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..spec.axis import leaves
from ..spec.spec import Spec
from .confirm import Problem, confirm_fresh, confirm_without_numbers
from .fields import Changes, changed, find_fields
from .plan import Plan
from .pretrained import save_with_plan


def is_transformers(module: nn.Module) -> bool:
    """Whether it is a model of the transformers library, which has a config and makes a fresh model of it.

    Other classes may have a `save_pretrained` and a `config`, too: of their own, of huggingface_hub, of diffusers.
    """
    transformers = sys.modules.get("transformers")  # its models cannot be there before it is
    return transformers is not None and isinstance(module, transformers.PreTrainedModel)


def settle_config(module: nn.Module, spec: Spec, judge: Callable[[nn.Module], Problem | None]) -> Plan:
    """Set the fields of `module.config` so that a fresh model of it is the module.

    Where no config says the sizes (layers of different sizes), it stays as it is, and `save_pretrained` writes the weights and
    the attributes for `load`.

    Returns:
        Attributes that were set, too, since a fresh model has other numbers there: those of code that did not run, such as
        another implementation of the attention.
    """
    if not is_transformers(module) or all(spec.sizes[g] == n for g, n in spec.traced.items()):
        return []
    changes, problem = fit_config(module, spec)
    if problem:
        save_with_plan(module, problem)
        return []
    fresh = fresh_model(type(module), changed(module.config, changes))
    _follow(module, changes)
    vars(module).pop("save_pretrained", None)  # of a model that could not be described before
    return _unused(module, fresh, judge)


def fit_config(module: nn.Module, spec: Spec) -> tuple[Changes, str]:
    """The fewest changes to the config of a rebuilt module that make a fresh model of it the same; or why there are none."""
    if table := table_reason(spec):
        return {}, table

    def check(config: Any) -> Problem | None:
        if any(t.is_meta for t in module.parameters()):
            return confirm_without_numbers(fresh_model(type(module), config).to(_dtype(module)), spec)
        return confirm_fresh(module, config, spec)

    return find_fields(module, spec, check)


def _dtype(module: nn.Module) -> torch.dtype:
    return next((t.dtype for t in module.parameters() if t.is_floating_point()), torch.float32)


def _follow(module: nn.Module, changes: Changes) -> None:
    """Set the fields in the config of the module, and in copies that modules in it have of theirs."""
    own: Any = module.config
    before = {f: f.get(own) for f in changes}
    held = {id(c): c for m in module.modules() if hasattr(c := getattr(m, "config", None), "to_dict")}
    for field, value in changes.items():
        owners = {
            id(o): o for o in [field.owner(own), *(c for c in held.values() if type(c) is type(field.owner(own)))]
        }
        for owner in owners.values():
            here = field._replace(path=())
            if here.get(owner) == before[field]:
                here.set(owner, value)


def _unused(module: nn.Module, fresh: nn.Module, judge: Callable[[nn.Module], Problem | None]) -> Plan:
    """Set whole numbers as a fresh model has them; where that changes what comes out, all stay as they are."""
    modules, changes = dict(module.named_modules()), []
    for path, other in fresh.named_modules():
        mine = vars(modules[path]) if path in modules else {}
        for name, value in vars(other).items():
            if type(value) is int is type(mine.get(name)) and value != mine[name] and not name.startswith("_"):
                changes.append((path, name, mine[name], value))
    for path, name, _, value in changes:
        setattr(modules[path], name, value)
    if not changes or judge(module) is None:
        return [(path, name, value) for path, name, _, value in changes]
    for path, name, before, _ in changes:
        setattr(modules[path], name, before)
    return []


def fresh_model(cls: type[nn.Module], config: Any) -> nn.Module:
    with torch.device("meta"):
        return cls(copy.deepcopy(config))


def table_reason(spec: Spec) -> str:
    """Why a fresh model would compute other numbers: a table in no state dict lost some of its values; empty if none did."""
    for name, axes in spec.constants.axes.items():
        if any(spec.sizes[g] != spec.traced[g] for a in axes for g in leaves(a)):
            return f"the class makes {spec.constants.sources.get(name, name)!r} anew, for its own size, and not as units were kept"
    return ""
