"""Folds, which keep a scale that a class computes from its width (attention's 1 / √head_dim) at that of the traced width.

In the program such a scale is a constant, so removing units means the same as zeroing them. The rebuilt class computes it
again from the smaller width; the ratio of the two is folded into the rows of the layer that feeds the scaled value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isclose
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import trees
from ..errors import TraceError
from ..program.batches import device_of
from ..program.compiled import compiled
from ..program.inputs import flat_inputs
from ..spec.program import Instruction, Program, refs
from ..spec.spec import Spec
from ..tracing.api import trace
from ..tracing.rules.families import BILINEAR, DIVIDES, HOMOGENEOUS, MERGES, SCALABLE, SCALES, TRANSPOSED, family
from ..types import Params


class Fold(NamedTuple):
    """Rows of a tensor and the factor to multiply them by."""

    tensor: str
    dim: int
    rows: Tensor
    factor: float


def fold(module: nn.Module, folds: Sequence[Fold]) -> None:
    """Multiply the rows in place, in the module's own tensors."""
    own = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for f in folds:
            own[f.tensor].index_copy_(f.dim, f.rows, own[f.tensor].index_select(f.dim, f.rows) * f.factor)


def example_inputs(params: Params, spec: Spec, batch: int | None = None) -> tuple[Any, Any]:
    """Return random inputs like the traced ones, as (args, kwargs), on the device and in the precision of the params.

    The precision may differ from the traced one: a model may be traced in float32 and then moved to float16.
    """
    args, kwargs = spec.example.draw(batch=batch, device=device_of(params))
    types = {t.dtype for n, t in params.items() if n in spec.parameters and t.is_floating_point()}

    def cast(t: Tensor) -> Tensor:
        return t.to(next(iter(types))) if t.is_floating_point() and len(types) == 1 else t

    return trees.map_tensors(cast, (args, kwargs))


def find_folds(module: nn.Module, params: Params, spec: Spec) -> list[list[Fold]]:
    """Return the folds that may undo the scales in which the rebuilt module's program differs; empty if no folds can.

    There are up to two ways: of a product of queries and keys, the queries may be scaled, or the keys.
    """
    args, kwargs = example_inputs(params, spec)
    try:
        other = trace(module, args, kwargs, train=spec.train, check=False)
    except TraceError:  # it runs at the sizes of the example, but not at others
        return []
    pairs = list(zip(spec.program.instructions, other.program.instructions, strict=False))
    if len(spec.program.instructions) != len(other.program.instructions) or any(a.op != b.op for a, b in pairs):
        return []
    of_spec, of_other = (_constant_scalars(s, params) for s in (spec, other))
    factors = [
        (a, factor)
        for a, b in pairs
        if family(a.op) in SCALES
        and (factor := _missing_factor(a.op, _factors(a, of_spec), _factors(b, of_other))) is not None
    ]
    ways = ([_find_folds_before(a, params, spec, factor, operand) for a, factor in factors] for operand in (0, 1))
    return [_without_repetitions(f for folds in way for f in folds) for way in ways if way and all(way)]


def _without_repetitions(folds: Iterable[Fold]) -> list[Fold]:
    """Return the folds, those of the same rows of a tensor only once."""
    return list({(f.tensor, f.dim, tuple(f.rows.tolist())): f for f in folds}.values())


def _missing_factor(op: str, of_a: Sequence[float], of_b: Sequence[float]) -> float | None:
    """Return the factor for the input of an op that scales by `of_b` so that it gives the output of one that scales by `of_a`.

    None if they do not differ in one scale.
    """
    if len(of_a) != len(of_b) or len(of_a) != 1 or isclose(of_a[0], of_b[0], rel_tol=1e-9) or not of_a[0] * of_b[0] > 0:
        return None
    return of_b[0] / of_a[0] if family(op) in DIVIDES else of_a[0] / of_b[0]


def _factors(ins: Instruction, scalars: Mapping[str, float]) -> list[float]:
    """Return the numbers by which an op may multiply or divide: floats, and numbers or constant scalars behind its first argument."""
    others = [float(x) if type(x) is int else scalars.get(getattr(x, "name", "")) for x in ins.args[1:2]]
    return [*(x for x in others if x is not None), *_floats(ins.args), *_floats(tuple(v for _, v in ins.kwargs))]


def _floats(args: Any) -> list[float]:
    """Return all floats in nested arguments."""
    if isinstance(args, tuple):
        return [f for a in args for f in _floats(a)]
    return [args] if isinstance(args, float) else []


def _constant_scalars(spec: Spec, params: Params) -> dict[str, float]:
    """Return the single numbers that ops which scale read, and that depend on no input and no parameter."""
    varying = _varying(spec.program, spec.program.tensors)
    scaling = [i for i in spec.program.instructions if family(i.op) in SCALES]
    names = list(dict.fromkeys(n for i in scaling for n in i.reads() if n.startswith("%") and n not in varying))
    args, kwargs = example_inputs(params, spec)
    run = compiled(spec, params, ("scalars", *names), lambda _, env: tuple(env[n] for n in names), only=names)
    values = run(params, flat_inputs(spec, args, kwargs)) if names else ()
    return {n: float(v) for n, v in zip(names, values, strict=True) if isinstance(v, Tensor) and v.numel() == 1}


def _find_folds_before(ins: Instruction, params: Params, spec: Spec, factor: float, operand: int) -> list[Fold]:
    """Return folds of the rows that feed an argument of an op; empty if the argument does not scale with them.

    It is the first argument, or that of this number if the op is a product. A gradient shows which rows reach it.
    """
    argument = ins.args[operand if family(ins.op) in BILINEAR else 0].name
    sources = _find_sources(argument, spec.program, operand)
    if sources is None or any(t not in params for layer in sources.layers for t in _tensors_of(layer, spec, params)):
        return []
    own = {layer.name: _tensors_of(layer, spec, params) for layer in sources.layers}
    tensors = {*sources.addends, *(t for row in own.values() for t in row)}
    values = {n: t.detach().requires_grad_(n in tensors) for n, t in params.items()}
    args, kwargs = example_inputs(params, spec)
    names = *(f"%{name}" for name in own), argument
    run = compiled(spec, values, ("fold", *names), lambda _, env: tuple(env[n] for n in names), only=names)
    with torch.enable_grad():
        *outputs, reached = run(values, flat_inputs(spec, args, kwargs))
        outputs += [values[t] for t in sources.addends]
        # random factors in [1, 2), so that no gradient cancels to zero by symmetry
        noise = torch.rand(reached.shape, generator=torch.Generator().manual_seed(0)).to(reached)
        weighted = (reached * (noise + 1)).sum()
        grads = torch.autograd.grad(weighted, outputs)
    with (
        torch.no_grad()
    ):  # Euler: a value that is a product of k values that scale (a correlation: 2) has this degree k
        degree = float(sum((g * y).sum() for g, y in zip(grads, outputs, strict=True)) / weighted)
    power = factor ** (1 / max(1, round(degree)))
    folds = []
    for layer, grad in zip(sources.layers, grads, strict=False):
        rows, transposed = _reaching(grad, SCALABLE[family(layer.op)][2]), family(layer.op) in TRANSPOSED
        folds += [Fold(t, 1 if transposed and len(spec.axes[t]) == 2 else 0, rows, power) for t in own[layer.name]]
    addends = zip(sources.addends, grads[len(sources.layers) :], strict=True)
    return folds + [Fold(t, 0, _reaching(grad, 0), power) for t, grad in addends]


def _reaching(grad: Tensor, dim: int) -> Tensor:
    """Return the positions along a dim at which a gradient is not zero."""
    return grad.movedim(dim, 0).flatten(1).abs().amax(1).nonzero()[:, 0] if grad.ndim > 1 else grad.nonzero()[:, 0]


def _tensors_of(layer: Instruction, spec: Spec, params: Params) -> list[str]:
    """Return the names of the weight and the bias of a layer, also of a bias that a compensation created."""
    weight, bias, _ = SCALABLE[family(layer.op)]
    tensors = [layer.args[i].name for i in (weight, bias) if i is not None and i < len(layer.args) and layer.args[i]]
    slots = [s.tensor for s in spec.program.slots if s.instruction == layer.name and s.tensor in params]
    return list(dict.fromkeys([*tensors, *slots]))


def _varying(program: Program, tensors: Iterable[str] = ()) -> set[str]:
    """Return the names of the values that depend on the inputs, or on these tensors."""
    varying = {*(i.name for i in program.inputs), *tensors}
    for i in program.instructions:
        if varying.intersection(i.reads()):
            varying.add(f"%{i.name}")
    return varying


class _Sources(NamedTuple):
    """What a value scales with."""

    layers: list[Instruction]
    addends: list[str]
    """Parameters that are added on the way."""


def _find_sources(name: str, program: Program, operand: int) -> _Sources | None:
    """Return what a value scales with, through the factor of this number of each product; None if another op is on the way."""
    by_name = {f"%{i.name}": i for i in program.instructions}
    varying = _varying(program, program.tensors)
    layers, addends, todo = dict[str, Instruction](), dict[str, None](), [name]
    while todo:
        ins = by_name.get(source := todo.pop())
        op = None if ins is None else family(ins.op)
        if source in program.tensors:
            addends[source] = None
        elif ins is None or not (op in SCALABLE or op in HOMOGENEOUS):
            return None
        elif op in SCALABLE:
            layers[ins.name] = ins
        else:
            inputs = [r for r in refs(ins.args) if r in varying]
            first = operand if op in BILINEAR and len(inputs) > operand else 0
            todo += inputs if op in MERGES else inputs[first : first + 1]
    return _Sources(list(layers.values()), list(addends))
