"""Costs at sizes that need not be whole: the exact cost at whole sizes, and gradients by which sizes can be trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import prunefn as pf
from prunefn.costs.timing.table import Grid, LatencyTable, Op
from prunefn.frozen_dict import FrozenDict
from prunefn.spec.axis import Concat, Fixed, Leaf, Product

from .small import Attention, Residual, Twice, cnn, mlp, randn, traced
from .toys import CASES
from .zoo import random_mask

COSTS = ("macs", "params", "activations")


def counts(mask: pf.Mask) -> dict[str, Tensor]:
    return {g: m.sum() for g, m in mask.items()}


@pytest.mark.parametrize("name", CASES)
def test_at_whole_sizes_it_is_the_cost(name: str) -> None:
    args, kwargs = CASES[name].inputs()
    spec = pf.trace(CASES[name].model(), args, kwargs)
    for seed in (0, 1):
        mask = random_mask(spec, seed)
        exact, soft = pf.cost(spec, mask), pf.soft_cost(spec, counts(mask))
        assert [float(c) for c in soft] == [float(c) for c in exact]
        assert all(c.dtype == torch.float64 and c.ndim == 0 for c in soft)


NETS = {
    "cnn": (cnn, (2, 3, 6, 6)),
    "attention": (lambda: Attention(6, 2, 3), (2, 5, 6)),
    "residual": (lambda: Residual(3, 4, 5, 2), (2, 3)),
    "concatenated": (Twice, (2, 4)),
}


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_differences(name: str) -> None:
    make, shape = NETS[name]
    spec = traced(make(), randn(*shape)).spec
    groups = [g for g, n in spec.sizes.items() if n > 1]
    start = torch.tensor([0.6 * spec.sizes[g] for g in groups], dtype=torch.float64, requires_grad=True)

    def cost(quantity: str, units: Tensor) -> Tensor:
        return getattr(pf.soft_cost(spec, dict(zip(groups, units, strict=True))), quantity)

    for quantity in COSTS:
        assert torch.autograd.gradcheck(lambda units, q=quantity: cost(q, units), start, atol=1e-4, rtol=1e-6)


def test_it_is_the_expected_cost_of_independent_gates() -> None:
    """Layers of an MLP multiply the sizes of different groups, so the mean over draws is the cost at the mean sizes."""
    spec = traced(mlp(3, 4, 3, 2), randn(2, 3)).spec
    generator = torch.Generator().manual_seed(0)
    probabilities = {g: torch.rand(n, generator=generator).double() for g, n in spec.sizes.items()}
    soft = pf.soft_cost(spec, {g: p.sum() for g, p in probabilities.items()})
    total = torch.zeros(3, dtype=torch.float64)
    for pattern in range(2**7):  # every outcome of the seven gates, by its probability
        bits = [pattern >> i & 1 for i in range(7)]
        outcome = dict(zip(spec.sizes, torch.tensor(bits).split(list(spec.sizes.values())), strict=True))
        weight = torch.cat([torch.where(outcome[g] == 1, p, 1 - p) for g, p in probabilities.items()]).prod()
        total += weight * torch.stack(list(pf.soft_cost(spec, {g: o.sum() for g, o in outcome.items()})))
    assert torch.allclose(total, torch.stack(list(soft)), rtol=1e-12)


def test_sizes_of_the_inputs() -> None:
    spec = traced(mlp(3, 4, 2), randn(2, 5, 3)).spec
    half = {"0": torch.tensor(2.0)}
    assert float(pf.soft_cost(spec, half, sizes={"length": 7}).macs) == 7 * 2 * (3 + 2)


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ({"1": torch.tensor(1.0)}, "the spec has no group '1'"),
        ({"0": torch.ones(4)}, r"units\['0'\] is a float32 tensor of shape \(4,\); it must be the number of units"),
        ({"0": torch.tensor(True)}, r"units\['0'\] is a bool tensor"),
    ],
)
def test_what_is_no_number_of_units(units: dict[str, Tensor], words: str) -> None:
    with pytest.raises(pf.MaskError, match=words):
        pf.soft_cost(traced(mlp(3, 4, 2), randn(2, 3)).spec, units)


# ---- latency


def latency_table() -> LatencyTable:
    """Seconds of an op on two axes, which has a grid of even sizes, and of one on a concatenation, which has none."""
    spec = traced(mlp(3, 64, 48, 2), randn(2, 3)).spec
    a, b = Leaf("0"), Leaf("2")
    odd = Grid(((1, 31, 63, 64), (1, 23, 47, 48)), tuple(float(3 + i * i) for i in range(16)))
    even = Grid(((16, 32, 64), (16, 32, 48)), (1.0, 2.0, 2.5, 3.0, 4.5, 4.75, 6.0, 7.0, 9.0))
    joint = Grid(((2, 20, 112),), (0.5, 0.75, 2.0))
    ops = (Op("", "", "", (a, b), odd, even), Op("", "", "", (Concat((a, Product((Fixed(1), b)))),), joint))
    return LatencyTable(spec, "", "", 1, "", 1, 16, FrozenDict({"0": 64, "2": 48}), ops, ops)


def test_latency_at_sizes_that_suit_the_kernels_and_between_them() -> None:
    table = latency_table()
    for n in (16, 32, 48, 64):
        for m in (16, 32, 48):
            soft = pf.soft_latency(table, {"0": torch.tensor(n), "2": torch.tensor(m)})
            assert float(soft) == pytest.approx(table.predict({"0": n, "2": m}), rel=1e-12)
    assert float(pf.soft_latency(table, {})) == pf.latency(table)
    middle = [float(pf.soft_latency(table, {"0": torch.tensor(n)})) for n in (32.0, 40.0, 48.0)]
    assert middle[1] == pytest.approx((middle[0] + middle[2]) / 2)  # linear, and continuous at any size
    near = [float(pf.soft_latency(table, {"0": torch.tensor(32.0 + d, dtype=torch.float64)})) for d in (-1e-9, 0, 1e-9)]
    assert max(near) - min(near) < 1e-8


def test_gradients_of_latency() -> None:
    table = latency_table()
    at = torch.tensor([40.5, 20.25], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: pf.soft_latency(table, {"0": u[0], "2": u[1]}), at)
    # at a point of the grid, it is the slope towards larger sizes
    at = torch.tensor([32.0, 32.0], dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(pf.soft_latency(table, {"0": at[0], "2": at[1]}), at)[0][0]
    low, high = (float(pf.soft_latency(table, {"0": torch.tensor(n), "2": torch.tensor(32.0)})) for n in (32.0, 33.0))
    assert float(slope) == pytest.approx(high - low)


def test_budgets_have_soft_costs_where_they_can() -> None:
    spec, table = traced(mlp(3, 64, 48, 2), randn(2, 3)).spec, latency_table()
    sizes = {**spec.sizes, "0": 32}
    for b in (pf.budget.macs(0.5), pf.budget.params(0.5), pf.budget.activations(0.5), pf.budget.latency(0.5, table)):
        assert b.soft is not None
        assert float(b.soft(sizes, spec)) == pytest.approx(float(b.cost(sizes, spec)))

    class Plain:
        def predict(self, sizes: object) -> float:
            return 1.0

    assert pf.budget.latency(0.5, Plain()).soft is None
    assert pf.budget.custom(0.5, lambda sizes, spec: 1.0).soft is None
