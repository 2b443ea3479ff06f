"""Exact counts, ties, caps and budgets; mostly on scores that are made by hand, without a spec."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunefn as pf
from prunefn.types import Scope, Scores

from .small import Attention, Residual, bits, laws, mlp, randn, traced

SCOPES = {
    "global": pf.scope.global_(),
    "normalised": pf.scope.global_(normalize=True),
    "local": pf.scope.local(),
}
each_scope = pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)


def scores(**groups: list[float]) -> Scores:
    return {g: torch.tensor(s, dtype=torch.float64) for g, s in groups.items()}


def shown(mask: pf.Mask) -> dict[str, str]:
    """`bits`, backwards."""
    return {g: "".join("01"[int(k)] for k in m) for g, m in mask.items()}


def removed(mask: pf.Mask) -> int:
    return sum(int((~m).sum()) for m in mask.values())


values = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])  # few, so that ties are common


@st.composite
def any_scores(draw: st.DrawFn, distinct: bool = False) -> Scores:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    if distinct:
        flat = draw(st.permutations(range(sum(sizes))))
    else:
        flat = draw(st.lists(values, min_size=sum(sizes), max_size=sum(sizes)))
    parts = torch.tensor(flat, dtype=torch.float64).split(sizes)
    return {f"g{i}": p for i, p in enumerate(parts)}


ratios = st.floats(0.0, 1.0, exclude_max=True)


def select_or_none(given: Scores, ratio: Any, **kwargs: Any) -> pf.Mask | None:
    try:
        return pf.select(given, ratio, **kwargs)
    except pf.BudgetError:
        return None


# ---- goldens


def test_golden_global() -> None:
    s = scores(a=[5.0, 1.0, 4.0], b=[2.0, 3.0])
    assert shown(pf.select(s, 0.0)) == {"a": "111", "b": "11"}
    assert shown(pf.select(s, 0.2)) == {"a": "101", "b": "11"}
    assert shown(pf.select(s, 0.59)) == {"a": "101", "b": "01"}
    assert shown(pf.select(s, 0.6)) == {"a": "100", "b": "01"}  # the 3 is b's last


def test_golden_local() -> None:
    s = scores(a=[5.0, 1.0, 4.0, 7.0], b=[2.0, 3.0])
    assert shown(pf.select(s, 0.5, scope=pf.scope.local())) == {"a": "1001", "b": "01"}
    assert shown(pf.select(s, 0.49, scope=pf.scope.local())) == {"a": "1011", "b": "11"}
    assert shown(pf.select(s, 0.75, scope=pf.scope.local())) == {"a": "0001", "b": "01"}


def test_golden_ties_go_by_index_then_by_group() -> None:
    s = scores(a=[1.0, 1.0, 1.0], b=[1.0, 1.0])
    assert [shown(pf.select(s, k / 5)) for k in range(4)] == [
        {"a": "111", "b": "11"},
        {"a": "011", "b": "11"},
        {"a": "001", "b": "11"},
        {"a": "001", "b": "01"},
    ]
    assert shown(pf.select(scores(a=[3.0, 1.0, 2.0, 1.0]), 0.25)) == {"a": "1011"}


def test_golden_normalised() -> None:
    """b's scores are a hundred times as large; per mean, both have a small unit."""
    s = scores(a=[1.0, 3.0], b=[100.0, 300.0])
    assert shown(pf.select(s, 0.5)) == {"a": "01", "b": "01"}  # a may not be emptied
    s = scores(a=[2.0, 2.0, 2.0], b=[100.0, 300.0, 200.0])
    assert shown(pf.select(s, 0.17)) == {"a": "011", "b": "111"}
    assert shown(pf.select(s, 0.17, scope=pf.scope.global_(normalize=True))) == {"a": "111", "b": "011"}


@pytest.mark.parametrize("shift", [0.0, -2.5, -1000.0])
def test_normalising_keeps_the_order_within_a_group_whatever_the_sign(shift: float) -> None:
    s = {"a": torch.tensor([300.0, 100.0, 200.0, 400.0]) + 100 * shift}
    assert shown(pf.select(s, 0.5, scope=pf.scope.global_(normalize=True))) == {"a": "1001"}


def test_normalising_a_group_of_zeros() -> None:
    s = scores(a=[0.0, 0.0], b=[1.0, 2.0])
    assert shown(pf.select(s, 0.25, scope=pf.scope.global_(normalize=True))) == {"a": "01", "b": "11"}


def test_golden_round_to() -> None:
    s = scores(a=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], b=[9.0, 9.0])
    assert shown(pf.select(s, 0.3, round_to=4)) == {"a": "11111111", "b": "11"}  # three go: not yet a multiple
    assert shown(pf.select(s, 0.4, round_to=4)) == {"a": "00001111", "b": "11"}
    assert shown(pf.select(scores(a=[4.0, 3.0, 2.0, 1.0, 0.0]), 0.41, round_to=2)) == {"a": "11110"}


def test_golden_max_ratio_and_min_units() -> None:
    s = scores(a=[1.0, 2.0, 3.0, 4.0], b=[5.0, 6.0, 7.0, 8.0])
    assert shown(pf.select(s, 0.5, max_ratio=0.5)) == {"a": "0011", "b": "0011"}
    assert shown(pf.select(s, 0.25, min_units=3)) == {"a": "0111", "b": "0111"}
    assert shown(pf.select(s, 0.25, max_ratio=0.25)) == {"a": "0111", "b": "0111"}


def test_small_groups_stay_whole_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="prunefn"):
        mask = pf.select(scores(small=[0.0, 0.0], large=[1.0] * 8), 0.4, round_to=4)
    assert shown(mask) == {"small": "11", "large": "00001111"}
    assert "'small' has 2 units, fewer than round_to=4: it stays whole" in caplog.text


def test_of_nothing_nothing_is_selected() -> None:
    assert pf.select({}, 0.5) == {}


def test_scores_of_any_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.int64):
        assert shown(pf.select({"a": torch.tensor([3, 1, 2, 4], dtype=dtype)}, 0.5)) == {"a": "1001"}


def test_a_million_units() -> None:
    s = {f"g{i}": randn(10_000, seed=i) for i in range(100)}
    mask = pf.select(s, 0.37)
    assert removed(mask) == 370_000
    highest = max(float(s[g][~m].max()) for g, m in mask.items())
    assert highest < min(float(s[g][m].min()) for g, m in mask.items())


# ---- laws


@laws
@given(any_scores(), ratios)
def test_a_global_ratio_removes_exactly_the_asked_number(s: Scores, ratio: float) -> None:
    total = sum(map(len, s.values()))
    asked = int(ratio * total + 1e-9)
    mask = select_or_none(s, ratio)
    if mask is None:
        assert asked > total - len(s)
    else:
        assert removed(mask) == asked
        assert all(bool(m.any()) for m in mask.values())


@laws
@given(any_scores(), ratios)
def test_a_local_ratio_removes_it_from_every_group(s: Scores, ratio: float) -> None:
    mask = pf.select(s, ratio, scope=pf.scope.local())
    asked = {g: min(int(ratio * len(v) + 1e-9 * len(v)), len(v) - 1) for g, v in s.items()}
    assert {g: int((~m).sum()) for g, m in mask.items()} == asked


@each_scope
@laws
@given(s=any_scores())
def test_nothing_asked_nothing_removed(scope: Scope, s: Scores) -> None:
    mask = pf.select(s, 0.0, scope=scope)
    assert list(mask) == list(s)
    assert all(bool(m.all()) and m.dtype == torch.bool for m in mask.values())


@each_scope
@laws
@given(s=any_scores(), ratio=ratios)
def test_within_a_group_the_lowest_go_first_and_ties_by_index(scope: Scope, s: Scores, ratio: float) -> None:
    assume((mask := select_or_none(s, ratio, scope=scope)) is not None)
    for g, m in mask.items():
        order = sorted(range(len(m)), key=lambda u: (float(s[g][u]), u))
        n = int((~m).sum())
        assert sorted(order[:n]) == (~m).nonzero()[:, 0].tolist()


@each_scope
@laws
@given(s=any_scores(), low=ratios, high=ratios)
def test_a_higher_ratio_removes_more_of_the_same(scope: Scope, s: Scores, low: float, high: float) -> None:
    few, many = (select_or_none(s, r, scope=scope) for r in sorted((low, high)))
    assume(few is not None and many is not None)
    assert all(bool((many[g] <= few[g]).all()) for g in s)


@laws
@given(any_scores(distinct=True), ratios, st.data())
def test_raising_a_score_saves_the_unit(s: Scores, ratio: float, data: st.DataObject) -> None:
    assume((mask := select_or_none(s, ratio)) is not None)
    g = data.draw(st.sampled_from(list(s)))
    u = data.draw(st.integers(0, len(s[g]) - 1))
    raised = {**s, g: s[g].clone()}
    raised[g][u] += data.draw(st.floats(0.1, 100.0))
    if bool(mask[g][u]):
        assert bool(pf.select(raised, ratio)[g][u])


@each_scope
@laws
@given(s=any_scores(distinct=True), ratio=ratios, seed=st.integers(0, 99))
def test_permuted_scores_give_the_permuted_mask(scope: Scope, s: Scores, ratio: float, seed: int) -> None:
    assume((mask := select_or_none(s, ratio, scope=scope)) is not None)
    generator = torch.Generator().manual_seed(seed)
    order = {g: torch.randperm(len(v), generator=generator) for g, v in s.items()}
    permuted = pf.select({g: v[order[g]] for g, v in s.items()}, ratio, scope=scope)
    assert shown(permuted) == shown({g: m[order[g]] for g, m in mask.items()})


@laws
@given(any_scores(distinct=True), ratios)
def test_global_order_of_groups_does_not_matter(s: Scores, ratio: float) -> None:
    assume((mask := select_or_none(s, ratio)) is not None)
    assert shown(pf.select(dict(reversed(s.items())), ratio)) == {g: shown(mask)[g] for g in reversed(s)}


@each_scope
@laws
@given(
    s=any_scores(), ratio=ratios, round_to=st.integers(1, 4), max_ratio=st.floats(0.0, 1.0), min_units=st.integers(1, 4)
)
def test_caps_hold(scope: Scope, s: Scores, ratio: float, round_to: int, max_ratio: float, min_units: int) -> None:
    kwargs = {"scope": scope, "round_to": round_to, "max_ratio": max_ratio, "min_units": min_units}
    assume((mask := select_or_none(s, ratio, **kwargs)) is not None)
    for m in mask.values():
        kept, n = int(m.sum()), len(m)
        assert kept >= 1
        assert kept == n or (kept % round_to == 0 and kept >= min_units)
        assert n - kept <= max_ratio * n + 1e-9
    assert removed(mask) <= ratio * sum(map(len, s.values())) + 1e-6
    if round_to == 1 and scope.name == "global":
        assert removed(mask) == int(ratio * sum(map(len, s.values())) + 1e-9)


def worked(message: str) -> float:
    """The number that the message of an error promises."""
    return float(message.rsplit("a ratio up to ", 1)[1].split(" works")[0])


@each_scope
@laws
@given(s=any_scores(), ratio=ratios, max_ratio=st.floats(0.0, 1.0), min_units=st.integers(1, 9))
def test_what_cannot_be_met_raises_and_what_the_message_says_works(
    scope: Scope, s: Scores, ratio: float, max_ratio: float, min_units: int
) -> None:
    kwargs: dict[str, Any] = {"scope": scope, "max_ratio": max_ratio, "min_units": min_units}
    try:
        pf.select(s, ratio, **kwargs)
    except pf.BudgetError as e:
        promised = worked(str(e))
        assert promised < ratio
        pf.select(s, promised, **kwargs)


def test_the_promised_ratio_is_rounded_down() -> None:
    """20 000 of 30 000 may go: 0.6667 would be 20 001."""
    s = {"a": randn(30_000)}
    with pytest.raises(pf.BudgetError, match=r"removes 27000 of 30000 units, but .* let only 20000 go") as e:
        pf.select(s, 0.9, max_ratio=0.66668)
    assert worked(str(e.value)) == 0.6666
    assert removed(pf.select(s, 0.6666, max_ratio=0.66668)) == 19_998


def test_the_promised_ratio_of_a_local_scope_is_that_of_its_tightest_group() -> None:
    s = {"large": randn(100), "small": randn(2)}
    with pytest.raises(pf.BudgetError, match="the smallest group is 'small' with 2") as e:
        pf.select(s, 0.9, min_units=2, scope=pf.scope.local())
    assert worked(str(e.value)) == 0.4999


# ---- budgets


@lru_cache
def spec(name: str) -> pf.Spec:
    return {
        "mlp": lambda: traced(mlp(4, 7, 9, 3), randn(2, 4)),
        "residual": lambda: traced(Residual(3, 5, 6, 2), randn(2, 3)),
        "attention": lambda: traced(Attention(6, 4, 3), randn(2, 5, 6)),
        "grouped": lambda: traced(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 2, 1)),
            randn(2, 3, 7, 7),
        ),
    }[name]().spec


def score_spec(s: pf.Spec, seed: int, few: bool) -> Scores:
    g = torch.Generator().manual_seed(seed)
    draw = (lambda n: torch.randint(3, (n,), generator=g)) if few else (lambda n: torch.rand(n, generator=g))
    return {name: draw(group.size).double() for name, group in s.widths.items()}


def share(s: pf.Spec, quantity: str, mask: pf.Mask | None = None) -> float:
    return getattr(pf.cost(s, mask), quantity) / getattr(pf.cost(s), quantity)


def removal_order(s: Scores, mask: pf.Mask, scope: Scope) -> tuple[str, int]:
    """The unit that went last."""
    p = dict(s)
    if scope.name == "local":
        p = {g: (v.argsort(stable=True).argsort() + 1) / len(v) for g, v in s.items()}
    elif scope.normalize is not None:
        p = {g: scope.normalize(v) for g, v in s.items()}
    gone = [(float(p[g][u]), i, u, g) for i, g in enumerate(s) for u in range(len(s[g])) if not mask[g][u]]
    _, _, u, g = max(gone)
    return g, u


@each_scope
@pytest.mark.parametrize("name", ["mlp", "residual", "attention", "grouped"])
@pytest.mark.parametrize("quantity", ["macs", "params"])
@settings(laws, max_examples=6)
@given(keep=st.floats(0.3, 1.0), seed=st.integers(0, 999), few=st.booleans())
def test_a_budget_is_met_and_with_one_unit_fewer_it_is_not(
    quantity: str, name: str, scope: Scope, keep: float, seed: int, few: bool
) -> None:
    s = spec(name)
    given = score_spec(s, seed, few)
    assume((mask := select_or_none(given, getattr(pf.budget, quantity)(keep), spec=s, scope=scope)) is not None)
    assert share(s, quantity, mask) <= keep + 1e-12
    if removed(mask):
        g, u = removal_order(given, mask, scope)
        mask[g][u] = True
        assert share(s, quantity, mask) > keep


@pytest.mark.parametrize("round_to", [2, 3])
def test_a_budget_is_met_with_rounded_counts(round_to: int) -> None:
    s = spec("mlp")
    mask = pf.select(score_spec(s, 0, False), pf.budget.macs(0.6), spec=s, round_to=round_to)
    assert share(s, "macs", mask) <= 0.6
    assert all(int(m.sum()) % round_to == 0 or bool(m.all()) for m in mask.values())


def test_golden_budget() -> None:
    """1·8 + 8·1 MACs: a half of them is four units; of the 25 parameters 1 + 3·8, 13 are four units, too."""
    t = traced(mlp(1, 8, 1), randn(2, 1))
    s = {"0": torch.tensor([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0])}
    assert shown(pf.select(s, pf.budget.macs(0.5), spec=t.spec)) == {"0": "10101010"}
    assert shown(pf.select(s, pf.budget.macs(0.499), spec=t.spec)) == {"0": "10101000"}
    assert shown(pf.select(s, pf.budget.params(13 / 25), spec=t.spec)) == {"0": "10101010"}
    assert shown(pf.select(s, pf.budget.params(0.51), spec=t.spec)) == {"0": "10101000"}
    assert shown(pf.select(s, pf.budget.macs(1.0), spec=t.spec)) == {"0": "11111111"}


def test_groups_without_scores_stay_whole_under_a_budget() -> None:
    s = spec("mlp")
    mask = pf.select({"2": randn(9)}, pf.budget.macs(0.6), spec=s)
    assert list(mask) == ["2"]
    assert share(s, "macs", mask) <= 0.6


@pytest.mark.parametrize("name", ["mlp", "residual", "attention", "grouped"])
@pytest.mark.parametrize("quantity", ["macs", "params"])
@pytest.mark.parametrize("max_ratio", [1.0, 0.3, 0.0])
def test_a_budget_out_of_reach_says_what_can_be_reached(quantity: str, name: str, max_ratio: float) -> None:
    s = spec(name)
    given = score_spec(s, 0, False)
    with pytest.raises(pf.BudgetError, match=rf"budget.{quantity}\(0.0001\) cannot be met") as e:
        pf.select(given, getattr(pf.budget, quantity)(0.0001), spec=s, max_ratio=max_ratio)
    least = float(str(e.value).rsplit("at least ", 1)[1])
    mask = pf.select(given, getattr(pf.budget, quantity)(least), spec=s, max_ratio=max_ratio)
    assert share(s, quantity, mask) <= least + 1e-12
    with pytest.raises(pf.BudgetError):
        pf.select(given, getattr(pf.budget, quantity)(least - 0.0002), spec=s, max_ratio=max_ratio)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan")])
def test_a_budget_is_a_share(keep: float) -> None:
    with pytest.raises(pf.BudgetError, match=r"must be above 0 and at most 1, such as 0.65"):
        pf.budget.macs(keep)


# ---- demands that make no sense


@pytest.mark.parametrize("ratio", [1.0, -0.1, 2.0, float("nan")])
@each_scope
def test_a_ratio_is_a_share(ratio: float, scope: Scope) -> None:
    share = rf"the ratio is {ratio}; it is the fraction of units removed and must be in \[0, 1\)"
    with pytest.raises(pf.PruneError, match=share):
        pf.select(scores(a=[1.0, 2.0]), ratio, scope=scope)


@pytest.mark.parametrize("kwargs", [{"round_to": 0}, {"min_units": 0}, {"max_ratio": 1.5}, {"max_ratio": -0.5}])
def test_caps_that_make_no_sense(kwargs: dict[str, Any]) -> None:
    with pytest.raises(pf.PruneError, match=r"must be at least 1, max_ratio .* in \[0, 1\]"):
        pf.select(scores(a=[1.0, 2.0]), 0.5, **kwargs)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"0": [1.0] * 6}, r"scores of group '0' have shape \(6,\), but the group has 7 units"),
        ({"0": [[1.0] * 7]}, r"scores of group '0' have shape \(1, 7\)"),
        ({"1": [1.0] * 7}, "the spec has no group '1', but the scores have one; known are 0, 2"),
        ({"0": [1.0] * 6 + [float("nan")]}, "scores of group '0' are not finite"),
        ({"0": [1.0] * 6 + [float("inf")]}, "scores of group '0' are not finite"),
    ],
)
def test_scores_that_do_not_fit(bad: dict[str, list], message: str) -> None:
    given: dict[str, Tensor] = {g: torch.tensor(v) for g, v in bad.items()}
    with pytest.raises(pf.PruneError, match=message):
        pf.select(given, 0.5, spec=spec("mlp"))


def test_scores_without_a_spec_are_one_number_per_unit() -> None:
    with pytest.raises(pf.MaskError, match=r"'a' have shape \(1, 2\); they must be one number per unit"):
        pf.select({"a": torch.ones(1, 2)}, 0.5)
    with pytest.raises(pf.PruneError, match=r"a budget needs the spec: select\(scores, budget, spec=spec\)"):
        pf.select(scores(a=[1.0, 2.0]), pf.budget.macs(0.5))


def test_nothing_of_the_scores_is_written_to() -> None:
    s = scores(a=[3.0, 1.0, 2.0])
    for scope in SCOPES.values():
        pf.select(s, 0.34, scope=scope)
    assert s["a"].tolist() == [3.0, 1.0, 2.0]
    assert s["a"]._version == 0
    assert shown(pf.select({"a": bits("101").double().requires_grad_()}, 0.34)) == {"a": "101"}
