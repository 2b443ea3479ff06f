"""Every toy obeys every law, and has the groups that it should have."""

from __future__ import annotations

import linecache
import pickle
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import prunefn as pf
from prunefn.trace.rules import Axes, Call

from .toys import CASES
from .toys.golden import AXES, GROUPS

every_toy = pytest.mark.parametrize("name", CASES)


class Traced(NamedTuple):
    model: nn.Module
    spec: pf.Spec
    params: pf.Params
    before: Any
    """State of the model before it was traced."""

    def run(self, name: str, batch: int, params: pf.Params | None = None, spec: pf.Spec | None = None) -> Any:
        args, kwargs = CASES[name].inputs(batch)
        return pf.forward(params or self.params, *args, spec=spec or self.spec, **kwargs)


@cache
def traced(name: str) -> Traced:
    model = CASES[name].model()
    disturb(model)
    before = state_of(model)
    args, kwargs = CASES[name].inputs()
    spec = pf.trace(model, args, kwargs)
    return Traced(model, spec, pf.params(model), before)


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def mask_of(spec: pf.Spec, seed: int | None, groups: list[str]) -> pf.Mask:
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
    # the module on detached tensors: where they require gradients, torch may fold a matmul in another way
    wanted = torch.func.functional_call(t.model.eval(), t.params, args, kwargs, tie_weights=False)
    got = t.run(name, batch)
    assert pytree.tree_structure(got) == pytree.tree_structure(wanted)
    for a, b in zip(tensors(got), tensors(wanted), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


ZERO_DIVIDES = {"weight_norm": "b"}
"""Toy → a group that cannot be set to zero, only removed: torch divides each row by its norm."""


@every_toy
@pytest.mark.parametrize("seed", [None, 0], ids=["half", "random"])
def test_removing_is_zeroing_where_nothing_mixes(name: str, seed: int | None) -> None:
    t = traced(name)
    groups = [g.name for g in t.spec.groups.values() if g.exact and g.name != ZERO_DIVIDES.get(name)]
    mask = mask_of(t.spec, seed, groups)
    small, shrunk = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    zeroed = pf.zero(t.params, mask, spec=t.spec)
    got, wanted, dense = (tensors(t.run(name, 3, p, s)) for p, s in ((small, shrunk), (zeroed, t.spec), (t.params, t.spec)))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    changed = any(not torch.allclose(a, b) for a, b in zip(got, dense, strict=True))
    assert changed == bool(groups), "a mask changes the output, and only a mask"


UNCOUNTED: dict[str, Callable[[pf.Spec], int]] = {
    "vectors": lambda spec: 5 * prod(spec.shape("score")),
    "bilinear": lambda spec: prod(spec.shape("both.weight")),
    "lstm": lambda spec: -5 * (prod(spec.shape("lstm.weight_ih_l0")) + prod(spec.shape("lstm.weight_hh_l0"))),
}
"""MACs that torch's counter leaves out: matrix times vector, and nn.Bilinear. The LSTM has no rule, so that we leave it out."""


@every_toy
def test_pruned_shapes_and_costs(name: str) -> None:
    t = traced(name)
    mask = mask_of(t.spec, 1, list(t.spec.groups))
    small, shrunk = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    assert {n: tuple(p.shape) for n, p in small.items()} == {n: shrunk.shape(n) for n in small}
    with FlopCounterMode(display=False) as counter:
        t.run(name, 1, small, shrunk)
    cost = t.spec.costs(shrunk.sizes)
    assert cost == shrunk.costs(shrunk.sizes)
    assert 2 * (cost.macs - UNCOUNTED.get(name, lambda spec: 0)(shrunk)) == counter.get_total_flops()
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
    args, kwargs = CASES[name].inputs(1)  # of another batch size, which export would take for broadcasting
    again = pf.trace(CASES[name].model(), args, kwargs)
    assert again == spec and hash(again) == hash(spec)
    loaded = pickle.loads(pickle.dumps(spec))
    assert loaded == spec and hash(loaded) == hash(spec)
    assert str(loaded) == str(spec)


def test_specs_of_different_toys_differ() -> None:
    assert traced("concat").spec != traced("cat_twice").spec
    mask = mask_of(traced("concat").spec, 0, ["a"])
    assert pf.shrink(traced("concat").spec, mask) != traced("concat").spec


@pytest.mark.parametrize("name", ["residual", "attention", "gqa_native", "rotary", "tied", "windows", "conv_transpose_grouped"])
def test_a_model_without_values_gives_the_same_spec(name: str) -> None:
    args, kwargs = CASES[name].inputs()
    meta = pf.trace(CASES[name].model().to("meta"), args, kwargs)
    spec = traced(name).spec
    assert (meta.groups, meta.axes, meta.costs, meta.sites) == (spec.groups, spec.axes, spec.costs, spec.sites)
    assert meta.program.instructions == spec.program.instructions


# ---- tracing leaves the model alone


def disturb(model: nn.Module) -> None:
    """Training flags that differ, gradients, hooks, parameters that do not train: all of it must be there afterwards."""
    for i, module in enumerate(model.modules()):
        module.train(i % 2 == 1)
        module.register_forward_hook(nothing)
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 3 != 1)
        p.grad = torch.full_like(p, float(i)) if i % 2 else None


def nothing(module: nn.Module, args: Any, out: Any) -> None:
    """A hook that changes nothing."""


def state_of(model: nn.Module) -> Any:
    """All that a trace could change, values included."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    values = [(n, id(t), t._version, t.requires_grad, t.detach().clone(), t.grad if t.grad is None else t.grad.clone()) for n, t in named]
    modules = [(m.training, list(m._forward_hooks.values()), sorted(m.__dict__), sorted(m._buffers)) for m in model.modules()]
    return values, modules, torch.is_grad_enabled()


@every_toy
def test_the_model_comes_back_as_it_was(name: str) -> None:
    model, before = CASES[name].model(), traced(name).before
    after = state_of(traced(name).model)
    assert len(before[1]) == len(list(model.modules()))
    for (n, *old, value, grad), (m, *new, value2, grad2) in zip(before[0], after[0], strict=True):
        assert n == m and old == new and torch.equal(value, value2)
        assert grad is grad2 is None or torch.equal(grad, grad2)
    assert before[1:] == after[1:]
