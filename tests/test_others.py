"""The laws over small networks of other kinds: diffusion, graphs, scans, speech, flows, operators and more."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import prunefn as pf

from .orders import permuted
from .others import CASES
from .small import Traced, same, traced
from .zoo import random_mask

each = pytest.mark.parametrize("name", CASES)

DIVIDES = {"temporal": "a"}
"""Architecture → a group that cannot be set to zero, only removed: weight_norm divides each row by its norm."""


def spectral(spec: pf.Spec) -> int:
    """A matrix times a vector and a dot product, for each singular value."""
    shapes = [spec.shape(f"{layer}.parametrizations.weight.original") for layer in "ac"]
    return sum(prod(shape) + shape[0] for shape in shapes)


UNCOUNTED: dict[str, Callable[[pf.Spec], int]] = {"critic": spectral}
"""MACs that torch's counter leaves out: matrix times vector."""


@cache
def case(name: str) -> Traced:
    model = CASES[name].model().requires_grad_(False)
    return traced(model, *CASES[name].inputs()[0])


def run(name: str, params: pf.Params, spec: pf.Spec, batch: int = 3) -> list[Tensor]:
    return leaves(pf.forward(params, *CASES[name].inputs(batch)[0], spec=spec))


def leaves(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def agree(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert bool(b.abs().max() > 1e-6), "the output is trivial"
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@each
def test_forward_is_the_module_and_changes_nothing(name: str) -> None:
    t = case(name)
    before, rng = {n: p.clone() for n, p in t.params.items()}, torch.get_rng_state()
    for batch in (1, 3):
        agree(run(name, t.params, t.spec, batch), leaves(t.model(*CASES[name].inputs(batch)[0])))
    same(dict(t.params), before)
    same(dict(pf.params(t.model)), before)
    assert torch.equal(rng, torch.get_rng_state())
    assert t.spec.capture == "exported" and t.spec.groups and not t.spec.unknown


@each
def test_removing_is_zeroing(name: str) -> None:
    t = case(name)
    mask = random_mask(
        t.spec, 4, groups=[g.name for g in t.spec.groups.values() if g.exact and g.name != DIVIDES.get(name)]
    )
    small, shrunk = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    for batch in (1, 3):
        agree(run(name, small, shrunk, batch), run(name, pf.zero(t.params, mask, spec=t.spec), t.spec, batch))


@each
def test_the_order_of_the_units_does_not_matter(name: str) -> None:
    t = case(name)
    agree(run(name, *permuted(t.params, t.spec, 12)), run(name, t.params, t.spec))


@each
def test_two_rounds_are_one(name: str) -> None:
    t = case(name)
    first = random_mask(t.spec, 5, 0.7)
    smaller = pf.shrink(t.spec, first)
    second = random_mask(smaller, 6, 0.6)
    both = pf.compose(first, second)
    twice = pf.apply(pf.apply(t.params, first, spec=t.spec), second, spec=smaller)
    same(dict(twice), dict(pf.apply(t.params, both, spec=t.spec)))
    assert pf.shrink(smaller, second) == pf.shrink(t.spec, both)


@each
def test_cost_is_what_a_counter_counts(name: str) -> None:
    t = case(name)
    mask = random_mask(t.spec, 7, 0.4)
    small, shrunk = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    # of a fused attention, the counter sees nothing on some versions of torch
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(name, small, shrunk, 1)
    cost = pf.cost(t.spec, mask)
    assert cost == pf.cost(shrunk)
    assert 2 * (cost.macs - UNCOUNTED.get(name, lambda spec: 0)(shrunk)) == counter.get_total_flops()
    assert cost.params == sum(p.numel() for n, p in small.items() if n in t.spec.parameters)


@each
def test_modules_give_what_forward_gives(name: str) -> None:
    t = case(name)
    mask = random_mask(t.spec, 8)
    small, shrunk = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    args = CASES[name].inputs(3)[0]
    agree(leaves(pf.to_module(small, spec=shrunk)(*args)), run(name, small, shrunk))
    agree(leaves(pf.to_module(small, spec=shrunk, model=t.model)(*args)), run(name, small, shrunk))
