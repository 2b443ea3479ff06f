"""What each op of a program computes, reads and writes, whatever time it takes."""

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
    """An instruction, on the inputs that it met."""

    macs: int
    """Of the whole batch, by torch's counter."""
    written: int
    """Elements of its results; 0 for ops that torch takes for views, which `Cost.activations` leaves out, too."""
    written_bytes: int
    moved: int
    """Bytes read and written; 0 where the result lies in the memory of an argument."""
    widths: tuple[int, ...]
    """Of a contraction: inputs and outputs."""
    times: Mapping[str, int]
    """Weight → how often each of its elements is multiplied."""


class Counted(NamedTuple):
    """A run of a program."""

    ops: dict[str, Op]
    """Instruction → what it does."""
    peak: int
    """Bytes of results that are alive at the same time."""


def counted(m: Machine) -> Counted:
    """Run a program once and count; works on `meta`, where nothing is computed.

    >>> import prunefn as pf
    >>> from prunefn.costs.timing.walk import machine
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> meta = {n: t.to("meta") for n, t in pf.params(model).items()}
    >>> found = counted(machine(spec, meta, [torch.empty(5, 4, device="meta")], torch.device("meta")))
    >>> [op.macs for op in found.ops.values()], found.peak
    ([60, 0, 30], 120)
    """
    known = weights(m.spec)
    first = {**{n: n for n in known}, **{second: n for second, n in m.spec.tied.items() if n in known}}
    ops: dict[str, Op] = {}
    peak = [0]

    def count(ins: Instruction, call: Call, env: Env) -> Any:
        with flop_counter() as counter:
            result = call()
        found = [known[n] for n in dict.fromkeys(first[v] for v in used(ins) if v in first)]
        given, out = trees.tensors((call.args, dict(call.kwargs))), trees.tensors(result)
        ops[ins.name] = _op(ins, call, given, out, counter.get_total_flops() // 2, found)
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
    # torch 2.15 is the first that has a formula for this kernel
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: _attention_flops})


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Queries times keys and weights times values; all keys count, masked ones included. The arguments are shapes."""
    *lead, width = query
    return 2 * prod(lead) * key[-2] * (width + value[-1])


def draw(params: Params, spec: Spec, *, batch: int, device: torch.device, seed: int = 0) -> tuple[Any, Any]:
    """Inputs like the traced ones: (args, kwargs); in the type of the params, where all of them that are floating have one."""
    types = {t.dtype for t in params.values() if t.is_floating_point()}
    drawn = spec.example.draw(seed=seed, batch=batch, device=device)
    if len(types) != 1:
        return drawn
    kind = types.pop()

    def cast(x: Any) -> Any:
        return x.to(kind) if isinstance(x, Tensor) and x.is_floating_point() else x

    return trees.map_leaves(cast, drawn)


def storages(values: Iterable[Tensor]) -> dict[int, int]:
    """Memory that the tensors lie in → its bytes; memory that several share is there once."""
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in values}


def _op(ins: Instruction, call: Call, given: list[Tensor], out: list[Tensor], macs: int, found: list[Weight]) -> Op:
    times = _times(ins, given, macs, found)
    if not macs:
        macs = sum(n * torch.Size(w.shape).numel() for w, n in zip(found, times.values(), strict=False))
    fresh = [] if _aliases(call) else out
    elsewhere = not storages(given).keys() & storages(out).keys()
    return Op(
        macs,
        sum(t.numel() for t in fresh),
        sum(t.nbytes for t in fresh),
        sum(t.nbytes for t in [*given, *out]) if elsewhere and out else 0,
        _widths(given, out, found) if macs else (),
        times,
    )


def _times(ins: Instruction, given: list[Tensor], macs: int, found: list[Weight]) -> dict[str, int]:
    """How often each weight is multiplied. torch's counter does not know the kernels of recurrent layers, which have several."""
    if len(found) > 1:
        return {w.name: given[0].numel() // given[0].shape[-1] for w in found}
    return {w.name: macs // torch.Size(w.shape).numel() for w in found} if macs and len(found) == 1 else {}


def _widths(given: list[Tensor], out: list[Tensor], found: list[Weight]) -> tuple[int, ...]:
    if not found:
        return tuple(t.shape[-1] for t in [*given, *out[:1]] if t.ndim)
    widths = []
    for w in found:
        g, o, i, _ = w.split(torch.empty(w.shape, device="meta")).shape
        widths += [g * i, g * o]
    return tuple(dict.fromkeys(widths))


def _aliases(call: Call) -> bool:
    """The op gives a view, by its schema."""
    schema = getattr(call.function, "_schema", None)
    return schema is None or any(r.alias_info is not None for r in schema.returns)
