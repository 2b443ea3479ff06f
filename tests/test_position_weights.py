"""Weights of positions: statistics of a padded batch are those of the same samples without padding."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import prunefn as pf

LENGTHS = (9, 5, 7)
LONGEST = max(LENGTHS)
N = len(LENGTHS)
Batches = list[Any]


def mask() -> Tensor:
    return (torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]).long()


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        self.body = transformers.BertModel(transformers.BertConfig(vocab_size=50, **size))
        self.head = nn.Linear(32, 7)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(hidden).transpose(1, 2)


class Encoder(nn.Module):
    """torch's own encoder, whose mask is true at padding."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        h = self.a(self.inner(x, src_key_padding_mask=src_key_padding_mask)).relu()
        return self.b(h)


class Speech(nn.Module):
    """Convolutions that halve the length, and a class token in front."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv1d(6, 12, 3, padding=1), nn.Conv1d(12, 16, 3, stride=2, padding=1)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.a, self.b = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(x.shape[2], device=x.device) < lengths[:, None]
        h = self.d((self.c(x) * inside[:, None]).relu()).relu().transpose(1, 2)
        return self.b(self.a(torch.cat([self.token.expand(len(h), -1, -1), h], 1)).relu())


class Sample(nn.Module):
    """The output of each sample is a mean over its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        w = attention_mask[:, :, None].to(x.dtype)
        h = (self.b(self.a(x).relu()) * w).sum(1) / w.sum(1)
        return self.c(h.relu())


@cache
def padded(name: str) -> tuple[pf.Spec, pf.Params, Any, Batches]:
    """Return a network with a padded batch, and the same samples one by one without padding."""
    torch.manual_seed(0)
    kept = mask()
    if name == "bert":
        model, whole = Bert(), (torch.randint(1, 50, (N, LONGEST)), kept)
        parts: Batches = [(whole[0][i : i + 1, :n], kept[i : i + 1, :n]) for i, n in enumerate(LENGTHS)]
    elif name == "encoder":
        model, whole = Encoder(), (torch.randn(N, LONGEST, 8).double(), kept == 0)
        parts = [(whole[0][i : i + 1, :n], torch.zeros(1, n, dtype=torch.bool)) for i, n in enumerate(LENGTHS)]
    elif name == "speech":
        model, whole = Speech(), ((torch.randn(N, 6, LONGEST) * kept[:, None]).double(), torch.tensor(LENGTHS))
        parts = [(whole[0][i : i + 1, :, :n], torch.tensor([n])) for i, n in enumerate(LENGTHS)]
    else:
        model, whole = Sample(), (torch.randn(N, LONGEST, 6).double(), kept)
        parts = [(whole[0][i : i + 1, :n], kept[i : i + 1, :n]) for i, n in enumerate(LENGTHS)]
    model = model.double().eval()
    return pf.trace(model, whole), pf.params(model), whole, parts


def difference(a: pf.Stats, b: pf.Stats) -> float:
    """Return the largest relative difference of all moments; the counts must be equal."""
    assert a.sites.keys() == b.sites.keys()
    assert a.sites
    out = 0.0
    for name, one in a.sites.items():
        other = b.sites[name]
        assert (one.count, one.tap_count) == (other.count, other.tap_count)
        for field in ("mean", "m2", "taps", "absolute", "scatter"):
            x, y = getattr(one, field), getattr(other, field)
            assert (x is None) == (y is None)
            if x is not None:
                out = max(out, float((x - y).abs().max() / y.abs().max()))
    return out


def magnitudes() -> pf.Criterion:
    return pf.Criterion("magnitudes", lambda stats: {}, needs=("moments", "absolute"))


@pytest.mark.parametrize("name", ["bert", "encoder", "speech", "sample"])
def test_padding_does_not_count(name: str) -> None:
    spec, params, whole, parts = padded(name)
    together = pf.collect_stats(params, [whole], spec=spec, criterion=magnitudes(), covariance=True)
    apart = pf.collect_stats(params, parts, spec=spec, criterion=magnitudes(), covariance=True)
    assert difference(together, apart) <= 1e-12
    everything = pf.collect_stats(params, [whole], spec=spec, weights=False)
    grown = [everything.sites[n].count > m.count for n, m in together.sites.items()]
    assert any(grown)
    if name == "speech":
        assert together.sites["a"].count == sum((n + 1) // 2 for n in LENGTHS) + N
        assert together.sites["d"].taps is not None
    if name == "sample":  # the last layer reads one value of each sample
        assert (together.sites["b"].count, together.sites["c"].count) == (sum(LENGTHS), N)


def test_padding_on_the_left() -> None:
    spec, params, (x, _), _ = padded("sample")
    left = mask().flip(1)
    together = pf.collect_stats(params, [(x, left)], spec=spec)
    apart = pf.collect_stats(
        params, [(x[i : i + 1, -n:], left[i : i + 1, -n:]) for i, n in enumerate(LENGTHS)], spec=spec
    )
    assert difference(together, apart) <= 1e-12


@pytest.mark.parametrize(
    "criterion", [pf.criteria.taylor(), pf.criteria.fisher(), pf.criteria.hessian()], ids=lambda c: c.name
)
def test_gradients_of_padded_batches(criterion: pf.Criterion) -> None:
    spec, params, (x, kept), parts = padded("bert")
    labels = torch.randint(0, 7, (N, LONGEST), generator=torch.Generator().manual_seed(1))
    together = pf.collect_stats(params, [(x, kept, labels)], spec=spec, criterion=criterion)
    ragged = [(*part, labels[i : i + 1, :n]) for i, (part, n) in enumerate(zip(parts, LENGTHS, strict=True))]
    apart = pf.collect_stats(params, ragged, spec=spec, criterion=criterion)
    for name, sums in together.sums.items():
        for group, value in sums.items():
            other = apart.sums[name][group]
            assert float((value - other).abs().max()) <= 1e-12 * float(other.abs().max())


def test_a_sequential_pipeline_ignores_padding() -> None:
    spec, params, whole, parts = padded("bert")
    affine = pf.compensation.affine(fallback=pf.compensation.mean(), ridge=0.1)
    prune = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5, compensation=affine, sequential=True)
    together, apart = (prune(params, batches, spec=spec) for batches in ([whole] * 40, parts * 40))
    assert all(torch.equal(m, apart.mask[g]) for g, m in together.mask.items())
    for name, t in together.params.items():
        if t.is_floating_point():
            assert float((t - apart.params[name]).abs().max()) <= 1e-9 * max(float(t.abs().max()), 1.0)


def test_weights_of_the_user() -> None:
    spec, params, (x, kept), _ = padded("sample")
    plain = torch.ones_like(kept)
    doubled = pf.collect_stats(
        params, [(x, plain)], spec=spec, covariance=True, weights=lambda batch: 2.0 * torch.ones(N)
    )
    once = pf.collect_stats(params, [(x, plain)], spec=spec, covariance=True)
    for name, m in once.sites.items():
        other = doubled.sites[name]
        assert other.count == 2 * m.count
        assert torch.allclose(other.mean, m.mean, rtol=1e-12)
        assert other.scatter is not None
        assert m.scatter is not None
        assert torch.allclose(other.scatter, 2 * m.scatter, rtol=1e-12)
    by_name = pf.collect_stats(params, [(x, kept)], spec=spec, weights="attention_mask")
    assert difference(by_name, pf.collect_stats(params, [(x, kept)], spec=spec)) == 0
    fractions = torch.rand(N, LONGEST, generator=torch.Generator().manual_seed(3)).double()
    some = pf.collect_stats(params, [(x, plain)], spec=spec, weights=lambda batch: fractions)
    h = pf.collect_stats(
        params, [(x[i : i + 1, j : j + 1], plain[:1, :1]) for i in range(N) for j in range(LONGEST)], spec=spec
    )
    assert some.sites["b"].count == pytest.approx(float(fractions.sum()), rel=1e-12)
    assert h.sites["b"].count == N * LONGEST
    values = torch.relu(x @ params["a.weight"].T + params["a.bias"])
    mean = (values * fractions[:, :, None]).sum((0, 1)) / fractions.sum()
    assert torch.allclose(some.sites["b"].mean, mean, rtol=1e-12)


def test_a_batch_of_nothing_but_padding_changes_nothing() -> None:
    spec, params, whole, _ = padded("bert")
    nothing = (whole[0], torch.zeros_like(whole[1]))
    one = pf.collect_stats(params, [whole], spec=spec, covariance=True)
    both = pf.collect_stats(params, [nothing, whole, nothing], spec=spec, covariance=True)
    assert difference(both, one) == 0


def test_a_pass_resumes_with_the_same_weights_only(tmp_path: Path) -> None:
    spec, params, whole, parts = padded("bert")
    path = tmp_path / "stats.safetensors"
    pf.collect_stats(params, [whole], spec=spec, resume=path, max_batches=1)
    resumed = pf.collect_stats(params, [whole, *parts], spec=spec, resume=path)
    assert difference(resumed, pf.collect_stats(params, [whole, *parts], spec=spec)) == 0
    with pytest.raises(pf.StatsError, match="measured with weights=True of positions, not False"):
        pf.collect_stats(params, [whole, *parts], spec=spec, resume=path, weights=False)


def test_what_is_no_weight_is_refused() -> None:
    spec, params, (x, kept), _ = padded("sample")
    for weights, text in (
        ("lengths", "no input of this name"),
        (lambda batch: -torch.ones(N), "finite and ≥ 0"),
        (lambda batch: torch.ones(N + 1), r"have shape \(4,\)"),
        (lambda batch: torch.ones(N, 2, 2), "must be a tensor"),
    ):
        with pytest.raises(pf.BatchError, match=text):
            pf.collect_stats(params, [(x, kept)], spec=spec, weights=weights)
    spec, params, (x, _), _ = padded("speech")
    scattered = lambda batch: (torch.arange(LONGEST) % 2).expand(N, -1)  # noqa: E731
    with pytest.raises(pf.StatsError, match=r"cannot be followed to value.*weights=False"):
        pf.collect_stats(params, [(x, torch.full((N,), LONGEST))], spec=spec, weights=scattered)


def test_padding_that_cannot_be_followed_is_refused() -> None:
    spec, params, (x, kept), _ = padded("sample")
    fixed = pf.trace(Sample().double().eval(), (x, kept), dynamic="batch")
    with pytest.raises(
        pf.BatchError, match="says that there is padding, but this spec has a fixed number of positions"
    ):
        pf.collect_stats(params, [(x, kept)], spec=fixed)
    everything = pf.collect_stats(params, [(x, torch.ones_like(kept))], spec=fixed)
    assert everything.sites["b"].count == N * LONGEST
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))
    ids = torch.randint(1, 50, (N, LONGEST))
    spec, params = pf.trace(model, {"input": ids}), pf.params(model)
    with pytest.raises(pf.BatchError, match="padding by 'attention_mask', which the spec was traced without"):
        pf.collect_stats(params, [{"input": ids, "attention_mask": kept}], spec=spec)
    assert pf.collect_stats(params, [{"input": ids, "attention_mask": kept > -1}], spec=spec).batches == 1
