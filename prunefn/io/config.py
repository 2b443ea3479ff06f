"""Models of the transformers library: their config follows the new sizes where one config can say them."""

from __future__ import annotations

import copy
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from ..errors import PruneError
from ..trace.expr import leaves
from ..trace.spec import Spec
from .attributes import candidates, factors, found, ways
from .confirm import Problem, confirm_without_numbers
from .plan import Plan

log = logging.getLogger(__name__)

CONFIG = "config.json"
TRIES = 64


def settle_config(module: nn.Module, spec: Spec, judge: Callable[[nn.Module], Problem | None]) -> Plan:
    """Set the fields of `module.config` so that a fresh model of it has the module's shapes.

    Where no config has them (layers of different sizes), the config stays as it is and `save_pretrained` raises.

    Returns:
        Attributes that were set, too, since a fresh model has other numbers there: those of code that did not run, such as
        another implementation of the attention.
    """
    if not hasattr(module, "save_pretrained") or all(spec.sizes[g] == n for g, n in spec.traced.items()):
        return []
    config: Any = module.config
    if table := _table(spec):
        module.save_pretrained = partial(_refuse, type(module).__name__, table)  # type: ignore[assignment]
        return []
    fields = list(_fields(config, spec))
    before = [getattr(holder, name) for holder, name, _ in fields]
    wanted, first = {n: tuple(t.shape) for n, t in module.state_dict().items()}, ""
    for ranks in itertools.islice(ways([len(v) for _, _, v in fields]), TRIES):
        for (holder, name, values), i in zip(fields, ranks, strict=True):
            setattr(holder, name, values[i])
        differs = _difference(type(module), config, wanted)
        if differs is None and judge(module) is None:
            return _unused(module, _fresh(type(module), config), judge)
        first = first or differs or "the class reads a field of the config that must stay"
    for (holder, name, _), value in zip(fields, before, strict=True):
        setattr(holder, name, value)
    module.save_pretrained = partial(_refuse, type(module).__name__, first)  # type: ignore[assignment]
    return []


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


def _fresh(cls: type[nn.Module], config: Any) -> nn.Module:
    with torch.device("meta"):
        return cls(copy.deepcopy(config))


def _table(spec: Spec) -> str:
    """Why a fresh model would compute other numbers: a table in no state dict lost some of its values; empty if none did."""
    for name, axes in spec.constants.axes.items():
        if any(spec.sizes[g] != spec.traced[g] for a in axes for g in leaves(a)):
            return f"the class makes {spec.constants.sources.get(name, name)!r} anew, for its own size, and not as units were kept"
    return ""


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
        fresh = _fresh(cls, config)
    except Exception as e:  # the class checks its config in its own way
        return f"{type(e).__name__}: {str(e)[:200]}"
    shapes = {n: tuple(t.shape) for n, t in fresh.state_dict().items()}
    for n, shape in wanted.items():
        if shapes.get(n) != shape:
            return f"{n!r} has shape {shape}, but would have {shapes.get(n)}"
    return None


# ---- a config in a file, of a model whose weights nobody has


def streamed_config(path: Path, spec: Spec) -> str | None:
    """The text of a `config.json` at the sizes of a spec, confirmed by a trace of its class on `meta`.

    Args:
        path: of the dense model.
        spec: at its new sizes.

    Returns:
        The text; None, and a line in the log, where no config says them, its class is none of the transformers library's, or
        that is not installed.
    """
    text = path.read_text(encoding="utf-8")
    if all(spec.sizes[g] == n for g, n in spec.traced.items()):
        return text
    try:
        config = json.loads(text)
        return json.dumps({**config, **_changes(path, config, spec)}, indent=2) + "\n"
    except (ImportError, PruneError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning(
            "%s cannot say the sizes of the pruned model (%s: %s); it is kept as dense_%s. Load the checkpoint by pf.load or "
            "pf.load_params, with a model of that config",
            path,
            type(error).__name__,
            str(error)[:300],
            CONFIG,
        )
        return None


def _changes(path: Path, config: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """Fields of the config that differ at the new sizes."""
    import transformers

    if table := _table(spec):
        raise PruneError(table)
    from .rebuild import resized

    (name,) = config["architectures"]
    cls = getattr(transformers, name)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise PruneError(f"{name} is no model of the transformers library")
    dense: Any = transformers.AutoConfig.from_pretrained(path.parent)
    with torch.device("meta"):
        model: nn.Module = cls(copy.deepcopy(dense))
    model.to(dense.dtype).train(spec.train)
    tensors = {n: torch.empty(spec.shape(n), device="meta") for n in spec.axes if n in model.state_dict()}
    wrapped = {n: nn.Parameter(t) if n in spec.parameters else t for n, t in tensors.items()}
    wrapped |= {second: wrapped[first] for second, first in spec.tied.items()}
    new: Any = resized(wrapped, spec, model, lambda module: confirm_without_numbers(module, spec))
    before, after = dense.to_dict(), new.config.to_dict()
    changed = {k: v for k, v in after.items() if v != before.get(k)}
    if not changed:
        raise PruneError(f"no config of {name} says these sizes")
    return changed
