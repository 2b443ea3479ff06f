"""Another order of the units of every group, in all tensors at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

import prunefn as pf
from prunefn.frozen_dict import FrozenDict
from prunefn.spec.axis import Axis, leaves, reorder


def random_orders(spec: pf.Spec, seed: int) -> dict[str, Tensor]:
    """Group → a permutation of its units that is not the identity."""
    generator = torch.Generator().manual_seed(seed)
    orders = {g: torch.randperm(n, generator=generator) for g, n in spec.sizes.items()}
    return {g: o.flip(0) if bool((o == torch.arange(len(o))).all()) else o for g, o in orders.items()}


def permuted(params: pf.Params, spec: pf.Spec, seed: int) -> tuple[pf.Params, pf.Spec]:
    """Params and spec with the units of every group in a random order: they compute the same function.

    The constants of the program that carry a group are reordered in the spec.
    """
    orders = random_orders(spec, seed)
    constants = {n: _reordered(t, spec.constants.axes[n], orders, spec) for n, t in spec.constants.tensors.items()}
    other = replace(spec, constants=replace(spec.constants, tensors=FrozenDict(constants)))
    return {n: _reordered(t, spec.axes[n], orders, spec) for n, t in params.items()}, other


def _reordered(t: Tensor, axes: tuple[Axis, ...], orders: Mapping[str, Tensor], spec: pf.Spec) -> Tensor:
    for d, axis in enumerate(axes):
        if any(leaf in orders for leaf in leaves(axis)):
            t = t.index_select(d, reorder(axis, orders, spec.sizes))
    return t
