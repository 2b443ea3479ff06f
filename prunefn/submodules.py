"""A submodule of a model that cannot be traced as a whole: traced, pruned by what the model feeds it, and put back."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import trees
from .doors import door
from .errors import BatchError, PruneError, nearest
from .modules.convert import to_module
from .modules.twin import copied
from .parameters.transforms import params
from .plans import Prune
from .tracing.api import trace
from .tracing.arguments import arguments
from .tracing.capture import in_mode
from .tracing.dynamic import Dynamic
from .tracing.unchanged import unchanged
from .types import Batch, Pruned


class PrunedSubmodule(NamedTuple):
    """A model with a pruned submodule."""

    model: nn.Module
    """A copy of the model with the pruned submodule in its place."""
    pruned: Pruned
    """Params, spec, mask and info of the submodule, under its own names."""


@door
def prune_submodule(
    model: nn.Module, path: str, batches: Iterable[Batch], prune: Prune, *, dynamic: Dynamic | None = None
) -> PrunedSubmodule:
    """Prune a submodule by the activations that the whole model causes in it, and put it back.

    Serves models that `torch.export` cannot capture, such as detectors, whose backbone it can. The outputs of the submodule keep
    their sizes, so that the rest of the model does not change.

    Args:
        model: any model that runs; it is not changed.
        path: path of the submodule, as in `model.get_submodule`.
        batches: inputs of the whole model: a tuple holds positional arguments, a dict keywords, anything else is the only
            argument, such as the list of images of a detector. They are read as often as the pipeline reads batches.
        prune: `pipeline(…)`.
        dynamic: sizes of the submodule's inputs that vary between batches, as in `trace`, such as `"batch height width"`.

    Raises:
        PruneError: there is no such submodule, or its class cannot run at the new sizes.
        BatchError: the model does not call the submodule, or calls it with other sizes than at the first call.

    >>> import torch, prunefn as pf
    >>> class Detector(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))
    ...         self.head = nn.Linear(5, 2)
    ...
    ...     def forward(self, images):  # a list of images of several sizes, of which only some objects are returned
    ...         found = self.head(self.backbone(torch.stack([i[0] for i in images])))
    ...         return [f for f in found if f[0] > f[1]]
    >>> detector, images = Detector(), [torch.randn(3, 4), torch.randn(2, 4)]
    >>> small, pruned = pf.prune_submodule(detector, "backbone", [images], pf.pipeline(ratio=0.5))
    >>> small.backbone[0].out_features, detector.backbone[0].out_features, pruned.info.removed, len(small(images)) <= 2
    (4, 8, {'0': (4, 8)}, True)
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if not path or path not in modules:
        raise PruneError(f"{type(model).__name__} has no submodule {path!r}{nearest(path, modules)}")
    submodule, inputs = modules[path], _Inputs(model, path, batches)
    first = next(iter(inputs), None)
    if first is None:
        raise BatchError(f"{type(model).__name__} does not call {path!r} on these batches, or there are none")
    spec = trace(submodule, first, dynamic=dynamic)
    pruned = prune(params(submodule), inputs, spec=spec)
    small = to_module(pruned.params, spec=pruned.spec, model=submodule)
    return PrunedSubmodule(copied(model, {id(submodule): small}), pruned)


class _Inputs:
    """The inputs of every call of a submodule, while the model runs in eval mode on its batches; can be read many times."""

    def __init__(self, model: nn.Module, path: str, batches: Iterable[Any]) -> None:
        self.model, self.path, self.batches = model, path, batches

    def __iter__(self) -> Iterator[Any]:
        submodule = self.model.get_submodule(self.path)
        call = inspect.signature(submodule.forward)
        for batch in self.batches:
            args, kwargs = arguments(self.model, batch, {})
            calls: list[Any] = []

            def keep(_: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], calls: list[Any] = calls) -> None:
                inputs = dict(call.bind(*given, **named).arguments) if named else given
                calls.append(trees.map_tensors(Tensor.clone, inputs))  # the model may write to them

            with in_mode(self.model, False), unchanged(self.model), torch.no_grad():
                handle = submodule.register_forward_pre_hook(keep, with_kwargs=True)
                try:
                    self.model(*args, **kwargs)
                finally:
                    handle.remove()
            yield from calls
