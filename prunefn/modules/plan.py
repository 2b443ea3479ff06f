"""The plan of a rebuilt module: its attributes that differ from those of the traced model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

Plan = list[tuple[str, str, Any]]
"""(path of a module, attribute, value)"""
KEY = "prunefn"


def remember(module: nn.Module, plan: Plan) -> None:
    """Merge the plan into the module's, and carry it in the metadata of the module's state dicts from now on.

    A value of the new plan replaces the remembered value of the same attribute.
    """
    merged = {(path, name): value for path, name, value in [*getattr(module, "_prunefn_plan", ()), *plan]}
    module._prunefn_plan = [(*key, value) for key, value in merged.items()]  # type: ignore[assignment]
    if not any(isinstance(hook, _PlanHook) for hook in module._state_dict_hooks.values()):
        module._register_state_dict_hook(_PlanHook())


def plan_in(module: nn.Module) -> Plan:
    """Return the plan that a module remembers, which its pickles hold, too; empty if prunefn did not rebuild it."""
    return list(getattr(module, "_prunefn_plan", ()))


def plan_of(state: Mapping[str, Any]) -> Plan | None:
    """Return the plan that a state dict carries; None if it carries none."""
    metadata = getattr(state, "_metadata", None) or {}
    return metadata.get("", {}).get(KEY)


class _PlanHook:
    """A hook that puts the plan of a module into the metadata of its state dict.

    A pickle stores a hook of the standard library instead, which does nothing, so it loads without prunefn. The plan itself
    is plain data and stays in the pickle.
    """

    def __call__(self, module: nn.Module, state: Any, prefix: str, _: Any) -> None:
        plan: Sequence[Any] = module._prunefn_plan  # type: ignore[assignment]
        metadata = getattr(state, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})[KEY] = [tuple(p) for p in plan]

    def __deepcopy__(self, memo: dict[int, Any]) -> _PlanHook:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")
