"""Descriptions of values and functions for messages."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

ROOMS = (
    "", "criteria", "scope", "compensation", "budget", "normalizer", "reduction", "recipes", "sharded", "distances", "gates",
    "sparse", "sparse.criteria", "sparse.scope", "sparse.pattern", "train", "train.losses", "train.schedule", "train.regularizers",
)  # fmt: skip
"""Namespaces of public functions below `prunefn`."""


def said(value: Any) -> str:
    """Return a description of a value in a few words.

    >>> import torch
    >>> said("local"), said([1, 2]), said(torch.ones(2)), said(torch.nn.Linear)
    ("'local'", 'a list [1, 2]', 'a float32 tensor of shape (2,)', 'the class Linear')
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return _shorten(repr(value))
    if isinstance(value, Tensor):
        where = " on meta" if value.is_meta else ""
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}{where}"
    if isinstance(value, np.ndarray):
        return f"a numpy array of shape {value.shape}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {public_name(value)}"
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        flat = all(v is None or isinstance(v, int | float | str) for v in value)
        return f"a {type(value).__name__} {_shorten(repr(value))}" if flat else f"a {type(value).__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _shorten(text: str) -> str:
    """Return a text of at most 60 characters."""
    return text if len(text) <= 60 else f"{text[:57]}…"


def menu(path: str) -> Any:
    """Return the public namespace `pf.path`, such as `sparse.scope`; None if there is none.

    The doors lie below the rooms whose arguments they check, so they look namespaces up during a call; the package imports them.
    """
    namespace: Any = sys.modules[__name__.partition(".")[0]]
    for part in filter(None, path.split(".")):
        namespace = getattr(namespace, part, None)
    return namespace


def public_name(function: Any) -> str:
    """Return the public name of a function, such as `pf.scope.local`."""
    name = getattr(function, "__name__", repr(function))
    for room in ROOMS:
        module = menu(room)
        if module is not None and getattr(module, name, None) is function:
            return f"pf.{room}.{name}".replace("..", ".")
    return name


def call_text(function: Callable[..., Any]) -> str:
    """Return a call of a function with its required arguments, such as `apply(params, mask, *, spec)`."""
    parameters = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=p.empty) for p in parameters if p.default is p.empty or p.kind is p.VAR_POSITIONAL]
    return f"{function.__name__}{inspect.Signature(bare)}"
