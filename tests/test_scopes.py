"""Normalisers, classes of groups, the order by score per cost; the laws of selection for every scope."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from math import inf
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunefn as pf
from prunefn.criteria import normalizer
from prunefn.criteria.normalizer import Normalizer
from prunefn.selection.isomorphic import signatures
from prunefn.types import Scope, Scores

from .small import laws, randn, traced
from .test_select import ratios, removed, score_spec, scores, select_or_none, shown, spec

NORMALIZERS: dict[str, Normalizer] = {
    "none": normalizer.none,
    "mean": normalizer.mean,
    "sum": normalizer.sum,
    "max": normalizer.max,
    "min_max": normalizer.min_max,
    "z_score": normalizer.z_score,
    "rank": normalizer.rank,
    "median": normalizer.quantile(),
    "quantile": normalizer.quantile(0.9),
    "width": normalizer.width,
}
each_normalizer = pytest.mark.parametrize("normalize", NORMALIZERS.values(), ids=NORMALIZERS)

PLAIN = {
    "global": pf.scope.global_(),
    "local": pf.scope.local(),
    "per_kind": pf.scope.per_kind(),
    "isomorphic": pf.scope.isomorphic(),
    "by": pf.scope.by(lambda group, spec: len(group.members) + spec.sizes[group.name] % 2, name="odd"),
    "knapsack": pf.scope.knapsack(),
    "knapsack, params": pf.scope.knapsack("params"),
}
"""A score is compared as it is, so that raising it can only help."""
SCOPES = PLAIN | {
    "normalised": pf.scope.global_(normalize=normalizer.min_max),
    "isomorphic, normalised": pf.scope.isomorphic(normalize=normalizer.rank),
    "knapsack, normalised": pf.scope.knapsack("activations", normalize=True),
}
each_scope = pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
each_plain_scope = pytest.mark.parametrize("scope", PLAIN.values(), ids=PLAIN)
SPECS = ("mlp", "residual", "attention", "grouped")
each_spec = pytest.mark.parametrize("name", SPECS)
some = settings(laws, max_examples=8)
seeds = st.integers(0, 999)


def classes(scope: Scope, s: pf.Spec) -> list[list[str]]:
    """The groups of each class."""
    groups = list(s.widths)
    keys = [0] * len(groups) if scope.classes is None else scope.classes(groups, s)
    return [[g for g, k in zip(groups, keys, strict=True) if k == key] for key in dict.fromkeys(keys)]


def distinct(s: pf.Spec, seed: int) -> Scores:
    """A permutation of 1 … n over all units."""
    order = torch.randperm(sum(s.sizes.values()), generator=torch.Generator().manual_seed(seed)) + 1
    return dict(zip(s.sizes, order.double().split(list(s.sizes.values())), strict=True))


# ---- normalisers


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [4.0, -1.0, 1.0, 2.0]),
        ("mean", [2.0, -0.5, 0.5, 1.0]),
        ("sum", [0.5, -0.125, 0.125, 0.25]),
        ("max", [1.0, -0.25, 0.25, 0.5]),
        ("min_max", [1.0, 0.0, 0.4, 0.6]),
        ("rank", [1.0, 0.25, 0.5, 0.75]),
        ("median", [4 / 1.5, -1 / 1.5, 1 / 1.5, 2 / 1.5]),
        ("quantile", [4 / 3.4, -1 / 3.4, 1 / 3.4, 2 / 3.4]),
        ("width", [1.0, -0.25, 0.25, 0.5]),
    ],
)
def test_golden_normalisers(name: str, expected: list[float]) -> None:
    torch.testing.assert_close(
        NORMALIZERS[name](torch.tensor([4.0, -1.0, 1.0, 2.0]).double()), torch.tensor(expected).double()
    )


def test_a_z_score_has_mean_zero_and_deviation_one() -> None:
    z = normalizer.z_score(randn(50) * 1e-200 + 3e-200)
    torch.testing.assert_close(z.mean(), torch.tensor(0.0).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(z.std(correction=0), torch.tensor(1.0).double())


def test_sum_is_mean_then_width() -> None:
    s = randn(9)
    torch.testing.assert_close(normalizer.sum(s), normalizer.width(normalizer.mean(s)))


@each_normalizer
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 0.1, 1e-300])
@pytest.mark.parametrize("units", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_scores_stay_finite_and_equal(
    normalize: Normalizer, value: float, units: int, dtype: torch.dtype
) -> None:
    out = normalize(torch.full((units,), value, dtype=dtype))
    assert out.dtype == dtype
    assert bool(torch.isfinite(out).all())
    assert bool((out == out[0]).all())


@each_normalizer
@laws
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
def test_a_normaliser_keeps_the_order(normalize: Normalizer, values: list[float]) -> None:
    s = torch.tensor(values, dtype=torch.float64)
    out = normalize(s)
    assert out.shape == s.shape
    order = s.argsort(stable=True)
    assert bool((out[order].diff() >= 0).all())


@each_normalizer
def test_a_normaliser_does_not_write_to_its_input(normalize: Normalizer) -> None:
    s = randn(6)
    before = s.clone()
    normalize(s)
    assert torch.equal(s, before)


@pytest.mark.parametrize("scale", ["mean", "sum", "max", "min_max", "z_score", "rank", "median"])
def test_the_scale_of_a_group_does_not_matter_once_normalised(scale: str) -> None:
    s = {"a": randn(9, seed=1).abs(), "b": randn(7, seed=2).abs()}
    scope = pf.scope.global_(normalize=NORMALIZERS[scale])
    mask = pf.select(s, 0.5, scope=scope)
    assert shown(pf.select({"a": s["a"], "b": 1024 * s["b"]}, 0.5, scope=scope)) == shown(mask)


def test_the_median_of_mostly_zeros_is_not_divided_by() -> None:
    assert normalizer.quantile(0.5)(torch.tensor([0.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 3.0]


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_a_quantile_is_a_share(q: float) -> None:
    with pytest.raises(pf.PruneError, match=r"q must be in \[0, 1\], such as 0.5"):
        normalizer.quantile(q)


def test_a_normaliser_that_breaks_its_word_is_named() -> None:
    def half(s: Tensor) -> Tensor:
        return s[:1]

    def nothing(s: Tensor) -> Tensor:
        return s / 0

    for broken in (half, nothing):
        with pytest.raises(pf.PruneError, match=rf"'{broken.__name__}' makes .* of the scores of group 'a'"):
            pf.select(scores(a=[1.0, 2.0]), 0.5, scope=pf.scope.global_(normalize=broken))


def test_normalize_true_is_the_mean() -> None:
    assert pf.scope.global_(normalize=True) == pf.scope.global_(normalize=normalizer.mean)
    assert pf.scope.global_(normalize=False) == pf.scope.global_()


# ---- classes


@lru_cache
def timm_spec(name: str, side: int = 64, **kwargs: Any) -> pf.Spec:
    return pf.trace(timm.create_model(name, **kwargs).eval(), (torch.randn(2, 3, side, side),))


def isomorphic(s: pf.Spec) -> list[list[str]]:
    return classes(pf.scope.isomorphic(), s)


def test_isomorphic_groups_of_deit() -> None:
    s = timm_spec("deit_tiny_patch16_224", img_size=64, depth=3)
    found = isomorphic(s)
    assert [(s.widths[c[0]].kind, len(c)) for c in found] == [
        ("residual", 1),
        ("heads", 3),
        ("head_dim", 3),
        ("hidden", 3),
    ]
    assert found == classes(pf.scope.per_kind(), s)


def test_isomorphic_groups_of_resnet50() -> None:
    """All units inside of blocks are alike, whatever the kernel; the stem has two readers, the last stream a classifier."""
    s = timm_spec("resnet50")
    stem, inside, streams, last = isomorphic(s)
    assert stem == ["conv1"]
    assert inside == [g.name for g in s.widths.values() if g.kind == "hidden" and g.name != "conv1"]
    assert streams == ["layer1.0.conv3", "layer2.0.conv3", "layer3.0.conv3"]
    assert last == ["layer4.0.conv3"]


def test_isomorphic_groups_of_convnext() -> None:
    s = timm_spec("convnext_tiny", depths=(2, 2, 3, 2))
    streams, inside, last = isomorphic(s)
    assert streams == ["stem.0", "stages.1.downsample.1", "stages.2.downsample.1"]
    assert inside == [g.name for g in s.widths.values() if g.kind == "hidden"]
    assert last == ["stages.3.downsample.1"]


def test_isomorphic_depthwise_groups_are_apart() -> None:
    """MobileNetV2: expansions run through a depthwise convolution; what the linear bottleneck without a shortcut gives does not."""
    s = timm_spec("mobilenetv2_100")
    found = next(c for c in isomorphic(s) if "blocks.1.0.conv_pw" in c)
    assert all(g.endswith(("conv_pw", "conv_stem")) for g in found)
    assert "blocks.2.1.conv_pw" in found
    assert "blocks.0.0.conv_pw" not in found  # 16 channels between two pointwise convolutions


class Mixed(nn.Module):
    """Two plain MLPs of different width, a gated one, one with a norm inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a2 = nn.Linear(4, 6), nn.Linear(6, 4)
        self.b, self.b2 = nn.Linear(4, 9), nn.Linear(9, 4)
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.n, self.norm, self.n2 = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b2(self.b(self.a2(self.a(x)).relu()).relu())
        x = self.down(self.gate(x).sigmoid() * self.up(x))
        return self.n2(self.norm(self.n(x)))


def test_isomorphic_ignores_sizes_and_names_and_sees_gates_and_norms() -> None:
    s = traced(Mixed(), randn(2, 4)).spec
    of = signatures(s)
    assert of["a"] == of["b"]
    assert len({of[g] for g in ("a", "gate", "n")}) == 3


def test_isomorphic_after_shrinking() -> None:
    s = spec("attention")
    mask = pf.select(score_spec(s, 0, False), 0.4, spec=s, scope=pf.scope.local())
    assert signatures(pf.shrink(s, mask)) == signatures(s)


def test_golden_isomorphic() -> None:
    """Half of the six units of the plain pair, ranked together; half of the heads of their own."""
    s = traced(Mixed(), randn(2, 4)).spec
    given = {g: torch.arange(1.0, s.sizes[g] + 1) for g in ("a", "b", "n")}
    given["b"] += 100
    mask = pf.select(given, 0.34, spec=s, scope=pf.scope.isomorphic())
    assert shown(mask) == {"a": "000001", "b": "1" * 9, "n": "001111"}


def test_golden_by() -> None:
    s = spec("mlp")
    given = {"0": torch.arange(7.0), "2": torch.arange(9.0) + 7}
    together = pf.scope.by(lambda group, spec: "one class")
    assert shown(pf.select(given, 0.25, spec=s, scope=together)) == {"0": "0000111", "2": "1" * 9}
    apart = pf.scope.by(lambda group, spec: spec.sizes[group.name])
    assert shown(pf.select(given, 0.25, spec=s, scope=apart)) == {"0": "0111111", "2": "001111111"}


@pytest.mark.parametrize("name", ["per_kind", "isomorphic", "by", "knapsack"])
def test_scopes_that_need_the_spec_say_so(name: str) -> None:
    called = {"by": "odd"}.get(name, name)
    with pytest.raises(pf.PruneError, match=rf"scope.{called}\(\) needs the spec: select\(scores, ratio, spec=spec"):
        pf.select(scores(a=[1.0, 2.0]), 0.5, scope=PLAIN[name])


# ---- score per cost


def brute_force(given: Scores, s: pf.Spec, quantity: str, steps: int) -> dict[str, int]:
    """Units that go from each group, every saving computed anew at every step."""
    polynomial = getattr(s.costs, quantity)
    sizes, gone = dict(s.sizes), dict.fromkeys(given, 0)
    ascending = {g: sorted(v.tolist()) for g, v in given.items()}
    for _ in range(steps):
        now = polynomial(sizes)
        keys = {
            g: ascending[g][gone[g]] / saved if (saved := now - polynomial({**sizes, g: sizes[g] - 1})) else inf
            for g in given
            if sizes[g] > 1
        }
        best = min(keys, key=keys.__getitem__)
        gone[best] += 1
        sizes[best] -= 1
    return gone


@each_spec
@pytest.mark.parametrize("quantity", ["macs", "params", "activations"])
@some
@given(seed=seeds, few=st.booleans(), share=st.floats(0.0, 1.0))
def test_the_greedy_order_is_that_of_brute_force(quantity: str, name: str, seed: int, few: bool, share: float) -> None:
    s = spec(name)
    given = score_spec(s, seed, few)
    steps = int(share * (sum(s.sizes.values()) - len(s.sizes)))
    mask = pf.select(given, units_left(s, steps), spec=s, scope=pf.scope.knapsack(quantity))
    assert {g: int((~m).sum()) for g, m in mask.items()} == brute_force(given, s, quantity, steps)


def units_left(s: pf.Spec, gone: int) -> pf.types.Budget:
    """A budget that is met when so many units have gone: the prefix of a scope's order."""
    total = sum(s.sizes.values())
    return pf.budget.custom(
        (total - gone) / total, lambda sizes, _: float(sum(sizes.values())), name="units", falls=True
    )


def test_golden_knapsack() -> None:
    """1 · 2 + 2 · 3 + 3 · 1 MACs; a unit of "0" saves 1 + 3, of "1" 2 + 1, and once a "0" has gone, 1 + 1."""
    s = traced(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3), nn.Linear(3, 1)), randn(2, 1)).spec
    given = scores(**{"0": [3.2, 9.0], "1": [2.5, 2.6, 9.0]})
    assert shown(pf.select(given, 0.2, spec=s, scope=pf.scope.knapsack())) == {"0": "01", "1": "111"}  # .8 < .833
    assert shown(pf.select(given, 0.2, spec=s)) == {"0": "11", "1": "011"}
    assert shown(pf.select(given, pf.budget.macs(0.5), spec=s, scope=pf.scope.knapsack())) == {"0": "01", "1": "011"}


def test_knapsack_of_many_units() -> None:
    """36 864 hidden units of a DeiT-B: as all units of a block save the same, and all blocks are alike, the plain order."""
    with torch.device("meta"):
        blocks = nn.Sequential(
            *[nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768)) for _ in range(12)]
        )
    s = pf.trace(blocks, (torch.empty(2, 768, device="meta"),))
    given = {g: randn(n, seed=i).abs() for i, (g, n) in enumerate(s.sizes.items()) if n == 3072}
    assert sum(map(len, given.values())) == 36_864
    mask = pf.select(given, 0.55, spec=s, scope=pf.scope.knapsack())
    plain = pf.select(given, 0.55, spec=s)
    assert all(torch.equal(mask[g], plain[g]) for g in given)


def test_knapsack_saves_more_for_the_same_score() -> None:
    """To 60 % of the MACs, it removes no more score than the plain order."""
    s = timm_spec("resnet18")
    given = {g: randn(n, seed=i).abs() for i, (g, n) in enumerate(s.sizes.items())}

    def lost(scope: Scope) -> float:
        mask = pf.select(given, pf.budget.macs(0.6), spec=s, scope=scope)
        return sum(float(given[g][~m].sum()) for g, m in mask.items())

    assert lost(pf.scope.knapsack()) < lost(pf.scope.global_())


def test_knapsack_takes_no_scores_below_zero() -> None:
    s = spec("mlp")
    given = {"0": randn(7), "2": randn(9).abs()}
    with pytest.raises(
        pf.PruneError, match=r"group '0' has -.* below zero; use scope.knapsack\(normalize=normalizer.min_max"
    ):
        pf.select(given, 0.5, spec=s, scope=pf.scope.knapsack())
    assert removed(pf.select(given, 0.5, spec=s, scope=pf.scope.knapsack(normalize=normalizer.min_max))) == 8


def test_knapsack_of_an_unknown_quantity() -> None:
    with pytest.raises(
        pf.PruneError, match="there is no quantity 'mac'; quantities are macs, params, activations; did you"
    ):
        pf.scope.knapsack("mac")


# ---- laws, for every scope


@each_scope
@each_spec
@some
@given(ratio=ratios, seed=seeds, few=st.booleans())
def test_each_class_loses_its_share_exactly(name: str, scope: Scope, ratio: float, seed: int, few: bool) -> None:
    s = spec(name)
    mask = select_or_none(score_spec(s, seed, few), ratio, spec=s, scope=scope)
    for members in classes(scope, s):
        units = sum(s.sizes[g] for g in members)
        asked = int(ratio * units + 1e-9)
        if scope.classes is not None:
            asked = min(asked, units - 1)
        if mask is not None:
            assert sum(int((~mask[g]).sum()) for g in members) == asked
            assert all(bool(mask[g].any()) for g in members)
    if mask is None:
        assert any(
            int(ratio * sum(s.sizes[g] for g in c) + 1e-9) > sum(s.sizes[g] - 1 for g in c) for c in classes(scope, s)
        )


@each_scope
@each_spec
@some
@given(ratio=ratios, seed=seeds, few=st.booleans())
def test_the_lowest_of_a_group_go_and_ties_by_index(
    name: str, scope: Scope, ratio: float, seed: int, few: bool
) -> None:
    s = spec(name)
    given = score_spec(s, seed, few)
    assume((mask := select_or_none(given, ratio, spec=s, scope=scope)) is not None)
    for g, m in mask.items():
        order = np.argsort(given[g].numpy(), kind="stable")
        assert set(order[: int((~m).sum())].tolist()) == set((~m).nonzero()[:, 0].tolist())


@each_scope
@each_spec
@some
@given(low=ratios, high=ratios, seed=seeds, few=st.booleans())
def test_a_higher_ratio_removes_more_of_the_same(
    name: str, scope: Scope, low: float, high: float, seed: int, few: bool
) -> None:
    s = spec(name)
    less, more = (select_or_none(score_spec(s, seed, few), r, spec=s, scope=scope) for r in sorted((low, high)))
    assume(less is not None and more is not None)
    assert all(bool((more[g] <= less[g]).all()) for g in less)


@each_plain_scope
@each_spec
@some
@given(ratio=ratios, seed=seeds, data=st.data(), by=st.floats(0.1, 100.0))
def test_raising_a_score_saves_the_unit(
    name: str, scope: Scope, ratio: float, seed: int, data: st.DataObject, by: float
) -> None:
    s = spec(name)
    given = distinct(s, seed)
    assume((mask := select_or_none(given, ratio, spec=s, scope=scope)) is not None)
    g = data.draw(st.sampled_from(list(given)))
    u = data.draw(st.integers(0, s.sizes[g] - 1))
    raised = {**given, g: given[g].clone()}
    raised[g][u] += by
    if bool(mask[g][u]):
        assert bool(pf.select(raised, ratio, spec=s, scope=scope)[g][u])


@each_scope
@each_spec
@some
@given(ratio=ratios, seed=seeds)
def test_permuted_scores_give_the_permuted_mask(name: str, scope: Scope, ratio: float, seed: int) -> None:
    s = spec(name)
    given = distinct(s, seed)
    assume((mask := select_or_none(given, ratio, spec=s, scope=scope)) is not None)
    generator = torch.Generator().manual_seed(seed)
    order = {g: torch.randperm(len(v), generator=generator) for g, v in given.items()}
    permuted = pf.select({g: v[order[g]] for g, v in given.items()}, ratio, spec=s, scope=scope)
    assert shown(permuted) == shown({g: m[order[g]] for g, m in mask.items()})


@each_scope
@each_spec
@some
@given(ratio=ratios, seed=seeds, round_to=st.integers(1, 4), max_ratio=st.floats(0.0, 1.0), min_units=st.integers(1, 4))
def test_caps_hold(
    name: str, scope: Scope, ratio: float, seed: int, round_to: int, max_ratio: float, min_units: int
) -> None:
    s = spec(name)
    limits: dict[str, Any] = {"round_to": round_to, "max_ratio": max_ratio, "min_units": min_units}
    assume((mask := select_or_none(score_spec(s, seed, True), ratio, spec=s, scope=scope, **limits)) is not None)
    for m in mask.values():
        kept, n = int(m.sum()), len(m)
        assert kept == n or (kept % round_to == 0 and kept >= min_units)
        assert n - kept <= max_ratio * n + 1e-9
    for c in classes(scope, s):
        assert sum(int((~mask[g]).sum()) for g in c) <= ratio * sum(s.sizes[g] for g in c) + 1e-6


@each_scope
@each_spec
@some
@given(ratio=st.floats(0.5, 1.0, exclude_max=True), seed=seeds, min_units=st.integers(1, 5))
def test_what_cannot_be_met_raises_and_what_the_message_says_works(
    name: str, scope: Scope, ratio: float, seed: int, min_units: int
) -> None:
    s = spec(name)
    given = score_spec(s, seed, False)
    try:
        pf.select(given, ratio, spec=s, scope=scope, min_units=min_units)
    except pf.BudgetError as e:
        promised = float(str(e).rsplit("a ratio up to ", 1)[1].split(" works")[0])
        assert promised < ratio
        pf.select(given, promised, spec=s, scope=scope, min_units=min_units)


@each_scope
@each_spec
@pytest.mark.parametrize("quantity", ["macs", "params", "activations"])
@settings(laws, max_examples=4)
@given(keep=st.floats(0.3, 1.0), seed=seeds, few=st.booleans(), round_to=st.integers(1, 2))
def test_a_budget_is_met_by_the_fewest_of_the_order(
    quantity: str, name: str, scope: Scope, keep: float, seed: int, few: bool, round_to: int
) -> None:
    s = spec(name)
    given = score_spec(s, seed, few)
    demand = getattr(pf.budget, quantity)(keep)
    assume((mask := select_or_none(given, demand, spec=s, scope=scope, round_to=round_to)) is not None)
    target = keep * getattr(pf.cost(s), quantity) * (1 + 1e-12)
    assert getattr(pf.cost(s, mask), quantity) <= target
    assert all(int(m.sum()) % round_to == 0 or bool(m.all()) for m in mask.values())
    if round_to == 1:
        k = removed(mask)
        assert shown(pf.select(given, units_left(s, k), spec=s, scope=scope)) == shown(mask)
        if k:
            before = pf.select(given, units_left(s, k - 1), spec=s, scope=scope)
            assert removed(before) == k - 1
            assert getattr(pf.cost(s, before), quantity) > target


def test_classes_shrink_alike_under_a_budget() -> None:
    s = spec("attention")
    for k in range(sum(s.sizes.values()) // 2):
        mask = pf.select(score_spec(s, 0, False), units_left(s, k), spec=s, scope=pf.scope.per_kind())
        gone, total = Counter[str](), Counter[str]()
        for g, m in mask.items():
            gone[s.widths[g].kind] += int((~m).sum())
            total[s.widths[g].kind] += len(m)
        shares = [gone[kind] / total[kind] for kind in total]
        next_shares = [(gone[kind] + 1) / total[kind] for kind in total]
        assert max(shares) <= min(next_shares) + 1e-12 or k == 0
