"""Uniform sizes: one count for corresponding groups, the best of each, and budgets met from below."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunefn as pf
from prunefn.types import Scores

from .small import laws, randn

some = settings(laws, max_examples=12)
seeds = st.integers(0, 999)


class Block(nn.Module):
    """x + MLP(x) with a gate; the first block of a stack has a table besides."""

    def __init__(self, width: int, hidden: int, *, table: bool = False) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.table = nn.Parameter(torch.randn(hidden)) if table else None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.gate(x)) * self.up(x)
        return x + self.down(h if self.table is None else h + self.table)


class Stack(nn.Module):
    """A stem, four blocks, the last of which is of another size, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 16)
        self.blocks = nn.ModuleList([Block(16, n, table=not i) for i, n in enumerate((40, 40, 40, 24))])
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@lru_cache
def spec() -> pf.Spec:
    torch.manual_seed(0)
    return pf.trace(Stack().double().eval(), (randn(2, 5),))


ALIKE, OTHER = [f"blocks.{i}.gate" for i in range(3)], "blocks.3.gate"


def drawn(seed: int, ties: bool = False) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    scores = {
        g: torch.randn(n, generator=generator, dtype=torch.float64)
        for g, n in spec().sizes.items()
        if g in spec().widths
    }
    return {g: s.round() if ties else s for g, s in scores.items()}


def kept(mask: pf.Mask) -> dict[str, int]:
    return {g: int(m.sum()) for g, m in mask.items()}


def test_groups_in_one_role_are_one_class_though_one_has_a_member_more() -> None:
    s = spec()
    classes = dict(zip(s.widths, pf.scope.uniform().classes(list(s.widths), s), strict=True))
    assert set(s.widths) == {*ALIKE, OTHER, *(g for g in s.widths if s.widths[g].kind == "residual")}
    assert len({classes[g] for g in ALIKE}) == 1 and len(set(classes.values())) == 3


@some
@given(keep=st.floats(0.4, 1.0), seed=seeds, ties=st.booleans(), round_to=st.sampled_from([1, 3, 8]))
@pytest.mark.parametrize("make", [pf.budget.macs, pf.budget.params, pf.budget.activations])
def test_a_budget_is_met_by_equal_counts_of_the_best(make, keep: float, seed: int, ties: bool, round_to: int) -> None:
    s, scores = spec(), drawn(seed, ties)
    budget = make(keep)
    mask = pf.select(scores, budget, spec=s, scope=pf.scope.uniform(), round_to=round_to)
    assert len({kept(mask)[g] for g in ALIKE}) == 1
    assert all(n == s.sizes[g] or n % round_to == 0 for g, n in kept(mask).items())
    assert getattr(pf.cost(s, mask), budget.quantity) <= keep * getattr(pf.cost(s), budget.quantity) * (1 + 1e-9)
    for g, m in mask.items():
        order = np.argsort(scores[g].numpy(), kind="stable")  # ties by index, as everywhere
        assert sorted(order[: int((~m).sum())].tolist()) == (~m).nonzero()[:, 0].tolist()


def test_one_step_less_would_not_meet_the_budget() -> None:
    s, scores = spec(), {g: v for g, v in drawn(1).items() if g in ALIKE}
    for keep in (0.55, 0.7, 0.85):
        mask = pf.select(scores, pf.budget.macs(keep), spec=s, scope=pf.scope.uniform(), round_to=8)
        n = kept(mask)[ALIKE[0]]
        more = pf.mask(s, {g: list(range(40 - n - 8)) for g in ALIKE})
        assert pf.cost(s, mask).macs <= keep * pf.cost(s).macs < pf.cost(s, more).macs


@some
@given(ratio=st.floats(0.0, 0.9), seed=seeds)
def test_a_ratio_is_that_of_every_group(ratio: float, seed: int) -> None:
    scores = drawn(seed)
    mask = pf.select(scores, ratio, spec=spec(), scope=pf.scope.uniform())
    assert kept(mask) == {
        g: n - min(int(ratio * n + 1e-9), n - 1) for g, n in spec().sizes.items() if g in spec().widths
    }
    assert kept(mask) == kept(pf.select(scores, ratio, spec=spec(), scope=pf.scope.local()))


def test_local_counts_differ_where_uniform_counts_do_not() -> None:
    scores = {g: v for g, v in drawn(0).items() if g in ALIKE}
    spreads = set()
    for budget in map(pf.budget.params, (0.6, 0.65, 0.7, 0.75, 0.8)):
        local, uniform = (
            kept(pf.select(scores, budget, spec=spec(), scope=s)).values()
            for s in (pf.scope.local(), pf.scope.uniform())
        )
        assert set(uniform) == {min(local)}
        spreads.add(max(local) - min(local))
    assert spreads == {0, 1}


def test_ratios_by_glob_and_caps_hold_for_the_class() -> None:
    scores = drawn(2)
    ratio = {"blocks.[01].*": 0.5, "blocks.2.*": 0.25}
    assert kept(pf.select(scores, ratio, spec=spec(), scope=pf.scope.uniform())) == {
        ALIKE[0]: 20, ALIKE[1]: 20, ALIKE[2]: 30, OTHER: 24, **{g: 16 for g in scores if g not in (*ALIKE, OTHER)}
    }  # fmt: skip
    least = pf.select(scores, 0.5, spec=spec(), scope=pf.scope.uniform(), round_to={ALIKE[0]: 8, ALIKE[1]: 3, "*": 1})
    assert [kept(least)[g] for g in ALIKE] == [24, 24, 24]  # a multiple of both
    with pytest.raises(pf.BudgetError, match=r"a ratio up to 0\.2\d* works"):
        pf.select(scores, 0.5, spec=spec(), scope=pf.scope.uniform(), max_ratio={ALIKE[1]: 0.25})


def test_a_pipeline_prunes_to_one_size() -> None:
    torch.manual_seed(0)
    model = Stack().double().eval()
    params, batches = pf.params(model), [randn(64, 5)]
    prune = pf.pipeline(
        criterion="weighted_variance", where=pf.kind("hidden"), ratio=pf.budget.macs(0.75), scope="uniform", round_to=4
    )
    small = prune(params, batches, spec=spec())
    assert {small.spec.sizes[g] for g in ALIKE} == {28}
    assert small.info.after.macs <= 0.75 * small.info.before.macs


class Steps:
    """A latency in steps of sixteen units, which rises a little with every unit removed in between."""

    def predict(self, sizes: dict[str, int]) -> float:
        return sum(1 + -(-n // 16) - 0.001 * n for g, n in sizes.items() if g in spec().widths)


@pytest.mark.parametrize("keep", [0.7, 0.9])
def test_a_latency_is_met_by_equal_counts(keep: float) -> None:
    scores = {g: v for g, v in drawn(4).items() if g in ALIKE}
    mask = pf.select(scores, pf.budget.latency(keep, Steps()), spec=spec(), scope=pf.scope.uniform())
    sizes = dict(spec().sizes)
    assert len(set(kept(mask).values())) == 1
    assert Steps().predict({**sizes, **kept(mask)}) <= keep * Steps().predict(sizes)
