"""Sizes of the inputs that may change: forward, laws, costs and statistics at sizes that were not traced."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn

import prunefn as pf
from prunefn import trees
from prunefn.costs.counted import flop_counter
from prunefn.spec.axis import Derived, Leaf

from .zoo import random_mask

Inputs = dict[str, Tensor]


class Case(NamedTuple):
    """A network whose inputs have several sizes."""

    make: Callable[[], nn.Module]
    inputs: Callable[..., Inputs]
    """Sizes by name → inputs."""
    traced: dict[str, int]
    others: tuple[dict[str, int], ...]
    dynamic: str | None = None


class Traced(NamedTuple):
    model: nn.Module
    spec: pf.Spec
    params: pf.Params
    case: Case


def ids(*shape: int) -> Tensor:
    return torch.randint(1, 40, shape)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        return self.out(torch.cat([a, self.up(self.down(a).relu())], 1))


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        def neighbours(h: Tensor) -> Tensor:
            return torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])

        return neighbours(self.b(neighbours(self.a(x)).relu()))


class Points(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 32, 1), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).amax(2))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.a, self.b = nn.LSTM(5, 12, 2, batch_first=True), nn.Linear(12, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(2, len(x), 12)
        return self.b(self.a(self.rnn(x, (state, state))[0]).relu())


class Windows(nn.Module):
    """Attention inside of windows of four positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)
        self.a, self.b = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        w = x.view(n * (length // 4), 4, width)
        h = self.inner(w, w, w, need_weights=False)[0].reshape(n, length, width)
        return h + self.b(self.a(h).relu())


def bert() -> nn.Module:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return transformers.BertModel(transformers.BertConfig(vocab_size=50, **size))


def llama() -> nn.Module:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, use_cache=False, **size)
    return transformers.LlamaForCausalLM(config)


def speech() -> nn.Module:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    features = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(vocab_size=20, **size, **features, **positions))


def text(batch: int, length: int) -> Inputs:
    return {"input_ids": ids(batch, length), "attention_mask": torch.ones(batch, length, dtype=torch.int64)}


def image(batch: int, height: int, width: int) -> Inputs:
    return {"x": torch.randn(batch, 3, height, width)}


def sequence(width: int) -> Callable[..., Inputs]:
    return lambda batch, length: {"x": torch.randn(batch, length, width)}


LENGTHS = {"batch": 2, "length": 8}, ({"batch": 3, "length": 12}, {"batch": 1, "length": 4})
SIDES = {"batch": 2, "height": 64, "width": 64}, ({"batch": 3, "height": 96, "width": 68},)
CASES = {
    "bert": Case(bert, text, *LENGTHS),
    "llama": Case(llama, text, *LENGTHS),
    "speech": Case(
        speech,
        lambda batch, length: {"input_values": torch.randn(batch, length)},
        {"batch": 2, "length": 400},
        ({"batch": 3, "length": 523},),
    ),
    "unet": Case(UNet, image, *SIDES, "all"),
    "resnet": Case(torchvision.models.resnet18, image, *SIDES, "batch height width"),
    "graph": Case(
        Graph,
        lambda nodes, edges: {"x": torch.randn(nodes, 6), "edge_index": torch.randint(0, nodes, (2, edges))},
        {"nodes": 9, "edges": 20},
        ({"nodes": 19, "edges": 7},),
    ),
    "points": Case(Points, lambda batch, length: {"x": torch.randn(batch, 3, length)}, *LENGTHS),
    "recurrent": Case(Recurrent, sequence(5), *LENGTHS),
    "windows": Case(Windows, sequence(8), *LENGTHS),
}
every = pytest.mark.parametrize("name", CASES)


@cache
def traced(name: str) -> Traced:
    torch.manual_seed(0)
    case = CASES[name]
    model = case.make().eval()
    spec = pf.trace(model, case.inputs(**case.traced), dynamic=case.dynamic)
    assert spec.capture == "exported"
    return Traced(model, spec, pf.params(model), case)


def outputs(nest: Any) -> list[Tensor]:
    return [t for t in trees.tensors(nest) if t.is_floating_point()]


def input_sizes(spec: pf.Spec, sizes: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in sizes.items() if name in spec.input_sizes}


@every
def test_forward_is_the_module_at_other_sizes(name: str) -> None:
    t = traced(name)
    assert t.case.traced.keys() <= t.spec.program.free.keys()
    for sizes in (t.case.traced, *t.case.others):
        x = t.case.inputs(**sizes)
        with torch.no_grad():
            expected, actual = outputs(t.model(**x)), outputs(pf.forward(t.params, **x, spec=t.spec))
        assert expected
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@every
def test_removing_is_zeroing_at_other_sizes(name: str) -> None:
    t = traced(name)
    params = {n: p.double() if p.is_floating_point() else p for n, p in t.params.items()}
    mask = random_mask(t.spec, 4, groups=[g.name for g in t.spec.groups.values() if g.exact])
    small, less = pf.shrink(t.spec, mask), pf.apply(params, mask, spec=t.spec)
    for sizes in (t.case.traced, *t.case.others):
        x = {n: v.double() if v.is_floating_point() else v for n, v in t.case.inputs(**sizes).items()}
        with torch.no_grad():
            removed = outputs(pf.forward(less, **x, spec=small))
            zeroed = outputs(pf.forward(pf.zero(params, mask, spec=t.spec), **x, spec=t.spec))
        for a, b in zip(removed, zeroed, strict=True):
            assert float((a - b).abs().max()) <= 1e-10 * max(float(b.abs().max()), 1.0)


@every
def test_costs_are_polynomials_in_the_sizes(name: str) -> None:
    t = traced(name)
    mask = random_mask(t.spec, 7, 0.5)
    small, less = pf.shrink(t.spec, mask), pf.apply(t.params, mask, spec=t.spec)
    for sizes in (t.case.traced, *t.case.others):
        own = input_sizes(t.spec, sizes)
        if name != "recurrent":  # torch's counter does not know its kernel
            with torch.no_grad(), flop_counter() as counter:
                pf.forward(less, **t.case.inputs(**sizes), spec=small)
            samples = sizes.get("batch", 1)
            assert pf.cost(t.spec, mask, sizes=own).macs == counter.get_total_flops() // 2 // samples
        at = pf.trace(
            t.model, t.case.inputs(**{**sizes, "batch": 2} if "batch" in sizes else sizes), dynamic=t.case.dynamic
        )
        assert pf.cost(t.spec, mask, sizes=own) == pf.cost(at, mask) == pf.cost(t.spec.at(own), mask)
        assert at.fits(t.spec)


@every
def test_statistics_of_mixed_sizes(name: str) -> None:
    t = traced(name)
    batches = [t.case.inputs(**sizes) for sizes in (t.case.traced, *t.case.others)]
    mixed = pf.collect_stats(t.params, batches, spec=t.spec, covariance=True)
    apart = pf.Stats()
    for batch in batches:
        apart = pf.merge_stats(apart, pf.collect_stats(t.params, [batch], spec=t.spec, covariance=True))
    assert mixed.sites
    for site, m in mixed.sites.items():
        other = apart.sites[site]
        assert (m.count, m.tap_count) == (other.count, other.tap_count)
        assert torch.allclose(m.mean, other.mean, rtol=1e-10)
        assert m.scatter is not None
        assert other.scatter is not None
        assert torch.allclose(m.scatter, other.scatter, rtol=1e-10)


def test_attention_grows_with_the_square_of_the_length() -> None:
    t = traced("bert")
    macs = [pf.cost(t.spec, sizes={"length": n}).macs for n in (100, 200, 300, 400)]
    second = [c - 2 * b + a for a, b, c in zip(macs, macs[1:], macs[2:], strict=False)]
    assert second == [2 * 100**2 * 2 * 2 * 32] * 2  # two layers, two products, 32 channels
    data = t.spec.to_dict()["polynomials"]["macs"]
    assert any(term["axes"].count("length") == 2 for term in data)


def test_budgets_at_chosen_sizes() -> None:
    t = traced("llama")
    scores = pf.score(pf.collect_stats(t.params, None, spec=t.spec), criterion=pf.criteria.magnitude())
    kept = {}
    for length in (8, 512):
        spec = t.spec.at({"length": length})
        mask = pf.select(scores, pf.budget.macs(0.6), spec=spec)
        assert pf.cost(spec, mask).macs <= 0.6 * pf.cost(spec).macs
        kept[length] = {g: int(m.sum()) for g, m in mask.items()}
    assert kept[8] != kept[512]


def test_profiles_and_latency_tables_at_chosen_sizes() -> None:
    t = traced("windows")
    spec = t.spec.at({"length": 40})
    profile = pf.profile({"net": (t.params, spec)}, rounds=2, device="cpu", progress=False)
    assert profile.networks[0].cost == pf.cost(t.spec, sizes={"length": 40})
    table = pf.latency_table(t.params, "cpu", spec=spec, repeats=1, progress=False)
    assert table.sizes["length"] == 40


def test_the_spec_states_its_sizes() -> None:
    lines = str(traced("bert").spec).splitlines()
    assert "  input_ids: batch length" in lines
    assert "  costs are counted at length = 8" in lines
    assert "  holds where length <= 512" in lines
    assert "  x dim 1 is fixed at 3: a convolution needs this size" in str(traced("points").spec)


def test_what_may_vary_is_chosen() -> None:
    model, x = Points().eval(), torch.randn(2, 3, 8)
    fixed = pf.trace(model, (x,), dynamic="batch")
    assert dict(fixed.input_sizes) == {}
    named = pf.trace(model, (x,), dynamic={"x": ("batch", None, "points")})
    assert dict(named.input_sizes) == {"points": 8}
    with pytest.raises(pf.BatchError, match=r"has shape \(2, 3, 9\); the spec was traced with \(batch, 3, 8\)"):
        pf.forward(pf.params(model), torch.randn(2, 3, 9), spec=fixed)
    with pytest.raises(pf.TraceError, match="the inputs have no size 'height'; they have batch, length"):
        pf.trace(model, (x,), dynamic="height")
    with pytest.raises(pf.TraceError, match="no input of this name"):
        pf.trace(model, (x,), dynamic={"y": ("batch", None, None)})
    with pytest.raises(pf.TraceError, match="for each of the 3 dims"):
        pf.trace(model, (x,), dynamic={"x": ("batch", None)})
    with pytest.raises(pf.TraceError, match="no size 'length' of its inputs that may change"):
        pf.cost(fixed, sizes={"length": 9})
    with pytest.raises(pf.TraceError, match="length = 600"):
        traced("bert").spec.at({"length": 600})


def test_what_cannot_vary_is_fixed_with_its_reason() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.position = nn.Parameter(torch.randn(1, 6, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.b((self.a(x) + self.position).relu())

    model = Table().eval()
    spec = pf.trace(model, (torch.randn(2, 6, 4),))
    assert spec.program.domain.fixed["x dim 1"].startswith("6: ")
    with pytest.raises(pf.BatchError, match=r"has shape \(2, 5, 4\).*x dim 1 is fixed at 6"):
        pf.forward(pf.params(model), torch.randn(2, 5, 4), spec=spec)


def test_a_branch_on_a_length_is_a_guard() -> None:
    class Branch(Points):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h = h.relu() if x.shape[2] % 2 == 0 else h.tanh()
            return self.c(self.b(h).amax(2))

    model = Branch().eval()
    spec, params = pf.trace(model, (torch.randn(2, 3, 8),)), pf.params(model)
    x = torch.randn(2, 3, 14)
    assert torch.equal(pf.forward(params, x, spec=spec), model(x))
    with pytest.raises(pf.BatchError, match="length % 2 == 0"):
        pf.forward(params, torch.randn(2, 3, 9), spec=spec)


def test_a_loop_over_positions_holds_for_the_traced_length() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            state = torch.zeros_like(h[:, 0])
            for t in range(x.shape[1]):
                state = torch.tanh(state + h[:, t])
            return self.b(state)

    model = Loop().eval()
    spec, params = pf.trace(model, (torch.randn(2, 5, 4),)), pf.params(model)
    with pytest.raises(pf.BatchError, match="5"):
        pf.forward(params, torch.randn(2, 7, 4), spec=spec)


def test_two_lengths_have_two_names() -> None:
    layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).eval()
    spec = pf.trace(layer, (torch.randn(2, 5, 8), torch.randn(2, 7, 8)))
    assert dict(spec.input_sizes) == {"length": 5, "memory_length": 7}
    x, memory = torch.randn(3, 4, 8), torch.randn(3, 11, 8)
    assert torch.allclose(pf.forward(pf.params(layer), x, memory, spec=spec), layer(x, memory), atol=1e-6)
    macs = pf.cost(spec, sizes={"memory_length": 14}).macs - pf.cost(spec).macs
    assert macs == 7 * (
        2 * 8 * 8 + 2 * 5 * 8
    )  # keys and values of seven more positions, and five queries that read them


class Conditioned(nn.Module):
    """Numbers by keyword in a nest, of which two meet one weight: their lengths add up to its width, whatever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(28, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, added: dict[str, Tensor]) -> Tensor:
        return self.b(self.a(torch.cat([added["text"], 2 * added["times"]], -1)).relu()) + x


def test_lengths_that_add_up_to_the_width_of_a_weight() -> None:
    torch.manual_seed(0)
    model = Conditioned().eval()
    spec = pf.trace(model, (torch.randn(2, 2),), {"added": {"text": torch.randn(2, 20), "times": torch.randn(2, 8)}})
    assert spec.shape("a.weight") == (8, 28) and spec.sizes == {"a": 8}
    params, mask = pf.params(model), pf.mask(spec, {"a": [1, 4]})
    small, shrunk = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    for n in (20, 17):
        x, added = torch.randn(3, 2), {"text": torch.randn(3, n), "times": torch.randn(3, 28 - n)}
        assert torch.equal(pf.forward(params, x, added=added, spec=spec), model(x, added))
        zeroed = pf.forward(pf.zero(params, mask, spec=spec), x, added=added, spec=spec)
        assert torch.allclose(pf.forward(small, x, added=added, spec=shrunk), zeroed, atol=1e-6)
    with pytest.raises(pf.BatchError, match="28"):
        pf.forward(params, torch.randn(3, 2), added={"text": torch.randn(3, 20), "times": torch.randn(3, 9)}, spec=spec)


def test_sizes_of_axes() -> None:
    axes = {a for axes in traced("unet").spec.program.axes.values() for a in axes}
    assert Leaf("height") in axes
    assert Derived(("+", 1, ("//", ("+", -1, "height"), 2))) in axes


def test_statistics_of_specs_traced_at_other_sizes_merge() -> None:
    torch.manual_seed(1)
    model = UNet().eval()
    params = pf.params(model)
    images = [torch.randn(2, 3, n, n) for n in (16, 24)]
    specs = [pf.trace(model, (x,)) for x in images]
    assert specs[0] != specs[1]
    apart = [pf.collect_stats(params, [x], spec=s) for x, s in zip(images, specs, strict=True)]
    merged = pf.merge_stats(*apart)
    free = pf.collect_stats(params, images, spec=pf.trace(model, (images[0],), dynamic="batch height width"))
    for site, m in free.sites.items():
        assert m.count == merged.sites[site].count
        assert torch.allclose(m.mean, merged.sites[site].mean, rtol=1e-12)
    mask = pf.select(pf.score(merged, criterion=pf.criteria.variance()), 0.5, spec=specs[1])
    assert pf.forward(pf.apply(params, mask, spec=specs[1]), images[1], spec=pf.shrink(specs[1], mask)).shape[-1] == 24
