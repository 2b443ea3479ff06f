"""Scores by hand on networks that are small enough."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.frozen_dict import FrozenDict
from prunefn.types import Moments

from .small import Attention, Residual, Tied, Traced, Twice, close, mlp, randn, traced


def stats_of(t: Traced, variances: dict[str, list[float]]) -> pf.Stats:
    """Statistics made by hand: two samples, so that M2 is the variance."""
    sites = {n: Moments(2, torch.zeros(len(v)), torch.tensor(v, dtype=torch.float64)) for n, v in variances.items()}
    return pf.Stats(t.spec, FrozenDict(t.params), FrozenDict(sites), batches=1)


def weights(t: Traced, **values: Tensor | list) -> pf.Stats:
    """Params by name (`__` for a dot); all others are zero."""
    given = {n.replace("__", "."): v for n, v in values.items()}
    params = {n: torch.as_tensor(given.pop(n, torch.zeros_like(v)), dtype=v.dtype) for n, v in t.params.items()}
    assert not given
    assert {n: v.shape for n, v in params.items()} == {n: v.shape for n, v in t.params.items()}
    return pf.collect_stats(params, None, spec=t.spec)


def lists(scores: pf.types.Scores) -> dict[str, list[float]]:
    return {g: [round(float(v), 9) for v in s] for g, s in scores.items()}


# ---- variance


def test_variance_is_the_moments_unbiased() -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    assert lists(pf.score(stats_of(t, {"2": [4.0, 0.0, 1.0]}))) == {"0": [4.0, 0.0, 1.0]}


def test_variance_of_heads_is_the_mean_over_their_positions() -> None:
    t = traced(Attention(8, 2, 3), randn(2, 5, 8))
    scores = pf.score(stats_of(t, {"proj": [0.0, 1.0, 2.0, 3.0, 4.0, 8.0]}))
    assert lists(scores) == {"qkv.heads": [1.0, 5.0], "qkv.head_dim": [1.5, 2.5, 5.0]}


def test_variance_of_units_that_stand_twice() -> None:
    t = traced(Twice(), randn(2, 4))
    assert lists(pf.score(stats_of(t, {"b": [1.0, 2.0, 3.0, 11.0, 22.0, 33.0]}))) == {"a": [6.0, 12.0, 18.0]}


def test_variance_is_the_mean_over_sites() -> None:
    t = traced(Residual(3, 2, 2, 2), randn(2, 3))
    scores = pf.score(stats_of(t, {"up": [1.0, 2.0], "head": [3.0, 8.0], "down": [7.0, 9.0]}))
    assert lists(scores) == {"stem": [2.0, 5.0], "up": [7.0, 9.0]}


def test_groups_without_a_measured_site_have_no_score() -> None:
    t = traced(mlp(2, 3, 4, 2), randn(2, 2))
    assert set(pf.score(stats_of(t, {"4": [1.0, 2.0, 3.0, 4.0]}))) == {"2"}


def test_variance_is_the_default_and_measured_after_the_activation() -> None:
    t = traced(mlp(1, 3, 1), randn(2, 1))
    params = {**t.params, "0.weight": torch.tensor([[1.0], [-2.0], [0.0]]).double(), "0.bias": torch.zeros(3).double()}
    batch = torch.tensor([[-3.0], [0.0], [3.0]]).double()
    stats = pf.collect_stats(params, [batch], spec=t.spec)
    assert lists(pf.score(stats)) == lists(pf.score(stats, criterion=pf.criteria.variance())) == {"0": [3.0, 12.0, 0.0]}


# ---- magnitude


def test_golden_magnitude_is_the_mean_over_members() -> None:
    """Rows [1 2], [-3 0], columns 2 and [0 1 -1]."""
    t = traced(nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 3)), randn(2, 2))
    stats = weights(t, **{"0__weight": [[1.0, 2.0], [-3.0, 0.0]], "2__weight": [[2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]})
    score = lambda p: lists(pf.score(stats, criterion=pf.criteria.magnitude(p)))["0"]  # noqa: E731
    assert score(1.0) == [(3 + 2) / 2, (3 + 2) / 2]
    assert score(2.0) == [(5 + 4) / 2, (9 + 2) / 2]
    assert lists(pf.score(stats, criterion=pf.criteria.magnitude())) == {"0": score(2.0)}


def test_magnitude_counts_biases_on_request() -> None:
    t = traced(mlp(1, 2, 1), randn(2, 1))
    stats = weights(t, **{"0__weight": [[1.0], [2.0]], "0__bias": [6.0, -3.0], "2__weight": [[1.0, 2.0]]})
    assert lists(pf.score(stats, criterion=pf.criteria.magnitude(1.0))) == {"0": [1.0, 2.0]}
    scores = pf.score(stats, criterion=pf.criteria.magnitude(1.0, bias=True))
    assert lists(scores) == {"0": [round(8 / 3, 9), round(7 / 3, 9)]}


def test_magnitude_counts_norm_weights_but_no_buffers() -> None:
    t = traced(nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)), randn(2, 1, 3, 3))
    stats = weights(
        t,
        **{
            "0__weight": [[[[1.0]]], [[[2.0]]]],
            "1__weight": [3.0, 4.0],
            "1__running_mean": [100.0, 100.0],
            "1__running_var": [100.0, 100.0],
            "2__weight": [[[[5.0]], [[-6.0]]]],
        },
    )
    assert lists(pf.score(stats, criterion=pf.criteria.magnitude(1.0))) == {"0": [3.0, 4.0]}


def test_magnitude_of_heads_sums_over_all_their_positions() -> None:
    t = traced(Attention(2, 2, 1), randn(2, 3, 2))
    qkv = [[1.0, 0.0], [10.0, 0.0], [2.0, 0.0], [20.0, 0.0], [3.0, 0.0], [30.0, 0.0]]  # (3 heads)
    stats = weights(t, qkv__weight=qkv, proj__weight=[[2.0, 20.0], [2.0, 20.0]])
    assert lists(pf.score(stats, criterion=pf.criteria.magnitude(1.0)))["qkv.heads"] == [(6 + 4) / 2, (60 + 40) / 2]


def test_magnitude_of_units_that_stand_twice() -> None:
    t = traced(Twice(), randn(2, 4))
    stats = weights(t, b__weight=[[1.0, 2.0, 3.0, 10.0, 20.0, 30.0], [0.0] * 6])
    assert lists(pf.score(stats, criterion=pf.criteria.magnitude(1.0))) == {"a": [5.5, 11.0, 16.5]}


def test_tied_tensors_count_once() -> None:
    model = Tied().double().eval()
    spec = pf.trace(model, (torch.arange(6).reshape(2, 3),))
    params = {n: torch.zeros_like(v) for n, v in pf.params(model).items()}
    params["embed.weight"] = params["out.weight"] = torch.full((7, 6), 2.0).double()
    stats = pf.collect_stats(params, None, spec=spec)
    (scores,) = pf.score(stats, criterion=pf.criteria.magnitude(1.0)).values()
    assert scores.tolist() == [14.0 / 3] * 6  # over embed.weight, and hidden.weight's rows and columns


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0])
def test_magnitude_scales_with_the_weights(p: float) -> None:
    t = traced(Residual(3, 5, 6, 2), randn(2, 3))
    scaled = {n: -v * 7 for n, v in t.params.items()}
    a, b = (
        pf.score(pf.collect_stats(q, None, spec=t.spec), criterion=pf.criteria.magnitude(p)) for q in (t.params, scaled)
    )
    assert set(a) == set(t.spec.widths)
    for g in a:
        close(b[g] / 7**p, a[g])


@pytest.mark.parametrize("p", [0.0, -1.0])
def test_magnitude_needs_a_power_above_zero(p: float) -> None:
    with pytest.raises(ValueError, match=rf"p is {p}; it must be above 0"):
        pf.criteria.magnitude(p)


# ---- random


def test_random_is_reproduced_by_its_seed_alone() -> None:
    t = traced(mlp(2, 30, 40, 2), randn(2, 2))
    stats = pf.collect_stats(t.params, None, spec=t.spec)
    state = torch.get_rng_state()
    a = pf.score(stats, criterion=pf.criteria.random(3))
    torch.manual_seed(99)
    b = pf.score(stats, criterion=pf.criteria.random(3))
    assert lists(a) == lists(b) != lists(pf.score(stats, criterion=pf.criteria.random(4)))
    assert {g: len(s) for g, s in a.items()} == {"0": 30, "2": 40}
    assert len({float(v) for s in a.values() for v in s}) == 70
    assert all(0 <= float(v) < 1 for s in a.values() for v in s)
    torch.set_rng_state(state)
    pf.score(stats, criterion=pf.criteria.random(3))
    assert torch.equal(torch.get_rng_state(), state)


# ---- what cannot be scored


def test_scores_of_nothing() -> None:
    with pytest.raises(pf.StatsError, match=r"statistics are empty; use collect_stats"):
        pf.score(pf.Stats())
    t = traced(mlp(2, 3, 2), randn(2, 2))
    with pytest.raises(pf.StatsError, match="'variance' needs moments: pass batches to collect_stats"):
        pf.score(pf.collect_stats(t.params, None, spec=t.spec))


def test_nan_in_the_statistics_names_the_site() -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    with pytest.raises(pf.StatsError, match="site '2' contain NaN"):
        pf.score(stats_of(t, {"2": [1.0, float("nan"), 1.0]}))


def test_scores_that_are_not_finite_name_the_group() -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    stats = weights(t, **{"0__weight": [[1.0, float("inf")]] * 3})
    with pytest.raises(pf.StatsError, match="'magnitude' gives group '0' scores that are not finite"):
        pf.score(stats, criterion=pf.criteria.magnitude())
