"""Budgets of every kind, several at once, ratios by pattern, caps by pattern, multiples for tensor cores, one ratio in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import prunefn as pf
from prunefn.selection import caps
from prunefn.selection.choose import _budgets
from prunefn.selection.meeting import SCAN
from prunefn.selection.polynomial_roots import bisected, degrees, root
from prunefn.types import Budget, Predictor, Scores

from .small import laws, mlp, randn, traced
from .test_scopes import SPECS, seeds, timm_spec, units_left
from .test_select import removed, score_spec, scores, select_or_none, share, shown, spec

each_spec = pytest.mark.parametrize("name", SPECS)
some = settings(laws, max_examples=8)


class Steps(NamedTuple):
    """A latency in steps of `tile` units, with a bump at every odd width, so that it does not always fall."""

    tile: int = 4
    bump: float = 0.3

    def predict(self, sizes: Mapping[str, int]) -> float:
        """In some unit."""
        return sum(-(-n // self.tile) * self.tile + self.bump * self.tile * (n % 2) for n in sizes.values())


def prefix(given: Scores, s: pf.Spec, k: int) -> dict[str, int]:
    """Sizes after the first k units of the global order."""
    mask = pf.select(given, units_left(s, k), spec=s)
    assert removed(mask) == k
    return {g: int(m.sum()) for g, m in mask.items()}


def first_met(given: Scores, s: pf.Spec, *budgets: Budget) -> int | None:
    """The fewest units, by trying all."""
    for k in range(sum(len(x) - 1 for x in given.values()) + 1):
        left = {**s.sizes, **prefix(given, s, k)}
        if all(b.cost(left, s) <= b.keep * b.cost(s.sizes, s) * (1 + 1e-12) for b in budgets):
            return k
    return None


# ---- activations, latency, any cost


def test_golden_activations() -> None:
    """Four activations of "0", written twice (linear and ReLU), and one output: 9; a unit less is two less."""
    t = traced(mlp(1, 4, 1), randn(2, 1))
    assert pf.cost(t.spec).activations == 9
    s = {"0": torch.tensor([4.0, 1.0, 3.0, 2.0])}
    assert shown(pf.select(s, pf.budget.activations(7 / 9), spec=t.spec)) == {"0": "1011"}
    assert shown(pf.select(s, pf.budget.activations(0.77), spec=t.spec)) == {"0": "1010"}


def test_a_latency_table_is_whatever_predicts() -> None:
    assert isinstance(Steps(), Predictor)
    assert not isinstance(3.0, Predictor)


def test_golden_latency() -> None:
    """Eight units take two tiles; at four or fewer they take one, and odd widths cost more."""
    t = traced(mlp(1, 8, 1), randn(2, 1))
    s = {"0": torch.arange(8.0)}
    assert shown(pf.select(s, pf.budget.latency(0.5, Steps()), spec=t.spec)) == {"0": "00001111"}
    assert shown(pf.select(s, pf.budget.latency(0.99, Steps()), spec=t.spec)) == {"0": "00001111"}
    assert shown(pf.select(s, pf.budget.latency(1.0, Steps()), spec=t.spec)) == {"0": "11111111"}


@each_spec
@pytest.mark.parametrize("tile", [2, 3, 4])
@some
@given(keep=st.floats(0.2, 1.0), seed=seeds)
def test_latency_is_met_by_the_fewest_units_though_it_rises_in_between(
    tile: int, name: str, keep: float, seed: int
) -> None:
    s, demand = spec(name), pf.budget.latency(keep, Steps(tile))
    given = score_spec(s, seed, False)
    mask = select_or_none(given, demand, spec=s)
    assert (None if mask is None else removed(mask)) == first_met(given, s, demand)


class Counting:
    """A latency of whole tiles that says how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def predict(self, sizes: Mapping[str, int]) -> float:
        """Tiles of 32."""
        self.asked += 1
        return sum(-(-n // 32) for n in sizes.values())


def test_latency_of_many_units_is_asked_few_times() -> None:
    with torch.device("meta"):
        model = mlp(4, 40_000, 4)
    s = pf.trace(model, (torch.empty(2, 4, device="meta"),))
    given, table = {"0": randn(40_000)}, Counting()
    kept = {k: int(pf.select(given, pf.budget.latency(k, table), spec=s)["0"].sum()) for k in (0.9, 0.3)}
    assert kept == {0.9: 36_000, 0.3: 12_000}  # 1125 and 375 tiles of 1250
    assert table.asked <= 2 * (SCAN + 20)
    table.asked = 0
    with pytest.raises(
        pf.BudgetError, match=r"at the best of 512 points along the order of removal, 0.0008 of the latency"
    ):
        pf.select(given, pf.budget.latency(0.0001, table), spec=s)
    assert table.asked <= SCAN + 20
    assert int(pf.select(given, pf.budget.latency(0.0008, table), spec=s)["0"].sum()) == 32


@each_spec
@some
@given(seed=seeds, keep=st.floats(0.001, 0.5))
def test_a_latency_out_of_reach_says_what_can_be_reached(name: str, seed: int, keep: float) -> None:
    s = spec(name)
    given = score_spec(s, seed, False)
    try:
        pf.select(given, pf.budget.latency(keep, Steps()), spec=s)
    except pf.BudgetError as e:
        least = float(str(e).rsplit("at least ", 1)[1])
        assert least > keep
        pf.select(given, pf.budget.latency(least, Steps()), spec=s)


@pytest.mark.parametrize("falls", [True, False])
@each_spec
@some
@given(keep=st.floats(0.3, 1.0), seed=seeds)
def test_any_cost_works(name: str, falls: bool, keep: float, seed: int) -> None:
    def bytes_(sizes: Mapping[str, int], spec: pf.Spec) -> float:
        cost = spec.costs(sizes)
        return 4.0 * cost.params + 2.0 * cost.activations

    s = spec(name)
    given, demand = score_spec(s, seed, True), pf.budget.custom(keep, bytes_, name="bytes", falls=falls)
    assume((mask := select_or_none(given, demand, spec=s)) is not None)
    assert removed(mask) == first_met(given, s, demand)


@pytest.mark.parametrize("value", [nan, -1.0, float("inf")])
def test_a_cost_is_a_finite_number(value: float) -> None:
    with pytest.raises(pf.PruneError, match=rf"budget.odd\(0.5\): the cost is {value}; it must be a finite number ≥ 0"):
        pf.select({"0": randn(7)}, pf.budget.custom(0.5, lambda sizes, spec: value, name="odd"), spec=spec("mlp"))


def test_a_cost_of_nothing_is_met() -> None:
    free = pf.budget.custom(0.5, lambda sizes, spec: 0.0)
    assert shown(pf.select({"0": randn(7)}, free, spec=spec("mlp"))) == {"0": "1" * 7}


def test_the_names_of_the_specs_own_costs_are_taken() -> None:
    with pytest.raises(pf.PruneError, match=r"use budget.macs\(0.5\)"):
        pf.budget.custom(0.5, lambda sizes, spec: 1.0, name="macs")


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_every_budget_is_a_share(keep: float) -> None:
    for make in (pf.budget.activations, lambda k: pf.budget.latency(k, Steps()), lambda k: pf.budget.custom(k, first)):
        with pytest.raises(pf.BudgetError, match=r"must be above 0 and at most 1, such as 0.65"):
            make(keep)


def first(sizes: Mapping[str, int], _: pf.Spec) -> float:
    """The size of the first group."""
    return float(next(iter(sizes.values())))


# ---- several budgets


@each_spec
@some
@given(keeps=st.tuples(*[st.floats(0.3, 1.0)] * 3), seed=seeds, latency=st.booleans())
def test_several_budgets_are_all_met_by_the_fewest(
    name: str, keeps: tuple[float, float, float], seed: int, latency: bool
) -> None:
    s = spec(name)
    given = score_spec(s, seed, False)
    budgets = [pf.budget.macs(keeps[0]), pf.budget.params(keeps[1])]
    budgets += [pf.budget.latency(keeps[2], Steps())] if latency else [pf.budget.activations(keeps[2])]
    mask = select_or_none(given, budgets, spec=s)
    assert (None if mask is None else removed(mask)) == first_met(given, s, *budgets)


def test_of_several_budgets_all_that_cannot_be_met_are_named() -> None:
    s = spec("mlp")
    with pytest.raises(pf.BudgetError) as e:
        pf.select(
            score_spec(s, 0, False), [pf.budget.macs(0.001), pf.budget.params(0.5), pf.budget.activations(0.01)], spec=s
        )
    assert "budget.macs(0.001) cannot be met" in str(e.value)
    assert "budget.activations(0.01) cannot be met" in str(e.value)
    assert "budget.params" not in str(e.value)


@pytest.mark.parametrize("ratio", [[], [0.5], ["macs"]])
def test_a_sequence_holds_budgets(ratio: list[Any]) -> None:
    with pytest.raises(pf.PruneError, match=r"a sequence must hold budgets only"):
        _budgets(ratio)  # before it, the signature of select is checked in tests


# ---- ratios by pattern


def test_golden_ratios_by_pattern() -> None:
    s = scores(**{"a.1": [1.0, 2.0, 3.0, 4.0], "a.2": [5.0, 6.0, 7.0, 8.0], "b": [1.0, 2.0], "c": [1.0, 2.0]})
    assert shown(pf.select(s, {"a.*": 0.25, "b": 0.5})) == {"a.1": "0011", "a.2": "1111", "b": "01", "c": "11"}
    assert shown(pf.select(s, {"*": 0.5, "a.1": 0.0})) == {"a.1": "1111", "a.2": "0011", "b": "01", "c": "01"}
    assert shown(pf.select(s, {"?": 0.5, "*": 0.25}, scope=pf.scope.local())) == {
        "a.1": "0111",
        "a.2": "0111",
        "b": "01",
        "c": "01",
    }


def test_one_pattern_for_all_is_the_plain_ratio() -> None:
    s = {f"g{i}": randn(9, seed=i) for i in range(5)}
    for scope in (pf.scope.global_(), pf.scope.local(), pf.scope.global_(normalize=True)):
        assert shown(pf.select(s, {"*": 0.4}, scope=scope)) == shown(pf.select(s, 0.4, scope=scope))


@each_spec
@some
@given(one=st.floats(0.0, 0.6), other=st.floats(0.0, 0.6), seed=seeds, few=st.booleans())
@pytest.mark.parametrize(
    "scope", [pf.scope.global_(), pf.scope.isomorphic(), pf.scope.knapsack()], ids=lambda s: s.name
)
def test_patterns_are_ranked_apart(scope: Any, name: str, one: float, other: float, seed: int, few: bool) -> None:
    s = spec(name)
    given, (head, *rest) = score_spec(s, seed, few), s.widths
    assume((mask := select_or_none(given, {head: one, "*": other}, spec=s, scope=scope)) is not None)
    for part, ratio in (([head], one), (rest, other)):
        alone = pf.select({g: given[g] for g in part}, ratio, spec=s, scope=scope)
        assert shown(alone) == {g: t for g, t in shown(mask).items() if g in part}


def test_a_pattern_that_matches_nothing() -> None:
    s = scores(**{"layer1.conv": [1.0, 2.0], "layer2.conv": [1.0, 2.0]})
    with pytest.raises(
        pf.PruneError, match=r"ratio: 'layer1.conf' matches none of the 2 scored groups; did you mean 'layer1.conv'"
    ):
        pf.select(s, {"layer1.conf": 0.5})
    for what in ("round_to", "max_ratio", "min_units"):
        with pytest.raises(pf.PruneError, match=rf"{what}: 'layer3.\*' matches none"):
            pf.select(s, 0.5, **{what: {"layer3.*": 1.0 if what == "max_ratio" else 1}})


@pytest.mark.parametrize("ratio", [1.0, -0.5, nan])
def test_a_ratio_of_a_pattern_is_a_share(ratio: float) -> None:
    with pytest.raises(pf.PruneError, match=rf"the ratio of 'a' is {ratio}; it is the fraction of units removed"):
        pf.select(scores(a=[1.0, 2.0]), {"a": ratio})


def test_a_pattern_that_asks_too_much_is_named() -> None:
    s = scores(a=[1.0] * 9, b=[1.0] * 4)
    with pytest.raises(
        pf.BudgetError, match=r"a ratio of 0.9 for 'b' removes 3 of 4 units, .* only 2 go .*'b' with 4.* up to 0.7499"
    ):
        pf.select(s, {"a": 0.5, "b": 0.9}, min_units={"b": 2})


# ---- caps by pattern, multiples


def test_golden_caps_by_pattern() -> None:
    s = scores(a=[1.0, 2.0, 3.0, 4.0], b=[1.0, 2.0, 3.0, 4.0], c=[9.0] * 4)
    assert shown(pf.select(s, 0.5, max_ratio={"a": 0.25})) == {"a": "0111", "b": "0001", "c": "0011"}
    assert shown(pf.select(s, 0.5, min_units={"[ab]": 2})) == {"a": "0011", "b": "0011", "c": "0011"}
    assert shown(pf.select(s, 0.4, round_to={"a": 4, "b": 2})) == {"a": "1111", "b": "0011", "c": "0011"}


@pytest.mark.parametrize(
    ("dtype", "multiple"),
    [
        (torch.float16, 8),
        (torch.bfloat16, 8),
        (torch.int8, 16),
        (torch.float8_e4m3fn, 16),
        (torch.float32, 4),
        (torch.float64, 2),
    ],
)
def test_multiples_for_tensor_cores(dtype: torch.dtype, multiple: int) -> None:
    s = {"a": randn(100), "b": randn(64, seed=1)}
    mask = pf.select(s, 0.5, round_to=dtype)
    assert shown(mask) == shown(pf.select(s, 0.5, round_to=multiple))
    assert all(int(m.sum()) % multiple == 0 or bool(m.all()) for m in mask.values())
    by_name = pf.select(s, 0.5, round_to={"a": dtype, "b": 1})
    assert int(by_name["a"].sum()) % multiple == 0


def test_a_dtype_that_tensor_cores_do_not_take() -> None:
    with pytest.raises(
        pf.PruneError, match=r"round_to=torch.int64: tensor cores do not take this dtype; .* float64, float32"
    ):
        caps.multiple(torch.int64)


@pytest.mark.parametrize("kwargs", [{"round_to": {"a": 0}}, {"min_units": {"a": 0}}, {"max_ratio": {"a": 1.5}}])
def test_caps_of_a_pattern_that_make_no_sense(kwargs: dict[str, Any]) -> None:
    with pytest.raises(pf.PruneError, match=r"must be at least 1, max_ratio .* in \[0, 1\]"):
        pf.select(scores(a=[1.0, 2.0]), 0.5, **kwargs)


def test_a_pipeline_takes_them_all() -> None:
    t = traced(mlp(4, 16, 12, 3), randn(8, 4))
    prune = pf.pipeline(
        ratio=[pf.budget.macs(0.7), pf.budget.params(0.6)],
        scope=pf.scope.isomorphic(normalize=pf.normalizer.max),
        round_to={"0": 4},
        max_ratio={"2": 0.5},
        min_units={"*": 2},
    )
    small = prune(t.params, [randn(32, 4)], spec=t.spec)
    assert small.info.after.macs <= 0.7 * small.info.before.macs
    assert small.info.after.params <= 0.6 * small.info.before.params
    assert small.spec.sizes["0"] % 4 == 0
    by_name = pf.pipeline(criterion=pf.criteria.variance(), ratio={"0": 0.25})(t.params, [randn(32, 4)], spec=t.spec)
    assert by_name.info.removed == {"0": (4, 16), "2": (0, 12)}


# ---- one ratio for all


@pytest.mark.parametrize("quantity", ["macs", "params", "activations"])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8, 0.97])
@pytest.mark.parametrize(("model", "where"), [("resnet18", "hidden"), ("resnet18", None), ("deit", "hidden")])
def test_the_closed_form_equals_bisection_and_meets_the_budget(
    model: str, where: str | None, quantity: str, keep: float
) -> None:
    s = timm_spec("resnet18") if model == "resnet18" else timm_spec("deit_tiny_patch16_224", img_size=64, depth=3)
    chosen = None if where is None else pf.kind(where)
    names = [g.name for g in s.widths.values() if where in (None, g.kind)]
    polynomial, demand = getattr(s.costs, quantity), getattr(pf.budget, quantity)(keep)
    coefficients = degrees(polynomial, s.sizes, names)
    assert len(coefficients) <= 3
    assert sum(coefficients) == polynomial(s.sizes)
    if model == "deit":
        assert coefficients[2:] == []
    if coefficients[0] / sum(coefficients) >= keep:
        with pytest.raises(pf.BudgetError, match="cannot be met") as e:
            pf.uniform_ratio(s, demand, chosen)
        pf.uniform_ratio(s, demand._replace(keep=float(str(e.value).rsplit("at least ", 1)[1])), chosen)
        return
    ratio = pf.uniform_ratio(s, demand, chosen)
    assert ratio == pytest.approx(1 - bisected(coefficients, keep * sum(coefficients)), abs=1e-12)
    scored = {g: randn(s.sizes[g], seed=i) for i, g in enumerate(names)}
    mask = pf.select(scored, ratio, spec=s, scope=pf.scope.local())
    whole = {g: m.clone() for g, m in mask.items()}
    for m in whole.values():
        m[m.nonzero()[0]] = int(m.sum()) == 1  # a unit more of each, where there is one
    assert share(s, quantity, whole) <= keep <= share(s, quantity, mask) + 1e-12


def test_sizes_are_exactly_scaled_where_they_divide() -> None:
    """Half of all widths: a quarter of the inner products, half of the others."""
    s = timm_spec("resnet18")
    half = {g: n // 2 if g in s.widths else n for g, n in s.sizes.items()}
    demand = pf.budget.macs(s.costs.macs(half) / s.costs.macs(s.sizes))
    assert pf.uniform_ratio(s, demand) == pytest.approx(0.5, abs=1e-12)


def test_a_cost_of_third_degree_is_bisected() -> None:
    """Width, heads and head_dim stand in one product."""
    s = spec("attention")
    coefficients = degrees(s.costs.macs, s.sizes, list(s.sizes))
    cubic = {**s.sizes, **dict.fromkeys(s.sizes, 6)}
    assert len(degrees(s.costs.macs, cubic, list(s.sizes))) == len(coefficients)
    for keep in (0.2, 0.6, 0.9):
        q = 1 - pf.uniform_ratio(s, pf.budget.macs(keep))
        assert sum(c * q**i for i, c in enumerate(coefficients)) == pytest.approx(keep * sum(coefficients), rel=1e-9)


@pytest.mark.parametrize("falls", [True, False])
def test_other_costs_are_searched(falls: bool) -> None:
    s = timm_spec("resnet18")
    macs = pf.budget.custom(0.5, lambda sizes, spec: float(spec.costs.macs(sizes)), name="work", falls=falls)
    ratio = pf.uniform_ratio(s, macs, pf.kind("hidden"))
    assert ratio == pytest.approx(pf.uniform_ratio(s, pf.budget.macs(0.5), pf.kind("hidden")), abs=0.02)
    hidden = {g.name: randn(g.size) for g in s.widths.values() if g.kind == "hidden"}
    assert share(s, "macs", pf.select(hidden, ratio, scope=pf.scope.local())) <= 0.5


def test_keeping_all_removes_nothing() -> None:
    assert pf.uniform_ratio(timm_spec("resnet18"), pf.budget.params(1.0)) == 0.0


def test_a_uniform_ratio_of_no_group() -> None:
    with pytest.raises(pf.PruneError, match=r"no group matches 'nothing\*': there is nothing to remove"):
        pf.uniform_ratio(spec("mlp"), pf.budget.macs(0.5), "nothing*")


@laws
@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=3).filter(lambda c: c[1] + c[2] > 0), st.floats(0.01, 0.99))
def test_the_root_is_that_of_bisection(coefficients: list[int], keep: float) -> None:
    total = sum(coefficients)
    assume(keep * total > coefficients[0])
    assert root(coefficients, keep * total) == pytest.approx(bisected(coefficients, keep * total), abs=1e-9)
