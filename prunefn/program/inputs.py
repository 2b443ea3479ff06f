"""The inputs of a traced program: their signature, and a check of the passed inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import trees
from ..doors.words import said
from ..errors import BatchError
from ..spec.axis import Axis, Derived, Leaf, leaves
from ..spec.axis import size as axis_size
from ..spec.domain import Guard, Limit, refusal
from ..spec.expressions import Expr, value, written
from ..spec.program import refs
from ..spec.spec import Spec, check_replayable
from .arguments import Call, bind, call_of, paths


class Signature(NamedTuple):
    """The inputs that a program accepts."""

    inputs: tuple[str, ...]
    """As the caller writes them: `image`, `batch["image"]`."""
    shapes: tuple[tuple[Expr, ...], ...]
    """Shapes of the inputs; a name is a size that may change from call to call, an expression follows from such sizes."""
    call: Call
    """The arguments of the traced call."""
    slots: tuple[str, ...]
    limits: tuple[tuple[str, Limit], ...]
    guards: tuple[Guard, ...]
    fixed: tuple[tuple[str, str], ...]
    samples: tuple[str, ...]
    """Sizes that count samples; the first is the number of samples."""
    samples_first: bool
    """Whether samples are along dim 0 of the outputs."""


def _signature_of(spec: Spec) -> Signature:
    inputs, slots = spec.program.inputs, dict.fromkeys(s.tensor for s in spec.program.slots)
    shapes = tuple(tuple(_expression(a, spec.sizes) for a in i.axes) for i in inputs)
    domain, call = spec.program.domain, call_of(spec.example)
    paths_of_inputs = [path for node in call.nodes for path in paths(node)]
    names = paths_of_inputs if len(paths_of_inputs) == len(inputs) else [i.name for i in inputs]
    limits, fixed = tuple(domain.limits.items()), tuple((d.replace("'", '"'), why) for d, why in domain.fixed.items())
    return Signature(tuple(names), shapes, call, tuple(slots), limits, domain.guards, fixed, *_sample_sizes(spec))


def _sample_sizes(spec: Spec) -> tuple[tuple[str, ...], bool]:
    """Return the sizes that count samples, and whether the samples are along dim 0 of the outputs.

    Of the sizes that may change, they are the batches that the outputs have; without one, what the outputs have along dim 0; and
    if this is fixed, the first batch among the inputs. So neither the rows of a table nor the steps of a sequence are samples. A
    batch that the outputs lack, such as that of a mask, counts samples if it was as large as theirs when traced.
    """
    program = spec.program
    axes = {**{i.name: i.axes for i in program.inputs}, **program.axes}
    outputs = [axes[name] for name in refs(program.outputs) if axes.get(name)]
    free = [[[n for n in leaves(a) if n in program.free] for a in dims] for dims in outputs]
    batches = [n for dims in free for names in dims for n in names if n in program.domain.batch]
    first = [names[0] for names, *_ in free if names]
    inputs = [n for n in program.free if n in program.domain.batch] or [*program.free]
    samples, traced = tuple(dict.fromkeys(batches or first)) or tuple(inputs[:1]), program.domain.traced
    alike = [n for n in inputs if n in program.domain.batch and traced.get(n) == traced.get(samples[0])]
    return tuple(dict.fromkeys((*samples, *alike))), not batches or any(
        n in samples for names, *_ in free for n in names
    )


def _expression(axis: Axis, sizes: Mapping[str, int]) -> Expr:
    match axis:
        case Leaf(name) if name not in sizes:
            return name
        case Derived(expr):
            return expr
        case _:
            return axis_size(axis, sizes)


@torch.compiler.assume_constant_result
def signature(spec: Spec) -> Signature:
    """Return the signature of a spec's program; torch.compile treats it as a constant."""
    found = spec.__dict__.get("_signature")
    if found is None:
        found = _signature_of(spec)
        object.__setattr__(spec, "_signature", found)  # not by equality: equal specs may have other examples
    return found


def samples(spec: Spec, inputs: Sequence[Tensor]) -> int:
    """Return the number of samples in flat inputs; if no size may change, the first size of the first input that has one."""
    accepted = signature(spec)
    sizes = {
        name: n
        for shape, x in zip(accepted.shapes, inputs, strict=True)
        for name, n in zip(shape, x.shape, strict=True)
    }
    return sizes[accepted.samples[0]] if accepted.samples else next((len(x) for x in inputs if x.ndim), 1)


def sample_dims(spec: Spec, inputs: Sequence[Tensor]) -> list[int | None]:
    """Return the dim of each flat input that has a position for each sample; None for an input without one."""
    accepted, count = signature(spec), samples(spec, inputs)
    dims = [
        [d for d, name in enumerate(shape) if name in accepted.samples and x.shape[d] == count]
        for shape, x in zip(accepted.shapes, inputs, strict=True)
    ]
    return [found[0] if found else None for found in dims]


def flat_inputs(spec: Spec, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensor inputs in the program's order, after checking their form, names and shapes.

    Args:
        spec: of the program.
        inputs, kwargs: arguments as the model takes them, or the tensors of nested arguments one by one, in order.

    Raises:
        BatchError: their form, number, a name or a shape does not fit, or a flag has another value than in the trace.
        TraceError: the spec was recorded, so its program cannot be run.
    """
    check_replayable(spec)
    accepted = signature(spec)
    is_flat = not kwargs and len(inputs) == len(accepted.inputs) and all([isinstance(x, Tensor) for x in inputs])
    if is_flat and (accepted.call.is_ordered or len(inputs) <= accepted.call.positional):
        tensors: list[Any] = list(inputs)
    else:
        tensors, problem = bind(accepted.call, inputs, kwargs)
        if problem:
            raise BatchError(form_refusal(accepted, inputs, kwargs, problem))
    check_sizes(accepted, tensors)
    return tensors


def form_refusal(accepted: Signature, inputs: tuple[Any, ...], kwargs: Mapping[str, Any], problem: str) -> str:
    """Return a message on arguments that do not have the traced form; it says first if their number is wrong."""
    given = trees.leaves((inputs, dict(kwargs)))
    n = len([x for x in given if isinstance(x, Tensor)])
    if n == len(accepted.inputs) or (set(kwargs) - set(accepted.call.names)):
        return problem
    arrays = "; write torch.from_numpy(…) for a numpy array" if any(isinstance(x, np.ndarray) for x in given) else ""
    listed = ", ".join(accepted.inputs)
    return f"the model has {len(accepted.inputs)} tensor inputs ({listed}), but {n} were given ({problem}){arrays}"


def check_sizes(accepted: Signature, tensors: Sequence[Any]) -> None:
    """Check flat inputs: that they are tensors, and that their sizes are ones that the program accepts.

    Raises:
        BatchError: one does not fit; names it as the caller writes it.
    """
    sizes: dict[str, int] = {}
    # any([…]) with a list: torch.compile does not trace a generator
    for name, shape, x in zip(accepted.inputs, accepted.shapes, tensors, strict=True):
        if not isinstance(x, Tensor):
            raise BatchError(f"input {name!r} is {said(x)}; write torch.from_numpy(…)")
        if x.ndim != len(shape) or any([m != n for m, n in zip(shape, x.shape, strict=True) if isinstance(m, int)]):
            traced_shape = ", ".join([written(m) for m in shape])
            raise BatchError(
                f"input {name!r} has shape {tuple(x.shape)}; the spec was traced with ({traced_shape})"
                + ("; a single sample is no batch: write x[None], or a DataLoader" if x.ndim == len(shape) - 1 else "")
                + "".join([f"; {dim} is fixed at {why}" for dim, why in accepted.fixed if dim.startswith(f"{name} ")])
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
