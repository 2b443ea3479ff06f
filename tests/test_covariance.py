"""Covariances, mean magnitudes and Gram matrices at sites, against torch.cov in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.stats.moments import SAMPLES, STRIP, merge_moments, site_moments

from .small import close, mlp, randn, traced


def check(x: Tensor, rows: Tensor, dim: int, rtol: float) -> None:
    m = site_moments(x, dim, True, True)
    rows = rows.double()
    expected = torch.cov(rows.T)
    scale = expected.diagonal().sqrt().clamp_min(1e-30)
    assert m.scatter is not None and m.scatter.dtype == torch.float64
    assert m.absolute is not None and m.absolute.dtype == torch.float64
    off = ((m.covariance - expected) / (scale[:, None] * scale)).abs().max()
    assert float(off) <= rtol
    torch.testing.assert_close(m.absolute, rows.abs().mean(0), rtol=rtol, atol=0)
    torch.testing.assert_close(m.gram, rows.T @ rows / len(rows), rtol=rtol, atol=rtol)
    torch.testing.assert_close(m.scatter, m.scatter.T, rtol=0, atol=0)


@pytest.mark.parametrize(
    "shape, dim",
    [((7, 3), -1), ((2 * SAMPLES + 5, 4), -1), ((5, 9, 6), -1), ((4, 3, 8, 9), -3), ((2, STRIP + 3, 17), -2)],
)
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_covariance_is_that_of_all_samples(shape: tuple[int, ...], dim: int, dtype: torch.dtype, rtol: float) -> None:
    x = randn(*shape).to(dtype)
    x = x + x.roll(1, dim)  # so that neighbours go together
    check(x, x.movedim(dim, -1).reshape(-1, x.shape[dim]), dim, rtol)


def test_wide_sites_strip_by_strip() -> None:
    x = randn(300, 2 * STRIP + 7).float()
    check(x, x, -1, 1e-5)


def test_maps_of_more_samples_than_go_into_one_product() -> None:
    x = randn(3, 4, SAMPLES + 1).float()
    check(x, x.movedim(1, -1).reshape(-1, 4), -2, 1e-5)


@pytest.mark.parametrize("shape", [(20_000, 3), (40, 3, 30, 30)])
def test_far_means_do_not_cancel(shape: tuple[int, ...]) -> None:
    """Law 8: mean 1e4 with a deviation of 1e-2; float32 resolves 1e-3 there, so the data is compared as it was rounded."""
    x = (1e4 + 1e-2 * randn(*shape)).float()
    dim = -1 if x.ndim == 2 else -3
    check(x, x.movedim(dim, -1).reshape(-1, 3), dim, 1e-4)


def test_half_precision_accumulates_in_float64() -> None:
    x = (100 + randn(50_000, 3)).bfloat16()
    check(x, x, -1, 1e-4)


def test_merging_is_that_of_all_samples() -> None:
    x = randn(90, 5) + 1e4
    parts = [site_moments(p, -1, True, True) for p in x.split([50, 1, 39])]
    whole = site_moments(x, -1, True, True)
    a, b, c = parts
    for m in (merge_moments(merge_moments(a, b), c), merge_moments(a, merge_moments(c, b))):
        assert m.count == 90
        torch.testing.assert_close(m.scatter, whole.scatter, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(m.absolute, whole.absolute, rtol=1e-12, atol=0)


def test_a_hundred_million_samples() -> None:
    """Doubling the samples 24 times leaves the covariance as it is, up to n / (n − 1)."""
    m = site_moments(randn(8, 3), -1, True, True)
    biased = m.scatter / m.count if m.scatter is not None else None
    for _ in range(24):
        m = merge_moments(m, m)
    assert m.count == 8 << 24 > 1e8
    torch.testing.assert_close(m.covariance, biased, rtol=1e-7, atol=0)


class Attention(nn.Module):
    """q, k and v read the same value."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


def test_sites_that_read_the_same_value_share_its_covariance() -> None:
    t = traced(Attention(), randn(2, 5, 4))
    stats = pf.collect_stats(t.params, [randn(3, 5, 4), randn(2, 5, 4)], spec=t.spec, covariance=True)
    same = [stats.sites[n].scatter for n in "qkv"]
    assert same[0] is same[1] is same[2] is not None
    merged = pf.merge_stats(stats, stats)
    assert merged.sites["q"].scatter is merged.sites["v"].scatter
    torch.testing.assert_close(merged.sites["q"].scatter, 2 * same[0], rtol=1e-12, atol=1e-12)


def test_what_is_not_needed_is_not_measured() -> None:
    t = traced(mlp(3, 4, 2), randn(2, 3))
    batches = [randn(5, 3)]
    plain = pf.collect_stats(t.params, batches, spec=t.spec).sites["2"]
    assert plain.scatter is None and plain.absolute is None
    with pytest.raises(pf.StatsError, match="covariance=True"):
        _ = plain.covariance
    needs = pf.Criterion("mine", lambda s: {}, needs=("absolute",))
    assert pf.collect_stats(t.params, batches, spec=t.spec, criterion=needs).sites["2"].absolute is not None
    with pytest.raises(pf.StatsError, match="'mine' needs 'entropy'"):
        pf.collect_stats(t.params, batches, spec=t.spec, criterion=needs._replace(needs=("entropy",)))


def test_memory_is_stated_before_it_is_taken() -> None:
    t = traced(mlp(3, 4, 2), randn(2, 3))
    assert pf.stats_bytes(t.spec) == 16 * 4 + 8 * 4 * 4
    assert pf.stats_bytes(t.spec, covariance=False) == 16 * 4
    with torch.device("meta"):
        wide = nn.Sequential(nn.Linear(1, 1 << 20), nn.ReLU(), nn.Linear(1 << 20, 1))
        x = torch.empty(1, 1)
    spec = pf.trace(wide, (x,))
    params = {n: torch.empty(p.shape, device="cpu") for n, p in pf.params(wide).items()}
    with pytest.raises(pf.StatsError, match=r"would take 8.8 TB, but cpu has"):
        pf.collect_stats(params, [torch.zeros(1, 1)], spec=spec, covariance=True)


def test_maps_whose_first_image_is_not_like_the_rest() -> None:
    """Its mean is near zero, theirs is far: means are taken out once that is known, and nothing cancels."""
    x = randn(40, 3, 4, 4).float() * 1e-2
    x[1:] += 1e3
    m = site_moments(x, -3, covariance=True)
    wide = x.double().movedim(1, -1).reshape(-1, 3)
    close(m.mean, wide.mean(0), 1e-6 * 1e3)
    close(m.covariance, torch.cov(wide.mT), 1e-3 * float(torch.cov(wide.mT).abs().max()))
    rest = site_moments(x[1:], -3, covariance=True)
    close(rest.covariance, torch.cov(wide[16:].mT), 1e-6)
    close(rest.variance, rest.covariance.diagonal(), 1e-12)
