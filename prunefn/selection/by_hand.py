"""Masks by hand: name what goes, by group, module or tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..doors import door
from ..errors import MaskError, nearest
from ..parameters.transforms import check_mask
from ..spec.axis import Axis, Fixed, Leaf, leaves, size, unit_of
from ..spec.parts import Group
from ..spec.spec import Spec
from ..types import Mask


class Target(NamedTuple):
    """What a key of `mask` stands for: a group, and the axis whose positions are counted."""

    key: str
    group: str
    axis: Axis


@door
def mask(spec: Spec, removed: Mapping[str | Group, Iterable[int] | Tensor]) -> Mask:
    """A mask that removes the given units.

    Args:
        spec: of what is to be pruned.
        removed: by key, indices of what goes; or a bool tensor, True = **kept**. A key is a group (`spec.groups[…]`, or its
            name), and units are counted; or else the name of a tensor, or of a module with a `weight`, and rows are counted, the
            positions of dim 0. The rows must belong to a single group; where a unit stands at several, give them all.
            A layer and the group of its outputs may have one name, also where its weight is [in, out]: that means the group.

    Returns:
        Group → bool [units], for the groups that are named. Keys that mean the same group add up.

    Raises:
        MaskError: there is no such key, its rows are frozen or belong to several groups, a name means a group and rows of
            something else, an index is out of range, negative or given twice, or no unit would be left.

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
        target = _target(key, spec, given)
        gone = _positions(target, given, size(target.axis, spec.sizes))
        left = ~_units(target, gone, spec)
        out[target.group] = out[target.group] & left if target.group in out else left
    check_mask(out, spec)
    return out


def _target(key: str | Group, spec: Spec, given: object) -> Target:
    """The group of a key."""
    name = key.name if isinstance(key, Group) else key
    tensor = next((t for t in (name, f"{name}.weight") if t in spec.axes), None)
    if name in spec.groups:
        if tensor is not None and not isinstance(key, Group) and not _is_mask(given, name, tensor, spec):
            _check_agrees(name, tensor, spec)
        return Target(name, name, Leaf(name))
    if tensor is None:
        known = [*spec.groups, *spec.axes, *(t.removesuffix(".weight") for t in spec.axes)]
        raise MaskError(f"no group, tensor or module with a weight is called {name!r}{nearest(name, known)}")
    axis = spec.axes[tensor][0] if spec.axes[tensor] else Fixed(1)
    inside = _groups_of(axis, spec)
    if not inside:
        raise MaskError(f"nothing can be removed from {_rows(tensor, spec)}{_instead(tensor, spec)}")
    if len(inside) != 1:
        raise MaskError(f"{_rows(tensor, spec)} belong to {len(inside)} groups; {_choose(inside)}")
    if tensor != name and _role(tensor, 0, spec) == "in":
        outputs = [g for d, a in enumerate(spec.axes[tensor]) if d for g in _groups_of(a, spec)]
        also = f"; its outputs are {_choose(outputs)}" if outputs else ""
        raise MaskError(
            f"{name!r} may mean the outputs of the layer, but {_rows(tensor, spec)} are its inputs: for these give "
            f"{tensor!r}, or group {inside[0]!r}{also}"
        )
    return Target(name, inside[0], axis)


def _is_mask(given: object, group: str, tensor: str, spec: Spec) -> bool:
    """A bool vector that has the length of the group's units, and not that of the tensor's rows."""
    n = spec.sizes[group]
    if not isinstance(given, Tensor) or given.dtype != torch.bool:
        return False
    return given.shape == (n,) and spec.shape(tensor)[:1] != (n,)


def _check_agrees(name: str, tensor: str, spec: Spec) -> None:
    """What has the name of a group has its units as rows, or as the outputs of a layer.

    Raises:
        MaskError: the rows are something else, such as a vocabulary.
    """
    axes = spec.axes[tensor]
    rows = bool(axes) and axes[0] == Leaf(name)
    if not rows and not any(name in leaves(a) and _role(tensor, d, spec) == "out" for d, a in enumerate(axes)):
        raise MaskError(
            f"{name!r} means two things: a group of {spec.sizes[name]} units, and {_rows(tensor, spec)}, which are not these "
            f"units; for the units, give the group itself as the key: spec.groups[{name!r}]{_instead(tensor, spec)}"
        )


def _rows(tensor: str, spec: Spec) -> str:
    return f"the rows (dim 0) of {tensor!r} = {spec.einops(tensor) or '()'}"


def _instead(tensor: str, spec: Spec) -> str:
    """Why the rows are frozen, and where units of this tensor are."""
    why = "; ".join(spec.frozen.get((tensor, 0), ()))
    frozen = f"; they are frozen: {why}" if why else ""
    others = [(d, g) for d, a in enumerate(spec.axes[tensor]) if d for g in _groups_of(a, spec)]
    write = "".join(f"; for units along dim {d}, write {{{g!r}: […]}}" for d, g in others)
    return f"{frozen}{write}; see spec.explain({tensor!r})"


def _groups_of(axis: Axis, spec: Spec) -> list[str]:
    return [leaf for leaf in dict.fromkeys(leaves(axis)) if leaf in spec.groups]


def _role(tensor: str, dim: int, spec: Spec) -> str:
    roles = [m.role for g in spec.groups.values() for m in g.members if (m.tensor, m.dim) == (tensor, dim)]
    return roles[0] if roles else "along"


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
