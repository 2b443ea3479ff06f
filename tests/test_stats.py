"""Moments, tap means, merging, and what is collected from which batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunefn as pf
from prunefn.spec.parts import Geometry
from prunefn.stats.fingerprint import fingerprint
from prunefn.stats.moments import merge_moments, site_moments
from prunefn.stats.taps import tap_means
from prunefn.types import Moments

from .small import Recurrent, Residual, Traced, close, cnn, identity, laws, mlp, randn, same, traced


def identity_net(d: int, x: Tensor) -> Traced:
    """A network whose only site sees the input itself."""
    if x.ndim == 3 or x.ndim == 2:
        return traced(nn.Sequential(identity(nn.Linear(d, d, bias=False)), nn.Linear(d, 2)), x)
    return traced(nn.Sequential(identity(nn.Conv2d(d, d, 1, bias=False)), nn.Conv2d(d, 2, 1)), x)


def moments(t: Traced, *batches: Any, **kwargs: Any) -> Moments:
    """Of the only site."""
    (found,) = pf.collect_stats(t.params, batches, spec=t.spec, **kwargs).sites.values()
    return found


def check(m: Moments, samples: Tensor, tolerance: float = 1e-12) -> None:
    """samples [n, d]"""
    samples = samples.double()
    assert m.count == len(samples)
    assert m.mean.dtype == m.m2.dtype == torch.float64
    close(m.mean, samples.mean(0), tolerance)
    close(m.variance, samples.var(0) if len(samples) > 1 else torch.zeros_like(m.mean), tolerance)


# ---- moments of one batch


def test_golden_moments() -> None:
    x = torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    m = site_moments(x, -1)
    assert m.count == 3
    assert m.mean.tolist() == [3.0, 5.0]
    assert m.m2.tolist() == [14.0, 0.0]
    assert m.variance.tolist() == [7.0, 0.0]


@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (3, 4, 5), (1, 1, 5)])
def test_moments_of_tokens(shape: tuple[int, ...]) -> None:
    x = randn(*shape)
    check(moments(identity_net(5, x), x), x.reshape(-1, 5))


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (1, 4, 5, 6), (1, 4, 1, 1), (40, 4, 20, 20)])
def test_moments_of_maps(shape: tuple[int, ...]) -> None:
    x = randn(*shape)
    for batch in (x, x.to(memory_format=torch.channels_last)):
        check(moments(identity_net(4, x), batch), x.movedim(1, -1).reshape(-1, 4))


@pytest.mark.parametrize("dim", [-1, -2, -3, -4])
def test_moments_along_any_dim(dim: int) -> None:
    x = randn(3, 4, 5, 6)
    check(site_moments(x, dim), x.movedim(dim, -1).reshape(-1, x.shape[dim]))


@pytest.mark.parametrize("shape", [(4000, 3), (50, 3, 20, 20), (10, 3)])
@pytest.mark.parametrize("split", [1, 2])
def test_a_large_mean_does_not_cancel(shape: tuple[int, ...], split: int) -> None:
    x = (
        randn(*shape) * 1e-2
        + torch.tensor([1e4, -1e4, 0.0], dtype=torch.float64).reshape(1, 3, *(1,) * (len(shape) - 2))
    ).float()
    m = moments(identity_net(3, x), *x.chunk(split))
    samples = x.double().movedim(1, -1).reshape(-1, 3)
    close(m.variance / samples.var(0), torch.ones(3, dtype=torch.float64), 1e-4)
    close(m.mean, samples.mean(0), 1e-8)


def test_a_large_mean_does_not_cancel_in_a_long_float32_batch() -> None:
    x = (randn(200_000, 2) * 1e-2 + 1e4).float()
    m = site_moments(x, -1)
    close(m.variance / x.double().var(0), torch.ones(2, dtype=torch.float64), 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_models_accumulate_in_wide_precision(dtype: torch.dtype) -> None:
    x = (randn(40_000, 4) + 3).to(dtype)
    m = moments(identity_net(4, x), x)
    check(m, x, 1e-5)  # in dtype itself, the sum would stop growing at 256 or 2048


def test_a_model_called_with_one_sample_has_no_variance() -> None:
    x = randn(1, 5)
    assert moments(identity_net(5, x), x).variance.tolist() == [0.0] * 5


# ---- several sites, one pass


def inputs_of_layers(model: nn.Module, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    """What the layers see, all calls pooled: [n, d]."""
    seen: dict[str, list[Tensor]] = {n: [] for n in names}
    hooks = [
        model.get_submodule(n).register_forward_pre_hook(
            lambda _, args, n=n: seen[n].append(args[0].movedim(1, -1) if args[0].ndim == 4 else args[0])
        )
        for n in names
    ]
    with torch.no_grad():
        model(x)
    for h in hooks:
        h.remove()
    return {n: torch.cat([s.reshape(-1, s.shape[-1]) for s in v]) for n, v in seen.items()}


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Residual(3, 5, 6, 2), (9, 3)), (Recurrent(), (9, 4)), (cnn(), (5, 3, 6, 6)), (mlp(3, 4, 5, 6, 2), (8, 3))],
)
def test_every_site_is_what_its_layer_sees_all_calls_pooled(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = randn(*shape)
    t = traced(model, x)
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    seen = inputs_of_layers(model, x, list(t.spec.sites))
    assert list(stats.sites) == list(t.spec.sites)
    for name, samples in seen.items():
        check(stats.sites[name], samples)


def test_where_limits_the_sites() -> None:
    x = randn(8, 3)
    t = traced(Residual(3, 5, 6, 2), x)
    sites = {
        where: set(pf.collect_stats(t.params, [x], spec=t.spec, where=where).sites)
        for where in (None, "up", "stem", "nothing")
    }
    assert sites == {None: {"up", "down", "head"}, "up": {"down"}, "stem": {"up", "head"}, "nothing": set()}
    assert set(pf.collect_stats(t.params, [x], spec=t.spec, where=pf.kind("residual")).sites) == {"up", "head"}


# ---- tap means


def one_hot_means(x: Tensor, g: Geometry) -> Tensor:
    """Mean over output positions of the depthwise convolution with a one at a single tap: [d, taps]."""
    rank, d = len(g.kernel), x.shape[1]
    means = []
    for tap in range(torch.Size(g.kernel).numel()):
        kernel = torch.zeros(g.kernel, dtype=x.dtype).flatten()
        kernel[tap] = 1
        kernel = kernel.reshape(1, 1, *g.kernel).expand(d, 1, *g.kernel)
        if g.transposed:
            conv: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
            pads = [p for p, _ in g.padding]
            y = conv(x, kernel, None, g.stride, pads, g.output_padding, d, g.dilation)
        else:
            conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
            padded = F.pad(x, [p for pair in reversed(g.padding) for p in pair])
            y = conv(padded, kernel, None, g.stride, 0, g.dilation, d)
        means.append(y.movedim(1, -1).reshape(-1, d).mean(0))
    return torch.stack(means, 1)


def test_golden_tap_means() -> None:
    """[1 2 3] padded by a zero: taps see [0 1 2], [1 2 3], [2 3 0]; a transposed one spreads into [1 2 3 0 0]."""
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    same_size = Geometry((3,), (1,), ((1, 1),), (1,))
    assert tap_means(x, -2, same_size)[0].tolist() == [[1.0, 2.0, 5 / 3]]
    strided = Geometry((3,), (2,), ((1, 1),), (1,))
    assert tap_means(x, -2, strided)[0].tolist() == [[1.0, 2.0, 1.0]]
    spread = Geometry((3,), (1,), ((0, 0),), (1,), True, (0,))
    assert tap_means(x, -2, spread)[0].tolist() == [[1.2, 1.2, 1.2]]
    assert tap_means(x, -2, spread)[1] == 5


@st.composite
def geometries(draw: st.DrawFn) -> tuple[Geometry, tuple[int, ...]]:
    """A convolution and the spatial shape of an input that is large enough."""
    rank, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    dims = []
    for _ in range(rank):
        k, s, d = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        if transposed:
            p, o = draw(st.integers(0, d * (k - 1))), draw(st.integers(0, max(s, d) - 1))
            n = draw(st.integers(1, 5).filter(lambda n: (n - 1) * s - 2 * p + d * (k - 1) + o + 1 > 0))  # noqa: B023
            dims.append((k, s, (p, p), d, o, n))
        else:
            pads = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
            n = draw(st.integers(max(1, d * (k - 1) + 1 - sum(pads)), 9))
            dims.append((k, s, pads, d, 0, n))
    kernel, stride, padding, dilation, output, shape = zip(*dims, strict=True)
    return Geometry(kernel, stride, padding, dilation, transposed, output if transposed else ()), shape


@laws
@given(geometries(), st.integers(1, 3), st.integers(1, 3))
def test_tap_means_of_any_geometry(case: tuple[Geometry, tuple[int, ...]], n: int, d: int) -> None:
    geometry, shape = case
    x = randn(n, d, *shape, seed=n + d)
    close(tap_means(x, -len(shape) - 1, geometry)[0], one_hot_means(x, geometry))
    check(site_moments(x, -len(shape) - 1), x.movedim(1, -1).reshape(-1, d))


CONVS = {
    "1d": (nn.Conv1d(4, 3, 3, padding=1), (4, 7)),
    "1d same, even kernel": (nn.Conv1d(4, 3, 4, padding="same", dilation=2), (4, 9)),
    "2d": (nn.Conv2d(4, 3, 3, padding=1), (4, 6, 5)),
    "2d strided": (nn.Conv2d(4, 3, (3, 2), stride=(2, 3), padding=(1, 0)), (4, 7, 8)),
    "2d dilated": (nn.Conv2d(4, 3, 3, padding=2, dilation=2), (4, 6, 6)),
    "2d grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5)),
    "2d patches": (nn.Conv2d(4, 3, 2, stride=2), (4, 6, 6)),
    "3d": (nn.Conv3d(4, 3, (1, 3, 2), padding=(0, 1, 1)), (4, 3, 4, 4)),
    "transposed 1d": (nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1), (4, 5)),
    "transposed 2d": (nn.ConvTranspose2d(4, 3, (3, 4), stride=2, padding=(0, 1)), (4, 4, 3)),
    "transposed grouped": (nn.ConvTranspose2d(4, 6, 3, stride=3, groups=2, dilation=2, output_padding=1), (4, 3, 3)),
    "transposed 3d": (nn.ConvTranspose3d(4, 3, 2, stride=2), (4, 2, 3, 2)),
}


def convolution_of(name: str) -> tuple[Traced, Tensor]:
    """The convolution after one that passes its input on; and an input."""
    conv, shape = CONVS[name]
    x = randn(2, *shape)
    first = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2](4, 4, 1, bias=False)
    return traced(nn.Sequential(identity(first), conv), x), x


@pytest.mark.parametrize("name", CONVS)
def test_tap_means_through_the_trace(name: str) -> None:
    t, x = convolution_of(name)
    geometry = t.spec.sites["1"].geometry
    assert geometry is not None
    assert geometry.transposed == ("transposed" in name)
    m = moments(t, x)
    assert m.taps is not None
    close(m.taps, one_hot_means(x, geometry))


def test_no_taps_where_they_are_all_the_mean() -> None:
    x = randn(2, 4, 5, 5)
    assert moments(identity_net(4, x), x).taps is None


def test_taps_of_a_padding_that_is_not_zero_see_the_padded_map() -> None:
    x = randn(2, 4, 5, 5)
    t = traced(
        nn.Sequential(
            identity(nn.Conv2d(4, 4, 1, bias=False)), nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect", stride=2)
        ),
        x,
    )
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    m = moments(t, x)
    assert m.taps is not None
    close(m.taps, one_hot_means(padded, Geometry((3, 3), (2, 2), ((0, 0),) * 2, (1, 1))))


# ---- merging


def test_golden_merge() -> None:
    """{0, 2} and {6}: mean 8/3, squared deviations 18⅔."""
    a = Moments(2, torch.tensor([1.0]), torch.tensor([2.0]))
    b = Moments(1, torch.tensor([6.0]), torch.tensor([0.0]))
    m = merge_moments(a, b)
    assert m.count == 3
    close(m.mean, torch.tensor([8 / 3]), 1e-6)
    close(m.m2, torch.tensor([56 / 3]), 1e-6)


@laws
@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.sampled_from([0.0, 1.0, 1e4]))
def test_merge_is_associative_commutative_and_exact(counts: list[int], mean: float) -> None:
    x = randn(sum(counts), 3, 6, seed=sum(counts)) + mean
    geometry = Geometry((3,), (1,), ((1, 1),), (1,))
    a, b, c, whole = (
        site_moments(part, -2)._replace(**dict(zip(("taps", "tap_count"), tap_means(part, -2, geometry), strict=True)))
        for part in (*x.split(counts), x)
    )
    orders = (
        merge_moments(merge_moments(a, b), c),
        merge_moments(a, merge_moments(b, c)),
        merge_moments(c, merge_moments(b, a)),
        merge_moments(merge_moments(c, a), b),
    )
    for m in orders:
        assert m.count == whole.count
        assert m.tap_count == whole.tap_count
        for got, expected in zip((m.mean, m.m2, m.taps), (whole.mean, whole.m2, whole.taps), strict=True):
            assert got is not None and expected is not None
            close(got, expected, 1e-12 * (1 + mean))


def alike(a: pf.Stats, b: pf.Stats, tolerance: float) -> None:
    assert a.spec == b.spec
    assert set(a.sites) == set(b.sites)
    for name, m in a.sites.items():
        assert m.count == b.sites[name].count
        close(m.mean, b.sites[name].mean, tolerance)
        close(m.m2, b.sites[name].m2, tolerance)
    assert {c: set(v) for c, v in a.sums.items()} == {c: set(v) for c, v in b.sums.items()}
    for c, groups in a.sums.items():
        for g, v in groups.items():
            close(v, b.sums[c][g], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_split_and_shuffled_batches_give_the_same_stats(dtype: torch.dtype, tolerance: float) -> None:
    x = randn(12, 3, 6, 6).to(dtype)
    t = traced(cnn(), x)

    def collect(*batches: Tensor) -> pf.Stats:
        return pf.collect_stats(t.params, batches, spec=t.spec)

    whole = collect(x)
    alike(collect(*x.split(5)), whole, tolerance)
    alike(collect(*x.flip(0).split(1)), whole, tolerance)
    a, b, c = (collect(part) for part in x.split([1, 4, 7]))
    alike(pf.merge_stats(pf.merge_stats(a, b), c), whole, tolerance)
    alike(pf.merge_stats(a, pf.merge_stats(c, b)), whole, tolerance)
    assert pf.merge_stats(pf.merge_stats(a, b), c).batches == 3


def test_the_empty_stats_are_the_identity() -> None:
    x = randn(4, 3)
    t = traced(mlp(3, 4, 2), x)
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    assert pf.merge_stats(pf.Stats(), stats) is stats
    assert pf.merge_stats(stats, pf.Stats()) is stats
    assert pf.merge_stats(pf.Stats(), pf.Stats()) == pf.Stats()


def test_merge_takes_sites_that_only_one_side_has() -> None:
    x = randn(6, 3)
    t = traced(Residual(3, 5, 6, 2), x)
    a, b = (pf.collect_stats(t.params, [x], spec=t.spec, where=w) for w in ("up", "stem"))
    alike(pf.merge_stats(a, b), pf.collect_stats(t.params, [x], spec=t.spec), 0.0)


def test_merge_refuses_other_specs_and_params() -> None:
    x = randn(4, 3)
    t, u = traced(mlp(3, 4, 2), x), traced(mlp(3, 5, 2), x)
    a, b = (pf.collect_stats(m.params, [x], spec=m.spec) for m in (t, u))
    with pytest.raises(pf.StatsError, match="specs with other groups or sites"):
        pf.merge_stats(a, b)
    other = {**t.params, "0.bias": t.params["0.bias"] + 1}
    with pytest.raises(pf.StatsError, match="different parameters"):
        pf.merge_stats(a, pf.collect_stats(other, [x], spec=t.spec))
    copied = {n: v.clone() for n, v in t.params.items()}
    assert pf.merge_stats(a, pf.collect_stats(copied, [x], spec=t.spec)).batches == 2


# ---- batches


def test_every_form_of_batches_gives_the_same_stats() -> None:
    x, labels = randn(10, 3), torch.arange(10)
    t = traced(mlp(3, 4, 2), x)
    loader = DataLoader(TensorDataset(x, labels), batch_size=4)
    forms = {
        "tensors": list(x.split(4)),
        "tuples with labels": list(zip(x.split(4), labels.split(4), strict=True)),
        "lists": [[part] for part in x.split(4)],
        "dicts": [{"label": 0, "input": part} for part in x.split(4)],
        "generator": (part for part in x.split(4)),
        "loader": loader,
    }
    for batches in forms.values():
        stats = pf.collect_stats(t.params, batches, spec=t.spec)
        assert stats.batches == 3
        check(stats.sites["2"], F.relu(x @ t.params["0.weight"].T + t.params["0.bias"]))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.c(F.relu(self.a(left) - self.b(right)))


def test_batches_of_several_inputs() -> None:
    left, right = randn(6, 3), randn(6, 2, seed=1)
    t = traced(TwoInputs(), left, right)
    with torch.no_grad():
        samples = F.relu(t.model.a(left) - t.model.b(right))
    for batch in ((left, right), (left, right, torch.arange(6)), {"right": right, "label": None, "left": left}):
        check(pf.collect_stats(t.params, [batch], spec=t.spec).sites["c"], samples)


def test_max_batches_stops_early() -> None:
    x = randn(8, 3)
    t = traced(mlp(3, 4, 2), x)
    seen = []

    def batches() -> Any:
        for part in x.split(2):
            seen.append(part)
            yield part

    assert moments(t, *x.split(2), max_batches=3).count == 6
    assert pf.collect_stats(t.params, batches(), spec=t.spec, max_batches=2).batches == 2
    assert len(seen) == 2


def test_a_bar_is_shown_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    x = randn(4, 3)
    t = traced(mlp(3, 4, 2), x)
    pf.collect_stats(t.params, [x], spec=t.spec)
    assert capsys.readouterr().err == ""
    pf.collect_stats(t.params, [x], spec=t.spec, progress=True)
    assert "statistics" in capsys.readouterr().err


# ---- criteria that collect something of their own


def taylor() -> pf.Criterion:
    """Σ w · ∂loss/∂w over the rows of the first layer."""

    def collect(params: pf.Params, batch: Any, spec: pf.Spec) -> dict[str, Tensor]:
        x, y = batch
        g = torch.func.grad(lambda p: F.cross_entropy(pf.forward(p, x, spec=spec), y, reduction="sum"))(params)
        return {"0": (params["0.weight"] * g["0.weight"]).sum(1)}

    return pf.Criterion(
        "taylor",
        lambda stats: {g: v.abs() for g, v in stats.sums["taylor"].items()},
        collectors=(pf.Collector("taylor", collect),),
    )


def test_a_criterion_of_ones_own_is_summed_over_batches() -> None:
    x, y = randn(10, 3), torch.arange(10) % 2
    t = traced(mlp(3, 4, 2), x)
    weight = t.model[0].weight
    F.cross_entropy(t.model(x), y, reduction="sum").backward()
    expected = (weight * weight.grad).sum(1).detach()
    stats = pf.collect_stats(t.params, list(zip(x.split(4), y.split(4), strict=True)), spec=t.spec, criterion=taylor())
    close(stats.sums["taylor"]["0"], expected, 1e-10)
    close(pf.score(stats, criterion=taylor())["0"], expected.abs(), 1e-10)
    assert set(stats.sites) == {"2"}
    a, b = (
        pf.collect_stats(t.params, [(x[i], y[i])], spec=t.spec, criterion=taylor()) for i in (slice(3), slice(3, None))
    )
    alike(pf.merge_stats(a, b), pf.merge_stats(b, a), 1e-12)
    close(pf.merge_stats(a, b).sums["taylor"]["0"], expected, 1e-10)


def test_several_criteria_collect_in_one_pass() -> None:
    x, y = randn(6, 3), torch.arange(6) % 2
    t = traced(mlp(3, 4, 2), x)
    counter = pf.Collector("count", lambda p, b, s: {"0": torch.full((4,), len(b[0]))})
    count = pf.Criterion("count", lambda s: dict(s.sums["count"]), collectors=(counter,))
    chosen = [taylor(), count, pf.criteria.variance()]
    stats = pf.collect_stats(t.params, [(x[:4], y[:4]), (x[4:], y[4:])], spec=t.spec, criterion=chosen)
    assert set(stats.sums) == {"taylor", "count"}
    assert (stats.batches, stats.samples) == (2, 6)
    assert pf.score(stats, criterion=count)["0"].tolist() == [6] * 4


def test_criteria_on_weights_need_no_batches() -> None:
    x = randn(4, 3)
    t = traced(mlp(3, 4, 2), x)
    stats = pf.collect_stats(t.params, None, spec=t.spec, criterion=pf.criteria.magnitude())
    assert not stats.sites
    same(dict(stats.params), t.params)
    with pytest.raises(pf.BatchError, match="criterion 'variance' needs batches"):
        pf.collect_stats(t.params, None, spec=t.spec, criterion=pf.criteria.variance())


class Stream(torch.utils.data.IterableDataset):
    """Of unknown length."""

    def __iter__(self) -> Any:
        return iter(randn(7, 3))


def test_a_loader_over_a_stream() -> None:
    t = traced(mlp(3, 4, 2), randn(2, 3))
    loader = torch.utils.data.DataLoader(Stream(), batch_size=3)
    assert pf.collect_stats(t.params, loader, spec=t.spec).samples == 7


def test_statistics_know_the_weights_that_they_were_measured_on(tmp_path: Path) -> None:
    model, x = mlp(4, 6, 2), randn(8, 4)
    t = traced(model, x)
    params = pf.params(model)
    stats, frozen = (pf.collect_stats(p, [x], spec=t.spec) for p in (params, {n: v.clone() for n, v in params.items()}))
    assert pf.merge_stats(stats, frozen).samples == 16
    mask = pf.select(pf.score(stats), 0.5, spec=t.spec)
    with torch.no_grad():
        model[0].weight.data[0, 0] *= -1  # neither autograd nor a version counter sees it
    other = pf.collect_stats(params, [x], spec=t.spec)
    for use in (
        lambda: pf.merge_stats(stats, other),
        lambda: pf.score(stats),
        lambda: pf.score(stats, criterion=pf.criteria.magnitude()),
        lambda: pf.residual(stats, mask, spec=t.spec),
        lambda: pf.compensate(params, stats, mask, spec=t.spec),
        lambda: pf.compensate(params, frozen, mask, spec=t.spec),
    ):
        with pytest.raises(pf.StatsError, match=r"of (different|other) parameters"):
            use()
    pf.compensate(params, frozen.sites, mask, spec=t.spec)
    pf.save_stats(stats, tmp_path / "stats")
    with pytest.raises(pf.StatsError, match=r"other parameters: '0.weight' differs"):
        pf.load_stats(tmp_path / "stats", spec=t.spec, params=params)
    assert pf.load_stats(tmp_path / "stats", spec=t.spec, params=frozen.params).samples == 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_change_of_a_large_tensor_changes_its_fingerprint(dtype: torch.dtype) -> None:
    w = torch.randn(301, 171, generator=torch.Generator().manual_seed(0)).to(dtype)
    changes = (
        torch.neg, lambda t: t.flip(0), lambda t: t.roll(1), lambda t: t * 2, lambda t: t.mT.contiguous().view_as(t),
        lambda t: torch.cat([-t[:2], t[2:]]), lambda t: torch.cat([t[1:2], t[:1], t[2:]]), torch.zeros_like,
    )  # fmt: skip
    seen = [fingerprint(w), *(fingerprint(change(w)) for change in changes)]
    for i in (0, 1, 4097, w.numel() - 1):
        nudged = w.clone().reshape(-1)
        nudged[i] = -nudged[i]
        seen.append(fingerprint(nudged.view_as(w)))
    assert len(set(seen)) == len(seen)
    assert fingerprint(w) == seen[0] == fingerprint(w.mT.contiguous().mT)
