"""Scales that a class computes from its width (attention's 1 / √head_dim) stay those of the traced width.

In the program such a scale is a constant, so that removing units means the same as zeroing them. The rebuilt class computes
it afresh from the smaller width; the ratio of the two is folded into the rows of the layer that feeds the scaled value.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import trees
from ..program.batches import device_of
from ..program.compiled import compiled
from ..program.inputs import flat_inputs
from ..spec.program import Instruction, Program, refs
from ..spec.spec import Spec
from ..tracing.api import trace
from ..tracing.rules.families import DIVIDES, LINEAR, MERGES, SCALABLE, SCALES, TRANSPOSED, family
from ..types import Params


class Fold(NamedTuple):
    """Rows of a tensor times a factor."""

    tensor: str
    dim: int
    rows: Tensor
    factor: float


def fold(module: nn.Module, folds: Sequence[Fold]) -> None:
    """Multiply the rows, in the module's own tensors."""
    own = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for f in folds:
            own[f.tensor].index_copy_(f.dim, f.rows, own[f.tensor].index_select(f.dim, f.rows) * f.factor)


def example_inputs(params: Params, spec: Spec, batch: int | None = None) -> tuple[Any, Any]:
    """Random inputs like the traced ones, (args, kwargs): where the params are, and in their precision if that is another one.

    A model may have been traced in float32 and then moved to float16.
    """
    args, kwargs = spec.example.draw(batch=batch, device=device_of(params))
    types = {t.dtype for n, t in params.items() if n in spec.parameters and t.is_floating_point()}

    def cast(t: Tensor) -> Tensor:
        return t.to(next(iter(types))) if t.is_floating_point() and len(types) == 1 else t

    return trees.map_tensors(cast, (args, kwargs))


def find_folds(module: nn.Module, params: Params, spec: Spec) -> list[Fold]:
    """What makes up for the scales in which the rebuilt module's program differs; empty if nothing does."""
    args, kwargs = example_inputs(params, spec)
    other = trace(module, args, kwargs, train=spec.train)
    pairs = list(zip(spec.program.instructions, other.program.instructions, strict=False))
    if len(spec.program.instructions) != len(other.program.instructions) or any(a.op != b.op for a, b in pairs):
        return []
    folds = dict[tuple[Any, ...], Fold]()
    for a, b in pairs:
        if family(a.op) in SCALES and (factor := _ratio(a, b)) is not None:
            found = _through(a, params, spec, factor)
            if not found:
                return []
            folds.update({(f.tensor, f.dim, tuple(f.rows.tolist())): f for f in found})
    return list(folds.values())


def _ratio(a: Instruction, b: Instruction) -> float | None:
    """By how much the value that goes into `b` must grow so that it gives what `a` gives."""
    mine, theirs = ([*_floats(i.args), *_floats(tuple(v for _, v in i.kwargs))] for i in (a, b))
    if len(mine) != len(theirs) or len(mine) != 1 or isclose(mine[0], theirs[0], rel_tol=1e-9):
        return None
    return theirs[0] / mine[0] if family(a.op) in DIVIDES else mine[0] / theirs[0]


def _floats(args: Any) -> list[float]:
    if isinstance(args, tuple):
        return [f for a in args for f in _floats(a)]
    return [args] if isinstance(args, float) else []


def _through(ins: Instruction, params: Params, spec: Spec, factor: float) -> list[Fold]:
    """The rows of the layers that feed the first argument of an op; empty if it does not scale with them."""
    by_name = {f"%{i.name}": i for i in spec.program.instructions}
    layers = _layers(ins.args[0].name, by_name, _active(spec.program))
    return [] if layers is None else [f for i in layers for f in _rows(i, ins, params, spec, factor)]


def _active(program: Program) -> set[str]:
    """Names of the values that depend on the inputs."""
    active = {i.name for i in program.inputs}
    for i in program.instructions:
        if active.intersection(i.reads()):
            active.add(f"%{i.name}")
    return active


def _layers(name: str, by_name: dict[str, Instruction], active: set[str]) -> list[Instruction] | None:
    """The layers from which a value comes by ops that scale; None if another op is between."""
    found: dict[str, Instruction] = {}
    todo = [name]
    while todo:
        ins = by_name.get(todo.pop())
        op = None if ins is None else family(ins.op)
        if ins is None or not (op in SCALABLE or op in LINEAR):
            return None
        if op in SCALABLE:
            found[ins.name] = ins
        else:
            inputs = [r for r in refs(ins.args) if r in active]
            todo += inputs if op in MERGES else inputs[:1]
    return list(found.values())


def _rows(layer: Instruction, scaled: Instruction, params: Params, spec: Spec, factor: float) -> list[Fold]:
    """The rows of a layer that reach the first argument of the scaled op, found by a gradient."""
    weight, bias, dim = SCALABLE[family(layer.op)]
    tensors = [layer.args[i].name for i in (weight, bias) if i is not None and i < len(layer.args) and layer.args[i]]
    slots = [s.tensor for s in spec.program.slots if s.instruction == layer.name and s.tensor in params]
    if any(t not in params for t in tensors):
        return []
    values = {n: t.detach().requires_grad_(n in tensors) for n, t in params.items()}
    args, kwargs = example_inputs(params, spec)
    wanted = f"%{layer.name}", scaled.args[0].name
    run = compiled(spec, values, ("fold", *wanted), lambda _, env: tuple(env[w] for w in wanted), only=wanted)
    with torch.enable_grad():
        out, reached = run(values, flat_inputs(spec, args, kwargs))
        noise = torch.rand(reached.shape, generator=torch.Generator().manual_seed(0)).to(reached)
        (grad,) = torch.autograd.grad((reached * (noise + 1)).sum(), out)
    rows = grad.movedim(dim, 0).flatten(1).abs().amax(1).nonzero()[:, 0]
    transposed = family(layer.op) in TRANSPOSED
    return [
        Fold(t, 1 if transposed and len(spec.axes[t]) == 2 else 0, rows, factor)
        for t in dict.fromkeys([*tensors, *slots])
    ]
