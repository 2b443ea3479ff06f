"""Models of libraries: their config follows the new sizes if one config can state them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..frozen_dict import FrozenDict
from ..spec.axis import leaves
from ..spec.spec import Spec
from .confirm import confirm_fresh, confirm_same_code, confirm_without_numbers
from .fields import Fit, changed, find_fields
from .layer_fields import layer_changes
from .libraries import Library, configured, fresh_model
from .plan import Plan, joined
from .pretrained import save_with_plan
from .problem import Problem
from .twin import copied

Lost = tuple[str, int, Sequence[int]]
"""A container, its number of children before, and the positions that left it."""


def settle_config(
    module: nn.Module, spec: Spec, judge: Callable[[nn.Module], Problem | None], lost: Sequence[Lost] = ()
) -> Plan:
    """Set the fields of the configs of the models of libraries in a module, so that fresh models of them are the same.

    If no config states the sizes (layers of different sizes), the config does not change, and `save_pretrained` writes the
    weights and the attributes for `load`.

    Returns:
        Attributes that were also set because a fresh model has other numbers in them. They belong to code that did not run,
        such as another implementation of the attention.
    """
    plan: Plan = []
    for path, model, library in list(configured(module)):
        part = _spec_of_part(spec, path)
        gone = [(n, at) for container, n, at in lost if f"{container}.".startswith(f"{path}." if path else "")]
        resized = any(spec.sizes[g] != spec.traced[g] for axes in part.axes.values() for a in axes for g in leaves(a))
        if not (resized or gone or spec.removed):
            continue
        changes, problem, advice = fit_config(module, path, model, library, part, gone)
        if problem:
            save_with_plan(model, library, problem, advice)
            continue
        fresh = fresh_model(library, type(model), changed(library.config(model), changes))
        library.write(model, changes)
        vars(model).pop("save_pretrained", None)  # an earlier round may have set it, when no config stated the sizes
        changes_of_code = _settle_unused(model, fresh, lambda _: judge(module))
        plan += [(joined(path, inner), name, value) for inner, name, value in changes_of_code]
    return plan


def _spec_of_part(spec: Spec, path: str) -> Spec:
    """Return the spec with the axes of one submodule only, under the names that the submodule has for its tensors."""
    prefix = f"{path}." if path else ""
    axes = {n.removeprefix(prefix): a for n, a in spec.axes.items() if n.startswith(prefix)}
    return replace(spec, axes=FrozenDict(axes)) if path else spec


def fit_config(
    whole: nn.Module,
    path: str,
    model: nn.Module,
    library: Library,
    spec: Spec,
    lost: Sequence[tuple[int, Sequence[int]]] = (),
) -> Fit:
    """Return the fewest config changes that make a fresh model the same as the module, and the reason if there are none.

    Args:
        whole: the module that was traced, at its new sizes.
        path: the path of the model in it; empty if it is the whole.
        model: the model of a library.
        library: its library.
        spec: the spec at the new sizes, with the model's names of tensors.
        lost: for each container that lost layers, its number of children before and the positions that left it.
    """
    if reason := table_reason(spec):
        return Fit({}, reason)

    def build(config: Any) -> nn.Module:
        return fresh_model(library, type(model), config)

    def check(config: Any) -> Problem | None:
        if any(t.is_meta for t in model.parameters()):
            return confirm_without_numbers(build(config).to(_dtype(model)), spec)
        if library.base.module == "transformers" and not path:
            return confirm_fresh(model, config, spec)
        return _confirm_part(whole, model, library.build(type(model), config), spec)

    config, names = library.config(model), model.state_dict().keys()
    fewer = layer_changes(config, lost, lambda c: _names(lambda: build(changed(config, c))) == names)
    if fewer is None:
        return Fit({}, "no field of its config that counts layers gives a fresh model the layers that are left")
    fit = find_fields(model, changed(config, fewer), spec, build, check)
    return fit if fit.problem else Fit({**fewer, **fit.changes})


def _names(build: Callable[[], nn.Module]) -> Collection[str]:
    """Return the names of a fresh model's tensors; none if the class refuses the config."""
    try:
        return build().state_dict().keys()
    except Exception:  # the class may raise anything
        return ()


def _confirm_part(whole: nn.Module, model: nn.Module, fresh: nn.Module, spec: Spec) -> Problem | None:
    """Return the problem of a fresh model in the place of a model; None if the whole then computes the same."""
    state = model.state_dict()
    try:
        fresh.load_state_dict(state, strict=True)
    except RuntimeError as error:
        return Problem(f"it does not load strictly ({str(error)[:300]})")
    device = next((t.device for t in state.values()), torch.device("cpu"))
    memo: dict[int, Any] = {id(t): t for t in [*whole.parameters(), *whole.buffers()]}
    memo[id(model)] = fresh.to(device, _dtype(model))
    return confirm_same_code(memo[id(model)] if whole is model else copied(whole, memo), whole, spec)


def _dtype(module: nn.Module) -> torch.dtype:
    """Return the type of the first floating-point parameter; float32 if there is none."""
    return next((t.dtype for t in module.parameters() if t.is_floating_point()), torch.float32)


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


def table_reason(spec: Spec) -> str:
    """Return why a fresh model would compute other numbers; empty if it would not.

    The reason is a table that is in no state dict and lost some of its values: the class computes it for its own size.
    """
    for name, axes in spec.constants.axes.items():
        if any(spec.sizes[g] != spec.traced[g] for a in axes for g in leaves(a)):
            source = spec.constants.sources.get(name, name)
            return f"the class computes {source!r} again for its own size, not for the units that were kept"
    return ""
