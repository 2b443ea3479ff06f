"""Models of the transformers library: their config follows the new sizes where one config can say them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from ..errors import PruneError
from ..trace.spec import Spec
from .attributes import candidates, factors, found, ways
from .confirm import Problem

TRIES = 64


def settle_config(module: nn.Module, spec: Spec, judge: Callable[[nn.Module], Problem | None]) -> None:
    """Set the fields of `module.config` so that a fresh model of it has the module's shapes.

    Where no config has them (layers of different sizes), the config stays as it is and `save_pretrained` raises.
    """
    if not hasattr(module, "save_pretrained") or all(spec.sizes[g] == n for g, n in spec.traced.items()):
        return
    config: Any = module.config
    fields = list(_fields(config, spec))
    before = [getattr(holder, name) for holder, name, _ in fields]
    wanted, first = {n: tuple(t.shape) for n, t in module.state_dict().items()}, ""
    for ranks in itertools.islice(ways([len(v) for _, _, v in fields]), TRIES):
        for (holder, name, values), i in zip(fields, ranks, strict=True):
            setattr(holder, name, values[i])
        differs = _difference(type(module), config, wanted)
        if differs is None and judge(module) is None:
            return
        first = first or differs or "the class reads a field of the config that must stay"
    for (holder, name, _), value in zip(fields, before, strict=True):
        setattr(holder, name, value)
    module.save_pretrained = partial(_refuse, type(module).__name__, first)  # type: ignore[assignment]


def _refuse(model: str, why: str, *_: Any, **__: Any) -> NoReturn:
    raise PruneError(
        f"no config of {model} says the sizes of this pruned model: {why}. Prune all layers alike "
        "(scope=pf.scope.local()), or save the state_dict and load it with pf.load"
    )


def _fields(config: Any, spec: Spec) -> Iterator[tuple[Any, str, tuple[Any, ...]]]:
    """Fields of the config, and of configs in it, that may have to change."""
    axes = {a for axes in spec.axes.values() for a in axes} | {a for s in spec.sites.values() for a in (s.axis, s.out)}
    near, parts = found(axes, spec), found(factors(axes), spec)
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            yield from _fields(value, spec)
        elif not name.startswith("_"):
            values = candidates(name, value, [near, parts], spec)
            if len(values) > 1:
                yield config, name, values


def _difference(cls: type[nn.Module], config: Any, wanted: dict[str, tuple[int, ...]]) -> str | None:
    """The first tensor of a fresh model that has another shape; None if there is none."""
    try:
        with torch.device("meta"):
            fresh = cls(copy.deepcopy(config))
    except Exception as e:  # the class checks its config in its own way
        return f"{type(e).__name__}: {str(e)[:200]}"
    shapes = {n: tuple(t.shape) for n, t in fresh.state_dict().items()}
    for n, shape in wanted.items():
        if shapes.get(n) != shape:
            return f"{n!r} has shape {shape}, but would have {shapes.get(n)}"
    return None
