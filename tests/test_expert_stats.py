"""Statistics inside experts: each over the tokens that it gets, by their gates; scores, compensation and folders made of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest import mark, warns
from torch import Tensor, nn

import prunefn as pf
from prunefn.errors import PruneWarning
from tests.test_experts import IDS, Mixture, Soft, Switch, Vision, model_of

transformers = pytest.importorskip("transformers")
COVARIANCE = pf.criteria.obs(None)


@cache
def spec_of(family: str) -> pf.Spec:
    """Return the spec of a family with a mask of padding, whose values of the weights do not matter."""
    return pf.trace(model_of(family), {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})


def batch_of(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def batches_of(n: int) -> list[Tensor]:
    return [torch.randint(3, 48, (8, 7), generator=torch.Generator().manual_seed(s)) for s in range(n)]


def moments_by_hand(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ w, the mean and the scatter of rows."""
    h, w = h.double(), w.double()
    mean = w @ h / w.sum()
    return w.sum(), mean, (w[:, None] * (h - mean)).T @ (h - mean)


def assert_moments(m: Any, h: Tensor, w: Tensor) -> None:
    count, mean, scatter = moments_by_hand(h, w)
    torch.testing.assert_close(torch.tensor(m.count, dtype=torch.float64), count)
    torch.testing.assert_close(m.mean, mean, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(m.scatter, scatter, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(m.m2, scatter.diagonal(), atol=1e-6, rtol=1e-5)


@mark.parametrize("product", [False, True])
def test_moments_over_the_tokens_of_an_expert(product: bool) -> None:
    """A row counts as g² over its mean over the experts of its token; two parts of the data merge to the whole."""
    torch.manual_seed(0)
    model, x = Mixture(product=product).eval(), torch.randn(64, 6)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    stats = pf.collect_stats(params, [x[:40], x[40:]], spec=spec, criterion=COVARIANCE)
    with torch.no_grad():
        h = model.stem(x)
        gates, choice = model.gate(h).softmax(-1).topk(2)
        relative = gates.square() / gates.square().mean(1, keepdim=True)
        for e in range(5):
            inside, w = (h @ model.up[e]).relu(), (relative * (choice == e)).sum(1)
            assert_moments(stats.sites[f"down[{e}]"], inside[w > 0], w[w > 0])
    assert {n for n in stats.sites if n.startswith("down")} == {f"down[{e}]" for e in range(5)}
    bytes_of_experts = pf.stats_bytes(spec) - pf.stats_bytes(spec, where=pf.kind("residual"))
    assert bytes_of_experts == 5 * (16 * 10 + 8 * 10 * 10)


@mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_sorted_rows_and_padding(family: str) -> None:
    """The classes of transformers sort tokens by expert; padding does not count."""
    model = model_of(family)
    attention = torch.ones_like(IDS)
    attention[0, 5:] = 0
    batch = {"input_ids": IDS, "attention_mask": attention}
    spec = spec_of(family)
    stats = pf.collect_stats(pf.params(model), [batch], spec=spec, criterion=COVARIANCE)
    block, seen = model.model.layers[1].mlp, list[tuple[Any, ...]]()
    handle = block.experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        model(**batch)
        handle.remove()
        (x, ids, gates), e = seen[0], block.experts
        relative = gates.square() / gates.square().mean(1, keepdim=True)
        used = 0
        for k in range(6):
            w = (relative * (ids == k)).sum(1) * attention.flatten()
            up = e.gate_up_proj[k].T if family == "mixtral" else e.gate_up_proj[k]
            bias = 0 if family == "mixtral" else e.gate_up_proj_bias[k]
            inside = e._apply_gate(x @ up + bias)
            m = stats.sites[f"model.layers.1.mlp.experts.down_proj[{k}]"]
            if bool(w.any()):
                assert_moments(m, inside[w > 0], w[w > 0])
            used += m.count
    assert used == pytest.approx(int(attention.sum()) * 2)


class Mlp(nn.Module):
    """The network of one expert of `Soft`."""

    def __init__(self, soft: Soft, expert: int) -> None:
        super().__init__()
        self.stem, self.up, self.down = soft.stem, nn.Linear(8, 10, bias=False), nn.Linear(10, 8, bias=False)
        self.up.weight.data, self.down.weight.data = soft.up.data[expert].T, soft.down.data[expert].T

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(self.stem(x)).relu())


CRITERIA = [
    pf.criteria.variance(),
    pf.criteria.weighted_variance(),
    pf.criteria.activation(),
    pf.criteria.wanda_sp(),
    pf.criteria.obs(None),
    pf.criteria.denoised_variance(),
]


def test_an_expert_that_gets_every_token_is_a_dense_network() -> None:
    """Statistics of each expert, and scores of equal experts, are those of the dense network."""
    torch.manual_seed(0)
    model, x = Soft(3).eval(), torch.randn(4, 16, 6)
    with torch.no_grad():
        model.gate.weight.zero_()
        model.gate.bias.zero_()
        model.up[:], model.down[:] = model.up[:1].clone(), model.down[:1].clone()
    spec, (dense, one) = pf.trace(model, (x,)), ((m := Mlp(model, 0).eval()), pf.trace(m, (x,)))
    stats = pf.collect_stats(pf.params(model), [x], spec=spec, criterion=CRITERIA)
    expected = pf.collect_stats(pf.params(dense), [x], spec=one, criterion=CRITERIA)
    of_dense = expected.sites["down"]
    for e in range(3):
        m = stats.sites[f"down[{e}]"]
        assert m.count == of_dense.count == 64
        for ours, theirs in zip(m[1:3] + m[5:], of_dense[1:3] + of_dense[5:], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    for criterion in CRITERIA:
        ours, theirs = pf.score(stats, criterion=criterion)["up.hidden"], pf.score(expected, criterion=criterion)["up"]
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4, msg=criterion.name)


def test_experts_count_by_their_tokens() -> None:
    torch.manual_seed(0)
    model, x = Switch().eval(), torch.randn(4, 16, 6)
    spec = pf.trace(model, (x,))
    stats = pf.collect_stats(pf.params(model), [x], spec=spec)
    m = [stats.sites[f"down[{e}]"] for e in range(5)]
    total = sum(one.count for one in m)
    assert 0 < total <= 64 and {type(one.count) for one in m} == {int}
    mean = sum(one.variance * one.count / total for one in m)
    torch.testing.assert_close(pf.score(stats)["up.hidden"], mean)
    # slots of a capacity are no tokens: no statistics, as before
    spec = pf.trace(model := Vision().eval(), (x,))
    assert not any("[" in n for n in pf.collect_stats(pf.params(model), [x], spec=spec).sites)


def with_copies(model: nn.Module, width: int = 24) -> nn.Module:
    """Make every second unit inside the experts a copy of the one before it."""
    with torch.no_grad():
        for name, t in model.named_parameters():
            if "gate_up_proj" in name:
                for part in t.split(width, 1):
                    part[:, 1::2] = part[:, ::2]
    return model


@mark.parametrize("sequential", [False, True])
@mark.filterwarnings("ignore:compensation 'affine' estimates weights from few samples")
def test_affine_inside_experts_is_exact_for_copies(sequential: bool) -> None:
    model = with_copies(model_of("mixtral"))
    spec, params = spec_of("mixtral"), pf.params(model)
    batches = [batch_of(ids) for ids in batches_of(2)]
    mask = {n: torch.arange(24) % 2 == 0 for n in spec.groups if n.endswith("experts.0")}
    scores = {n: m.double() for n, m in mask.items()}
    method = pf.compensation.affine(1e-9)
    if sequential:
        prune = pf.pipeline(criterion=pf.criteria.given(scores), ratio=0.5, compensation=method, sequential=True)
        small, small_spec, *_ = prune(params, batches, spec=spec)
    else:
        stats = pf.collect_stats(params, batches, spec=spec, covariance=True)
        repaired = pf.compensate(params, stats, mask, spec=spec, method=method)
        assert all(torch.equal(t, model.state_dict()[n]) for n, t in params.items())
        small, small_spec = pf.apply(repaired, mask, spec=spec), pf.shrink(spec, mask)
        errors = pf.residual(stats, mask, spec=spec, method=method)
        assert "model.layers.0.mlp.experts.down_proj[0]" in errors and max(e.error for e in errors.values()) < 1e-6
    assert small["model.layers.0.mlp.experts.down_proj"].shape == (6, 32, 12)
    y, dense = pf.forward(small, spec=small_spec, **batches[0]).logits, model(**batches[0]).logits
    torch.testing.assert_close(y, dense, atol=1e-3, rtol=1e-3)
    cut = pf.forward(pf.apply(params, mask, spec=spec), spec=small_spec, **batches[0]).logits
    assert float((cut - dense).detach().abs().max()) > 0.1


def test_means_go_into_biases_of_experts() -> None:
    """Units that are constant go without loss where experts have biases; elsewhere a warning says that they do not."""
    model = model_of("gpt_oss")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.gate_up_proj[..., :16] = 0  # gate and up of the first 8 units
            layer.mlp.experts.gate_up_proj_bias.copy_(torch.rand(6, 48) + 1)
    spec, params, batch = spec_of("gpt_oss"), pf.params(model), batch_of(IDS)
    names = [n for n, g in spec.groups.items() if g.kind == "hidden" and "experts" in n]
    mask = {n: torch.arange(24) >= 8 for n in names}
    stats = pf.collect_stats(params, [batch], spec=spec)
    small = pf.apply(pf.compensate(params, stats, mask, spec=spec), mask, spec=spec)
    y = pf.forward(small, spec=pf.shrink(spec, mask), **batch).logits
    torch.testing.assert_close(y, model(**batch).logits, atol=1e-5, rtol=1e-4)
    spec, params = spec_of("mixtral"), pf.params(model_of("mixtral"))
    mask = {n: torch.arange(24) >= 8 for n in spec.groups if n.endswith("experts.0")}
    with warns(PruneWarning, match=r"leaves 11 contractions of experts as they are, such as .*\[0\]'"):
        pf.compensate(params, pf.collect_stats(params, [batch], spec=spec), mask, spec=spec)


@mark.filterwarnings("ignore:compensation 'affine' estimates weights from few samples")
def test_a_folder_loses_the_expert_that_no_token_chooses_and_copies_inside(tmp_path: Path, caplog: Any) -> None:
    """Its weights are the largest, so that magnitude would keep it; both go without loss, layer by layer."""
    model, gone = with_copies(model_of("mixtral")), (2, 4)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1  # channel 0 of the stream is 1 for all tokens
        for layer, e in zip(model.model.layers, gone, strict=True):
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.experts.down_proj[:, 0] = 0
            layer.mlp.experts.down_proj[e] *= 100
            layer.mlp.gate.weight[:, 0] = 0
            layer.mlp.gate.weight[e] = 0
            layer.mlp.gate.weight[e, 0] = -1e4
    model.save_pretrained(tmp_path / "large")
    data, sizes = batches_of(3), {"num_local_experts": 5, "intermediate_size": 12}
    method = pf.compensation.affine(1e-9)
    with caplog.at_level("INFO", logger="prunefn"):
        done = pf.prune_pretrained(
            tmp_path / "large", tmp_path / "small", batches=data, target=sizes, compensation=method, progress=False
        )
    assert "2 groups of experts are scored by reap" in caplog.text
    small = type(model).from_pretrained(tmp_path / "small")
    assert done.rewritten == 2 and small.config.num_local_experts == 5
    for layer, dense, e in zip(small.model.layers, model.model.layers, gone, strict=True):
        assert torch.equal(layer.mlp.gate.weight, dense.mlp.gate.weight[torch.arange(6) != e])
    torch.testing.assert_close(small(data[0]).logits, model(data[0]).logits, atol=1e-3, rtol=1e-3)
