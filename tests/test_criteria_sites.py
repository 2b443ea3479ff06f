"""Criteria on what is measured at sites: by hand, and against what they say about the output."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn import criteria as c
from prunefn.criteria._denoised_variance import denoised, marchenko_pastur_median
from prunefn.frozen_dict import FrozenDict
from prunefn.program.compiled import value_of
from prunefn.types import Moments

from .small import Attention, Residual, Traced, Twice, close, cnn, mlp, randn, traced
from .test_criteria import lists
from .toys import CASES


def at_sites(t: Traced, samples: int = 100, **sites: Moments) -> pf.Stats:
    """Statistics made by hand."""
    named = {n.removeprefix("_").replace("__", "."): m for n, m in sites.items()}
    return pf.Stats(t.spec, FrozenDict(t.params), FrozenDict(named), batches=1, samples=samples)


def moments(variance: list[float] | Tensor, absolute: list[float] | None = None) -> Moments:
    """Of two samples, so that M2 is the variance, and the scatter the covariance."""
    v = torch.as_tensor(variance, dtype=torch.float64)
    scatter = v if v.ndim == 2 else None
    size = torch.zeros(len(v)).double()
    mean_abs = None if absolute is None else torch.tensor(absolute, dtype=torch.float64)
    return Moments(2, size, v.diagonal() if v.ndim == 2 else v, None, 0, mean_abs, scatter)


def with_params(t: Traced, **values: list) -> Traced:
    new = {n.removeprefix("_").replace("__", "."): torch.tensor(v).double() for n, v in values.items()}
    assert all(t.params[n].shape == v.shape for n, v in new.items())
    return t._replace(params={**t.params, **new})


# ---- mean magnitude of activations


def test_activation_is_the_mean_magnitude_over_positions_and_sites() -> None:
    t = traced(Attention(8, 2, 3), randn(2, 5, 8))
    stats = at_sites(t, proj=moments([0.0] * 6, [0.0, 1.0, 2.0, 3.0, 4.0, 8.0]))
    assert lists(pf.score(stats, criterion=c.activation())) == {
        "qkv.heads": [1.0, 5.0],
        "qkv.head_dim": [1.5, 2.5, 5.0],
    }
    t = traced(Residual(3, 2, 2, 2), randn(2, 3))
    stats = at_sites(t, up=moments([0.0] * 2, [1.0, 2.0]), head=moments([0.0] * 2, [3.0, 8.0]))
    assert lists(pf.score(stats, criterion=c.activation())) == {"stem": [2.0, 5.0]}


def test_activation_of_what_was_measured() -> None:
    """Molchanov et al., 2017, section 2.2: of a ReLU network, the mean activation."""
    t, x = traced(mlp(3, 5, 2), randn(2, 3)), randn(40, 3)
    batches = [x[:11], x[11:]]
    stats = pf.collect_stats(t.params, batches, spec=t.spec, criterion=c.activation())
    h = (x @ t.params["0.weight"].mT + t.params["0.bias"]).relu()
    close(pf.score(stats, criterion=c.activation())["0"], h.mean(0))


# ---- weighted variance


def test_golden_weighted_variance() -> None:
    """Columns [3 4] and [0 2], variances 4 and 9; the producers' rows have norms 5 and 1."""
    t = with_params(
        traced(mlp(2, 2, 2), randn(2, 2)), _0__weight=[[3.0, -4.0], [0.0, 1.0]], _2__weight=[[3.0, 0], [4.0, 2]]
    )
    stats = at_sites(t, _2=moments([4.0, 9.0]))
    assert lists(pf.score(stats, criterion=c.weighted_variance())) == {"0": [10.0, 6.0]}
    assert lists(pf.score(stats, criterion=c.weighted_variance(producer=True))) == {"0": [50.0, 6.0]}


def test_weighted_variance_is_the_output_s_deviation_when_a_unit_becomes_its_mean() -> None:
    t, x = traced(mlp(3, 5, 4), randn(2, 3)), randn(60, 3)
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    h = (x @ t.params["0.weight"].mT + t.params["0.bias"]).relu()
    lost = [((h[:, k : k + 1] - h[:, k].mean()) * t.params["2.weight"][:, k]).square().sum() / 59 for k in range(5)]
    close(pf.score(stats, criterion=c.weighted_variance())["0"], torch.stack(lost).sqrt())


def test_weighted_variance_of_grouped_convolutions_and_flattened_maps() -> None:
    """Each input of a grouped convolution meets its own group of outputs; a flattened channel stands at nine positions."""
    t = traced(cnn(), randn(2, 3, 6, 6))
    w, flat = t.params["3.weight"], t.params["10.weight"].reshape(4, 5, 9)
    stats = at_sites(t, _3=moments([float(i) for i in range(1, 7)]), _10=moments([4.0] * 45))
    scores = pf.score(stats, criterion=c.weighted_variance())
    inputs = torch.cat([w[:4].square().sum((0, 2, 3)), w[4:].square().sum((0, 2, 3))])
    by_channel = (inputs * torch.arange(1, 7)).sqrt().reshape(2, 3)
    found = {t.spec.sizes[g]: s for g, s in scores.items() if g in t.spec.groups and "3" in t.spec.groups[g].sites}
    close(found[3], by_channel.mean(0))
    close(found[2], by_channel.mean(1))
    last = next(s for g, s in scores.items() if "10" in t.spec.groups[g].sites)
    close(last, (2 * flat.square().sum(0).sqrt()).mean(1))


def test_weighted_variance_reads_computed_weights_as_they_are_computed() -> None:
    args, kwargs = CASES["weight_norm"].inputs()
    model = CASES["weight_norm"].model()
    spec, params = pf.trace(model, args, kwargs), pf.params(model)
    site = next(s for s in spec.sites.values() if s.weight not in spec.parameters)
    stats = pf.collect_stats(params, [args], spec=spec)
    (group,) = [g for g in spec.groups.values() if site.name in g.sites]
    computed = value_of(params, site.weight, spec=spec)
    scores = pf.score(
        stats._replace(sites=FrozenDict({site.name: stats.sites[site.name]})), criterion=c.weighted_variance()
    )
    norms = computed.transpose(0, 1).flatten(1).square().sum(1).sqrt()
    assert len(norms) == group.size
    close(scores[group.name], norms * stats.sites[site.name].variance.sqrt())


# ---- conditional variance


def covariance(n: int, seed: int = 0) -> Tensor:
    a = randn(n, n, seed=seed)
    return a @ a.mT + 0.1 * torch.eye(n).double()


def test_conditional_variance_is_what_regression_leaves() -> None:
    """Hassibi and Stork, 1992, eq. 5: w² / [H⁻¹]_jj, with the covariance of the inputs for H."""
    t, cov = traced(mlp(2, 5, 3), randn(2, 2)), covariance(5)
    found = pf.score(at_sites(t, _2=moments(cov)), criterion=c.conditional_variance(0.0))["0"]
    w = t.params["2.weight"]
    for j in range(5):
        rest = torch.arange(5) != j
        left = cov[j, j] - cov[j, rest] @ torch.linalg.solve(cov[rest][:, rest], cov[rest, j])
        close(found[j], left * w[:, j].square().sum())


def test_conditional_variance_is_the_residual_of_affine_compensation() -> None:
    """The score of a unit is the error that `residual` predicts for it (over n, not n − 1)."""
    t, x = traced(mlp(3, 5, 4), randn(2, 3)), randn(60, 3)
    x = torch.cat([x, x.flip(0) * 2])
    stats = pf.collect_stats(t.params, [x], spec=t.spec, criterion=c.conditional_variance())
    scores = pf.score(stats, criterion=c.conditional_variance(0.0))["0"]
    for j in range(5):
        mask = {"0": torch.arange(5) != j}
        lost = pf.residual(stats, mask, spec=t.spec, method=pf.compensation.affine(0.0))["2"]
        assert abs(float(scores[j]) * 119 / 120 - lost.error) < 1e-9


def test_conditional_variance_of_uncorrelated_units_is_the_weighted_one_squared() -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    stats = at_sites(t, _2=moments(torch.tensor([4.0, 1.0, 9.0]).double().diag()))
    weighted = pf.score(stats, criterion=c.weighted_variance())["0"]
    close(pf.score(stats, criterion=c.conditional_variance(0.0))["0"], weighted.square())


def test_units_that_say_the_same_are_worth_nothing_beside_each_other() -> None:
    t = with_params(traced(mlp(2, 3, 1), randn(2, 2)), _2__weight=[[1.0, 1.0, 1.0]])
    cov = torch.tensor([[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 1.0]]).double()
    s = pf.score(at_sites(t, _2=moments(cov)), criterion=c.conditional_variance(1e-6))["0"]
    assert float(s[:2].max()) < 1e-4
    assert abs(float(s[2]) - 1) < 1e-4
    with pytest.raises(
        pf.StatsError, match=r"covariance of site '2' has no inverse with a ridge of 0.0; give a larger one"
    ):
        pf.score(at_sites(t, _2=moments(cov)), criterion=c.conditional_variance(0.0))
    dead = at_sites(t, _2=moments(torch.zeros(3, 3).double()))
    assert lists(pf.score(dead, criterion=c.conditional_variance())) == {"0": [0.0, 0.0, 0.0]}


def test_conditional_variance_of_conv_groups_takes_each_group_alone_and_heads_the_sum() -> None:
    t, cov = traced(cnn(), randn(2, 3, 6, 6)), covariance(6)
    w = t.params["3.weight"]
    scores = pf.score(at_sites(t, _3=moments(cov)), criterion=c.conditional_variance(0.0))
    squares = torch.cat([w[:4].square().sum((0, 2, 3)), w[4:].square().sum((0, 2, 3))])
    alone = torch.cat([1 / torch.linalg.inv(cov[s][:, s]).diagonal() for s in (slice(0, 3), slice(3, 6))])
    each = (alone * squares).reshape(2, 3)
    close(next(s for s in scores.values() if len(s) == 3), each.sum(0), 1e-9)
    close(next(s for s in scores.values() if len(s) == 2), each.sum(1), 1e-9)
    t, cov = traced(Attention(8, 2, 3), randn(2, 5, 8)), covariance(6)
    scores = pf.score(at_sites(t, proj=moments(cov)), criterion=c.conditional_variance(0.0))
    each = t.params["proj.weight"].square().sum(0) / torch.linalg.inv(cov).diagonal()
    close(scores["qkv.heads"], each.reshape(2, 3).sum(1), 1e-9)


def test_conditional_variance_of_a_unit_that_stands_twice() -> None:
    t, cov = traced(Twice(), randn(2, 4)), covariance(6)
    each = t.params["b.weight"].square().sum(0) / torch.linalg.inv(cov).diagonal()
    scores = pf.score(at_sites(t, b=moments(cov)), criterion=c.conditional_variance(0.0))
    close(scores["a"], each[:3] + each[3:], 1e-9)


# ---- denoised variance


@pytest.mark.parametrize(
    ("aspect", "median"),
    [
        (1.0, 0.65277594),
        (0.9, 0.68922210),
        (0.5, 0.83046588),
        (0.1, 0.96656515),
        (0.01, 0.99666568),
        (1e-4, 0.99996667),
    ],
)
def test_median_of_the_marchenko_pastur_law(aspect: float, median: float) -> None:
    """By adaptive quadrature of the density and a root finder."""
    assert abs(marchenko_pastur_median(aspect) - median) < 1e-8


@pytest.mark.parametrize(("beta", "omega"), [(0.1, 1.6089), (0.5, 2.1711), (1.0, 2.8582)])
def test_median_agrees_with_the_published_threshold(beta: float, omega: float) -> None:
    """Gavish and Donoho, "The Optimal Hard Threshold for Singular Values is 4/√3", 2014: ω = λ*(β) / √median, table IV."""
    threshold = math.sqrt(2 * (beta + 1) + 8 * beta / ((beta + 1) + math.sqrt(beta**2 + 14 * beta + 1)))
    assert abs(threshold / math.sqrt(marchenko_pastur_median(beta)) - omega) < 2e-4


def test_median_agrees_with_noise() -> None:
    x = randn(2000, 500)
    values = torch.linalg.eigvalsh(x.mT @ x / 2000)
    assert abs(float(values.median()) - marchenko_pastur_median(0.25)) < 0.01
    few = torch.linalg.eigvalsh(x.T[:500] @ x.T[:500].mT / 2000)  # 500 samples of 2000 channels: the same without zeros
    assert abs(4 * float(few.median()) - marchenko_pastur_median(4.0)) < 0.04


def test_golden_denoised() -> None:
    """Eigenvalues 1, 1, 1 and 20 at λ = .25: σ̂² = 1 / median, and only 20 is above σ̂² (1 + ½)²."""
    cov = torch.tensor([20.0, 1.0, 1.0, 1.0]).double().diag()
    assert 1 / marchenko_pastur_median(0.25) * 2.25 < 20
    close(denoised(cov, 0.25), torch.tensor([20.0, 0.0, 0.0, 0.0]).double())
    t = traced(mlp(2, 4, 2), randn(2, 2))
    stats = at_sites(t, 16, _2=moments(cov))
    assert lists(pf.score(stats, criterion=c.denoised_variance(1.0))) == {"0": [20.0, 0.0, 0.0, 0.0]}
    assert lists(pf.score(stats, criterion=c.denoised_variance(0.25))) == {"0": [20.0, 0.75, 0.75, 0.75]}
    assert (
        lists(pf.score(stats, criterion=c.denoised_variance(0.0))) == lists(pf.score(stats)) == {"0": [20.0, 1, 1, 1]}
    )


def test_a_signal_that_several_channels_share_outlives_noise_of_the_same_variance() -> None:
    """VBP cannot tell them apart; the denoised variance can."""
    n, d = 400, 40
    x = randn(n, d, seed=1) * 2
    x[:, :8] = randn(n, 1, seed=2) * 2 + randn(n, 8, seed=3) * 0.2  # one signal in eight channels
    cov = torch.cov(x.mT)
    s = denoised(cov, d / n)
    assert float(s[:8].min()) > 3 > 1 > float(s[8:].max())
    assert float((cov.diagonal()[:8].mean() - cov.diagonal()[8:].mean()).abs()) < 0.6


@pytest.mark.parametrize(("samples", "channels"), [(400, 40), (60, 240)])
def test_noise_alone_is_taken_away(samples: int, channels: int) -> None:
    """Also where there are fewer samples than channels; a strong shared signal stays in either case."""
    x = randn(samples, channels)
    s = denoised(torch.cov(x.mT), channels / samples)
    assert float(s.sum()) < 0.1 * channels
    x[:, :8] += 6 * randn(samples, 1, seed=2)
    s = denoised(torch.cov(x.mT), channels / samples)
    assert float(s[:8].min()) > 20 > 2 > float(s[8:].max())


def test_denoised_variance_counts_images() -> None:
    t = traced(mlp(2, 4, 2), randn(2, 2))
    cov = torch.tensor([3.0, 1.0, 1.0, 1.0]).double().diag()
    few, many = at_sites(t, 4, _2=moments(cov)), at_sites(t, 40_000, _2=moments(cov))
    assert lists(pf.score(few, criterion=c.denoised_variance(1.0))) == {"0": [0.0] * 4}
    assert lists(pf.score(many, criterion=c.denoised_variance(1.0))) == {"0": [3.0, 0.0, 0.0, 0.0]}


@pytest.mark.parametrize("bad", [lambda: c.denoised_variance(1.5), lambda: c.conditional_variance(-1.0)])
def test_numbers_that_cannot_be(bad) -> None:
    with pytest.raises(ValueError, match=r"must be (in \[0, 1\]|0 or more)"):
        bad()


def test_scores_of_sites_that_were_left_out() -> None:
    """`where` measures some sites; the others' groups have no score."""
    t = traced(nn.Sequential(*mlp(3, 4, 5, 2)), randn(2, 3))
    batches = [randn(30, 3)]
    for make in (c.activation, c.weighted_variance, c.conditional_variance, c.denoised_variance):
        stats = pf.collect_stats(t.params, batches, spec=t.spec, criterion=make(), where="2")
        assert set(pf.score(stats, criterion=make())) == {"2"}
