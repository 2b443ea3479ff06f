"""Branches and layers: whole blocks as groups, against zeros, against natively smaller models, and by hand."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
from pytest import mark, raises
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import prunefn as pf
from prunefn.errors import MaskError, ParamsError, PruneError, StatsError

GONE = torch.tensor([False])


class Parallel(nn.Module):
    """Attention-like and MLP-like branches of one norm, added in one sum of sums, as in GPT-J."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return self.mix(h) + self.down(self.up(h).relu()) + x


class Stack(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([Parallel() for _ in range(depth)]), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def vit(depth: int = 3) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, num_heads=3, depth=depth, num_classes=5)


def resnet() -> nn.Module:
    return pf.nets.small_resnet18(5, width=4)


def encoder(depth: int = 3, *, norm_first: bool = False) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


NETS = {
    "parallel": (Stack, torch.randn(4, 8)),
    "vit": (vit, torch.randn(2, 3, 32, 32)),
    "resnet": (resnet, torch.randn(2, 3, 32, 32)),
    "pre_norm": (lambda: encoder(norm_first=True), torch.randn(2, 5, 16)),
}


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, pf.Spec]:
    torch.manual_seed(0)
    build, x = NETS[request.param]
    model = build().eval()
    return model, x, pf.trace(model, (x,))


def drawn(spec: pf.Spec, generator: torch.Generator) -> dict[str, Tensor]:
    """A random mask of exact groups, a third of the units and branches gone."""
    mask = {}
    for g in spec.groups.values():
        kept = torch.rand(g.size, generator=generator) > 1 / 3
        if g.floor:
            kept[0] = True
        if g.exact:
            mask[g.name] = kept
    return mask


def test_names_and_kinds(net: tuple[nn.Module, Tensor, pf.Spec]) -> None:
    model, _, spec = net
    depth = {n: g.kind for n, g in spec.groups.items() if g.floor == 0}
    assert depth and set(depth) == set(spec.branches)
    if isinstance(model, Stack):
        assert list(depth) == [
            *(n for i in range(3) for n in (f"layers.{i}.mix", f"layers.{i}.up.branch")),
            *(f"layers.{i}" for i in range(3)),
        ]
    assert all(g.size == 1 and not g.members for g in spec.groups.values() if g.floor == 0)
    layers = [n for n, k in depth.items() if k == "layer"]
    assert all(isinstance(model.get_submodule(n), nn.Module) for n in layers)


@mark.parametrize("seed", range(3))
def test_laws(net: tuple[nn.Module, Tensor, pf.Spec], seed: int) -> None:
    model, x, spec = net
    params, generator = pf.params(model), torch.Generator().manual_seed(seed)
    first = drawn(spec, generator)
    small, small_spec = pf.apply(params, first, spec=spec), pf.shrink(spec, first)
    out = pf.forward(small, x, spec=small_spec)
    torch.testing.assert_close(out, pf.forward(pf.zero(params, first, spec=spec), x, spec=spec), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out, pf.forward(pf.expand(small, first, spec=spec), x, spec=spec), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out, pf.to_module(small, spec=small_spec)(x), atol=1e-5, rtol=1e-4)
    assert pf.cost(spec, first) == pf.cost(small_spec)
    own = {n: t for n, t in small.items() if n in small_spec.parameters and n not in small_spec.tied}
    assert sum(t.numel() for t in own.values()) == pf.cost(small_spec).params
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        pf.forward(small, x[:1], spec=small_spec)
    assert counter.get_total_flops() // 2 == pf.cost(small_spec).macs
    second = drawn(small_spec, generator)
    both = pf.compose(first, second)
    twice, once = pf.apply(small, second, spec=small_spec), pf.apply(params, both, spec=spec)
    assert twice.keys() == once.keys() and all(torch.equal(twice[n], once[n]) for n in once)
    assert pf.shrink(small_spec, second) == pf.shrink(spec, both)


def test_train_mode_forgets_the_buffers_of_what_is_removed() -> None:
    model, x = resnet(), torch.randn(4, 3, 32, 32)
    spec = pf.trace(model, (x,), train=True)
    layer = next(n for n, g in spec.groups.items() if g.kind == "layer")
    small, small_spec = pf.apply(pf.params(model), {layer: GONE}, spec=spec), pf.shrink(spec, {layer: GONE})
    _, updated = pf.forward_train(small, x, spec=small_spec)
    assert not any(n.startswith(f"{layer}.") for n in updated) and updated.keys() == small.keys()


# ---- the original class


CLASSES = {
    "vit": (vit, NETS["vit"][1], ["blocks.1"], lambda: vit(2)),
    "post_norm": (encoder, NETS["pre_norm"][1], ["layers.0", "layers.2"], lambda: encoder(1)),
    "parallel": (Stack, NETS["parallel"][1], ["layers.1"], lambda: Stack(2)),
    "resnet": (resnet, NETS["resnet"][1], ["layer2.1"], None),
    "branch": (vit, NETS["vit"][1], ["blocks.0.attn", "blocks.2"], None),
}


@mark.parametrize("name", CLASSES)
def test_the_class_of_fewer_layers(name: str, tmp_path: Path) -> None:
    build, x, removed, smaller = CLASSES[name]
    torch.manual_seed(0)
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    spec, mask = pf.trace(model, (x,)), dict.fromkeys(removed, GONE)
    params, small_spec = pf.apply(pf.params(model), mask, spec=spec), pf.shrink(spec, mask)
    module = pf.to_module(params, spec=small_spec, model=model)
    out = pf.forward(params, x, spec=small_spec)
    torch.testing.assert_close(module(x), out)
    assert type(module) is type(model) and len(module.state_dict()) == len(params)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())
    if smaller is not None:
        fresh = smaller().eval()
        fresh.load_state_dict(module.state_dict(), strict=True)
        torch.testing.assert_close(fresh(x), out)
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(x), out)
    pf.save(module, tmp_path / "module.safetensors")
    torch.testing.assert_close(pf.load(build().eval(), tmp_path / "module.safetensors")(x), out)
    for masks in (mask, ()):
        pf.save(params, tmp_path / "params.safetensors", spec=small_spec, masks=masks)
        assert pf.load_params(tmp_path / "params.safetensors", spec=spec).spec == small_spec


def test_two_rounds_of_a_class_are_one_plan(tmp_path: Path) -> None:
    model, x = vit(4).eval(), NETS["vit"][1]
    for layer in ("blocks.1", "blocks.1"):
        spec = pf.trace(model, (x,))
        small = pf.apply(pf.params(model), {layer: GONE}, spec=spec)
        model = pf.to_module(small, spec=pf.shrink(spec, {layer: GONE}), model=model)
    pf.save(model, tmp_path / "small.safetensors")
    torch.testing.assert_close(pf.load(vit(4).eval(), tmp_path / "small.safetensors")(x), model(x))
    assert len(model.blocks) == 2


LANGUAGE = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}, ["model.layers.1"], {"num_hidden_layers": 2}),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
        ["model.layers.1"],
        {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "bert": (
        "BertForMaskedLM",
        "BertConfig",
        {"hidden_act": "relu"},
        ["bert.encoder.layer.2"],
        {"num_hidden_layers": 2},
    ),
}


@mark.parametrize("name", LANGUAGE)
def test_configs_follow(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    cls, config, more, removed, expected = LANGUAGE[name]
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    sizes |= {} if name == "bert" else {"num_key_value_heads": 2}
    model = getattr(transformers, cls)(getattr(transformers, config)(**sizes, **more)).eval()
    ids, mask = torch.randint(3, 50, (2, 7)), dict.fromkeys(removed, GONE)
    spec = pf.trace(model, {"input_ids": ids})
    small = pf.to_module(pf.apply(pf.params(model), mask, spec=spec), spec=pf.shrink(spec, mask), model=model)
    assert {f: getattr(small.config, f) for f in expected} == expected
    assert model.config.num_hidden_layers == 3
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, small(ids).logits)
    if again.can_generate():
        ends = [m.generate(ids, max_new_tokens=4, do_sample=False) for m in (again, small)]
        assert torch.equal(*ends)


# ---- scores and compensation


def test_block_influence_by_hand() -> None:
    torch.manual_seed(0)
    model, x = Stack(2).eval(), torch.randn(16, 8)
    spec, criterion = pf.trace(model, (x,)), pf.criteria.block_influence()
    scores = pf.score(
        pf.collect_stats(pf.params(model), [x[:7], x[7:]], spec=spec, criterion=criterion), criterion=criterion
    )
    with torch.no_grad():
        middle = model.layers[0](x)
        end = model.layers[1](middle)
        alone = model.layers[0].mix(model.layers[0].norm(x))
    by_hand = {
        "layers.0": 1 - torch.cosine_similarity(x, middle).mean(),
        "layers.1": 1 - torch.cosine_similarity(middle, end).mean(),
        "layers.0.mix": 1 - torch.cosine_similarity(middle - alone, middle).mean(),
    }
    assert {g: float(scores[g]) for g in by_hand} == pytest.approx({g: float(v) for g, v in by_hand.items()}, abs=1e-6)
    assert scores.keys() == spec.branches.keys()


def test_branch_error_by_hand() -> None:
    torch.manual_seed(0)
    model, x = Stack(2).eval(), torch.randn(16, 8)
    spec, criterion = pf.trace(model, (x,)), pf.criteria.branch_error()
    scores = pf.score(
        pf.collect_stats(pf.params(model), [x[:7], x[7:]], spec=spec, criterion=criterion), criterion=criterion
    )
    with torch.no_grad():
        end = model.layers[0](x)
        added = end - x
    expected = (added - added.mean(0)).square().sum() / end.square().sum()
    assert float(scores["layers.0"]) == pytest.approx(float(expected), rel=1e-5)
    assert scores.keys() == spec.branches.keys()


def test_padding_does_not_count() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.BertModel(config).eval()
    ids, kept = torch.randint(3, 50, (2, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    spec, criterion = pf.trace(model, {"input_ids": ids, "attention_mask": kept}), pf.criteria.block_influence()
    params = pf.params(model)
    padded = pf.collect_stats(params, [{"input_ids": ids, "attention_mask": kept}], spec=spec, criterion=criterion)
    alone = [{"input_ids": ids[i : i + 1, :n], "attention_mask": kept[i : i + 1, :n]} for i, n in ((0, 7), (1, 4))]
    apart = pf.collect_stats(params, alone, spec=spec, criterion=criterion)
    for g, s in pf.score(padded, criterion=criterion).items():
        torch.testing.assert_close(s, pf.score(apart, criterion=criterion)[g], atol=1e-6, rtol=1e-4)


def test_taylor_of_a_branch_is_the_derivative_of_its_gate() -> None:
    torch.manual_seed(0)
    model, x = Stack(2).eval(), torch.randn(6, 8)
    spec = pf.trace(model, (x,))
    where = pf.kind("branch", "layer")
    criterion = pf.criteria.taylor(lambda y: y.square().mean(), where=where)
    scores = pf.score(pf.collect_stats(pf.params(model), [x], spec=spec, criterion=criterion), criterion=criterion)
    gate = torch.ones((), requires_grad=True)
    layer = model.layers[0]
    h = layer.norm(x)
    out = model.head(model.layers[1](gate * layer.mix(h) + layer.down(layer.up(h).relu()) + x))
    (expected,) = torch.autograd.grad(out.square().mean(), gate)
    assert float(scores["layers.0.mix"]) == pytest.approx(abs(float(expected)), rel=1e-4)
    assert scores.keys() == spec.branches.keys()


@mark.parametrize("sequential", [False, True])
def test_means_of_removed_layers_are_made_up_for(sequential: bool) -> None:
    torch.manual_seed(0)
    model, x = vit(4).eval(), torch.randn(32, 3, 32, 32)
    spec, params = pf.trace(model, (x[:2],)), pf.params(model)
    choice = {"criterion": pf.criteria.branch_error(), "where": pf.kind("layer"), "ratio": 0.5}
    small = pf.pipeline(**choice, sequential=sequential)(params, [x], spec=spec)
    bare = pf.pipeline(**choice, compensation=pf.compensation.none())(params, [x], spec=spec)
    dense = pf.forward(params, x, spec=spec)

    def error(p: pf.Pruned) -> float:
        return float((pf.forward(p.params, x, spec=p.spec) - dense).square().mean())

    assert small.mask.keys() == bare.mask.keys() and error(small) < error(bare)
    assert [int(m.sum()) for m in small.mask.values()].count(0) == 2
    module = pf.to_module(small.params, spec=small.spec, model=model)  # the means are in biases that the class has
    torch.testing.assert_close(module(x), pf.forward(small.params, x, spec=small.spec))


def test_a_constant_branch_is_removed_without_loss() -> None:
    torch.manual_seed(0)
    model, x = Stack(2).eval(), torch.randn(6, 8)
    model.layers[0].mix.weight.data.zero_()
    spec, params = pf.trace(model, (x,)), pf.params(model)
    stats = pf.collect_stats(params, [x], spec=spec, criterion=pf.criteria.block_influence())
    mask = {"layers.0.mix": GONE}
    small = pf.apply(pf.compensate(params, stats, mask, spec=spec), mask, spec=spec)
    torch.testing.assert_close(pf.forward(small, x, spec=pf.shrink(spec, mask)), model(x))


def test_depth_and_width_in_one_budget() -> None:
    torch.manual_seed(0)
    model, x, y = vit(4).eval(), torch.randn(8, 3, 32, 32), torch.randint(0, 5, (8,))
    spec, where = pf.trace(model, (x,)), pf.kind("layer", "hidden")
    prune = pf.pipeline(
        criterion=pf.criteria.fisher(where=where),
        where=where,
        ratio=pf.budget.macs(0.5),
        scope=pf.scope.knapsack(),
        compensation=pf.compensation.none(),
    )
    small = prune(pf.params(model), [(x, y)], spec=spec)
    assert small.info.after.macs <= 0.5 * small.info.before.macs
    kinds = {spec.groups[g].kind for g, (lost, _) in small.info.removed.items() if lost}
    assert kinds == {"layer", "hidden"}
    learned = pf.gates.learn(pf.params(model), [x], pf.budget.macs(0.5), spec=spec, where=where, steps=150)
    assert set(learned.scores) == {g.name for g in spec.groups.values() if where(g)}


# ---- choices and errors


def test_whole_blocks_go_on_request_only(net: tuple[nn.Module, Tensor, pf.Spec]) -> None:
    model, x, spec = net
    params = pf.params(model)
    small = pf.pipeline(criterion=pf.criteria.random(seed=0), ratio=0.3, compensation=pf.compensation.none())
    assert not set(small(params, None, spec=spec).mask) & set(spec.branches)
    with raises(PruneError, match=r"go on request only: write where=pf\.kind"):
        pf.pipeline(criterion=pf.criteria.block_influence(), ratio=0.5)(params, [x], spec=spec)


def test_frozen_tensors_keep_their_layer() -> None:
    model, x = Stack(), torch.randn(4, 8)
    spec = pf.trace(model.eval(), (x,), freeze="layers.1.mix")
    assert "layers.1" not in spec.groups and "layers.0" in spec.groups
    prune = pf.pipeline(
        criterion=pf.criteria.block_influence(), where=pf.kind("layer"), ratio=0.5, freeze="layers.1.up"
    )
    whole = pf.trace(model, (x,))
    assert "layers.1" not in prune(pf.params(model), [x], spec=whole).mask


def test_a_frozen_table_takes_no_mean() -> None:
    torch.manual_seed(0)
    model, x = vit(2).eval(), torch.randn(16, 3, 32, 32)
    spec, params = pf.trace(model, (x[:2],)), pf.params(model)
    stats = pf.collect_stats(params, [x], spec=spec, criterion=pf.criteria.block_influence())
    mask = {"blocks.0": GONE}
    free = pf.compensate(params, stats, mask, spec=spec)
    assert not torch.equal(free["pos_embed"], params["pos_embed"])
    frozen = pf.trace(model, (x[:2],), freeze="pos_embed")
    stats = pf.collect_stats(params, [x], spec=frozen, criterion=pf.criteria.block_influence())
    kept = pf.compensate(params, stats, mask, spec=frozen)
    assert torch.equal(kept["pos_embed"], params["pos_embed"]) and kept.keys() > params.keys()
    small, left = (pf.apply(p, mask, spec=s) for p, s in ((free, spec), (kept, frozen))), (spec, frozen)
    outs = [pf.forward(p, x, spec=pf.shrink(s, mask)) for p, s in zip(small, left, strict=True)]
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-4)


def test_errors() -> None:
    model, x = encoder().eval(), torch.randn(2, 5, 16)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    with raises(ParamsError, match=r"'layers.0' cannot be set to zero: it ends in aten.layer_norm.default"):
        pf.zero(params, {"layers.0": GONE}, spec=spec)
    with raises(MaskError, match="at least one must stay"):
        pf.apply(params, {"layers.0.linear1": torch.zeros(32, dtype=torch.bool)}, spec=spec)
    stacked = Stack().eval()
    whole = pf.trace(stacked, (torch.randn(4, 8),))
    stats = pf.collect_stats(pf.params(stacked), [torch.randn(4, 8)], spec=whole)
    with raises(StatsError, match=r"no mean of what it adds.*block_influence"):
        pf.compensate(pf.params(stacked), stats, {"layers.0": GONE}, spec=whole)


# ---- removal one at a time


def test_elimination_by_hand() -> None:
    torch.manual_seed(0)
    model, x, y = Stack(3).eval(), torch.randn(24, 8), torch.randint(0, 3, (24,))
    spec, params = pf.trace(model, (x,)), pf.params(model)
    loss = nn.functional.cross_entropy

    def rise(*removed: str) -> float:
        mask = dict.fromkeys(removed, GONE)
        out = pf.forward(pf.apply(params, mask, spec=spec), x, spec=pf.shrink(spec, mask))
        return float((loss(out, y) - loss(model(x), y)).detach())

    layers = ["layers.0", "layers.1", "layers.2"]
    found = pf.eliminate(params, [(x[:10], y[:10]), (x[10:], y[10:])], spec=spec, metric=loss)
    first = min(layers, key=rise)
    second = min((g for g in layers if g != first), key=lambda g: rise(first, g))
    assert found.order == (first, second) and found.evaluations == 5
    assert found.costs == pytest.approx((rise(first), rise(first, second)), abs=1e-5)
    alone = pf.eliminate(params, [(x, y)], spec=spec, metric=loss, greedy=False)
    assert alone.order == () and alone.evaluations == 3
    assert sorted(layers, key=rise) == sorted(layers, key=lambda g: float(alone.scores[g]))
    worst = pf.eliminate(params, [(x, y)], spec=spec, metric=loss, maximize=True, greedy=False)
    assert sorted(layers, key=rise) == sorted(layers, key=lambda g: -float(worst.scores[g]))
    cut = pf.eliminate(params, [(x, y)], spec=spec, metric=loss, evaluations=4)
    assert cut.order == (first,) and cut.evaluations == 3
    assert cut.scores[first] == min(cut.scores.values())
    mask = pf.select(found.scores, 0.67, spec=spec)
    assert {g for g, m in mask.items() if not m.any()} == {first, second}


def test_elimination_refuses() -> None:
    model, x = Stack(2).eval(), torch.randn(4, 8)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    with raises(PruneError, match="only whole branches and layers are removed one at a time"):
        pf.eliminate(params, [x], spec=spec, where=pf.kind("hidden"))
    with raises(PruneError, match="evaluations is 1, but one round measures 2 networks"):
        pf.eliminate(params, [x], spec=spec, evaluations=1)
