"""Positions of interfaces: units that must stay, and ids and labels in the positions of a smaller network."""

from __future__ import annotations

import torch
from torch import Tensor

from ..doors import door
from ..errors import MaskError, nearest
from ..spec.interface import Interface
from ..spec.spec import Spec
from ..types import Mask


def check_named_units(group: str, mask: Tensor, interface: Interface) -> None:
    """Check that a mask keeps the units of an interface that the model or its config names.

    Raises:
        MaskError: it removes one; says what names it.
    """
    for n, text in interface.names().items():
        if not bool(mask[n]):
            raise MaskError(
                f"the mask removes unit {n} of group {group!r}, which {text} names; keep it, or change what names it and trace again"
            )


@door
def remap(ids: Tensor, mask: Mask, *, spec: Spec, group: str | None = None, unknown: int | None = None) -> Tensor:
    """Return ids of tokens, or labels of classes, in the positions of the network after a mask.

    Negative numbers, such as the −100 of labels that a loss ignores, stay as they are.

    Args:
        ids: integers of any shape, positions of the group in `spec`.
        mask: group → bool [units]; `compose` the masks of several rounds.
        spec: the spec before the mask.
        group: whose positions they are; default: the only vocabulary of the spec, or else its only interface.
        unknown: what removed ids become: an id in the positions of `spec` that stays, such as `tokenizer.unk_token_id`, or a
            negative number, such as −100 for labels. None: a removed id is an error.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        MaskError: an id was removed (and there is no `unknown`) or is out of range; names it. `unknown` was removed, too. The mask
            or the group does not fit the spec.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6))
    >>> spec = pf.trace(model, (torch.zeros(1, 3, dtype=torch.long),), free="vocabulary")
    >>> mask = pf.mask(spec, {"0.weight": [1, 4]})
    >>> remap(torch.tensor([[0, 2, 3, 5]]), mask, spec=spec)
    tensor([[0, 1, 2, 3]])
    >>> remap(torch.tensor([[1, 5]]), mask, spec=spec, unknown=0)
    tensor([[0, 3]])
    """
    name = _group_of(spec, group)
    n = spec.sizes[name]
    keep = mask[name].cpu() if name in mask else torch.ones(n, dtype=torch.bool)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise MaskError(f"ids have dtype {ids.dtype}; they must be integers")
    if keep.dtype != torch.bool or tuple(keep.shape) != (n,):
        raise MaskError(
            f"the mask of group {name!r} must be bool and have shape ({n},), not {keep.dtype} {tuple(keep.shape)}"
        )
    new = torch.where(keep, torch.cumsum(keep, 0) - 1, _replacement(keep, unknown, name))
    flat = ids.detach().cpu().long()
    if bool((flat >= n).any()):
        raise MaskError(f"id {int(flat.max())} is out of range of ids: group {name!r} has {n} units")
    if unknown is None and bool((lost := (flat >= 0) & ~keep[flat.clamp(min=0)]).any()):
        raise MaskError(
            f"id {int(flat[lost][0])} of group {name!r} was removed by the mask; give unknown=, an id that stays, or a negative number"
        )
    return torch.where(flat < 0, flat, new[flat.clamp(min=0)]).to(ids.device, ids.dtype)


def _replacement(keep: Tensor, unknown: int | None, group: str) -> int:
    """Return the new position of `unknown`."""
    if unknown is None or unknown < 0:
        return -1 if unknown is None else unknown
    if unknown >= len(keep) or not bool(keep[unknown]):
        why = "was removed, too" if unknown < len(keep) else f"is out of range: group {group!r} has {len(keep)} units"
        raise MaskError(f"unknown={unknown} {why}; give an id that stays")
    return int(keep[:unknown].sum())


def _group_of(spec: Spec, group: str | None) -> str:
    """Return the group whose positions are meant.

    Raises:
        MaskError: the spec has no such group, or no or several interfaces.
    """
    interfaces = spec.program.interfaces
    if group is not None:
        if group not in spec.groups:
            raise MaskError(f"the spec has no group {group!r}{nearest(group, spec.groups)}")
        return group
    vocabularies = [g for g, i in interfaces.items() if i.kind == "vocabulary"]
    found = vocabularies or [*interfaces]
    if len(found) != 1:
        what = (
            f"several interfaces ({', '.join(map(repr, found))}): give group="
            if found
            else "no interface: trace(…, free=)"
        )
        raise MaskError(f"group is not given, and the spec has {what}")
    return found[0]
