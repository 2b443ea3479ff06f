"""The inputs of a traced program: their signature, and a check of the passed inputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import trees
from ..errors import BatchError, nearest
from ..spec.axis import Axis, Derived, Leaf
from ..spec.axis import size as axis_size
from ..spec.domain import Guard, Limit, refusal
from ..spec.expressions import Expr, value, written
from ..spec.spec import Spec, check_replayable

_CACHED = 64


class Signature(NamedTuple):
    """The inputs that a program accepts."""

    inputs: tuple[str, ...]
    shapes: tuple[tuple[Expr, ...], ...]
    """Shapes of the inputs; a name is a size that may change from call to call, an expression follows from such sizes."""
    keywords: tuple[str, ...]
    """Keyword arguments in the order of the traced call."""
    slots: tuple[str, ...]
    limits: tuple[tuple[str, Limit], ...]
    guards: tuple[Guard, ...]
    fixed: tuple[tuple[str, str], ...]


@lru_cache(maxsize=_CACHED)
def _signature_of(spec: Spec) -> Signature:
    inputs, slots = spec.program.inputs, dict.fromkeys(s.tensor for s in spec.program.slots)
    shapes = [tuple(_expression(a, spec.sizes) for a in i.axes) for i in inputs]
    domain = spec.program.domain
    keywords = spec.program.in_spec.children()[1].context or ()
    names = tuple(i.name for i in inputs)
    limits, fixed = tuple(domain.limits.items()), tuple(domain.fixed.items())
    return Signature(names, tuple(shapes), tuple(keywords), tuple(slots), limits, domain.guards, fixed)


def _expression(axis: Axis, sizes: Mapping[str, int]) -> Expr:
    match axis:
        case Leaf(name):
            return name
        case Derived(expr):
            return expr
        case _:
            return axis_size(axis, sizes)


@torch.compiler.assume_constant_result
def signature(spec: Spec) -> Signature:
    """Return the signature of a spec's program; torch.compile treats it as a constant."""
    return _signature_of(spec)


def flat_inputs(spec: Spec, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensor inputs in the program's order, after checking their number, names and shapes.

    Raises:
        BatchError: their number, a name or a shape does not fit.
        TraceError: the spec was recorded, so its program cannot be run.
    """
    check_replayable(spec)
    accepted = signature(spec)
    tensors = trees.tensors(inputs)
    for name in _ordered_names(kwargs, accepted):
        tensors += trees.tensors(kwargs[name])
    if len(tensors) != len(accepted.inputs):
        arrays = any([isinstance(x, np.ndarray) for x in trees.leaves((inputs, dict(kwargs)))])
        raise BatchError(
            f"the model has {len(accepted.inputs)} tensor inputs ({', '.join(accepted.inputs)}), but {len(tensors)} were given"
            + ("; write torch.from_numpy(…) for a numpy array" if arrays else "")
        )
    sizes: dict[str, int] = {}
    # any([…]) with a list: torch.compile does not trace a generator
    for name, shape, x in zip(accepted.inputs, accepted.shapes, tensors, strict=True):
        if x.ndim != len(shape) or any([m != n for m, n in zip(shape, x.shape, strict=True) if isinstance(m, int)]):
            traced_shape = ", ".join([written(m) for m in shape])
            raise BatchError(
                f"input {name!r} has shape {tuple(x.shape)}; the spec was traced with ({traced_shape})"
                + "".join([f"; {dim} is fixed at {why}" for dim, why in accepted.fixed if dim.startswith(name)])
            )
        for axis, n in zip(shape, x.shape, strict=True):
            if isinstance(axis, str) and sizes.setdefault(axis, n) != n:
                raise BatchError(
                    f"input {name!r} has {axis} = {n}, but the inputs before it have {axis} = {sizes[axis]}"
                )
    for name, shape, x in zip(accepted.inputs, accepted.shapes, tensors, strict=True):
        for expr, n in zip(shape, x.shape, strict=True):
            if isinstance(expr, tuple) and value(expr, sizes) != n:
                raise BatchError(
                    f"input {name!r} has a dim of size {n}; it must be {written(expr)} = {value(expr, sizes)}"
                )
    if (accepted.limits or accepted.guards) and (reason := refusal(sizes, accepted.limits, accepted.guards)):
        raise BatchError(f"the program of this spec does not represent the model at these sizes: {reason}")
    return tensors


def _ordered_names(kwargs: Mapping[str, Any], accepted: Signature) -> list[str]:
    """Return the names of the keyword arguments: inputs that were traced by position, then keywords in traced order."""
    order = [*[n for n in accepted.inputs if n not in accepted.keywords], *accepted.keywords]
    for name, given in kwargs.items():
        if name not in order and any([isinstance(x, Tensor) for x in trees.leaves(given)]):
            raise BatchError(f"the model has no input {name!r}{nearest(name, order)}")
    return [n for n in order if n in kwargs]
