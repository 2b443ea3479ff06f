"""What else changes with the sizes of interfaces: the units that are left, and the example inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..frozen_dict import FrozenDict
from .axis import leaves, size
from .example import Example, Like, packed, unpacked
from .program import Input, Program


def narrowed(
    program: Program, example: Example, mask: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> tuple[Program, Example]:
    """Return the program and the example of the network after a mask, whose groups then have these sizes.

    Integers of the example that are positions of a removed unit become those of other units.
    """
    lost = [g for g in program.interfaces if g in mask and not bool(mask[g].all())]
    if not lost:
        return program, example
    interfaces = {g: i.after(mask[g]) if g in lost else i for g, i in program.interfaces.items()}
    group_of = {name: g for g in lost for name in interfaces[g].inputs}
    inputs = iter(program.inputs)
    narrow = (
        _narrow(x, next(inputs, None), mask, sizes, group_of) if isinstance(x, Like) else x for x in example.leaves
    )
    return program._replace(interfaces=FrozenDict(interfaces)), example._replace(leaves=tuple(narrow))


def _narrow(
    like: Like, known: Input | None, mask: Mapping[str, Tensor], sizes: Mapping[str, int], group_of: Mapping[str, str]
) -> Like:
    """Return the description of an input with fewer channels, or whose integers are positions of fewer units."""
    if known is None:
        return like
    groups = [set(leaves(a)) for a in known.axes]
    shape = tuple(
        size(a, sizes) if g and g <= sizes.keys() else n for a, g, n in zip(known.axes, groups, like.shape, strict=True)
    )
    like = like._replace(shape=shape)
    if (group := group_of.get(known.name)) is None:
        return like
    n = sizes[group]
    low, high = min(like.low, n - 1.0), min(like.high, n - 1.0)
    if like.packed is None:
        return like._replace(low=low, high=high)
    ids, new = unpacked(like.packed, like.dtype), torch.cumsum(mask[group].cpu(), 0) - 1
    renumbered = torch.where(mask[group].cpu()[ids.long().clamp(min=0)], new[ids.long().clamp(min=0)], ids % n)
    return like._replace(low=low, high=high, packed=packed(torch.where(ids < 0, ids, renumbered.to(ids.dtype))))
