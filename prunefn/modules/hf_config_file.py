"""The config.json of a transformers model whose weights nobody has in memory: its sizes, confirmed on `meta`."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import PruneError
from ..spec.spec import Spec
from .confirm import confirm_without_numbers
from .hf_config import fresh_model, table_reason
from .pretrained import refusal
from .rebuild import resized

log = logging.getLogger(__name__)

CONFIG = "config.json"


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

    if table := table_reason(spec):
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
    model = fresh_model(cls, dense)
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
