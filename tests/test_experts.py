"""Experts of mixtures: groups of router rows and stacked tensors, against natively smaller models, and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytest import mark, raises
from torch import Tensor, nn

import prunefn as pf
from prunefn.errors import BatchError, MaskError, ParamsError

transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", "num_local_experts", {"intermediate_size": 24, "num_experts_per_tok": 2}),
    "qwen3": ("Qwen3Moe", "num_experts", {"moe_intermediate_size": 24, "num_experts_per_tok": 3, "head_dim": 8}),
    "olmoe": ("Olmoe", "num_experts", {"intermediate_size": 24, "num_experts_per_tok": 3}),
    "gpt_oss": ("GptOss", "num_local_experts", {"intermediate_size": 24, "num_experts_per_tok": 2, "head_dim": 8}),
}
IDS = torch.randint(3, 48, (2, 7), generator=torch.Generator().manual_seed(0))


def model_of(family: str, experts: int = 6) -> nn.Module:
    name, field, more = FAMILIES[family]
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{name}Config")(**SIZES, **more, **ends, **{field: experts})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t in model.parameters():
            t.copy_(torch.randn(t.shape, generator=generator) * t.shape[-1] ** -0.5 if t.ndim > 1 else torch.ones(()))
    return model


def experts_of(spec: pf.Spec) -> list[pf.Group]:
    return [g for g in spec.groups.values() if g.kind == "experts"]


@mark.parametrize("family", FAMILIES)
def test_fewer_experts_are_the_smaller_class(family: str, tmp_path: Path) -> None:
    model, (_, field, more) = model_of(family), FAMILIES[family]
    spec, params = pf.trace(model, (IDS,)), pf.params(model)
    groups = experts_of(spec)
    assert [(g.size, g.floor) for g in groups] == [(6, more["num_experts_per_tok"])] * 2
    mask = pf.mask(spec, {groups[0].name: [1, 4], groups[1].name: [0, 5]})
    small, small_spec = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    logits = pf.forward(small, IDS, spec=small_spec).logits
    native = model_of(family, 4)
    native.load_state_dict(small, strict=True)
    torch.testing.assert_close(native(IDS).logits, logits, atol=1e-6, rtol=1e-6)
    assert float((model(IDS).logits - logits).detach().abs().max()) > 1e-3
    module = pf.to_module(small, spec=small_spec, model=model)
    assert getattr(module.config, field) == 4 and getattr(model.config, field) == 6
    assert module.config.num_experts_per_tok == more["num_experts_per_tok"]
    module.save_pretrained(tmp_path)
    again = type(module).from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, module(IDS).logits)
    ends = [m.generate(IDS, max_new_tokens=3, do_sample=False) for m in (again, native)]
    assert torch.equal(*ends)


def test_costs_and_unused_experts() -> None:
    """Active MACs fall by the router's rows only; an expert that no token chooses is removed without a trace."""
    model = model_of("mixtral")
    criterion = pf.criteria.expert_frequency()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight[3] = 0
            layer.mlp.gate.weight[3, 0] = -1e3
            layer.post_attention_layernorm.weight[0] = 0
            layer.mlp.gate.weight[[0, 1]] *= 50
    spec, params = pf.trace(model, (IDS,)), pf.params(model)
    scores = pf.score(pf.collect_stats(params, [IDS], spec=spec, criterion=criterion), criterion=criterion)
    mask = {g: s > 0 for g, s in scores.items()}
    mask = {g: m for g, m in mask.items() if not m.all()}
    assert mask
    small, small_spec = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    torch.testing.assert_close(pf.forward(small, IDS, spec=small_spec).logits, model(IDS).logits, atol=1e-5, rtol=1e-4)
    shares = torch.stack(list(scores.values()))
    torch.testing.assert_close(shares.sum(1), torch.full((2,), 2.0, dtype=torch.float64))
    before, after = pf.cost(spec), pf.cost(small_spec)
    gone = sum(int((~m).sum()) for m in mask.values())
    assert pf.cost(spec, mask) == after
    assert before.macs - after.macs == gone * 32 * 7 and before.params - after.params == gone * (32 + 3 * 24 * 32)


def test_eager_experts_are_traced_by_grouped_products() -> None:
    model = model_of("mixtral")
    model.set_experts_implementation("eager")
    spec = pf.trace(model, (IDS,))
    assert spec.capture == "exported" and len(experts_of(spec)) == 2
    # the second layer reads numbers of tokens that the first one computes
    assert [n for n, g in spec.groups.items() if g.kind == "layer"] == ["model.layers.0", "model.layers.1"]
    assert model.config._experts_implementation == "eager"


def test_experts_on_request_and_not_below_what_is_chosen() -> None:
    model = model_of("qwen3")
    spec, params = pf.trace(model, (IDS,)), pf.params(model)
    name = experts_of(spec)[0].name
    scores = {g.name: torch.arange(6.0) for g in experts_of(spec)}
    assert [int(m.sum()) for m in pf.select(scores, 0.5, spec=spec).values()] == [3, 3]
    with raises(pf.BudgetError):
        pf.select(scores, 0.7, spec=spec)
    with raises(MaskError, match="keeps 2 of 6 units, but 3 are chosen at a time"):
        pf.mask(spec, {name: [0, 1, 2, 3]})
    with raises(ParamsError, match="a router whose row is zero still chooses the expert"):
        pf.zero(params, {name: torch.arange(6) > 0}, spec=spec)
    assert not pf.kind("hidden")(spec.groups[name]) and "experts" not in {
        spec.groups[g].kind for g in pf.score(pf.collect_stats(params, [IDS], spec=spec))
    }


class Mixture(nn.Module):
    """Experts in stacked weights, of which a scattered top-k of a softmax chooses."""

    def __init__(self, n: int = 5, *, product: bool = False, returns: bool = False) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(6, 8), nn.Linear(8, n), nn.Linear(8, 3)
        self.up, self.down = nn.Parameter(torch.randn(n, 8, 10) / 3), nn.Parameter(torch.randn(n, 10, 8) / 3)
        self.product, self.returns = product, returns

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        p = self.gate(x).softmax(-1)
        value, choice = p.topk(2)
        gates = torch.zeros_like(p).scatter(-1, choice, value)
        out = torch.einsum("beh,ehd->bed", torch.einsum("bd,edh->beh", x, self.up).relu(), self.down)
        y = torch.einsum("be,bed->bd", gates, out) if self.product else (gates[..., None] * out).sum(1)
        return (self.head(x + y), choice) if self.returns else self.head(x + y)


@mark.parametrize("product", [False, True])
def test_stacked_einsum(product: bool) -> None:
    torch.manual_seed(0)
    model, x = Mixture(product=product).eval(), torch.randn(16, 6)
    spec = pf.trace(model, (x,))
    (group,) = experts_of(spec)
    mask = pf.mask(spec, {group.name: [0, 3]})
    small = pf.apply(pf.params(model), mask, spec=spec)
    native = Mixture(3, product=product).eval()
    native.load_state_dict(small, strict=True)
    torch.testing.assert_close(pf.forward(small, x, spec=pf.shrink(spec, mask)), native(x), atol=1e-6, rtol=1e-6)


class Soft(nn.Module):
    """All experts compute; a softmax weighs what they add."""

    def __init__(self, n: int = 5) -> None:
        super().__init__()
        self.n, self.stem, self.gate, self.head = n, nn.Linear(6, 8), nn.Linear(8, n), nn.Linear(8, 3)
        self.up, self.down = nn.Parameter(torch.randn(n, 8, 10) / 3), nn.Parameter(torch.randn(n, 10, 8) / 3)

    def outputs(self, x: Tensor) -> Tensor:
        return torch.einsum("bteh,ehd->bted", torch.einsum("btd,edh->bteh", x, self.up).relu(), self.down)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + (self.gate(x).softmax(-1)[..., None] * self.outputs(x)).sum(-2))


class Switch(Soft):
    """One expert for each token, up to a number of tokens for each expert."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        p = self.gate(x).softmax(-1)
        code = nn.functional.one_hot(p.argmax(-1), self.n)
        code = code * (code.cumsum(-2) <= 4)
        return self.head(x + (self.outputs(x) * code[..., None]).sum(-2) * p.max(-1).values[..., None])


class Vision(Soft):
    """Tokens of an image go to the places of an expert and back, as in V-MoE."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        p = self.gate(x).softmax(-1)
        code = nn.functional.one_hot(p.topk(1).indices[..., 0], self.n)
        place = code.cumsum(1) * code - 1
        places = nn.functional.one_hot(place.clamp(0, 5), 6) * ((place >= 0) & (place < 6))[..., None]
        inside = torch.einsum("btec,btd->becd", places.to(x.dtype), x)
        out = torch.einsum("bech,ehd->becd", torch.einsum("becd,edh->bech", inside, self.up).relu(), self.down)
        return self.head(x + torch.einsum("becd,btec->btd", out, places * p[..., None]))


@mark.parametrize("build", [Soft, Switch, Vision])
def test_other_routers(build: type[Soft]) -> None:
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(2, 16, 6)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    (group,) = experts_of(spec)
    mask = pf.mask(spec, {group.name: [0, 3]})
    small, small_spec = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    native = build(3).eval()
    native.load_state_dict(small, strict=True)
    out = pf.forward(small, x, spec=small_spec)
    torch.testing.assert_close(out, native(x), atol=1e-6, rtol=1e-6)
    module = pf.to_module(small, spec=small_spec, model=model)
    assert torch.equal(module(x), out) and (build is Soft or module.n == 3)
    criterion = pf.criteria.reap()
    if build is Vision:
        with raises(BatchError, match="in one product with their weights"):
            pf.collect_stats(params, [x], spec=spec, criterion=criterion)
        return
    with torch.no_grad():
        h = model.stem(x)
        p, norms = model.gate(h).softmax(-1), model.outputs(h).norm(dim=-1)
        code = nn.functional.one_hot(p.argmax(-1), 5)
        fits = code * (code.cumsum(-2) <= 4)
        added = p * norms if build is Soft else fits * p * norms
        count = torch.tensor(32.0) if build is Soft else code.sum((0, 1)).clamp(min=1)
    scores = pf.score(pf.collect_stats(params, [x], spec=spec, criterion=criterion), criterion=criterion)[group.name]
    torch.testing.assert_close(scores, (added.sum((0, 1)) / count).double(), atol=1e-6, rtol=1e-5)


class Listed(nn.Module):
    """Experts that are modules of a list: a loop computes them for all tokens, or for those that choose them."""

    def __init__(self, n: int = 4, *, sparse: bool = False) -> None:
        super().__init__()
        self.stem, self.gate, self.head, self.sparse = nn.Linear(6, 8), nn.Linear(8, n), nn.Linear(8, 3), sparse
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8)) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        value, choice = self.gate(x).softmax(-1).topk(2)
        gates = torch.zeros(len(x), len(self.experts)).scatter(-1, choice, value)
        out = torch.zeros_like(x)
        for n, expert in enumerate(self.experts):
            if self.sparse:
                (rows,) = torch.where(gates[:, n] > 0)
                out = out.index_add(0, rows, expert(x[rows]) * gates[rows, n, None])
            else:
                out = out + expert(x) * gates[:, n : n + 1]
        return self.head(x + out)


@mark.parametrize("sparse", [False, True])
def test_experts_of_a_list_are_no_group(sparse: bool) -> None:
    """Each is a branch, which leaves the others their scores, and no layer, which would leave the list."""
    torch.manual_seed(0)
    model, x = Listed(sparse=sparse).eval(), torch.randn(16, 6)
    spec = pf.trace(model, (x,))
    assert spec.capture == ("recorded" if sparse else "exported")
    assert "if it scores the 4 modules of 'experts': experts in a list are no group" in spec.explain("gate.weight")
    assert "modules of" not in spec.explain("head.weight") and "layer" not in {g.kind for g in spec.groups.values()}
    if sparse:
        return
    assert [n for n, g in spec.groups.items() if g.kind == "branch"] == [f"experts.{i}" for i in range(4)]
    mask = {"experts.1": torch.tensor([False])}
    small, small_spec = pf.apply(pf.params(model), mask, spec=spec), pf.shrink(spec, mask)
    with torch.no_grad():
        model.experts[1][2].weight.zero_()
        model.experts[1][2].bias.zero_()
    module = pf.to_module(small, spec=small_spec, model=model)
    torch.testing.assert_close(module(x), model(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pf.forward(small, x, spec=small_spec), model(x), atol=1e-6, rtol=1e-6)


def test_returned_choices_stay() -> None:
    spec = pf.trace(Mixture(returns=True).eval(), (torch.randn(4, 6),))
    assert not experts_of(spec) and "are returned" in spec.explain("gate.weight")


def test_scores_by_hand() -> None:
    torch.manual_seed(0)
    model, x = Mixture().eval(), torch.randn(64, 6)
    spec, criteria = pf.trace(model, (x,)), [pf.criteria.expert_frequency(), pf.criteria.reap()]
    stats = pf.collect_stats(pf.params(model), [x[:40], x[40:]], spec=spec, criterion=criteria)
    with torch.no_grad():
        h = model.stem(x)
        value, choice = model.gate(h).softmax(-1).topk(2)
        out = torch.stack([(h @ model.up[e]).relu() @ model.down[e] for e in range(5)], 1)
    chosen = [(choice == e).any(1) for e in range(5)]
    weights = [value[choice == e] for e in range(5)]
    norms = [(w * out[c, e].norm(dim=-1)).mean() for e, (c, w) in enumerate(zip(chosen, weights, strict=True))]
    share = torch.stack([c.double().mean() for c in chosen])
    torch.testing.assert_close(pf.score(stats, criterion=criteria[0])["gate.experts"], share)
    reap = pf.score(stats, criterion=criteria[1])["gate.experts"]
    torch.testing.assert_close(reap, torch.stack(norms).double(), atol=1e-6, rtol=1e-5)
    other = pf.trace(Mixture(product=True).eval(), (x,))
    with raises(BatchError, match="in one product with their weights"):
        pf.collect_stats(pf.params(model), [x], spec=other, criterion=criteria[1])


def test_padding_does_not_count_and_reap_of_sorted_tokens() -> None:
    """The tokens of a class are sorted by expert, and come back in order."""
    model = model_of("mixtral")
    attention = torch.ones_like(IDS)
    attention[0, 4:] = 0
    batch = {"input_ids": IDS, "attention_mask": attention}
    spec = pf.trace(model, batch)
    criteria = [pf.criteria.expert_frequency(), pf.criteria.reap()]
    stats = pf.collect_stats(pf.params(model), [batch], spec=spec, criterion=criteria)
    calls: list[tuple[Tensor, ...]] = []
    block = model.model.layers[0].mlp
    hook = block.experts.register_forward_pre_hook(lambda _, args: calls.append(args))
    with torch.no_grad():
        model(**batch)
        hook.remove()
        x, choice, gates = calls[0]
        kept = attention.flatten().bool()
        for e in range(6):
            token, place = ((choice == e) & kept[:, None]).nonzero(as_tuple=True)
            gate, up = (x[token] @ block.experts.gate_up_proj[e].T).chunk(2, -1)
            out = (nn.functional.silu(gate) * up) @ block.experts.down_proj[e].T
            mean = (gates[token, place] * out.norm(dim=-1)).mean() if len(token) else torch.zeros(())
            name = "model.layers.0.mlp.gate.experts"
            assert float(pf.score(stats, criterion=criteria[0])[name][e]) == pytest.approx(len(token) / int(kept.sum()))
            assert float(pf.score(stats, criterion=criteria[1])[name][e]) == pytest.approx(float(mean), rel=1e-5)


def test_target_of_experts() -> None:
    model = model_of("olmoe")
    spec = pf.trace(model, (IDS,))
    scores = {g.name: torch.arange(6.0) for g in experts_of(spec)}
    mask = pf.select(scores, pf.target(spec, model, num_experts=4), spec=spec)
    assert [m.tolist() for m in mask.values()] == [[False] * 2 + [True] * 4] * 2
