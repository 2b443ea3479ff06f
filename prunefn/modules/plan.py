"""The plan of a rebuilt module: its attributes that differ from those of the traced model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

Plan = list[tuple[str, str, Any]]
"""(path of a module, attribute, value)"""
KEY = "prunefn"
REMOVED = "[removed]"
"""In place of an attribute: the value is a tuple of positions of children that have left a container."""
ABSENT = "[absent]"
"""In place of an attribute: the value says what a module is replaced by."""


def remember(module: nn.Module, plan: Plan) -> None:
    """Merge the plan into the module's, and carry it in the metadata of the module's state dicts from now on.

    A value of the new plan replaces the remembered value of the same attribute.
    """
    merged: dict[tuple[str, str], Any] = {}
    for path, name, value in [*getattr(module, "_prunefn_plan", ()), *plan]:
        both = name == REMOVED and (path, name) in merged
        merged[path, name] = _joined_positions(merged[path, name], value) if both else value
    module._prunefn_plan = [(*key, value) for key, value in merged.items()]  # type: ignore[assignment]
    if not any(isinstance(hook, _PlanHook) for hook in module._state_dict_hooks.values()):
        module._register_state_dict_hook(_PlanHook())
    for path, part in module.named_modules():
        inside = [(p[len(path) + 1 :], name, value) for p, name, value in plan if f"{p}.".startswith(f"{path}.")]
        if path and inside and hasattr(part, "save_pretrained"):  # it may be saved by itself
            remember(part, inside)


def _joined_positions(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """Return the positions that two rounds remove from a container; those of the second are among what the first left.

    >>> _joined_positions((1,), (1, 2))
    (1, 2, 3)
    """
    lost = sorted(first)
    left = [
        n for n in range(len(first) + max(second, default=0) + len(second) + max(first, default=0) + 1) if n not in lost
    ]
    return tuple(sorted([*lost, *(left[n] for n in second)]))


def plan_in(module: nn.Module) -> Plan:
    """Return what a module and its submodules remember, which their pickles hold, too; empty if prunefn rebuilt none of them.

    The values are those that the modules have now: a submodule may have been rebuilt after the module that contains it.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    plans = [(path, getattr(m, "_prunefn_plan", ())) for path, m in modules.items()]
    values = {(joined(path, inner), name): value for path, plan in plans for inner, name, value in plan}
    return [(path, name, getattr(modules[path], name, v)) for (path, name), v in values.items() if path in modules]


def plan_of(state: Mapping[str, Any]) -> Plan | None:
    """Return the plan that a state dict carries, with those of submodules; None if it carries none."""
    metadata = getattr(state, "_metadata", None) or {}
    plans = {path: values[KEY] for path, values in metadata.items() if KEY in values}
    entries = {(joined(path, inner), name): value for path, plan in plans.items() for inner, name, value in plan}
    return [(*place, value) for place, value in entries.items()] if plans else None


def joined(path: str, inner: str) -> str:
    """Return the path of a module inside the module at `path`.

    >>> joined("backbone", "layers.0"), joined("", "layers.0"), joined("backbone", "")
    ('backbone.layers.0', 'layers.0', 'backbone')
    """
    return ".".join(filter(None, (path, inner)))


class _PlanHook:
    """A hook that puts the plan of a module into the metadata of its state dict.

    A pickle stores a hook of the standard library instead, which does nothing, so it loads without prunefn. The plan itself
    is plain data and stays in the pickle.
    """

    def __call__(self, module: nn.Module, state: Any, prefix: str, _: Any) -> None:
        metadata = getattr(state, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})[KEY] = plan_in(module)

    def __deepcopy__(self, memo: dict[int, Any]) -> _PlanHook:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")
