"""Language models of transformers, from small configs: model outputs, keyword inputs, tied tables, grouped queries, `meta`."""

from __future__ import annotations

import pickle

import torch
from pytest import fixture, mark
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunefn as pf

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
    with FlopCounterMode(display=False) as counter:
        a = pf.forward(small, input_ids=IDS, spec=pf.shrink(spec, mask))[0]
    b = pf.forward(pf.zero(params, mask, spec=spec), input_ids=IDS, spec=spec)[0]
    assert float(b.abs().max()) > 1e-2
    torch.testing.assert_close(a, b, rtol=1e-6 if case[0] != "llama" else 1e-4, atol=1e-6)
    assert pf.cost(spec, mask).macs == counter.get_total_flops() // 2 // len(IDS)


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
