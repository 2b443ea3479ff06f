"""Count what each op of a program computes, reads and writes, without timing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .. import trees
from ..sparse.layouts import Weight, weights
from ..spec.program import Instruction
from ..spec.spec import Spec
from ..types import Params
from .timing.clock import Call
from .timing.walk import Env, Machine, used, walk


class Op(NamedTuple):
    """The counts of one instruction on its inputs."""

    macs: int
    """Multiply-accumulates of the whole batch, by torch's counter."""
    written: int
    """Elements of its results; 0 for views by torch's schema, which `Cost.activations` leaves out, too."""
    written_bytes: int
    """Bytes of these elements."""
    moved: int
    """Bytes read and written; 0 if the result shares the memory of an argument."""
    widths: tuple[int, ...]
    """Numbers of inputs and outputs of a contraction."""
    times: Mapping[str, int]
    """Weight → how often each of its elements is multiplied."""


class Counted(NamedTuple):
    """The counts of a run of a program."""

    ops: dict[str, Op]
    """Instruction → its counts."""
    peak: int
    """Maximal bytes of results that are alive at the same time."""


def counted(m: Machine) -> Counted:
    """Run a program once and count; on `meta`, nothing is computed.

    >>> import prunefn as pf
    >>> from prunefn.costs.timing.walk import machine
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> meta = {n: t.to("meta") for n, t in pf.params(model).items()}
    >>> counts = counted(machine(spec, meta, [torch.empty(5, 4, device="meta")], torch.device("meta")))
    >>> [op.macs for op in counts.ops.values()], counts.peak
    ([60, 0, 30], 120)
    """
    layouts = weights(m.spec)
    first_names = {**{n: n for n in layouts}, **{second: n for second, n in m.spec.tied.items() if n in layouts}}
    ops: dict[str, Op] = {}
    peak = [0]

    def count(ins: Instruction, call: Call, env: Env) -> Any:
        with flop_counter() as counter:
            result = call()
        op_weights = [layouts[n] for n in dict.fromkeys(first_names[v] for v in used(ins) if v in first_names)]
        inputs, out = trees.tensors((call.args, dict(call.kwargs))), trees.tensors(result)
        ops[ins.name] = _op(ins, call, inputs, out, counter.get_total_flops() // 2, op_weights)
        values = trees.tensors([v for name, v in env.items() if name.startswith("%")])
        peak[0] = max(peak[0], sum(storages([*values, *out]).values()))
        return result

    with torch.no_grad():
        walk(m, count)
    return Counted(ops, peak[0])


def flop_counter() -> FlopCounterMode:
    """Return torch's counter of FLOPs (two for each MAC), which counts the CPU's fused attention in all versions of torch.

    >>> q = torch.randn(1, 2, 5, 8)
    >>> with flop_counter() as counter:
    ...     _ = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    >>> counter.get_total_flops() == 2 * (2 * 5 * 5) * (8 + 8)
    True
    """
    # torch has a formula for this kernel from 2.15 on
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: _attention_flops})


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the FLOPs of queries times keys and weights times values, masked keys included. The arguments are shapes."""
    *lead, width = query
    return 2 * prod(lead) * key[-2] * (width + value[-1])


def draw(params: Params, spec: Spec, *, batch: int, device: torch.device, seed: int = 0) -> tuple[Any, Any]:
    """Return random inputs like the traced ones, as (args, kwargs).

    Floating-point inputs get the type of the params if all floating-point params have the same type.
    """
    types = {t.dtype for t in params.values() if t.is_floating_point()}
    drawn = spec.example.draw(seed=seed, batch=batch, device=device)
    if len(types) != 1:
        return drawn
    dtype = types.pop()

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return trees.map_leaves(cast, drawn)


def storages(values: Iterable[Tensor]) -> dict[int, int]:
    """Return the storages of the tensors → their bytes; a storage that several tensors share counts once."""
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in values}


def _op(
    ins: Instruction, call: Call, inputs: list[Tensor], out: list[Tensor], macs: int, op_weights: list[Weight]
) -> Op:
    """Return the counts of an instruction; `macs` are those of torch's counter."""
    times = _multiplications(ins, inputs, macs, op_weights)
    if not macs:
        macs = sum(n * torch.Size(w.shape).numel() for w, n in zip(op_weights, times.values(), strict=False))
    non_views = [] if _aliases(call) else out
    separate = not storages(inputs).keys() & storages(out).keys()
    return Op(
        macs,
        sum(t.numel() for t in non_views),
        sum(t.nbytes for t in non_views),
        sum(t.nbytes for t in [*inputs, *out]) if separate and out else 0,
        _widths(inputs, out, op_weights) if macs else (),
        times,
    )


def _multiplications(ins: Instruction, inputs: list[Tensor], macs: int, op_weights: list[Weight]) -> dict[str, int]:
    """Return weight → how often each of its elements is multiplied.

    torch's counter does not know the kernels of recurrent layers, which have several weights: they multiply each weight once for
    every row of their first input.
    """
    if len(op_weights) > 1:
        return {w.name: inputs[0].numel() // inputs[0].shape[-1] for w in op_weights}
    return {w.name: macs // torch.Size(w.shape).numel() for w in op_weights} if macs and len(op_weights) == 1 else {}


def _widths(inputs: list[Tensor], out: list[Tensor], op_weights: list[Weight]) -> tuple[int, ...]:
    """Return the numbers of inputs and outputs of a contraction; of one without weights, the last dims of its tensors."""
    if not op_weights:
        return tuple(t.shape[-1] for t in [*inputs, *out[:1]] if t.ndim)
    widths = []
    for w in op_weights:
        g, o, i, _ = w.split(torch.empty(w.shape, device="meta")).shape
        widths += [g * i, g * o]
    return tuple(dict.fromkeys(widths))


def _aliases(call: Call) -> bool:
    """Return whether the result of an op may be a view of an argument, by its schema."""
    schema = getattr(call.function, "_schema", None)
    return schema is None or any(r.alias_info is not None for r in schema.returns)
