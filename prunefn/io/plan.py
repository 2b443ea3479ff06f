"""What a rebuilt module tells about itself: the attributes that differ from the class's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

Plan = list[tuple[str, str, Any]]
"""(path of a module, attribute, value)"""
KEY = "prunefn"


def remember(module: nn.Module, plan: Plan) -> None:
    """From now on, the module's state dicts carry the plan, over what it remembers already, in their metadata."""
    known = {(path, name): value for path, name, value in [*getattr(module, "_prunefn_plan", ()), *plan]}
    module._prunefn_plan = [(*key, value) for key, value in known.items()]  # type: ignore[assignment]
    if _carry not in module._state_dict_hooks.values():
        module._register_state_dict_hook(_carry)


def plan_of(state: Mapping[str, Any]) -> Plan | None:
    """The plan that a state dict carries; None if it carries none."""
    metadata = getattr(state, "_metadata", None) or {}
    return metadata.get("", {}).get(KEY)


def _carry(module: nn.Module, state: Any, prefix: str, _: Any) -> None:
    plan: Sequence[Any] = module._prunefn_plan  # type: ignore[assignment]
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        metadata.setdefault(prefix[:-1], {})[KEY] = [tuple(p) for p in plan]
