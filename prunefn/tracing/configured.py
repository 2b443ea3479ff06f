"""Models that a library builds from a config: their classes have the tensors that the config says, and no others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn


class Base(NamedTuple):
    """The class that all models of a library inherit from."""

    module: str
    name: str

    def is_base_of(self, model: nn.Module) -> bool:
        base = getattr(sys.modules.get(self.module), self.name, None)  # if nobody imported it, it has no models
        return base is not None and isinstance(model, base)


TRANSFORMERS = Base("transformers", "PreTrainedModel")
DIFFUSERS = Base("diffusers", "ModelMixin")
HUB = Base("huggingface_hub", "PyTorchModelHubMixin")


def configured_paths(model: nn.Module, path: str = "") -> Iterator[str]:
    """Yield the paths of the outermost modules that are built from a config; "" is the model itself."""
    if any(base.is_base_of(model) for base in (TRANSFORMERS, DIFFUSERS, HUB)):
        yield path
        return
    for name, child in model.named_children():
        yield from configured_paths(child, f"{path}.{name}".lstrip("."))
