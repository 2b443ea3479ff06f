"""Checks of dicts of tensors (params, scores, masks, means), and of batches."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import trees
from ..spec.parts import Group
from ..types import Moments
from .plain import Refuse, read_mapping, read_path
from .words import said


def read_tensors(value: Any, name: str, refuse: Refuse, _: Mapping[str, Any]) -> Any:
    """Read a mapping from names to tensors."""
    if not isinstance(value, Mapping):
        refuse()
    # Types are few, so a set of them is fast to check; mappings that gather tensors when read are not read here.
    tensors = value if isinstance(value, dict) else {}
    if all(issubclass(t, str) for t in set(map(type, tensors))) and all(
        issubclass(t, Tensor) for t in set(map(type, tensors.values()))
    ):
        return value
    for key, t in tensors.items():
        if not isinstance(key, str):
            refuse(f"its keys must be names, such as {str(key)!r}", f"{name} has the key {said(key)}")
        if not isinstance(t, Tensor):
            fix = "write torch.as_tensor(…)" if isinstance(t, np.ndarray | list) else ""
            refuse(fix, f"{name}[{key!r}] is {said(t)}")
    return value


def read_numbers(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a mapping from names to tensors, none of them on meta."""
    for key, t in read_tensors(value, name, refuse, given).items():
        if t.is_meta:
            refuse("a tensor on meta has no numbers", f"{name}[{key!r}] is {said(t)}")
    return value


def read_scores(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a mapping from groups or parameters to real scores of at least one dim."""
    for key, t in read_numbers(value, name, refuse, given).items():
        if t.dtype == torch.bool or t.is_complex() or t.ndim == 0:
            refuse("", f"{name}[{key!r}] is {said(t)}")
    return value


MASKS = {"first": "the first mask", "second": "the second mask"}


def read_mask(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a mapping from groups to bool tensors that keep at least one unit, unless the only unit is a whole branch or layer."""
    if not isinstance(value, Mapping):
        refuse()
    for key, m in value.items():
        of = f"{MASKS.get(name, 'the mask')} of group {key!r}"
        if not isinstance(key, str):
            refuse(f"it must be the name of a group, such as {str(key)!r}", f"{name} has the key {said(key)}")
        if not isinstance(m, Tensor):
            bits = isinstance(m, np.ndarray) or (isinstance(m, Sequence) and all(isinstance(b, bool) for b in m))
            indices = f"pf.mask(spec, {{{key!r}: [0, 3]}}) to remove units 0 and 3"
            refuse(f"write torch.as_tensor(…) of bools, True = kept, or {indices}" if bits else f"write {indices}",
                   f"{name}[{key!r}] is {said(m)}")  # fmt: skip
        if m.dtype != torch.bool:
            refuse("it must be bool, True = kept", f"{of} has dtype {m.dtype}")
        if m.is_meta:
            refuse("it must have values, True = kept", f"{of} is on meta")
        if not bool(m.any()) and not _may_vanish(key, m, given.get("spec")):
            refuse("at least one must stay", f"{of} removes all {m.numel()} units")
    return value


def _may_vanish(group: str, mask: Tensor, spec: Any) -> bool:
    """Return whether a group may lose all units; without a spec, one unit alone may be a whole branch."""
    known = getattr(spec, "groups", {}).get(group)
    return mask.numel() == 1 if known is None else not known.floor


def read_means(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read stats, or a mapping from sites to moments or means of their inputs."""
    if type(value).__name__ == "Stats":
        return value
    for key, m in read_mapping(value, name, refuse, given).items():
        if not isinstance(m, Moments) and (not isinstance(m, Tensor) or m.is_meta or m.is_complex()):
            refuse("", f"{name}[{key!r}] is {said(m)}")
    return value


def read_params(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a mapping from names to tensors of any device."""
    if isinstance(value, tuple) and "params" in getattr(value, "_fields", ()):
        refuse("write its params: ….params")
    return read_tensors(value, name, refuse, given)


def read_removed(value: Any, name: str, refuse: Refuse, _: Mapping[str, Any]) -> Any:
    """Read a mapping from groups or names to indices or bools, which `mask` checks."""
    if not isinstance(value, Mapping):
        refuse()
    for key in value:
        if not isinstance(key, str | Group):
            refuse(f"it must be a group or a name, such as {str(key)!r}", f"{name} has the key {said(key)}")
    return value


def read_masks(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a mask, or a list of masks of several rounds."""
    if not isinstance(value, list | tuple):
        return read_mask(value, name, refuse, given)
    return [read_mask(m, name, refuse, given) for m in value]


def read_tensor(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a tensor; it may be on meta only if all tensors of the call are."""
    if isinstance(value, np.ndarray):
        refuse("write torch.from_numpy(…)")
    if not isinstance(value, Tensor):
        refuse()
    if value.is_meta and any(isinstance(t, Tensor) and not t.is_meta for t in given.values()):
        refuse("a tensor on meta has no numbers")
    return value


def read_values(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a tensor that is not on meta."""
    if read_tensor(value, name, refuse, given).is_meta:
        refuse("a tensor on meta has no numbers")
    return value


def read_measured(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read stats whose parameters are not on meta."""
    if type(value).__name__ != "Stats":
        refuse()
    if any(t.is_meta for t in value.params.values()):
        refuse("collect them of parameters that have numbers", f"{name} is of parameters on meta")
    return value


def read_networks(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a mapping from names to (params, spec)."""
    for key, pair in read_mapping(value, name, refuse, given).items():
        read_network(pair, f"{name}[{key!r}]", refuse, given)
    return value


def read_network(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read (params, spec)."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not isinstance(value[0], Mapping):
        refuse("", f"{name} is {said(value)}")
    read_tensors(value[0], f"{name}[0]", refuse, given)
    if type(value[1]).__name__ != "Spec":
        refuse("", f"{name}[1] is {said(value[1])}")
    return value


def read_source(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a path, or params."""
    read = read_numbers if isinstance(value, Mapping) else read_path
    return read(value, name, refuse, given)


# ---- batches


def read_batches(value: Any, name: str, refuse: Refuse, _: Mapping[str, Any]) -> Any:
    """Read an iterable of batches; each batch is checked when it is read."""
    if isinstance(value, Tensor | Mapping):
        refuse(f"{name} must be an iterable of batches; wrap a single batch in a list")
    if isinstance(value, np.ndarray):
        refuse(f"write [torch.from_numpy({name})]")
    if isinstance(value, str | bytes | nn.Module | type) or not (
        isinstance(value, Iterable) or hasattr(type(value), "__getitem__")
    ):
        refuse()
    return value


def read_documents(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
    """Read a path, or an iterable of texts or tokens."""
    if isinstance(value, str | os.PathLike):
        return read_path(value, name, refuse, given)
    if isinstance(value, bytes | nn.Module | Mapping | type) or not isinstance(value, Iterable):
        refuse()
    return value


def read_example(value: Any, name: str, refuse: Refuse, _: Mapping[str, Any]) -> Any:
    """Read example inputs, nested as the model takes them."""
    if value is None or isinstance(value, bool | int | float | str | type) or inspect.isroutine(value):
        refuse()
    for leaf in trees.leaves(value):
        if isinstance(leaf, np.ndarray):
            refuse("write torch.from_numpy(…)", f"{name} has {said(leaf)}")
        if isinstance(leaf, nn.Module):
            refuse("", f"{name} has {said(leaf)}")
    return value
