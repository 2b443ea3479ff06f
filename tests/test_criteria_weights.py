"""Criteria on weights, reductions and wrappers: golden values that can be checked by eye, ties included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn import criteria as c
from prunefn.criteria import base, normalizer, reduction
from prunefn.criteria._dissimilar import nearest_cosine
from prunefn.criteria.base import filters

from .small import Attention, Residual, Tied, Traced, close, cnn, mlp, randn, traced
from .test_criteria import lists, stats_of, weights


def given(**scores: list[float]) -> pf.Criterion:
    """A criterion with these scores."""
    fixed = {g.removeprefix("_"): torch.tensor(s, dtype=torch.float64) for g, s in scores.items()}
    return pf.Criterion("given", lambda stats: fixed, needs=())


def layers() -> Traced:
    """Groups '0' of 2 units and '2' of 4 units."""
    return traced(mlp(3, 2, 4, 5), randn(2, 3))


def scored(criterion: pf.Criterion, t: Traced | None = None) -> dict[str, list[float]]:
    t = t or layers()
    return lists(pf.score(pf.collect_stats(t.params, None, spec=t.spec), criterion=criterion))


# ---- reductions


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (reduction.mean, [2.0, 5.0]),
        (reduction.sum, [4.0, 10.0]),
        (reduction.max, [3.0, 8.0]),
        (reduction.prod, [3.0, 16.0]),
        (reduction.first, [1.0, 8.0]),
    ],
)
def test_golden_reductions(how: reduction.Reduction, expected: list[float]) -> None:
    """Rows of sums 1 and 8, columns of sums 3 and 2."""
    assert how(torch.tensor([[1.0, 8.0], [3.0, 2.0]])).tolist() == expected
    t = traced(nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)), randn(2, 2))
    stats = weights(t, **{"0__weight": [[1.0, 0.0], [-5.0, 3.0]], "2__weight": [[-3.0, 2.0]]})
    assert lists(pf.score(stats, criterion=c.magnitude(1.0, reduction=how))) == {"0": expected}


# ---- network slimming


def test_bn_scale_is_the_magnitude_of_gamma_and_skips_groups_without_a_norm() -> None:
    """Liu et al., ICCV 2017, section 3."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    t = traced(net, randn(2, 3, 4, 4))
    stats = weights(
        t, **{"1__weight": [0.5, -2.0, 0.0, 0.5], "1__bias": [9.0] * 4, "0__weight": torch.ones(4, 3, 1, 1)}
    )
    assert lists(pf.score(stats, criterion=c.bn_scale())) == {"0": [0.5, 2.0, 0.0, 0.5]}


def test_bn_scale_is_the_mean_over_norms_and_over_positions() -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 3)
            self.first, self.second, self.both = nn.LayerNorm(2), nn.LayerNorm(2), nn.LayerNorm(4)
            self.free = nn.LayerNorm(3, elementwise_affine=False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.free(self.b(self.both(torch.cat([self.first(h), self.second(h)], -1))))

    t = traced(Norms(), randn(2, 3))
    stats = weights(t, first__weight=[1.0, 2.0], second__weight=[3.0, 8.0], both__weight=[1.0, 1.0, -3.0, 9.0])
    assert lists(pf.score(stats, criterion=c.bn_scale())) == {"a": [2.0, 5.0]}
    none = traced(mlp(2, 3, 2), randn(2, 2))
    assert lists(pf.score(pf.collect_stats(none.params, None, spec=none.spec), criterion=c.bn_scale())) == {}


# ---- LAMP


def test_golden_lamp_with_ties_and_zeros() -> None:
    """Lee et al., ICLR 2021, eq. 3: squares 4, 1, 0, 1 give 4/4, 1/6, 0, 1/6."""
    t = traced(mlp(1, 4, 1), randn(2, 1))
    stats = weights(t, **{"0__weight": [[2.0], [-1.0], [0.0], [1.0]], "0__bias": [7.0, 7.0, 7.0, 7.0]})
    assert lists(pf.score(stats, criterion=c.lamp())) == {"0": [1.0, round(1 / 6, 9), 0.0, round(1 / 6, 9)]}
    zeros = weights(t)
    assert lists(pf.score(zeros, criterion=c.lamp())) == {"0": [0.0] * 4}


def test_lamp_is_free_of_scale_and_keeps_the_order() -> None:
    t = traced(mlp(3, 6, 7, 2), randn(2, 3))
    scaled = {n: p * 100 for n, p in t.params.items()}
    a, b = (pf.score(pf.collect_stats(p, None, spec=t.spec), criterion=c.lamp()) for p in (t.params, scaled))
    magnitudes = pf.score(pf.collect_stats(t.params, None, spec=t.spec), criterion=c.magnitude())
    for g, s in a.items():
        close(s, b[g])
        assert float(s.max()) == 1
        assert torch.equal(s.argsort(), magnitudes[g].argsort())


# ---- geometric median


def test_golden_fpgm() -> None:
    """He et al., CVPR 2019: filters 0, 3+4i and −3−4i; signs count, so that w and −w are far apart."""
    t = traced(mlp(2, 4, 1), randn(2, 2))
    stats = weights(t, **{"0__weight": [[0.0, 0.0], [3.0, 4.0], [-3.0, -4.0], [3.0, 4.0]], "0__bias": [9.0, 0, 0, 0]})
    assert lists(pf.score(stats, criterion=c.fpgm())) == {"0": [15.0, 15.0, 25.0, 15.0]}


def test_fpgm_takes_producers_together_and_heads_with_all_their_rows() -> None:
    t = traced(Residual(3, 4, 5, 2), randn(2, 3))
    stats = pf.collect_stats(t.params, None, spec=t.spec)
    both = torch.cat([t.params["stem.weight"], t.params["down.weight"]], 1)
    found = filters(stats, "stem")
    assert found is not None
    assert torch.equal(found, both)
    close(pf.score(stats, criterion=c.fpgm())["stem"], (both[:, None] - both).square().sum(2).sqrt().sum(1), 1e-7)
    t = traced(Attention(8, 2, 3), randn(2, 5, 8))
    found = filters(pf.collect_stats(t.params, None, spec=t.spec), "qkv.heads")
    assert found is not None
    assert torch.equal(found, t.params["qkv.weight"].reshape(3, 2, 3 * 8).transpose(0, 1).flatten(1))


def test_filters_of_embeddings_are_all_that_the_group_has() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.embed(x))

    model = Embedded().double().eval()
    spec, params = pf.trace(model, (torch.arange(6).reshape(2, 3),)), pf.params(model)
    (group,) = spec.groups
    found = filters(pf.collect_stats(params, None, spec=spec), group)
    assert found is not None
    assert found.shape == (4, 7 + 3)
    tied = Tied().double().eval()
    spec = pf.trace(tied, (torch.arange(6).reshape(2, 3),))
    assert list(pf.score(pf.collect_stats(pf.params(tied), None, spec=spec), criterion=c.fpgm())) == list(spec.groups)


def test_pairs_are_compared_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    t = traced(mlp(3, 11, 2), randn(2, 3))
    stats = pf.collect_stats(t.params, None, spec=t.spec)
    both = [c.fpgm(), c.dissimilar(c.magnitude())]
    whole = [pf.score(stats, criterion=x)["0"] for x in both]
    assert base.CHUNK > 11
    for name in ("fpgm", "dissimilar"):
        monkeypatch.setattr(importlib.import_module(f"prunefn.criteria._{name}"), "CHUNK", 4)
    for x, s in zip(both, whole, strict=True):
        close(pf.score(stats, criterion=x)["0"], s)


# ---- similarity


def test_golden_similarity_discount() -> None:
    """Unit 1 repeats unit 0 at twice the length, unit 2 stands at right angles, unit 3 opposes 2, unit 4 is zero."""
    w = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, -1.0], [0.0, 0.0]])
    assert nearest_cosine(w).tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert nearest_cosine(w[:1]).tolist() == [0.0]
    assert nearest_cosine(w[2:4]).tolist() == [-1.0, -1.0]
    t = traced(mlp(2, 5, 1), randn(2, 2))
    stats = weights(t, **{"0__weight": w.tolist()})
    once = given(_0=[7.0, 7.0, 5.0, 3.0, 2.0])
    assert lists(pf.score(stats, criterion=c.dissimilar(once))) == {"0": [0.0, 0.0, 5.0, 3.0, 2.0]}


# ---- wrappers


def test_golden_combined() -> None:
    """Over means 2 and 20: [1 2 3 …] and [10 …] count alike; groups that one of them lacks are left out."""
    a, b = given(_0=[1.0, 3.0]), given(_0=[30.0, 10.0], _2=[1.0, 1.0, 1.0, 1.0])
    assert scored(c.combined(a, b)) == {"0": [1.0, 1.0]}
    assert scored(c.combined(a, b, 1.0)) == {"0": [0.5, 1.5]}
    assert scored(c.combined(a, b, 0.25)) == {"0": [0.25 * 0.5 + 0.75 * 1.5, 0.25 * 1.5 + 0.75 * 0.5]}
    two = given(_0=[2.0, 4.0], _2=[0.0, 0.0, 0.0, 6.0])  # one mean for all groups: 2
    assert scored(c.combined(two, two)) == {"0": [1.0, 2.0], "2": [0.0, 0.0, 0.0, 3.0]}
    zeros = given(_0=[0.0, 0.0])
    assert scored(c.combined(zeros, a)) == {"0": [0.25, 0.75]}
    assert scored(c.combined(given(), a)) == {}


def test_golden_rank_fusion() -> None:
    """Ranks among the six units of both groups; equal scores have equal ranks."""
    a = given(_0=[1.0, 6.0], _2=[2.0, 3.0, 4.0, 4.0])
    b = given(_0=[600.0, 100.0], _2=[500.0, 400.0, 300.0, 200.0])
    ranks = {"0": [1 / 6, 1.0], "2": [2 / 6, 3 / 6, 5 / 6, 5 / 6]}
    assert scored(c.rank_fusion(a, b, 1.0)) == {g: [round(v, 9) for v in s] for g, s in ranks.items()}
    other = {"0": [1.0, 1 / 6], "2": [5 / 6, 4 / 6, 3 / 6, 2 / 6]}
    half = {g: [round((x + y) / 2, 9) for x, y in zip(s, other[g], strict=True)] for g, s in ranks.items()}
    assert scored(c.rank_fusion(a, b)) == half
    assert scored(c.rank_fusion(given(), b)) == {}


def test_golden_guided() -> None:
    """Ranks within the group: ½ and 1 of two units; δ = .2."""
    a, by = given(_0=[10.0, 1.0], _2=[1.0, 1.0, 1.0, 1.0]), given(_0=[1.0, 2.0], _2=[5.0, 5.0, 1.0, 9.0])
    assert scored(c.guided(a, by)) == {"0": [6.0, 1.0], "2": [0.8, 0.8, 0.4, 1.0]}
    assert scored(c.guided(a, by, 1.0)) == {"0": [10.0, 1.0], "2": [1.0] * 4}
    assert scored(c.guided(a, by, 0.0)) == {"0": [5.0, 1.0], "2": [0.75, 0.75, 0.25, 1.0]}


def test_normalized_is_by_group() -> None:
    a = given(_0=[1.0, 3.0], _2=[10.0, 0.0, 10.0, 20.0])
    assert scored(c.normalized(a)) == {"0": [0.5, 1.5], "2": [1.0, 0.0, 1.0, 2.0]}
    assert scored(c.normalized(a, normalizer.max)) == {"0": [round(1 / 3, 9), 1.0], "2": [0.5, 0.0, 0.5, 1.0]}
    assert scored(c.normalized(a, normalizer.none)) == scored(a)


def test_smoothed_remembers_what_it_is_given() -> None:
    first = pf.score(
        pf.collect_stats(layers().params, None, spec=layers().spec), criterion=c.smoothed(given(_0=[1.0, 3.0]))
    )
    assert lists(first) == {"0": [1.0, 3.0]}
    assert scored(c.smoothed(given(_0=[11.0, 3.0]), first)) == {"0": [2.0, 3.0]}
    assert scored(c.smoothed(given(_0=[11.0, 3.0]), first, decay=0.0)) == {"0": [11.0, 3.0]}
    assert scored(c.smoothed(given(_0=[1.0, 3.0], _2=[1.0] * 4), first)) == {"0": [1.0, 3.0], "2": [1.0] * 4}
    assert lists(first) == {"0": [1.0, 3.0]}


def test_smoothed_over_a_round_of_pruning() -> None:
    t = layers()
    before = pf.score(pf.collect_stats(t.params, None, spec=t.spec), criterion=c.magnitude())
    mask = pf.select(before, 0.5, spec=t.spec)
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    stats = pf.collect_stats(small, None, spec=spec)
    gone = next(g for g, m in mask.items() if not bool(m.all()))
    with pytest.raises(
        pf.StatsError, match=rf"group '{gone}' has \d units, but the previous scores have \d: it was pruned"
    ):
        pf.score(stats, criterion=c.smoothed(c.magnitude(), before))
    previous = {g: s[mask[g]] if g in mask else s for g, s in before.items()}  # what the message says
    new = pf.score(stats, criterion=c.magnitude())
    for g, s in pf.score(stats, criterion=c.smoothed(c.magnitude(), previous)).items():
        close(s, 0.9 * previous[g] + 0.1 * new[g])


# ---- MACs


def macs(t: Traced) -> dict[str, int]:
    return {g: t.spec.macs_of(g) for g in t.spec.groups}


def test_golden_mac_aware() -> None:
    """3 → 2 → 4 → 5: group '0' takes part in 3·2 + 2·4 = 14 MACs, group '2' in 2·4 + 4·5 = 28; the expensive one is lower."""
    t = layers()
    assert macs(t) == {"0": 14, "2": 28}
    equal = given(_0=[0.5, 0.5], _2=[0.5] * 4)
    assert scored(c.mac_aware(equal)) == {"0": [0.55, 0.55], "2": [0.45] * 4}
    large = given(_0=[4.0, 2.0], _2=[4.0] * 4)  # over the largest
    assert scored(c.mac_aware(large, 0.5)) == {"0": [1.0, 0.75], "2": [0.5] * 4}
    assert scored(c.mac_aware(given(_2=[1.0, 0.0, 1.0, 0.0]))) == {"2": [0.95, 0.05, 0.95, 0.05]}  # min = max: n = ½
    assert scored(c.mac_aware(given())) == {}


def test_golden_mac_aware_product() -> None:
    """(14 / 28)^{1/2} and (14 / 28)^{1/1}; below zero, the expensive are lower, too."""
    equal = given(_0=[4.0, -4.0], _2=[4.0, -4.0, 0.0, 1.0])
    root = 0.5**0.5
    expected = {"0": [4.0, -4.0], "2": [round(4 * root, 9), round(-4 / root, 9), 0.0, round(root, 9)]}
    assert scored(c.mac_aware_product(equal)) == expected
    assert scored(c.mac_aware_product(equal, beta=1.0)) == {"0": [4.0, -4.0], "2": [2.0, -8.0, 0.0, 0.5]}
    assert scored(c.mac_aware_product(given())) == {}


def test_expensive_groups_lose_more_units_the_more_macs_count() -> None:
    wide = traced(mlp(3, 40, 40, 2), randn(2, 3))
    stats = stats_of(wide, {"2": [float(i) for i in range(40)], "4": [float(i) for i in range(40)]})
    saved = []
    for criterion in (c.variance(), c.mac_aware(c.variance(), 0.5), c.mac_aware_product(c.variance())):
        mask = pf.select(pf.score(stats, criterion=criterion), 0.5, spec=wide.spec)
        saved.append(pf.cost(wide.spec, mask).macs)
    assert macs(wide)["0"] > macs(wide)["2"]
    assert saved[0] >= max(saved[1:])


# ---- names, needs, bad numbers


def test_wrappers_need_what_is_inside() -> None:
    inner = c.combined(c.activation(), c.fisher())
    outer = c.mac_aware(c.rank_fusion(inner, c.dissimilar(c.conditional_variance())))
    assert outer.name == "mac_aware(rank_fusion(combined(activation, fisher), dissimilar(conditional_variance)))"
    assert outer.needs == ("absolute", "covariance")
    assert [k.name for k in outer.collectors] == ["squared mask gradients of cross_entropy"]
    assert len(c.combined(c.fisher(), c.fisher()).collectors) == 1
    assert not c.normalized(c.magnitude()).data
    t, batches = traced(cnn(), randn(2, 3, 6, 6)), [(randn(50, 3, 6, 6), torch.arange(50) % 4)]
    stats = pf.collect_stats(t.params, batches, spec=t.spec, criterion=outer)
    assert pf.score(stats, criterion=outer)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: c.combined(c.variance(), c.variance(), 1.5),
        lambda: c.rank_fusion(c.variance(), c.variance(), -0.5),
        lambda: c.guided(c.variance(), c.variance(), 2.0),
        lambda: c.smoothed(c.variance(), decay=1.0),
        lambda: c.mac_aware(c.variance(), alpha=-1.0),
        lambda: c.mac_aware_product(c.variance(), beta=0.0),
    ],
)
def test_numbers_that_cannot_be(bad) -> None:
    with pytest.raises(ValueError, match=r"is -?[\d.]+; it must be (in \[0, 1[\])]|above 0)"):
        bad()
