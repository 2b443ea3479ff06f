"""The inputs of a traced program: what it takes, and whether what is given fits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import trees
from ..errors import BatchError, nearest
from ..spec.axis import Leaf
from ..spec.axis import size as axis_size
from ..spec.domain import Guard, Limit, refusal
from ..spec.spec import Spec, check_runnable

_CACHED = 64


class Signature(NamedTuple):
    """What a program takes."""

    inputs: tuple[str, ...]
    shapes: tuple[tuple[int | str, ...], ...]
    """Of the inputs; a name stands for a size that may change from call to call."""
    keywords: tuple[str, ...]
    """Keyword arguments in the order of the traced call."""
    slots: tuple[str, ...]
    limits: tuple[tuple[str, Limit], ...]
    guards: tuple[Guard, ...]


@lru_cache(maxsize=_CACHED)
def _signature_of(spec: Spec) -> Signature:
    inputs, slots = spec.program.inputs, dict.fromkeys(s.tensor for s in spec.program.slots)
    shapes = [tuple(a.name if isinstance(a, Leaf) else axis_size(a, spec.sizes) for a in i.axes) for i in inputs]
    domain = spec.program.domain
    keywords = spec.program.in_spec.children()[1].context or ()
    names = tuple(i.name for i in inputs)
    return Signature(names, tuple(shapes), tuple(keywords), tuple(slots), tuple(domain.limits.items()), domain.guards)


@torch.compiler.assume_constant_result
def signature(spec: Spec) -> Signature:
    return _signature_of(spec)


def flat_inputs(spec: Spec, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensor inputs in the program's order, checked.

    Raises:
        BatchError: their number, a name or a shape does not fit.
        TraceError: the spec was recorded, so that it has no program that runs.
    """
    check_runnable(spec)
    known = signature(spec)
    given = trees.tensors(inputs)
    for name in _in_order(kwargs, known):
        given += trees.tensors(kwargs[name])
    if len(given) != len(known.inputs):
        arrays = any([isinstance(x, np.ndarray) for x in trees.leaves((inputs, dict(kwargs)))])
        raise BatchError(
            f"the model has {len(known.inputs)} tensor inputs ({', '.join(known.inputs)}), but {len(given)} were given"
            + ("; write torch.from_numpy(…) for a numpy array" if arrays else "")
        )
    sizes: dict[str, int] = {}
    for name, shape, x in zip(known.inputs, known.shapes, given, strict=True):
        if x.ndim != len(shape) or any([n != m for n, m in zip(shape, x.shape, strict=True) if not isinstance(n, str)]):
            wanted = ", ".join([str(n) for n in shape])
            raise BatchError(f"input {name!r} has shape {tuple(x.shape)}; the spec was traced with ({wanted})")
        for n, m in zip(shape, x.shape, strict=True):
            if isinstance(n, str) and sizes.setdefault(n, m) != m:
                raise BatchError(f"input {name!r} has {n} = {m}, but the inputs before it have {n} = {sizes[n]}")
    if (known.limits or known.guards) and (why := refusal(sizes, known.limits, known.guards)):
        raise BatchError(f"the program of this spec does not stand for the model here: {why}")
    return given


def _in_order(kwargs: Mapping[str, Any], known: Signature) -> list[str]:
    """Names of keyword arguments: first inputs that were traced by position, then keywords as they were traced."""
    order = [*[n for n in known.inputs if n not in known.keywords], *known.keywords]
    for name, value in kwargs.items():
        if name not in order and any([isinstance(x, Tensor) for x in trees.leaves(value)]):
            raise BatchError(f"the model has no input {name!r}{nearest(name, order)}")
    return [n for n in order if n in kwargs]
