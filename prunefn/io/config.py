"""Models of the transformers library: their config follows the new sizes where one config can say them."""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import PruneError
from ..trace.expr import leaves
from ..trace.spec import Spec
from .confirm import Problem, confirm_fresh, confirm_without_numbers
from .fields import Changes, changed, find_fields
from .plan import Plan
from .pretrained import refusal, save_with_plan

log = logging.getLogger(__name__)

CONFIG = "config.json"


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
    fresh = _fresh(type(module), changed(module.config, changes))
    _follow(module, changes)
    vars(module).pop("save_pretrained", None)  # of a model that could not be described before
    return _unused(module, fresh, judge)


def fit_config(module: nn.Module, spec: Spec) -> tuple[Changes, str]:
    """The fewest changes to the config of a rebuilt module that make a fresh model of it the same; or why there are none."""
    if table := _table(spec):
        return {}, table

    def check(config: Any) -> Problem | None:
        if any(t.is_meta for t in module.parameters()):
            return confirm_without_numbers(_fresh(type(module), config).to(_dtype(module)), spec)
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


def _fresh(cls: type[nn.Module], config: Any) -> nn.Module:
    with torch.device("meta"):
        return cls(copy.deepcopy(config))


def _table(spec: Spec) -> str:
    """Why a fresh model would compute other numbers: a table in no state dict lost some of its values; empty if none did."""
    for name, axes in spec.constants.axes.items():
        if any(spec.sizes[g] != spec.traced[g] for a in axes for g in leaves(a)):
            return f"the class makes {spec.constants.sources.get(name, name)!r} anew, for its own size, and not as units were kept"
    return ""


# ---- a config in a file, of a model whose weights nobody has


def streamed_config(path: Path, spec: Spec) -> str | None:
    """The text of a `config.json` at the sizes of a spec, confirmed by traces of its class on `meta`.

    Fields that are no sizes stay as they are in the file: flags, tokens, types of numbers, fields that nobody knows.

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
        _write_edits(config, path, spec)
        return json.dumps(config, indent=2) + "\n"
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


def _write_edits(config: dict[str, Any], path: Path, spec: Spec) -> None:
    """Write the new sizes into the config of a file.

    Raises:
        PruneError: no config says them.
    """
    import transformers

    if table := _table(spec):
        raise PruneError(table)
    (name,) = config["architectures"]
    cls = getattr(transformers, name)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise PruneError(f"{name} is no model of the transformers library")
    dense: Any = transformers.AutoConfig.from_pretrained(path.parent)
    without: Any = copy.deepcopy(dense)
    configs = [without, *(c for c in vars(without).values() if hasattr(c, "to_dict"))]
    for c in (c for c in configs if getattr(c, "use_cache", False)):
        c.use_cache = False  # a flag of the run: most models are traced without their caches, whatever the file says
    try:
        small = _small_config(cls, without, spec)
    except PruneError as error:
        if without.to_dict() == dense.to_dict():
            raise
        try:
            small, without = _small_config(cls, dense, spec), dense
        except PruneError:
            raise error from None
    _edit(config, small, without)


def _small_config(cls: type[nn.Module], dense: Any, spec: Spec) -> Any:
    """The config of the class rebuilt at the new sizes.

    Raises:
        PruneError: there is none.
    """
    from .rebuild import resized

    model = _fresh(cls, dense)
    if dense.dtype is not None:
        model.to(dense.dtype)
    model.train(spec.train)
    tensors = {n: torch.empty(spec.shape(n), device="meta") for n in spec.axes if n in model.state_dict()}
    wrapped = {n: nn.Parameter(t) if n in spec.parameters else t for n, t in tensors.items()}
    wrapped |= {second: wrapped[first] for second, first in spec.tied.items()}
    new: Any = resized(wrapped, spec, model, lambda module: confirm_without_numbers(module, spec))
    if (why := refusal(new)) is not None:
        raise PruneError(f"no config of {cls.__name__} says these sizes: {why}")
    return new.config


def _edit(config: dict[str, Any], new: Any, old: Any) -> None:
    """Write the fields that differ into the config of a file, under every name that they have there."""
    other_names: dict[str, str] = getattr(new, "attribute_map", {})
    for name, value in vars(new).items():
        before = getattr(old, name, None)
        if hasattr(value, "to_dict") and hasattr(before, "to_dict"):
            inner = config.get(name, {})
            _edit(inner, value, before)
            config |= {name: inner} if inner else {}
        elif not name.startswith("_") and value != before:
            aliases = [n for n, real in other_names.items() if real == name and n in config]
            config |= dict.fromkeys(aliases if aliases and name not in config else [name, *aliases], value)
