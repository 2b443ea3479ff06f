"""The config of a target: what builds its class, and its fields by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from ..errors import PruneError, nearest
from ..spec.spec import Spec
from .fields import UNSAID, Field
from .libraries import TRANSFORMERS, Library, fresh_model, library_of
from .rebuild import check_model


class Source(NamedTuple):
    """What builds fresh models of a config."""

    config: Any
    library: Library
    cls: type[nn.Module]

    def build(self, config: Any) -> nn.Module:
        """Return a fresh model on `meta`."""
        return fresh_model(self.library, self.cls, config)


def source_of(model: Any, spec: Spec) -> Source:
    """Return what builds the model.

    Raises:
        PruneError: the model or config is of no library, or its class is unknown.
    """
    if isinstance(model, nn.Module):
        library = library_of(model)
        if library is None:
            raise PruneError(
                f"{type(model).__name__} has no config of transformers, diffusers or huggingface_hub; select with "
                "scope=pf.scope.uniform(), or list the units by pf.mask"
            )
        check_model(model, spec)
        return Source(library.config(model), library, type(model))
    base = getattr(sys.modules.get("transformers"), "PreTrainedConfig", None)
    if base is None or not isinstance(model, base):
        raise PruneError(f"model is a {type(model).__name__}; write the traced model, or its config of transformers")
    names = model.architectures or []
    cls = getattr(sys.modules["transformers"], names[0], None) if names else None
    if cls is None:
        raise PruneError(
            f"the config names no class of transformers (architectures={names}); give the model itself, or set "
            "config.architectures = ['LlamaForCausalLM'] or the like"
        )
    return Source(model, TRANSFORMERS, cls)


def all_fields(config: Any, path: tuple[str, ...] = ()) -> Iterator[Field]:
    """Yield every field of a config and of the configs in it."""
    own, aliases = vars(config), getattr(config, "attribute_map", {})
    for name in dict.fromkeys([*own, *(n for n in UNSAID if not path and n not in aliases)]):
        if hasattr(own.get(name), "to_dict"):
            yield from all_fields(own[name], (*path, name))
        elif not name.startswith("_"):
            yield Field(path, name)


def field_of(name: str, config: Any) -> Field:
    """Return the field of a name, which may be an alias or a path.

    Raises:
        PruneError: the config has no such field, or several in configs inside it.
    """
    fields = list(all_fields(config))
    *path, last = name.split(".")
    owners = {f.path: f.owner(config) for f in fields}
    aliases = {p: getattr(owner, "attribute_map", {}) for p, owner in owners.items()}
    found = [f for f in fields if f.name == aliases[f.path].get(last, last) and (not path or f.path == tuple(path))]
    outer = [f for f in found if not f.path]
    if len(outer or found) == 1:
        return (outer or found)[0]
    if found:
        raise PruneError(
            f"several configs have the field {name!r}; write one of {', '.join(map(repr, map(str, found)))}"
        )
    known = [*map(str, fields), *(a for names in aliases.values() for a in names)]
    raise PruneError(f"the config {type(config).__name__} has no field {name!r}{nearest(name, known)}")


def check_number(field: Field, value: Any, config: Any) -> None:
    """Check that a field holds a whole number or None, and that the new one is not larger; raise PruneError if not."""
    now = field.get(config)
    if type(value) is not int or value < 1:
        raise PruneError(f"{field}={value!r}; write a whole number, at least 1")
    if now is not None and type(now) is not int:
        raise PruneError(f"{field} is {now!r} in the config, which is no size of a group")
    if now is not None and value > now:
        raise PruneError(f"{field}={value} is larger than the model's, {now}; give at most {now}")
