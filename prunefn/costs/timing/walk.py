"""Run a program op by op on real tensors, and single ops on tensors of other sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import TraceError
from ...spec.axis import Axis, size
from ...spec.program import Device, Instruction, Program, Ref, Size, Unit, target
from ...spec.spec import Spec
from ...types import Params
from .clock import Call

Env = Mapping[str, Any]
"""Name of a value → the value: a tensor, a tuple of tensors, a number."""


class Machine(NamedTuple):
    """A program with the values and the device that it runs on."""

    spec: Spec
    values: dict[str, Tensor]
    """Parameters, constants and inputs."""
    sizes: Mapping[str, int]
    """Sizes of all leaves, those of the inputs included."""
    device: torch.device


def machine(spec: Spec, params: Params, inputs: Sequence[Tensor], device: torch.device) -> Machine:
    """Return the spec's program with these params and inputs."""
    program = spec.program
    values = {n: params[n] for n in program.tensors}
    values |= {n: spec.constants.tensors[n].to(device) for n in program.constants}
    values |= {i.name: x for i, x in zip(program.inputs, inputs, strict=True)}
    input_sizes = {leaf: values[name].shape[dim] for leaf, (name, dim) in program.free.items()}
    return Machine(spec, values, {**spec.sizes, **input_sizes}, device)


def axes_of(spec: Spec, name: str) -> tuple[Axis, ...] | None:
    """Return the axes of the dims of a value of the program; None if the value is not a single tensor."""
    inputs = {i.name: i.axes for i in spec.program.inputs}
    return next((t[name] for t in (spec.program.axes, spec.axes, spec.constants.axes, inputs) if name in t), None)


def walk(m: Machine, run: Callable[[Instruction, Call, Env], Any]) -> None:
    """Go through the program and let `run` compute each instruction; a result is deleted after its last use."""
    program, env = m.spec.program, dict[str, Any](m.values)
    last_uses = _last_uses(program)
    for ins in program.instructions:
        env[f"%{ins.name}"] = run(ins, call_of(m, ins, env), env)
        for name in last_uses.get(ins.name, ()):
            del env[name]


def _last_uses(program: Program) -> dict[str, list[str]]:
    """Return instruction → results that no later instruction reads."""
    last_reader: dict[str, str] = {}
    for ins in program.instructions:
        last_reader |= dict.fromkeys([f"%{ins.name}", *used(ins)], ins.name)
    out: dict[str, list[str]] = {}
    for name, reader in last_reader.items():
        if name.startswith("%"):
            out.setdefault(reader, []).append(name)
    return out


def used(ins: Instruction) -> list[str]:
    """Return the names of the values that an instruction reads."""
    return list(dict.fromkeys(ins.reads()))


def call_of(m: Machine, ins: Instruction, env: Env, stage: str = "in place") -> Call:
    """Return the instruction as a call on the values of `env`."""

    def value(a: Any) -> Any:
        match a:
            case Ref(name):
                return env[name]
            case Size(axis):
                return size(axis, m.sizes)
            case Device():
                return m.device
            case Unit():
                return m.spec.program.number(a)
            case tuple():
                return [value(x) for x in a]
            case _:
                return a

    args, kwargs = tuple(value(a) for a in ins.args), {k: value(v) for k, v in ins.kwargs}
    function = Tensor.size if ins.is_size else target(ins.op)
    return Call(stage, ins.op, function, args, kwargs)


def is_view(call: Call, result: Any) -> bool:
    """Return whether the result is a part of an argument, or a number, so that it costs the same at any size."""
    first = result[0] if isinstance(result, (tuple, list)) and result else result
    if not isinstance(first, Tensor) or (
        call.args and isinstance(call.args[0], tuple | list) and call.op.startswith("operator")
    ):
        return True
    storage = first.untyped_storage().data_ptr()
    return any(isinstance(x, Tensor) and x.untyped_storage().data_ptr() == storage for x in call.args)


# ---- one op at other sizes


def resized(m: Machine, ins: Instruction, env: Env, sizes: Mapping[str, int]) -> tuple[str, Callable[[], Call]]:
    """Return the key of the instruction at other sizes of leaves, and a function that makes the call."""
    other = m._replace(sizes={**m.sizes, **sizes})
    shapes = {n: _shape(other, n, env[n]) for n in used(ins)}

    def make() -> Call:
        return call_of(other, ins, {n: _view_of_shape(env[n], shape) for n, shape in shapes.items()}, "alone")

    return _key(other, ins, env, shapes), make


def _shape(m: Machine, name: str, value: Any) -> tuple[int, ...] | None:
    """Return the shape of a value at the machine's sizes; None if it is no tensor."""
    if not isinstance(value, Tensor):
        return None
    axes = axes_of(m.spec, name)
    if axes is None or len(axes) != value.ndim:
        raise TraceError(
            f"the axes of {name!r} of shape {tuple(value.shape)} are not known, so that its op cannot be timed"
        )
    return tuple(size(a, m.sizes) for a in axes)


def _memory_order(t: Tensor) -> tuple[int, ...]:
    """Return the dims of a tensor from the outermost to the innermost in memory."""
    if t.is_contiguous():
        return tuple(range(t.ndim))
    return tuple(sorted(range(t.ndim), key=lambda d: -t.stride(d)))


def _view_of_shape(value: Any, shape: tuple[int, ...] | None) -> Any:
    """Return some of a tensor's numbers in another shape with the same memory order.

    The result is a view if the storage has enough numbers, so that large weights are not copied.
    """
    if shape is None or tuple(value.shape) == shape:
        return value
    strides = torch.empty_permuted(shape, _memory_order(value), device="meta").stride()
    available = value.untyped_storage().nbytes() // value.element_size() - value.storage_offset()
    if prod(shape) <= available:
        return value.as_strided(shape, strides)
    return value.flatten().repeat(-(-prod(shape) // value.numel()))[: prod(shape)].as_strided(shape, strides)


def _key(m: Machine, ins: Instruction, env: Env, shapes: Mapping[str, tuple[int, ...] | None]) -> str:
    """Return a text of op, types, shapes, layouts and static arguments, which is the same for all layers of the same shapes."""

    def text(a: Any) -> str:
        match a:
            case Ref(name) if (shape := shapes[name]) is not None:
                t = env[name]
                layout = "" if t.is_contiguous() else f" by {_memory_order(t)}"
                return f"{str(t.dtype).removeprefix('torch.')}{list(shape)}{layout}"
            case Ref(name):
                return repr(env[name])
            case Size(axis):
                return str(size(axis, m.sizes))
            case Device():
                return "device"
            case Unit():
                return "id"
            case tuple():
                return f"[{', '.join(map(text, a))}]"
            case _:
                return repr(a)

    words = [*map(text, ins.args), *(f"{k}={text(v)}" for k, v in ins.kwargs)]
    return f"{ins.op}({', '.join(words)})"


def instruction_axes(spec: Spec, ins: Instruction) -> Iterator[tuple[Axis, ...]]:
    """Yield the axes of the tensors that an instruction reads and of its result."""
    for name in (*used(ins), f"%{ins.name}"):
        if axes := axes_of(spec, name):
            yield axes
