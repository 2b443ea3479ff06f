"""Find the parameters that can be set to zero at a removed unit, such that every effective tensor is zero and finite there.

A parameter that is used directly can be set to zero. If a weight is computed from several parameters, perhaps only some can:
under weight norm the gain, since a direction of zeros is 0 / 0. The answer depends on the program alone. It is found by trial:
the computation is run on random numbers, at sizes of a few units.
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
from ..spec.parts import EXPERTS
from ..spec.program import needed_by
from ..spec.spec import Spec, resize
from ..types import Mask, Params
from .effective import Effective, effective

FEW = 3
"""Units of each group in the trial; one of them is removed."""


def zeroed_groups(spec: Spec, tensor: str, mask: Mask, *, buffers: bool = False) -> Mask:
    """Return the part of a mask at which a tensor may be set to zero.

    Args:
        spec: the spec of the tensor.
        tensor: a parameter, a buffer, or a bias that a compensation created.
        mask: group → bool [units].
        buffers: whether buffers may be set to zero, too.

    Raises:
        ParamsError: a group of the mask cannot be set to zero at all; the message names the weight.
    """
    first_name = spec.tied.get(tensor, tensor)
    masked_groups = {leaf for axis in spec.axes[tensor] for leaf in leaves(axis) if leaf in mask}
    return {
        g: mask[g] for g in masked_groups if bool(mask[g].all()) or first_name not in _never_zeroed(spec, g, buffers)
    }


def check_zeroable(spec: Spec, mask: Mask, *, buffers: bool = False) -> None:
    """Check that every group that loses units can be set to zero.

    Raises:
        ParamsError: a group cannot; the message names the group and the weight.
    """
    for g, m in mask.items():
        if not bool(m.all()):
            if spec.groups[g].kind == EXPERTS:
                raise ParamsError(
                    f"experts of group {g!r} cannot be set to zero: a router whose row is zero still chooses the expert; remove them "
                    "with pf.apply"
                )
            _never_zeroed(spec, g, buffers)


@lru_cache(maxsize=4096)
def _never_zeroed(spec: Spec, group: str, buffers: bool) -> frozenset[str]:
    """Return the tensors that must not be set to zero at a removed unit of the group.

    Raises:
        ParamsError: no tensors that may be set to zero make an effective tensor zero there.
    """
    tensors = effective(spec)
    used_directly = {e.name for e in tensors if not e.computed}
    excluded: set[str] = set()
    for e in tensors:
        if not e.computed or not e.dims(group):
            continue
        inputs = _inputs_of(spec, e.name)
        containing = [t for t in inputs if any(group in leaves(a) for a in spec.axes[t])]
        zeroable = [t for t in containing if buffers or t in spec.parameters]
        required = [t for t in zeroable if spec.tied.get(t, t) in used_directly]
        # first try zeros in all of them; then in one, besides those that are used directly and are zero anyway
        choices = [zeroable, *([*required, t] for t in zeroable if t not in required)]
        chosen = next((c for c in choices if _is_zero_and_finite(spec, e, group, inputs, c)), None)
        contracted = e.bias or any(e.roles[d] != "along" for d in e.dims(group))
        if chosen is None and not (contracted and spec.groups[group].exact):
            # an op over the units changes them anyway, and a scale of an activation multiplies a zero: only finiteness matters
            fallback = None if contracted else []
            chosen = next((c for c in choices if _is_zero_and_finite(spec, e, group, inputs, c, finite=True)), fallback)
        if chosen is None:
            raise ParamsError(
                f"units of group {group!r} cannot be set to zero: the weight of {_module_of(spec, e)!r} is computed from "
                f"{', '.join(inputs)}, and zeros in these do not make it zero; remove the units with pf.apply, or take the "
                "parametrization off before the trace (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        excluded |= set(zeroable) - set(chosen)
    return frozenset(excluded)


def _is_zero_and_finite(
    spec: Spec, e: Effective, group: str, inputs: Sequence[str], zeroed: Sequence[str], *, finite: bool = False
) -> bool:
    """Return whether zeros in these tensors make the effective tensor zero at the first unit and leave it finite.

    With `finite`, only the latter is required.
    """
    small = _at_few_units(spec)
    trial_mask = {group: torch.arange(small.sizes[group]) > 0}
    params = _random_params(small, inputs)
    for t in zeroed:
        params[t] = fill(params[t], small.axes[t], trial_mask, small)

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
    ):  # such as buffers of integers: a choice that cannot be tried is rejected
        return False
    return bool(value.isfinite().all()) and (finite or torch.equal(value, fill(value, e.axes, trial_mask, small)))


def fill(t: Tensor, axes: Sequence[Any], mask: Mask, spec: Spec) -> Tensor:
    """Return the tensor with zeros at removed units; the tensor itself if it has none."""
    for d, axis in enumerate(axes):
        if any(leaf in mask for leaf in leaves(axis)):
            kept = keep(axis, mask, spec.sizes)
            if not bool(kept.all()):
                zero = torch.zeros((), dtype=t.dtype, device=t.device)
                t = torch.where(kept.reshape(-1, *(1,) * (t.ndim - d - 1)).to(t.device), t, zero)
    return t


@lru_cache(maxsize=16)
def _at_few_units(spec: Spec) -> Spec:
    """Return the spec with a few units in each group."""
    return resize(spec, {g: torch.arange(n) < FEW for g, n in spec.sizes.items()})


@lru_cache(maxsize=4096)
def _inputs_of(spec: Spec, value: str) -> tuple[str, ...]:
    """Return the parameters and buffers from which a value is computed, tied tensors by each name that is used."""
    needed = needed_by(spec.program, {value}, {})
    return tuple(t for t in spec.program.tensors if t in needed)


def _random_params(spec: Spec, names: Sequence[str]) -> Params:
    """Return random tensors with values between ½ and 1½, which weights, gains and masks may have."""
    generator = torch.Generator().manual_seed(0)
    drawn = {n: torch.rand(spec.shape(n), generator=generator) + 0.5 for n in names}
    return {n: drawn.get(spec.tied.get(n, n), t) for n, t in drawn.items()}


def _module_of(spec: Spec, e: Effective) -> str:
    """Return the module that uses the weight; its name if there is none."""
    reads = [i.module for i in spec.program.instructions if f"%{i.name}" == e.name]
    return reads[0] if reads and reads[0] else e.name
