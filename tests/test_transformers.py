"""Language models of transformers, from small configs: model outputs, keyword inputs, tied tables, grouped queries, `meta`."""

from __future__ import annotations

import json
import pickle
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytest import fixture, mark, raises, warns
from torch import Tensor, nn

import prunefn as pf
from prunefn.costs.counted import flop_counter
from prunefn.spec.axis import Concat, Leaf

from .orders import permuted
from .zoo import double, random_mask, randomize

transformers = __import__("pytest").importorskip("transformers")
IDS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))


def bert() -> nn.Module:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **size))


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, use_cache=False)
    )


def llama_config(**sizes: int):
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
    }
    return transformers.LlamaConfig(vocab_size=50, use_cache=False, **{**small, **sizes})


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(llama_config())


CASES = {"bert": bert, "gpt2": gpt2, "llama": llama}


@fixture(scope="module", params=CASES)
def case(request):
    torch.manual_seed(0)
    model = randomize(CASES[request.param](), 3).eval().requires_grad_(False)
    return request.param, model, pf.trace(model, (), {"input_ids": IDS})


def test_forward_returns_the_model_output_class(case) -> None:
    _, model, spec = case
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    mine, theirs = pf.forward(pf.params(model), input_ids=ids, spec=spec), model(input_ids=ids)
    assert type(mine) is type(theirs)
    assert torch.equal(mine[0], theirs[0])
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_removing_is_zeroing_and_costs_are_exact(case) -> None:
    _, model, spec = case
    params = double(pf.params(model))
    mask = random_mask(spec, 5, groups=[g.name for g in spec.groups.values() if g.exact])
    small = pf.apply(params, mask, spec=spec)
    with flop_counter() as counter:
        a = pf.forward(small, input_ids=IDS, spec=pf.shrink(spec, mask))[0]
    b = pf.forward(pf.zero(params, mask, spec=spec), input_ids=IDS, spec=spec)[0]
    assert float(b.abs().max()) > 1e-2
    torch.testing.assert_close(a, b, rtol=1e-6 if case[0] != "llama" else 1e-4, atol=1e-6)
    assert pf.cost(spec, mask).macs == counter.get_total_flops() // 2 // len(IDS)


def test_inputs_by_name_may_stand_alone(case) -> None:
    _, model, spec = case
    assert pf.trace(model, {"input_ids": IDS}) == spec


def test_groups(case) -> None:
    name, _, spec = case
    kinds = [g.kind for g in spec.groups.values()]
    assert not spec.unknown
    assert kinds.count("residual") == 1
    assert kinds.count("hidden") == 2 + (name == "bert")  # and the pooler
    assert kinds.count("heads") == (4 if name == "llama" else 2)


def test_compensation_goes_into_the_bias_of_a_conv1d() -> None:
    model = randomize(gpt2(), 3).eval().requires_grad_(False)
    spec, params = pf.trace(model, (), {"input_ids": IDS}), pf.params(model)
    site = spec.sites["transformer.h.0.mlp.c_proj"]
    assert site.bias == "transformer.h.0.mlp.c_proj.bias"
    mask = {g: m for g, m in random_mask(spec, 1).items() if spec.groups[g].kind == "hidden"}
    stats = pf.collect_stats(params, [{"input_ids": IDS}], spec=spec)
    filled = pf.compensate(params, stats, mask, spec=spec)
    assert set(filled) == set(params)
    assert not torch.equal(filled[site.bias], params[site.bias])


def test_tied_tables_stay_one_tensor() -> None:
    model = gpt2().eval()
    spec, params = pf.trace(model, (), {"input_ids": IDS}), pf.params(model)
    small = pf.apply(params, random_mask(spec, 2), spec=spec)
    assert small["lm_head.weight"] is small["transformer.wte.weight"]
    assert small["lm_head.weight"].shape == (50, 16)


@mark.parametrize("heads", [(4, 2), (8, 2), (4, 4)])
def test_grouped_queries_have_heads_and_repeats(heads: tuple[int, int]) -> None:
    config = llama_config(num_attention_heads=heads[0], num_key_value_heads=heads[1])
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    spec = pf.trace(model, (), {"input_ids": IDS})
    q, k = (spec.einops(f"model.layers.0.self_attn.{n}_proj.weight") for n in "qk")
    assert q != k or heads[0] == heads[1]
    assert spec.shape("model.layers.0.self_attn.k_proj.weight") == (32 // heads[0] * heads[1], 32)


# ---- a sample of the models that bench/coverage goes through

models = runpy.run_path(str(Path(__file__).parents[1] / "bench" / "coverage" / "hf.py"))["models"]

SAMPLE = {
    "bert_masked": 0.95,
    "llama": 0.95,
    "mixtral": 0.95,
    "mixtral_batched": 0.95,
    "mamba": 0.95,
    "t5": 0.9,
    "whisper": 0.9,
}
"""Model → least share of its parameters that have a prunable axis."""
FLOAT32_INSIDE = ("llama", "mixtral", "mixtral_batched", "t5", "mamba")
"""Norms or rotary tables in float32, whatever the model is in; Mamba runs in nothing else."""


class Sampled(NamedTuple):
    """A traced model of the list, and two inputs: of the example, and of another batch size."""

    name: str
    model: nn.Module
    spec: pf.Spec
    x: dict[str, Tensor]
    other: dict[str, Tensor]


@fixture(scope="module", params=SAMPLE)
def sampled(request) -> Sampled:
    torch.manual_seed(0)
    c = models()[request.param]
    model = randomize(c.build(), 1).eval().requires_grad_(False)
    x, other = c.inputs(2)[1], c.inputs(3)[1]
    return Sampled(request.param, model, pf.trace(model, (), x), x, other)


def run(s: Sampled, params: pf.Params, spec: pf.Spec) -> Tensor:
    """In float64, where the model can."""
    if s.name == "mamba":
        return pf.forward(params, spec=spec, **s.x)["logits"]
    return pf.forward(double(params), spec=spec, **double(s.x))["logits"]


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    scale = float(b.abs().max())
    assert scale > 1e-3
    assert float((a - b).abs().max()) <= tolerance * scale


def test_sampled_forward_is_the_model_at_another_batch_size(sampled: Sampled) -> None:
    mine = pf.forward(pf.params(sampled.model), spec=sampled.spec, **sampled.other)
    assert torch.equal(mine["logits"], sampled.model(**sampled.other)["logits"])
    assert not sampled.spec.unknown


def test_sampled_removing_is_zeroing(sampled: Sampled) -> None:
    spec, params = sampled.spec, pf.params(sampled.model)
    mask = random_mask(spec, 4, groups=[g.name for g in spec.groups.values() if g.exact])
    small = run(sampled, pf.apply(params, mask, spec=spec), pf.shrink(spec, mask))
    close(
        small, run(sampled, pf.zero(params, mask, spec=spec), spec), 1e-4 if sampled.name in FLOAT32_INSIDE else 1e-10
    )
    assert not torch.allclose(small, run(sampled, params, spec))


def test_sampled_order_of_units_changes_nothing(sampled: Sampled) -> None:
    params = pf.params(sampled.model)
    tolerance = 1e-4 if sampled.name in FLOAT32_INSIDE else 1e-10
    got = run(sampled, *permuted(params, sampled.spec, 6))
    close(got, run(sampled, params, sampled.spec), tolerance)


UNCOUNTED = {"mixtral": 2 * 11 * 2}
"""Rows that meet one expert's matrices each (layers × tokens × experts per token), which torch's counter leaves out."""


def test_sampled_costs_and_half_of_every_group(sampled: Sampled) -> None:
    spec, name = sampled.spec, sampled.name
    mask = random_mask(spec, 5)
    small, less = pf.shrink(spec, mask), pf.apply(pf.params(sampled.model), mask, spec=spec)
    with flop_counter() as counter:
        pf.forward(less, spec=small, **{n: t[:1] for n, t in sampled.x.items()})
    matrices = [less[n][0].numel() for n in less if ".layers.0.mlp.experts." in n]
    assert pf.cost(small).macs == counter.get_total_flops() // 2 + UNCOUNTED.get(name, 0) * sum(matrices)
    own = [n for n in spec.parameters if n not in spec.tied]
    assert pf.cost(small).params == sum(less[n].numel() for n in own)
    touched = {m.tensor for g in spec.groups.values() for m in g.members}
    numel = {n: pf.params(sampled.model)[n].numel() for n in own}
    assert sum(numel[n] for n in own if n in touched) >= SAMPLE[name] * sum(numel.values())


def test_experts_and_their_hidden_width_are_groups(sampled: Sampled) -> None:
    spec, tensor = sampled.spec, "model.layers.0.mlp.experts.down_proj"
    if tensor not in spec.axes:
        return
    experts, stream, width = spec.axes[tensor]
    assert isinstance(experts, Leaf) and isinstance(width, Leaf) and spec.sizes[width.name] == 80
    assert spec.groups[experts.name][1:3] == ("experts", 4) and spec.groups[experts.name].floor == 2
    assert spec.axes["model.layers.0.mlp.experts.gate_up_proj"] == (experts, Concat((width, width)), stream)
    assert spec.axes["model.layers.0.mlp.gate.weight"] == (experts, stream)
    small = pf.shrink(spec, random_mask(spec, 5, groups=[width.name, experts.name]))
    assert small.shape(tensor) == (2, 48, 40)


def test_tokens_per_expert_are_not_taken_for_the_batch() -> None:
    """Experts per token and the example's batch have the same size."""
    c = models()["mixtral"]
    model = c.build().eval().requires_grad_(False)
    spec = pf.trace(model, (), c.inputs(2)[1])
    for batch in (1, 4):
        x = c.inputs(batch)[1]
        assert torch.equal(pf.forward(pf.params(model), spec=spec, **x)["logits"], model(**x)["logits"])


@mark.parametrize(("heads", "keys"), [(8, 2), (9, 3)], ids=["8 and 2", "9 and 3"])
@mark.parametrize("part", ["keys", "queries"])
def test_what_the_class_would_compute_elsewhere_fits_too(heads: int, keys: int, part: str) -> None:
    """The default attention does not read how many queries share a key; eager attention does."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        llama_config(hidden_size=8 * heads, num_attention_heads=heads, num_key_value_heads=keys)
    )
    model = model.eval().requires_grad_(False)
    spec, params = pf.trace(model, (), {"input_ids": IDS}), pf.params(model)
    shared = pf.kind("heads") & pf.touches("*.k_proj.weight")
    where = shared if part == "keys" else pf.kind("heads") & ~shared
    mask = pf.mask(spec, {name: [1] for name, g in spec.groups.items() if where(g)})
    small, smaller = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    new = pf.to_module(small, spec=smaller, model=model)
    attention = new.model.layers[0].self_attn
    assert attention.num_key_value_groups == attention.q_proj.out_features // attention.k_proj.out_features
    expected = pf.forward(small, input_ids=IDS, spec=smaller).logits
    again = pf.load(transformers.LlamaForCausalLM(model.config).eval(), new.state_dict())
    for rebuilt in (new, again):
        rebuilt.set_attn_implementation("eager")
        assert float((rebuilt(input_ids=IDS).logits - expected).detach().abs().max()) < 1e-4


# ---- what is saved of a pruned model. Equal numbers are no accident: eos_token_id, layers, experts per token and heads


def shared_heads(group: pf.Group) -> bool:
    return group.kind == "heads" and any("k_proj" in m.tensor for m in group.members)


def query_heads(group: pf.Group) -> bool:
    return group.kind == "heads" and not shared_heads(group)


def qwen3_moe() -> nn.Module:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    experts = {"moe_intermediate_size": 12, "num_experts": 8, "num_experts_per_tok": 4}
    config = transformers.Qwen3MoeConfig(vocab_size=50, num_hidden_layers=2, use_cache=False, **sizes, **experts)
    return transformers.Qwen3MoeForCausalLM(config)


def mistral() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.MistralConfig(vocab_size=50, num_hidden_layers=2, head_dim=None, use_cache=False, **sizes)
    return transformers.MistralForCausalLM(config)


SAVED = {
    "llama, keys": (llama, shared_heads, {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "llama, widths": (llama, pf.kind("hidden", "residual"), {"hidden_size": 16, "intermediate_size": 24}),
    "qwen3_moe, queries": (qwen3_moe, query_heads, {"num_attention_heads": 4}),
    "mistral, keys": (mistral, shared_heads, {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "gpt2, hidden": (gpt2, pf.kind("hidden"), {"n_inner": 64}),
}


def halved(model: nn.Module, where: Callable[[pf.Group], bool]) -> nn.Module:
    """The class with every second unit gone of the groups."""
    spec, params = pf.trace(model, (), {"input_ids": IDS}), pf.params(model)
    mask = {n: torch.arange(g.size) % 2 == 0 for n, g in spec.groups.items() if where(g)}
    assert mask
    return pf.to_module(pf.apply(params, mask, spec=spec), spec=pf.shrink(spec, mask), model=model)


FILED = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""Fields that say where a model comes from, and as what it was saved."""


def fields(config: Any) -> dict[str, Any]:
    return {n: v for n, v in config.to_dict().items() if n not in FILED}


@mark.parametrize("name", SAVED)
def test_a_saved_config_says_the_sizes_and_nothing_else(name: str, tmp_path: Path) -> None:
    build, where, changes = SAVED[name]
    torch.manual_seed(0)
    model = build().eval().requires_grad_(False)
    before = fields(model.config)
    small = halved(model, where)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(input_ids=IDS).logits, small(input_ids=IDS).logits)
    after = fields(again.config)
    assert {n: v for n, v in after.items() if v != before.get(n)} == changes
    assert fields(model.config) == before


def test_what_no_config_says_is_saved_with_its_plan(tmp_path: Path) -> None:
    """BERT's heads are as wide as its stream divided by their number."""
    torch.manual_seed(0)
    model = bert().eval().requires_grad_(False)
    small = halved(model, pf.kind("hidden", "heads"))
    with warns(UserWarning, match=r"from_pretrained cannot load .*'bert\..*weight' has shape .*tried: .*pf\.load"):
        small.save_pretrained(tmp_path)
    with raises((OSError, RuntimeError)):  # no config, or one of the default sizes
        type(model).from_pretrained(tmp_path)
    dense = transformers.BertConfig.from_json_file(tmp_path / "dense_config.json")
    assert fields(dense) == fields(model.config)
    back = pf.load(type(model)(dense).eval(), tmp_path)
    assert torch.equal(back(input_ids=IDS).logits, small(input_ids=IDS).logits)
    with warns(UserWarning, match=r"its config is that of the model that pf\.load was given"):
        back.save_pretrained(tmp_path / "again")
    twice = pf.load(type(model)(dense).eval(), tmp_path / "again")
    assert torch.equal(twice(input_ids=IDS).logits, small(input_ids=IDS).logits)


def test_biases_of_a_compensation_are_what_no_config_says(tmp_path: Path) -> None:
    """The warning names the compensation without new biases; then the library loads what is saved."""
    torch.manual_seed(0)
    model = llama().eval().requires_grad_(False)
    spec, params = pf.trace(model, (), {"input_ids": IDS}), pf.params(model)
    batches = [torch.randint(0, 50, (8, 16), generator=torch.Generator().manual_seed(s)) for s in range(4)]

    def small(**options: Any) -> nn.Module:
        prune = pf.pipeline(ratio=0.25, where=pf.kind("hidden"), scope=pf.scope.local(), **options)
        pruned = prune(params, batches, spec=spec)
        return pf.to_module(pruned.params, spec=pruned.spec, model=model)

    with warns(UserWarning, match=r"created '.*down_proj\.bias' \(in all, 2 biases\).*affine\(intercept=False\)"):
        small(compensation=pf.compensation.affine(intercept=True)).save_pretrained(tmp_path)
    assert spec.configured == ("",)
    plain, by_default = small(compensation=pf.compensation.affine(intercept=False)), small()
    by_default.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_a_class_of_ones_own_gets_a_bias_where_a_part_of_a_library_gets_none() -> None:
    torch.manual_seed(0)
    mine = nn.ModuleDict(
        {"own": nn.Sequential(nn.Linear(32, 24, bias=False), nn.ReLU(), nn.Linear(24, 32, bias=False))}
    )
    mine["theirs"] = llama().eval()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = mine

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.parts["own"](self.parts["theirs"].model(input_ids=ids).last_hidden_state)

    model = Both().eval().requires_grad_(False)
    spec = pf.trace(model, (IDS,))
    batches = [torch.randint(0, 50, (8, 16), generator=torch.Generator().manual_seed(0))]
    prune = pf.pipeline(ratio=0.25, where=pf.kind("hidden"), scope=pf.scope.local())
    created = prune(pf.params(model), batches, spec=spec).params.keys() - pf.params(model).keys()
    assert spec.configured == ("parts.theirs",) and created == {"parts.own.2.bias"}


def test_a_trainer_saves_what_no_config_says(tmp_path: Path) -> None:
    __import__("pytest").importorskip("accelerate")
    torch.manual_seed(0)
    small = halved(bert().eval(), pf.kind("hidden", "heads"))
    data = [{"input_ids": row, "labels": i % 2} for i, row in enumerate(IDS)]
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    with warns(UserWarning, match="cannot load what is saved"):
        transformers.Trainer(model=small, args=args, train_dataset=data).train()
    back = pf.load(bert().eval(), tmp_path / "checkpoint-1")
    close(back(input_ids=IDS).logits.detach(), small.eval()(input_ids=IDS).logits.detach(), 1e-6)


def test_a_config_in_a_folder_keeps_all_but_the_sizes(tmp_path: Path) -> None:
    """As the hub has it: with caches, the old name of the type, fields that nobody knows, other files."""
    torch.manual_seed(0)
    model = llama().eval()
    model.save_pretrained(tmp_path / "src")
    config = json.loads((tmp_path / "src" / "config.json").read_text())
    config |= {"use_cache": True, "torch_dtype": config.pop("dtype"), "of_ours": {"eos": 2}, "eos_token_id": [2, 3]}
    (tmp_path / "src" / "config.json").write_text(json.dumps(config))
    (tmp_path / "src" / "tokenizer.json").write_text("{}")
    spec = pf.trace(model, (), {"input_ids": IDS})
    mask = {n: torch.arange(g.size) % 2 == 0 for n, g in spec.groups.items() if shared_heads(g) or g.kind == "hidden"}
    done = pf.apply_checkpoint(tmp_path / "src", tmp_path / "dst", mask, spec=spec, progress=False)
    assert done.config == tmp_path / "dst" / "config.json"
    sizes = {"intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    assert json.loads(done.config.read_text()) == {**config, **sizes}
    assert sorted(p.name for p in (tmp_path / "src").iterdir()) == sorted(p.name for p in (tmp_path / "dst").iterdir())
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "dst").eval()
    expected = pf.forward(pf.apply(pf.params(model), mask, spec=spec), input_ids=IDS, spec=pf.shrink(spec, mask)).logits
    close(again(input_ids=IDS).logits.detach(), expected, 1e-5)
