"""The config.json of a transformers model whose weights are not in memory: its new sizes, confirmed on `meta`."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import PruneError
from ..frozen_dict import FrozenDict
from ..spec.spec import Spec
from .confirm import confirm_without_numbers
from .fields import Field, changed
from .hf_config import Lost, table_reason
from .layer_fields import lists_of, shortened
from .layers import carve, counts
from .libraries import TRANSFORMERS, fresh_model
from .pretrained import refusal
from .rebuild import Attempts, resized

log = logging.getLogger(__name__)

CONFIG = "config.json"


def streamed_config(path: Path, spec: Spec) -> str | None:
    """Return the text of a `config.json` at the sizes of a spec, confirmed by traces of its class on `meta`.

    Fields that are no sizes do not change: flags, tokens, number types, unknown fields.

    Args:
        path: the config file of the dense model.
        spec: the spec at its new sizes.

    Returns:
        The text; None, with a warning in the log, if no config has the sizes, if the class is not from transformers, or if
        transformers is not installed.
    """
    try:
        return config_text(path, spec)
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


def config_text(path: Path, spec: Spec, stated: Mapping[Field, int] = FrozenDict()) -> str:
    """Return the text of a `config.json` at the sizes of a spec, or raise why there is none; see `streamed_config`.

    Args:
        path: the config file of the dense model.
        spec: the spec at its new sizes.
        stated: fields that are known to state the sizes; they are tried first.

    Raises:
        PruneError: no config has these sizes.
    """
    text = path.read_text(encoding="utf-8")
    if all(spec.sizes.get(g) == n for g, n in spec.traced.items()):
        return text
    config = json.loads(text)
    _write_edits(config, path, spec, stated)
    return json.dumps(config, indent=2) + "\n"


def _write_edits(config: dict[str, Any], path: Path, spec: Spec, stated: Mapping[Field, int]) -> None:
    """Write the new sizes into the config that was read from a file.

    Raises:
        PruneError: no config has these sizes.
    """
    import transformers

    if reason := table_reason(spec):
        raise PruneError(reason)
    (name,) = config["architectures"]
    cls = getattr(transformers, name)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise PruneError(f"{name} is no model of the transformers library")
    dense: Any = transformers.AutoConfig.from_pretrained(path.parent)
    uncached: Any = copy.deepcopy(dense)
    configs = [uncached, *(c for c in vars(uncached).values() if hasattr(c, "to_dict"))]
    for c in (c for c in configs if getattr(c, "use_cache", False)):
        c.use_cache = False  # a flag of the run: most models are traced without caches, whatever the file states
    try:
        small = _small_config(cls, uncached, spec, stated)
    except PruneError as error:
        if uncached.to_dict() == dense.to_dict():
            raise
        try:
            small, uncached = _small_config(cls, dense, spec, stated), dense
        except PruneError:
            raise error from None
    _edit(config, small, uncached)


def _small_config(cls: type[nn.Module], dense: Any, spec: Spec, stated: Mapping[Field, int]) -> Any:
    """Return the config of the class rebuilt at the new sizes.

    Raises:
        PruneError: no config has these sizes.
    """
    model = fresh_model(TRANSFORMERS, cls, dense)
    if dense.dtype is not None:
        model.to(dense.dtype)
    model.train(spec.train)
    carved = next(carve(model, spec, {}))
    model, spec, lost = carved.model, carved.spec, list(counts(carved.plan, carved.model))
    if stated and (config := _stated_config(model, spec, dense, stated, lost)) is not None:
        return config
    tensors = {n: torch.empty(spec.shape(n), device="meta") for n in spec.axes if n in model.state_dict()}
    wrapped = {n: nn.Parameter(t) if n in spec.parameters else t for n, t in tensors.items()}
    wrapped |= {second: wrapped[first] for second, first in spec.tied.items()}
    attempts = Attempts(lost=lost)
    module: Any = resized(wrapped, spec, model, lambda m: confirm_without_numbers(m, spec), attempts)
    if (why := refusal(module)) is not None:
        raise PruneError(f"no config of {cls.__name__} says these sizes: {why}")
    return module.config


def _stated_config(
    model: nn.Module, spec: Spec, dense: Any, stated: Mapping[Field, int], lost: Sequence[Lost]
) -> Any | None:
    """Return the dense config with stated fields and fewer layers; None if a fresh model of it is not that of the spec.

    Raises:
        PruneError: the class computes another scale from these sizes.
    """
    changes = {f: n for f, n in stated.items() if f.get(dense) != n}
    for _, n, positions in lost:
        changes |= {f: shortened(f.get(dense), positions) for f in lists_of(dense, n)}
    config = changed(dense, changes)
    try:
        fresh = fresh_model(TRANSFORMERS, type(model), config).to(dense.dtype or torch.float32)
    except Exception:  # the class may raise anything for wrong numbers
        return None
    shapes = {n: tuple(t.shape) for n, t in fresh.state_dict().items()}
    if shapes != {n: spec.shape(n) if n in spec.axes else tuple(t.shape) for n, t in model.state_dict().items()}:
        return None
    problem = confirm_without_numbers(fresh.train(spec.train), spec)
    if problem is not None and problem.of_scale:  # which no other number of these shapes changes
        written = ", ".join(f"{f} = {n}" for f, n in changes.items())
        raise PruneError(
            f"no config of {type(model).__name__} says these sizes: a fresh model with {written} has the right shapes, but {problem.text}"
        )
    return config if problem is None else None


def _edit(config: dict[str, Any], small: Any, dense: Any) -> None:
    """Write the fields that differ between two configs into the dict of a file, under every name that they have there."""
    attribute_map: dict[str, str] = getattr(small, "attribute_map", {})
    for name, value in vars(small).items():
        dense_value = getattr(dense, name, None)
        if hasattr(value, "to_dict") and hasattr(dense_value, "to_dict"):
            inner = config.get(name, {})
            _edit(inner, value, dense_value)
            config |= {name: inner} if inner else {}
        elif not name.startswith("_") and value != dense_value:
            aliases = [alias for alias, real in attribute_map.items() if real == name and alias in config]
            config |= dict.fromkeys(aliases if aliases and name not in config else [name, *aliases], value)


def layout_hint(source: str | os.PathLike[str]) -> str:
    """Return the end of an error about names that a folder of transformers lacks, as its files may have names of their own."""
    if not (Path(source) / CONFIG).exists():
        return ""
    return (
        "; files of transformers may lie in another layout than the model (experts one by one, other names): "
        "pf.prune_pretrained and `prunefn llm prune` read and write it"
    )
