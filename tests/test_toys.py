"""Every toy obeys every law, and has the groups that it should have."""

from __future__ import annotations

import pickle
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import prunefn as pf

from .toys import CASES


class Traced(NamedTuple):
    model: nn.Module
    spec: pf.Spec
    params: dict[str, Tensor]

    def run(self, name: str, batch: int, params: Any = None, spec: Any = None) -> Any:
        args, kwargs = CASES[name].inputs(batch)
        return pf.forward(self.params if params is None else params, *args, spec=self.spec if spec is None else spec, **kwargs)


@cache
def traced(name: str) -> Traced:
    model = CASES[name].model()
    args, kwargs = CASES[name].inputs()
    return Traced(model, pf.trace(model, args, kwargs), pf.params(model))


every_toy = pytest.mark.parametrize("name", CASES)


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def mask_of(spec: pf.Spec, seed: int | None, groups: list[str]) -> dict[str, Tensor]:
    """Every other unit, or by a seed a random half; at least one stays."""
    mask = {}
    for g in groups:
        n = spec.sizes[g]
        mask[g] = torch.arange(n) % 2 == 0
        if seed is not None:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + len(mask)))
            mask[g] = order < max(n // 2, 1)
    return mask


# ---- laws


@every_toy
@pytest.mark.parametrize("batch", [1, 3])
def test_forward_is_the_module_bit_for_bit(name: str, batch: int) -> None:
    t = traced(name)
    args, kwargs = CASES[name].inputs(batch)
    wanted, got = torch.func.functional_call(t.model, t.params, args, kwargs, tie_weights=False), t.run(name, batch)
    assert pytree.tree_structure(got) == pytree.tree_structure(wanted)
    for a, b in zip(tensors(got), tensors(wanted), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("name", [n for n in CASES])
@pytest.mark.parametrize("seed", [None, 0], ids=["half", "random"])
def test_apply_is_zero(name: str, seed: int | None) -> None:
    t = traced(name)
    groups = [g.name for g in t.spec.groups.values() if g.exact]
    if not groups:
        return
    mask = mask_of(t.spec, seed, groups)
    small, shrunk = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    got, wanted, dense = (tensors(t.run(name, 3, p, s)) for p, s in
                          ((small, shrunk), (pf.zero(t.params, mask, spec=t.spec), t.spec), (t.params, t.spec)))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert any(not torch.allclose(a, b) for a, b in zip(got, dense, strict=True)), "the mask changed nothing"


@every_toy
def test_pruned_shapes_and_costs(name: str) -> None:
    t = traced(name)
    mask = mask_of(t.spec, 1, list(t.spec.groups))
    small, shrunk = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    for n, p in small.items():
        assert tuple(p.shape) == shrunk.shape(n), n
    counter = FlopCounterMode(display=False)
    with counter:
        t.run(name, 1, small, shrunk)
    cost = t.spec.costs(shrunk.sizes)
    assert cost == shrunk.costs(shrunk.sizes)
    assert cost.macs * 2 == counter.get_total_flops(), counter.get_flop_counts()
    assert cost.params == sum(p.numel() for n, p in small.items() if n in t.spec.parameters and n not in t.spec.tied)


@every_toy
def test_keeping_all_is_the_identity(name: str) -> None:
    t = traced(name)
    everything = {g: torch.ones(n, dtype=torch.bool) for g, n in t.spec.sizes.items()}
    for mask in ({}, everything):
        same = pf.apply(t.params, mask, spec=t.spec)
        assert list(same) == list(t.params) and all(same[n] is p for n, p in t.params.items())
        assert pf.shrink(t.spec, mask) == t.spec
        assert all(torch.equal(z, t.params[n]) for n, z in pf.zero(t.params, mask, spec=t.spec).items())


@every_toy
def test_traces_are_equal_values(name: str) -> None:
    spec = traced(name).spec
    args, kwargs = CASES[name].inputs(1)  # another batch size, and one that export would take for broadcasting
    again = pf.trace(CASES[name].model(), args, kwargs)
    assert again == spec and hash(again) == hash(spec)
    loaded = pickle.loads(pickle.dumps(spec))
    assert loaded == spec and hash(loaded) == hash(spec)
