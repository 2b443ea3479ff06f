"""Masks by hand: name what goes, by group, module or tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .doors import door
from .errors import MaskError, nearest
from .params import check_mask
from .trace.expr import Axis, Leaf, leaves, size, unit_of
from .trace.spec import Spec
from .types import Mask


class Target(NamedTuple):
    """What a key of `mask` stands for: a group, and the axis whose positions are counted."""

    key: str
    group: str
    axis: Axis


@door
def mask(spec: Spec, removed: Mapping[str, Iterable[int] | Tensor]) -> Mask:
    """A mask that removes the given units.

    Args:
        spec: of what is to be pruned.
        removed: by key, indices of what goes; or a bool tensor, True = **kept**. A key is a group's name, and units are
            counted; or else a tensor's, or that of a module with a `weight`, and positions of its output dim are counted.
            The output dim must belong to a single group; where a unit stands at several positions, give them all.

    Returns:
        Group → bool [units], for the groups that are named. Keys that mean the same group add up.

    Raises:
        MaskError: there is no such key, its output dim is frozen or belongs to several groups, an index is out of range,
            negative or given twice, or no unit would be left.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    >>> spec = pf.trace(model, (torch.randn(2, 3, 8, 8),))
    >>> mask(spec, {"0": [0, 3]})
    {'0': tensor([False,  True,  True, False])}
    >>> mask(spec, {"1.bias": torch.tensor([True, True, False, True])})
    {'0': tensor([ True,  True, False,  True])}
    """
    out: Mask = {}
    for key, given in removed.items():
        target = _target(key, spec)
        gone = _positions(target, given, size(target.axis, spec.sizes))
        left = ~_units(target, gone, spec)
        out[target.group] = out[target.group] & left if target.group in out else left
    check_mask(out, spec)
    return out


def _target(key: str, spec: Spec) -> Target:
    """The group of a key."""
    if key in spec.groups:
        return Target(key, key, Leaf(key))
    tensor = next((t for t in (key, f"{key}.weight") if t in spec.axes), None)
    if tensor is None:
        known = [*spec.groups, *spec.axes, *(t.removesuffix(".weight") for t in spec.axes)]
        raise MaskError(f"no group, tensor or module with a weight is called {key!r}{nearest(key, known)}")
    axis = spec.axes[tensor][_out_dim(key, tensor, spec)]
    inside = list(dict.fromkeys(leaf for leaf in leaves(axis) if leaf in spec.groups))
    if len(inside) != 1:
        raise MaskError(f"the output dim of {tensor!r} belongs to {len(inside)} groups; {_choose(inside)}")
    return Target(key, inside[0], axis)


def _out_dim(key: str, tensor: str, spec: Spec) -> int:
    """The only dim that groups produce or run along."""
    members = [(m, g.name) for g in spec.groups.values() for m in g.members if m.tensor == tensor]
    out = [(m, g) for m, g in members if m.role != "in"]
    dims = {m.dim for m, _ in [(m, g) for m, g in out if m.role == "out"] or out}
    if len(dims) == 1:
        return dims.pop()
    if dims:
        raise MaskError(f"{tensor!r} has groups in dims {sorted(dims)}; {_choose(dict.fromkeys(g for _, g in out))}")
    inputs = f"; its input dim belongs to {_choose(dict.fromkeys(g for _, g in members))}" if members else ""
    raise MaskError(
        f"nothing can be removed from the output dim of {tensor!r} = {spec.einops(tensor)}; "
        f"spec.explain({key!r}) says why{inputs}"
    )


def _choose(groups: Iterable[str]) -> str:
    return f"choose by group: {', '.join(repr(g) for g in groups)}"


def _positions(target: Target, given: Iterable[int] | Tensor, n: int) -> Tensor:
    """What goes: bool [n]."""
    what = f"{target.key!r}" if target.key == target.group else f"{target.key!r} (group {target.group!r})"
    try:
        t = given.detach().cpu() if isinstance(given, Tensor) else torch.as_tensor(list(given))
    except (TypeError, ValueError, RuntimeError) as error:
        raise MaskError(f"for {what}, {given!r} is not a list of indices, such as [0, 3]") from error
    if t.ndim != 1 or (t.numel() and (t.is_floating_point() or t.is_complex())):
        raise MaskError(
            f"for {what}, the given tensor has dtype {t.dtype} and shape {tuple(t.shape)}; "
            "give a list of indices to remove, or a bool vector, True = kept"
        )
    if t.dtype == torch.bool:
        if len(t) != n:
            raise MaskError(f"for {what}, the bool vector has {len(t)} entries; it must have {n}, True = kept")
        return ~t
    t = t.long()
    if len(outside := t[(t < 0) | (t >= n)]):
        raise MaskError(f"for {what}, there is no index {int(outside[0])}; indices go from 0 to {n - 1}")
    counts = torch.bincount(t, minlength=n)
    if bool((counts > 1).any()):
        raise MaskError(f"for {what}, index {int(counts.argmax())} is given {int(counts.max())} times; give it once")
    return counts > 0


def _units(target: Target, gone: Tensor, spec: Spec) -> Tensor:
    """The units that stand at removed positions, and nowhere else: bool [units]."""
    unit = unit_of(target.axis, target.group, spec.sizes)
    if bool((gone & (unit < 0)).any()):
        at = int((gone & (unit < 0)).nonzero()[0])
        raise MaskError(
            f"position {at} of {target.key!r} cannot be removed: it is frozen, not one of group {target.group!r}"
        )
    n = spec.sizes[target.group]
    hit = torch.zeros(n, dtype=torch.bool).index_fill(0, unit[gone], True)
    if torch.equal(hit[unit.clamp(min=0)] & (unit >= 0), gone):
        return hit
    left = hit[unit.clamp(min=0)] & (unit >= 0) & ~gone
    first = int(unit[left][0])
    stands = ", ".join(map(str, (unit == first).nonzero()[:, 0].tolist()))
    raise MaskError(
        f"unit {first} of group {target.group!r} stands at positions {stands} of {target.key!r}; give them all, or name "
        f"the unit: {{{target.group!r}: [{first}]}}"
    )
