"""What holds for every criterion: names, needs, purity, the same bits again, no matter the order of the units."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn import criteria as c
from prunefn.criteria import normalizer
from prunefn.frozen_dict import FrozenDict

from .orders import permuted, random_orders
from .small import close, cnn, mlp, randn, traced

TABLE: dict[str, Callable[[], pf.Criterion]] = {
    "activation": c.activation,
    "activation_norm": c.activation_norm,
    "bn_scale": c.bn_scale,
    "combined(magnitude, weighted_variance)": lambda: c.combined(c.magnitude(), c.weighted_variance()),
    "conditional_variance": c.conditional_variance,
    "denoised_variance": c.denoised_variance,
    "dissimilar(magnitude)": lambda: c.dissimilar(c.magnitude()),
    "fisher": lambda: c.fisher(chunk_size=7),
    "flap": c.flap,
    "fpgm": c.fpgm,
    "guided(magnitude, weighted_variance)": lambda: c.guided(c.magnitude(), c.weighted_variance(producer=True)),
    "hessian": c.hessian,
    "lamp": c.lamp,
    "mac_aware(variance)": lambda: c.mac_aware(c.variance()),
    "mac_aware_product(fisher)": lambda: c.mac_aware_product(c.fisher(chunk_size=7)),
    "magnitude": c.magnitude,
    "movement": c.movement,
    "normalized(activation)": lambda: c.normalized(c.activation(), by=normalizer.max),
    "obd_c": c.obd_c,
    "obs": c.obs,
    "random": c.random,
    "rank_fusion(magnitude, taylor)": lambda: c.rank_fusion(c.magnitude(), c.taylor(weights=True)),
    "smoothed(taylor)": lambda: c.smoothed(c.taylor(absolute=True)),
    "taylor": c.taylor,
    "variance": c.variance,
    "wanda_sp": c.wanda_sp,
    "weighted_variance": c.weighted_variance,
}
every = pytest.mark.parametrize("name", TABLE)
data = pytest.mark.parametrize("name", [n for n, make in TABLE.items() if make().data])


class Measured(NamedTuple):
    """A network with convolutions, norms, conv groups and a flatten, and statistics for all criteria at once."""

    spec: pf.Spec
    params: pf.Params
    batches: list[tuple[Tensor, Tensor]]
    stats: pf.Stats


@cache
def measured() -> Measured:
    t = traced(cnn(), randn(2, 3, 6, 6))
    batches = [(randn(n, 3, 6, 6, seed=n), torch.arange(n) % 4) for n in (20, 41)]
    stats = pf.collect_stats(t.params, batches, spec=t.spec, criterion=[make() for make in TABLE.values()])
    return Measured(t.spec, t.params, batches, stats)


def test_the_table_has_them_all() -> None:
    """All but `given`, whose scores are the caller's, and `frequency`, which counts ids, and those of blocks and experts: see
    test_interfaces, test_depth and test_experts."""
    assert {name.partition("(")[0] for name in TABLE} == set(c.__all__) - {
        "given",
        "frequency",
        "block_influence",
        "branch_error",
        "expert_frequency",
        "reap",
    }


@every
def test_names_say_what_they_are_made_of(name: str) -> None:
    assert TABLE[name]().name == name


@every
def test_scores_are_one_finite_number_per_unit(name: str) -> None:
    m = measured()
    scores = pf.score(m.stats, criterion=TABLE[name]())
    assert scores
    assert [g for g in m.spec.groups if g in scores] == list(scores)
    for g, s in scores.items():
        assert s.shape == (m.spec.sizes[g],)
        assert s.dtype == torch.float64
        assert not s.requires_grad


@every
def test_statistics_for_one_criterion_serve_it_as_those_for_all(name: str) -> None:
    m, criterion = measured(), TABLE[name]()
    batches = m.batches if criterion.data else None
    alone = pf.score(pf.collect_stats(m.params, batches, spec=m.spec, criterion=criterion), criterion=criterion)
    for g, s in pf.score(m.stats, criterion=TABLE[name]()).items():
        assert torch.equal(alone[g], s)


@every
def test_nothing_is_changed(name: str) -> None:
    m, criterion = measured(), TABLE[name]()
    rng, tensors = torch.get_rng_state(), [*m.params.values(), *(t for b in m.batches for t in b)]
    before = [(t._version, t.clone()) for t in tensors]
    stats = pf.collect_stats(m.params, m.batches[:1], spec=m.spec, criterion=[criterion, c.denoised_variance()])
    merged = pf.merge_stats(stats, pf.collect_stats(m.params, m.batches[1:], spec=m.spec, criterion=TABLE[name]()))
    sums = {k: {g: v.clone() for g, v in groups.items()} for k, groups in merged.sums.items()}
    pf.score(m.stats, criterion=criterion)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(t._version == v and torch.equal(t, old) for t, (v, old) in zip(tensors, before, strict=True))
    assert all(torch.equal(v, sums[k][g]) for k, groups in merged.sums.items() for g, v in groups.items())


NOT_BY_UNIT = {
    "random": "numbers come by index",
    "hessian": "probes come by index; test_criteria_gradients has its law",
}


@pytest.mark.parametrize("name", [n for n in TABLE if n not in NOT_BY_UNIT])
def test_the_order_of_the_units_does_not_matter(name: str) -> None:
    m, criterion = measured(), TABLE[name]()
    params, spec = permuted(m.params, m.spec, 3)
    orders = random_orders(m.spec, 3)
    batches = m.batches if criterion.data else None
    other = pf.score(pf.collect_stats(params, batches, spec=spec, criterion=criterion), criterion=criterion)
    scores = pf.score(m.stats, criterion=criterion)
    assert set(other) == set(scores)
    for g, s in scores.items():
        close(other[g], s[orders[g]], 1e-9)


@every
def test_empty_statistics_are_an_error(name: str) -> None:
    with pytest.raises(pf.StatsError, match="statistics are empty; use collect_stats"):
        pf.score(pf.Stats(), criterion=TABLE[name]())


@data
def test_missing_statistics_are_an_error_that_says_what_to_collect(name: str) -> None:
    m, criterion = measured(), TABLE[name]()
    nothing = pf.collect_stats(m.params, None, spec=m.spec)
    with pytest.raises(
        pf.StatsError, match=r"use\s+collect_stats\(params, batches, spec=spec, criterion=criteria\.\w+\("
    ) as e:
        pf.score(nothing, criterion=criterion)
    inner = [n.split("(")[0] for n in str(e.value).split("criteria.")[1:]]
    assert inner[0] in name


@pytest.mark.parametrize("make", [c.activation, c.conditional_variance, c.denoised_variance])
def test_moments_alone_are_not_enough_for_what_needs_more(make: Callable[[], pf.Criterion]) -> None:
    m = measured()
    stats = pf.collect_stats(m.params, m.batches, spec=m.spec)
    what = {"absolute": r"mean of \|x\|", "covariance": "covariance"}[make().needs[0]]
    with pytest.raises(pf.StatsError, match=rf"needs the {what} of site '3'; use .*criteria\.{make().name}\("):
        pf.score(stats, criterion=make())


@data
def test_nan_in_the_moments_names_the_site(name: str) -> None:
    m, criterion = measured(), TABLE[name]()
    if not criterion.needs:
        assert criterion.collectors
        return
    sites = {n: v._replace(m2=torch.full_like(v.m2, float("nan"))) for n, v in m.stats.sites.items()}
    with pytest.raises(pf.StatsError, match="moments of site '3' contain NaN"):
        pf.score(m.stats._replace(sites=FrozenDict(sites)), criterion=criterion)


@every
def test_half_precision_is_scored_in_double(name: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).bfloat16().eval()
    x = randn(8, 3).bfloat16()
    spec, params, criterion = pf.trace(net, (x,)), pf.params(net), TABLE[name]()
    batches = [(x, torch.arange(8) % 2)]
    scores = pf.score(pf.collect_stats(params, batches, spec=spec, criterion=criterion), criterion=criterion)
    assert scores
    assert all(s.dtype == torch.float64 for s in scores.values())


@every
def test_a_pipeline_takes_it(name: str) -> None:
    m = measured()
    prune = pf.pipeline(criterion=TABLE[name](), ratio=0.25, compensation=pf.compensation.none())
    small = prune(m.params, m.batches, spec=m.spec)
    assert small.info.after.macs < small.info.before.macs
    out = pf.forward(small.params, m.batches[0][0], spec=small.spec)
    assert bool(torch.isfinite(out).all())


def test_a_single_sample_and_dead_units() -> None:
    """Nothing divides by what is zero there."""
    t = traced(mlp(2, 3, 2, 2), randn(2, 2))
    params = {n: torch.zeros_like(v) for n, v in t.params.items()}
    for make in TABLE.values():
        criterion = make()
        if "denoised" in criterion.name or "bn_scale" in criterion.name:
            continue  # these need more samples, and a norm
        batches = [(torch.ones(1, 2).double(), torch.tensor([1]))]
        stats = pf.collect_stats(params, batches, spec=t.spec, criterion=criterion)
        scores = pf.score(stats, criterion=criterion)
        assert set(scores) == set(t.spec.groups), criterion.name
