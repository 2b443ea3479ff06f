"""What a rebuilt module tells about itself: the attributes that differ from the class's own."""

from __future__ import annotations

import contextlib
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
    if not any(isinstance(hook, _Carrier) for hook in module._state_dict_hooks.values()):
        module._register_state_dict_hook(_Carrier())


def plan_in(module: nn.Module) -> Plan:
    """The plan that a module remembers, which its pickles have, too; empty if it is none of ours."""
    return list(getattr(module, "_prunefn_plan", ()))


def plan_of(state: Mapping[str, Any]) -> Plan | None:
    """The plan that a state dict carries; None if it carries none."""
    metadata = getattr(state, "_metadata", None) or {}
    return metadata.get("", {}).get(KEY)


class _Carrier:
    """A hook of a module: puts its plan into the metadata of its state dict.

    A pickle has a hook of the standard library instead that does nothing, so that it loads where prunefn is not there; the plan
    itself is plain data, which stays.
    """

    def __call__(self, module: nn.Module, state: Any, prefix: str, _: Any) -> None:
        plan: Sequence[Any] = module._prunefn_plan  # type: ignore[assignment]
        metadata = getattr(state, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})[KEY] = [tuple(p) for p in plan]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Carrier:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")
