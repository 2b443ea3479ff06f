"""Run a model and leave it unchanged: tensors, containers, and all random number generators."""

from __future__ import annotations

import contextlib
import copy
import random
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from .. import trees

DEPTH = 6
"""Maximum depth of nested containers of a module that are restored."""
CONTAINERS = (OrderedDict, dict, list, set, deque)
OPAQUE = (nn.Module, Tensor, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
"""Types whose attributes are not restored: modules are visited separately; classes and functions are shared."""


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo the side effects of a run of the model, even if it raises or is interrupted.

    It restores attributes of modules; lists, dicts, sets and plain objects that they hold; and the states of the generators of
    torch, numpy and Python. `Writes` undoes writes to parameters and buffers.
    """
    containers = [(c, _entries(c)) for c in _containers(model)]
    generators = [(g, _state(g)) for g in _generators(before for _, before in containers)]
    states = random.getstate(), np.random.get_state()
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)):
        try:
            yield
        finally:
            for container, before in containers:
                _restore(container, before)
            for generator, state in generators:
                _set_state(generator, state)
            random.setstate(states[0])
            np.random.set_state(states[1])


def reseed(seed: int = 0) -> None:
    """Seed Python's and numpy's generators with `seed` and torch's with 0, so that the draws of a run depend on nothing else."""
    seed_torch(0)
    random.seed(seed)
    np.random.seed(seed)


def seed_torch(seed: int) -> None:
    """Seed torch's generators; without an accelerator, only the CPU's, which takes less time."""
    seed_all = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seed_all(seed)


class Writes(TorchDispatchMode):
    """A mode that undoes writes of a run to a model's tensors: each is copied just before the first write to its memory.

    The op of a BatchNorm writes to its buffers, but its schema omits that: run a model on `buffer_copies`.
    """

    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let a model compile parts of itself while the mode is active."""
        return True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named_tensors = [*model.named_parameters(), *model.named_buffers()]
        self.tensors = [(t, t.detach()) for _, t in named_tensors if _memory(t) is not None]
        """(tensor, another view of its memory)."""
        self.saved: list[tuple[Tensor, Tensor]] = []
        self.unwritten: dict[int | None, list[Tensor]] = {}
        for t, alias in self.tensors:
            self.unwritten.setdefault(_memory(t), []).append(alias)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, OpOverload) and func._schema.is_mutable:
            for t in written_by(func, args, kwargs or {}):
                self.saved += [(p, p.clone()) for p in self.unwritten.pop(_memory(t), ())]
        return func(*args, **(kwargs or {}))

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        with torch.no_grad():
            for t, before in self.saved:
                t.copy_(before)
            for t, alias in self.tensors:
                if _memory(t) != _memory(alias):  # `t.data = …` replaces memory without an op
                    t.data = alias


def written_by(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an in-place op writes to."""
    arguments = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    names = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [t for n in names for t in trees.leaves(arguments.get(n)) if isinstance(t, Tensor)]


def buffer_copies(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the buffers by name, for a run that may write to them; a buffer with two names has one copy."""
    copies: dict[Tensor, Tensor] = {}
    named = model.named_buffers(remove_duplicate=False)
    return {name: copies.setdefault(t, t.detach().clone()) for name, t in named}


def _memory(t: Tensor) -> int | None:
    """Return the address of a tensor's values; None if it has no memory."""
    try:
        return t.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


# ---- containers


def _containers(model: nn.Module) -> list[Any]:
    """Return all dicts, lists, sets and deques that modules and their plain objects hold."""
    # torch 2.11 leaves a hook registered here
    containers: list[Any] = [getattr(torch.nn.modules.module, "_global_buffer_registration_hooks", {})]
    seen: set[int] = set()
    level: list[Any] = [vars(m) for m in model.modules()]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for c in level:
            if id(c) in seen:
                continue
            seen.add(id(c))
            if not isinstance(c, tuple):
                containers.append(c)
            inner += [d for x in (c.values() if isinstance(c, dict) else c) if (d := _container(x)) is not None]
        level = inner
    return containers


def _container(x: Any) -> Any:
    """Return the container itself, or the attributes of a plain object, or None."""
    if isinstance(x, (*CONTAINERS, tuple)):
        return x
    attributes = None if isinstance(x, OPAQUE) else getattr(x, "__dict__", None)
    return attributes if isinstance(attributes, dict) else None


def _entries(container: Any) -> Any:
    """Return a shallow copy of a container."""
    return (
        dict(container)
        if isinstance(container, dict)
        else set(container)
        if isinstance(container, set)
        else list(container)
    )


def _restore(container: Any, before: Any) -> None:
    """Restore the entries if any of them is a different object than before."""
    target: Any = container
    if isinstance(container, set):
        same = container == before
    elif isinstance(container, dict):
        same = list(container) == list(before) and all(container[k] is v for k, v in before.items())
    else:
        same = len(container) == len(before) and all(a is b for a, b in zip(container, before, strict=True))
    if not same:
        kinds: tuple[Any, ...] = CONTAINERS
        kind = next(k for k in kinds if isinstance(container, k))  # subclasses may forbid these methods
        kind.clear(container)
        add = kind.extend if kind in (list, deque) else kind.update
        add(target, before)


# ---- generators of random numbers


def _generators(containers: Iterable[Any]) -> list[Any]:
    """Return the random number generators that modules hold."""
    kinds = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
    values = [x for c in containers for x in (c.values() if isinstance(c, dict) else c) if isinstance(x, kinds)]
    return list({id(x): x for x in values}.values())


def _state(g: Any) -> Any:
    if isinstance(g, np.random.Generator):
        return copy.deepcopy(g.bit_generator.state)
    return g.getstate() if isinstance(g, random.Random) else g.get_state()


def _set_state(g: Any, state: Any) -> None:
    if isinstance(g, np.random.Generator):
        g.bit_generator.state = state
    elif isinstance(g, random.Random):
        g.setstate(state)
    else:
        g.set_state(state)
