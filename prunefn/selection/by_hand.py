"""Masks by hand: list the units to remove, by group, module or tensor."""

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
    """Meaning of a key of `mask`: a group, and the axis whose positions the indices count."""

    key: str
    group: str
    axis: Axis


@door
def mask(spec: Spec, removed: Mapping[str | Group, Iterable[int] | Tensor]) -> Mask:
    """Return a mask that removes the given units.

    Args:
        spec: of the network to prune.
        removed: key → indices to remove, or a bool tensor, True = **kept**. If the key is a group (`spec.groups[…]`, or its
            name), indices count its units. Otherwise the key names a tensor, or a module with a `weight`, and indices count
            rows, the positions of dim 0. The rows must belong to a single group; if a unit has several rows, list all of them.
            A layer and the group of its outputs may have the same name, even if its weight is [in, out]: it means the group.

    Returns:
        Group → bool [units], for the groups of the keys. Keys of the same group are combined: each removes its units.

    Raises:
        MaskError: a key is unknown; its rows are frozen or belong to several groups; a name means both a group and rows of
            another; an index is out of range, negative or listed twice; or no unit would be left.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    >>> spec = pf.trace(model, (torch.randn(2, 3, 8, 8),))
    >>> mask(spec, {"0": [0, 3]})
    {'0': tensor([False,  True,  True, False])}
    >>> mask(spec, {"1.bias": torch.tensor([True, True, False, True])})
    {'0': tensor([ True,  True, False,  True])}
    """
    out: Mask = {}
    for key, choice in removed.items():
        target = _target(key, spec, choice)
        positions = _removed_positions(target, choice, size(target.axis, spec.sizes))
        kept = ~_removed_units(target, positions, spec)
        out[target.group] = out[target.group] & kept if target.group in out else kept
    check_mask(out, spec)
    return out


def _target(key: str | Group, spec: Spec, choice: object) -> Target:
    """Return the meaning of a key; `choice`, its indices or mask, decides where a name means two things.

    Raises:
        MaskError: the key is unknown or ambiguous, or its rows are frozen.
    """
    name = key.name if isinstance(key, Group) else key
    tensor = next((t for t in (name, f"{name}.weight") if t in spec.axes), None)
    if name in spec.groups:
        if tensor is not None and not isinstance(key, Group) and not _is_unit_mask(choice, name, tensor, spec):
            _check_agrees(name, tensor, spec)
        return Target(name, name, Leaf(name))
    if tensor is None:
        names = [*spec.groups, *spec.axes, *(t.removesuffix(".weight") for t in spec.axes)]
        raise MaskError(f"no group, tensor or module with a weight is called {name!r}{nearest(name, names)}")
    axis = spec.axes[tensor][0] if spec.axes[tensor] else Fixed(1)
    groups = _groups_of(axis, spec)
    if not groups:
        raise MaskError(f"nothing can be removed from {_rows_text(tensor, spec)}{_advice(tensor, spec)}")
    if len(groups) != 1:
        raise MaskError(f"{_rows_text(tensor, spec)} belong to {len(groups)} groups; {_choose(groups)}")
    if tensor != name and _role(tensor, 0, spec) == "in":
        outputs = [g for d, a in enumerate(spec.axes[tensor]) if d for g in _groups_of(a, spec)]
        also = f"; its outputs are {_choose(outputs)}" if outputs else ""
        raise MaskError(
            f"{name!r} may mean the outputs of the layer, but {_rows_text(tensor, spec)} are its inputs: for these give "
            f"{tensor!r}, or group {groups[0]!r}{also}"
        )
    return Target(name, groups[0], axis)


def _is_unit_mask(choice: object, group: str, tensor: str, spec: Spec) -> bool:
    """Return whether a choice is a bool vector with the length of the group's units, but not of the tensor's rows."""
    n = spec.sizes[group]
    if not isinstance(choice, Tensor) or choice.dtype != torch.bool:
        return False
    return choice.shape == (n,) and spec.shape(tensor)[:1] != (n,)


def _check_agrees(name: str, tensor: str, spec: Spec) -> None:
    """Check that a tensor or module with the name of a group has the group's units as rows, or as the outputs of a layer.

    Raises:
        MaskError: the rows are not the group's units, but a vocabulary, for example.
    """
    axes = spec.axes[tensor]
    rows = bool(axes) and axes[0] == Leaf(name)
    if not rows and not any(name in leaves(a) and _role(tensor, d, spec) == "out" for d, a in enumerate(axes)):
        raise MaskError(
            f"{name!r} means two things: a group of {spec.sizes[name]} units, and {_rows_text(tensor, spec)}, which are not these "
            f"units; for the units, give the group itself as the key: spec.groups[{name!r}]{_advice(tensor, spec)}"
        )


def _rows_text(tensor: str, spec: Spec) -> str:
    return f"the rows (dim 0) of {tensor!r} = {spec.einops(tensor) or '()'}"


def _advice(tensor: str, spec: Spec) -> str:
    """Return a text that says why the rows are frozen, and along which dims the tensor has units."""
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


def _removed_positions(target: Target, choice: Iterable[int] | Tensor, n: int) -> Tensor:
    """Return the removed positions of the target's axis, True = removed: bool [n].

    Raises:
        MaskError: the choice is no list of indices and no mask of n positions.
    """
    what = f"{target.key!r}" if target.key == target.group else f"{target.key!r} (group {target.group!r})"
    try:
        t = choice.detach().cpu() if isinstance(choice, Tensor) else torch.as_tensor(list(choice))
    except (TypeError, ValueError, RuntimeError) as error:
        raise MaskError(f"for {what}, {choice!r} is not a list of indices, such as [0, 3]") from error
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


def _removed_units(target: Target, removed: Tensor, spec: Spec) -> Tensor:
    """Return the units whose positions are removed, True = removed: bool [units].

    Raises:
        MaskError: a removed position is frozen, or a unit has other positions that are not removed.
    """
    unit = unit_of(target.axis, target.group, spec.sizes)  # unit at each position; −1: frozen
    if bool((removed & (unit < 0)).any()):
        frozen = int((removed & (unit < 0)).nonzero()[0])
        raise MaskError(
            f"position {frozen} of {target.key!r} cannot be removed: it is frozen, not one of group {target.group!r}"
        )
    n = spec.sizes[target.group]
    units = torch.zeros(n, dtype=torch.bool).index_fill(0, unit[removed], True)
    if torch.equal(units[unit.clamp(min=0)] & (unit >= 0), removed):
        return units
    missing = units[unit.clamp(min=0)] & (unit >= 0) & ~removed
    first = int(unit[missing][0])
    all_positions = ", ".join(map(str, (unit == first).nonzero()[:, 0].tolist()))
    raise MaskError(
        f"unit {first} of group {target.group!r} stands at positions {all_positions} of {target.key!r}; give them all, or name "
        f"the unit: {{{target.group!r}: [{first}]}}"
    )
