"""A model that is run, and left as it was: tensors, containers, and all generators of random numbers."""

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
"""Containers within containers of a module that are looked at."""
CONTAINERS = (OrderedDict, dict, list, set, deque)
OPAQUE = (nn.Module, Tensor, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
"""Modules are walked by themselves; classes and functions belong to everybody."""


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo what a run of the model changes outside of its result, also where it raises or is interrupted.

    Put back are attributes of modules; lists, dicts, sets and plain objects that they hold; and the states of the generators of
    torch, numpy and Python. What is written to parameters and buffers is undone by `Writes`.
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
    """Seed Python's and numpy's generators with `seed` and torch's with 0, so that what a run draws depends on nothing else."""
    seed_torch(0)
    random.seed(seed)
    np.random.seed(seed)


def seed_torch(seed: int) -> None:
    """Seed torch's generators; where there is no accelerator, the CPU's alone, which is 50 times as fast."""
    seed_all = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seed_all(seed)


class Writes(TorchDispatchMode):
    """Undoes what a run writes to a model's tensors: each is copied just before the first write to its memory.

    The op of a BatchNorm writes to its buffers without saying so: run a model on `buffer_copies`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named = [*model.named_parameters(), *model.named_buffers()]
        self.tensors = [(t, t.detach()) for _, t in named if _memory(t) is not None]
        """Each with another view of its memory."""
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
                if _memory(t) != _memory(alias):  # `t.data = …` passes no op
                    t.data = alias


def written_by(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an in-place op writes to."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    names = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [t for n in names for t in trees.leaves(given.get(n)) if isinstance(t, Tensor)]


def buffer_copies(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the buffers by name, for a run that may write to them; one that stands under two names is one."""
    once: dict[Tensor, Tensor] = {}
    named = model.named_buffers(remove_duplicate=False)
    return {name: once.setdefault(t, t.detach().clone()) for name, t in named}


def _memory(t: Tensor) -> int | None:
    """Where a tensor's numbers are; None for those that have none."""
    try:
        return t.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


# ---- containers


def _containers(model: nn.Module) -> list[Any]:
    """All dicts, lists, sets and deques that modules and their plain objects hold."""
    # torch 2.11 leaves a hook behind
    found: list[Any] = [getattr(torch.nn.modules.module, "_global_buffer_registration_hooks", {})]
    seen: set[int] = set()
    level: list[Any] = [vars(m) for m in model.modules()]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for c in level:
            if id(c) in seen:
                continue
            seen.add(id(c))
            if not isinstance(c, tuple):
                found.append(c)
            inner += [d for x in (c.values() if isinstance(c, dict) else c) if (d := _container(x)) is not None]
        level = inner
    return found


def _container(x: Any) -> Any:
    """The container itself, the attributes of a plain object, or None."""
    if isinstance(x, (*CONTAINERS, tuple)):
        return x
    attributes = None if isinstance(x, OPAQUE) else getattr(x, "__dict__", None)
    return attributes if isinstance(attributes, dict) else None


def _entries(container: Any) -> Any:
    """A shallow copy."""
    return (
        dict(container)
        if isinstance(container, dict)
        else set(container)
        if isinstance(container, set)
        else list(container)
    )


def _restore(container: Any, before: Any) -> None:
    """Put the entries back if any of them is another object than before."""
    whole: Any = container
    if isinstance(container, set):
        same = container == before
    elif isinstance(container, dict):
        same = list(container) == list(before) and all(container[k] is v for k, v in before.items())
    else:
        same = len(container) == len(before) and all(a is b for a, b in zip(container, before, strict=True))
    if not same:
        kinds: tuple[Any, ...] = CONTAINERS
        kind = next(k for k in kinds if isinstance(container, k))  # subclasses may forbid what changes them
        kind.clear(container)
        add = kind.extend if kind in (list, deque) else kind.update
        add(whole, before)


# ---- generators of random numbers


def _generators(containers: Iterable[Any]) -> list[Any]:
    """Generators that modules hold."""
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
