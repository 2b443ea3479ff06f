"""Nests of containers (inputs, outputs, batches, states): the one place that walks them.

The nodes are those of torch.export, so that a class that is registered for it (model outputs and caches of transformers, dataclasses
of the user) is walked in the order in which its program takes it. optree knows only what is registered with optree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree

T = TypeVar("T")
Form = _pytree.TreeSpec
"""The form of a nest without its leaves; plain data that pickles."""
flatten: Callable[[Any], tuple[list[Any], Form]] = _pytree.tree_flatten
"""Nest → (leaves, form)."""
unflatten: Callable[[Any, Form], Any] = _pytree.tree_unflatten
"""Leaves, form → nest."""
leaves: Callable[[Any], list[Any]] = _pytree.tree_leaves
"""Nest → leaves."""
map_leaves: Callable[[Callable[[Any], Any], Any], Any] = _pytree.tree_map
"""Function, nest → nest of what the function gives for each leaf."""


def tensors(nest: Any) -> list[Tensor]:
    """Return the tensors of a nest, in order.

    >>> import torch
    >>> [t.tolist() for t in tensors({"b": torch.ones(1), "a": [torch.zeros(2), "text"]})]
    [[1.0], [0.0, 0.0]]
    """
    return [x for x in leaves(nest) if isinstance(x, Tensor)]


def map_tensors(function: Callable[[Tensor], Any], nest: T) -> T:
    """Return a nest of what the function gives for each tensor; all other leaves stay."""
    return _pytree.tree_map_only(Tensor, function, nest)


def register_constant(cls: type) -> None:
    """Make values of a class constants for torch.compile, which guards on them."""
    _pytree.register_constant(cls)
