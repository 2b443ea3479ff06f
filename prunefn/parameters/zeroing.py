"""Which parameters can be set to zero for a removed unit, so that every effective tensor is zero and finite where the unit stands.

A parameter that is used as it is can; of what a weight is computed from, perhaps only some: under weight norm the gain, since a
direction of zeros is 0 / 0. It depends on the program alone, and is found by trying: the computation is run on random numbers, at
sizes of a few units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import ParamsError
from ..program.compiled import compiled
from ..spec.axis import keep, leaves
from ..spec.program import needed_by
from ..spec.spec import Spec, resize
from ..types import Mask, Params
from .effective import Effective, effective

FEW = 3
"""Units of each group in the trial; one of them goes."""


def zeroed_groups(spec: Spec, tensor: str, mask: Mask, *, buffers: bool = False) -> Mask:
    """The part of a mask by which a tensor may be set to zero.

    Args:
        spec: whose tensor.
        tensor: a parameter, a buffer, or a bias that a compensation created.
        mask: group → bool [units].
        buffers: whether buffers are set to zero, too.

    Raises:
        ParamsError: a group of the mask cannot be set to zero at all; it names the weight.
    """
    first = spec.tied.get(tensor, tensor)
    there = {leaf for axis in spec.axes[tensor] for leaf in leaves(axis) if leaf in mask}
    return {g: mask[g] for g in there if bool(mask[g].all()) or first not in _spared(spec, g, buffers)}


def check_zeroable(spec: Spec, mask: Mask, *, buffers: bool = False) -> None:
    """Every group that loses units can be set to zero.

    Raises:
        ParamsError: it names the group and the weight.
    """
    for g, m in mask.items():
        if not bool(m.all()):
            _spared(spec, g, buffers)


@lru_cache(maxsize=4096)
def _spared(spec: Spec, group: str, buffers: bool) -> frozenset[str]:
    """The tensors that must not be set to zero where a unit of the group stands.

    Raises:
        ParamsError: nothing that may be set to zero makes an effective tensor zero there.
    """
    tensors = effective(spec)
    raw = {e.name for e in tensors if not e.computed}
    out: set[str] = set()
    for e in tensors:
        if not e.computed or not e.dims(group):
            continue
        inputs = _inputs(spec, e.name)
        having = [t for t in inputs if any(group in leaves(a) for a in spec.axes[t])]
        free = [t for t in having if buffers or t in spec.parameters]
        must = [t for t in free if spec.tied.get(t, t) in raw]
        choices = [free, *([*must, t] for t in free if t not in must)]
        chosen = next((c for c in choices if _works(spec, e, group, inputs, c)), None)
        contracted = e.bias or any(e.roles[d] != "along" for d in e.dims(group))
        if chosen is None and not (contracted and spec.groups[group].exact):
            # a mean over units is another anyway, and what scales an activation scales a zero: only NaN is kept away
            fallback = None if contracted else []
            chosen = next((c for c in choices if _works(spec, e, group, inputs, c, finite=True)), fallback)
        if chosen is None:
            raise ParamsError(
                f"units of group {group!r} cannot be set to zero: the weight of {_owner(spec, e)!r} is computed from "
                f"{', '.join(inputs)}, and zeros in these do not make it zero; remove the units with pf.apply, or take the "
                "parametrization off before the trace (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        out |= set(free) - set(chosen)
    return frozenset(out)


def _works(
    spec: Spec, e: Effective, group: str, inputs: Sequence[str], zeroed: Sequence[str], *, finite: bool = False
) -> bool:
    """Whether zeros in these tensors make the effective tensor zero where the first unit stands, and leave it finite; perhaps only that."""
    small = _few(spec)
    gone = {group: torch.arange(small.sizes[group]) > 0}
    params = _random(small, inputs)
    for t in zeroed:
        params[t] = fill(params[t], small.axes[t], gone, small)

    def emit(_: fx.Graph, env: Mapping[str, Any]) -> Any:
        return env[e.name]

    run = compiled(small, params, ("trial", e.name), emit, only=[e.name])
    try:
        with torch.no_grad():
            value = run(params, [None] * len(small.program.inputs))
    except (
        RuntimeError,
        IndexError,
        TypeError,
    ):  # buffers of integers or of other types: what cannot be tried is not taken
        return False
    return bool(value.isfinite().all()) and (finite or torch.equal(value, fill(value, e.axes, gone, small)))


def fill(t: Tensor, axes: Sequence[Any], mask: Mask, spec: Spec) -> Tensor:
    """Put zeros where removed units stand; return the tensor itself where none does."""
    for d, axis in enumerate(axes):
        if any(leaf in mask for leaf in leaves(axis)):
            kept = keep(axis, mask, spec.sizes)
            if not bool(kept.all()):
                number = torch.zeros((), dtype=t.dtype, device=t.device)
                t = torch.where(kept.reshape(-1, *(1,) * (t.ndim - d - 1)).to(t.device), t, number)
    return t


@lru_cache(maxsize=16)
def _few(spec: Spec) -> Spec:
    """The spec at a few units of each group."""
    return resize(spec, {g: torch.arange(n) < FEW for g, n in spec.sizes.items()})


@lru_cache(maxsize=4096)
def _inputs(spec: Spec, value: str) -> tuple[str, ...]:
    """The parameters and buffers that a value is computed from, tied ones by each name that is used."""
    needed = needed_by(spec.program, {value}, {})
    return tuple(t for t in spec.program.tensors if t in needed)


def _random(spec: Spec, names: Sequence[str]) -> Params:
    """Numbers between ½ and 1½: as weights, gains and masks may be."""
    generator = torch.Generator().manual_seed(0)
    made = {n: torch.rand(spec.shape(n), generator=generator) + 0.5 for n in names}
    return {n: made.get(spec.tied.get(n, n), t) for n, t in made.items()}


def _owner(spec: Spec, e: Effective) -> str:
    """The module that the weight is used in."""
    reads = [i.module for i in spec.program.instructions if f"%{i.name}" == e.name]
    return reads[0] if reads and reads[0] else e.name
