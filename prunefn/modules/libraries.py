"""Libraries whose models are built from a config: transformers, diffusers and the mixin of huggingface_hub.

A class of another origin may have a `save_pretrained` and a `config`, too; nothing is known about these.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn

from ..tracing import configured as bases
from .fields import Field


class Library(NamedTuple):
    """How the models of a library keep their config."""

    base: bases.Base
    """The class that all of its models inherit from."""
    config: Callable[[Any], Any]
    """Model → config, an object with the fields as attributes."""
    build: Callable[[Any, Any], nn.Module]
    """Class, config → a new model."""
    write: Callable[[Any, Mapping[Field, int]], None]
    """Set fields in the config of a model."""
    text: Callable[[Any], str]
    """Model → the text of its config file."""


def library_of(module: nn.Module) -> Library | None:
    """Return the library of a model; None if it is of none of them, or was built without a config."""
    for library in LIBRARIES:
        if library.base.is_base_of(module) and library.config(module) is not None:
            return library
    return None


def configured(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module, Library]]:
    """Yield the outermost models of libraries in a module, which may be the module itself: (path, model, library)."""
    if (library := library_of(module)) is not None:
        yield path, module, library
        return
    for name, child in module.named_children():
        yield from configured(child, f"{path}.{name}".lstrip("."))


def fresh_model(library: Library, cls: type[nn.Module], config: Any) -> nn.Module:
    """Return a new model of a copy of the config, on `meta`."""
    with torch.device("meta"):
        return library.build(cls, copy.deepcopy(config))


def _write_to_all(model: Any, changes: Mapping[Field, int]) -> None:
    """Set the fields in the config of a transformers model, and in the copies of this config that submodules hold."""
    own: Any = model.config
    before = {f: f.get(own) for f in changes}
    configs = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "to_dict")}
    for field, value in changes.items():
        same_class = [c for c in configs.values() if type(c) is type(field.owner(own))]
        owners = {id(owner): owner for owner in [field.owner(own), *same_class]}
        for owner in owners.values():
            own_field = field._replace(path=())
            if own_field.get(owner) == before[field]:
                own_field.set(owner, value)


def _text_with_class(model: Any) -> str:
    """Return the config of a transformers model, which names its class."""
    model.config.architectures = [type(model).__name__]
    return model.config.to_json_string()


def _arguments_of_diffusers(model: Any) -> SimpleNamespace:
    return SimpleNamespace(**{n: v for n, v in model.config.items() if not n.startswith("_")})


def _config_of_mixin(model: Any) -> Any:
    """Return the arguments of the constructor, or a copy of the dataclass that it takes; None if the model has neither."""
    config = model._hub_mixin_config
    return SimpleNamespace(**config) if isinstance(config, dict) else copy.copy(config)


def _build_of_mixin(cls: Any, config: Any) -> nn.Module:
    arguments: Any = vars(config) if isinstance(config, SimpleNamespace) else config
    as_one = "config" in inspect.signature(cls.__init__).parameters
    return cls(config=arguments) if as_one else cls(**arguments)


def _write_to_mixin(model: Any, changes: Mapping[Field, int]) -> None:
    config = _edited(_config_of_mixin(model), changes)
    model._hub_mixin_config = vars(config) if isinstance(config, SimpleNamespace) else config


def _text_of_mixin(model: Any) -> str:
    config = model._hub_mixin_config
    return json.dumps(config if isinstance(config, dict) else asdict(config), sort_keys=True, indent=2)


def _edited(config: Any, changes: Mapping[Field, int]) -> Any:
    """Return the config, which is a copy, with other numbers."""
    for field, value in changes.items():
        field.set(config, value)
    return config


TRANSFORMERS = Library(
    bases.TRANSFORMERS,
    config=lambda model: model.config,
    build=lambda cls, config: cls(config),
    write=_write_to_all,
    text=_text_with_class,
)
DIFFUSERS = Library(
    bases.DIFFUSERS,
    config=_arguments_of_diffusers,
    build=lambda cls, config: cls.from_config(vars(config)),
    write=lambda model, changes: model.register_to_config(**vars(_edited(_arguments_of_diffusers(model), changes))),
    text=lambda model: model.to_json_string(),
)
HUB = Library(
    bases.HUB,
    config=_config_of_mixin,
    build=_build_of_mixin,
    write=_write_to_mixin,
    text=_text_of_mixin,
)
LIBRARIES = (TRANSFORMERS, DIFFUSERS, HUB)
