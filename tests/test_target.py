"""Sizes by the names of a config: from fields to groups and back, and what is refused."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import prunefn as pf
from prunefn.types import TargetSizes

transformers = pytest.importorskip("transformers")
IDS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))


class Traced(NamedTuple):
    model: Any
    params: pf.Params
    spec: pf.Spec
    scores: pf.Scores


def llama(keys: int = 2) -> nn.Module:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "intermediate_size": 48,
    }
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=50, use_cache=False, num_key_value_heads=keys, **sizes)
    )


def gpt2() -> nn.Module:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, use_cache=False, **ends)
    )


def mistral() -> nn.Module:
    """Its config leaves the width of a head to the class."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.MistralConfig(vocab_size=50, num_hidden_layers=2, head_dim=None, use_cache=False, **sizes)
    return transformers.MistralForCausalLM(config)


MODELS = {"mistral": mistral, "llama": llama, "mha": lambda: llama(8), "gpt2": gpt2}


@lru_cache
def traced(name: str) -> Traced:
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(False)
    spec, params = pf.trace(model, {"input_ids": IDS}), pf.params(model)
    scores = pf.score(pf.collect_stats(params, None, spec=spec), criterion=pf.criteria.magnitude())
    return Traced(model, params, spec, scores)


CASES = {
    "llama": [
        {"intermediate_size": 40},
        {"hidden_size": 24, "intermediate_size": 16, "num_attention_heads": 6},
        {"num_attention_heads": 3, "num_key_value_heads": 1},
    ],
    "mha": [{"num_attention_heads": 5, "num_key_value_heads": 5}],
    "mistral": [{"num_attention_heads": 2, "hidden_size": 24}],
    "gpt2": [{"n_inner": 72}, {"hidden_size": 24, "n_head": 3, "n_inner": 64}],
}


@pytest.mark.parametrize(("name", "fields"), [(n, f) for n, cases in CASES.items() for f in cases])
def test_the_pruned_model_has_a_config_with_these_numbers_and_no_others(name: str, fields: dict[str, int]) -> None:
    t = traced(name)
    mask = pf.select(t.scores, pf.target(t.spec, t.model, **fields), spec=t.spec)
    small: Any = pf.to_module(pf.apply(t.params, mask, spec=t.spec), spec=pf.shrink(t.spec, mask), model=t.model)
    for field, value in fields.items():
        assert getattr(small.config, field) == value
    dense, now = t.model.config.to_dict(), small.config.to_dict()
    real = {small.config.attribute_map.get(f, f) for f in fields}
    assert {f for f in now if now[f] != dense.get(f)} <= real | (
        {"head_dim"} if dense.get("head_dim", 0) is None else set()
    )
    fresh = type(t.model)(small.config).eval()
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(IDS).logits, small(IDS).logits)


def test_the_best_units_of_every_group_stay() -> None:
    t = traced("llama")
    sizes = pf.target(t.spec, t.model, intermediate_size=40)
    assert dict(sizes.sizes) == {f"model.layers.{i}.mlp.gate_proj": 40 for i in range(2)}
    mask = pf.select(t.scores, sizes, spec=t.spec, scope=pf.scope.global_())
    for g, m in mask.items():
        lost = len(m) - sizes.sizes.get(g, len(m))
        assert (~m).nonzero()[:, 0].tolist() == sorted(t.scores[g].argsort(stable=True)[:lost].tolist())


def test_a_pipeline_and_a_config_alone_take_them() -> None:
    t = traced("llama")
    config = transformers.LlamaConfig(**{**t.model.config.to_dict(), "architectures": ["LlamaForCausalLM"]})
    sizes = pf.target(t.spec, config, intermediate_size=32)
    assert sizes == pf.target(t.spec, t.model, intermediate_size=32)
    prune = pf.pipeline(criterion=pf.criteria.variance(), where=pf.kind("hidden"), ratio=sizes)
    small = prune(t.params, [{"input_ids": IDS}], spec=t.spec)
    assert {g: small.spec.sizes[g] for g in sizes.sizes} == dict(sizes.sizes)
    config.architectures = None
    with pytest.raises(pf.PruneError, match="names no class of transformers"):
        pf.target(t.spec, config, intermediate_size=32)


REFUSED = [
    ("llama", {"intermediat_size": 3}, "no field 'intermediat_size'; did you mean 'intermediate_size'"),
    ("llama", {"intermediate_size": 64}, "larger than the model's, 48; give at most 48"),
    ("llama", {"intermediate_size": 0}, "write a whole number, at least 1"),
    ("llama", {"eos_token_id": 1}, "states no size of a group"),
    ("llama", {"rms_norm_eps": 1}, "is no size of a group"),
    ("llama", {"vocab_size": 40}, "frozen .*vocabulary"),
    ("llama", {"num_hidden_layers": 0}, "write a whole number, at least 1"),
    ("llama", {"num_key_value_heads": 1}, r"with num_key_value_heads=1, give num_attention_heads of \[1, 2, 3, 4\], or"),
    ("llama", {"num_attention_heads": 5}, r"give num_attention_heads of \[2, 4, 6, 8\]$"),
    ("mha", {"num_attention_heads": 4}, "count the same heads.*num_attention_heads=4, num_key_value_heads=4"),
    ("gpt2", {"n_head": 2}, "divides n_embd by n_head: give both, such as n_head=2, n_embd=16"),
    ("llama", {}, "there are no sizes"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "match"), REFUSED)
def test_what_cannot_be_says_what_can(name: str, fields: dict[str, int], match: str) -> None:
    t = traced(name)
    with pytest.raises(pf.PruneError, match=match):
        pf.target(t.spec, t.model, **fields)


def test_models_and_configs_that_are_none() -> None:
    t = traced("llama")
    with pytest.raises(pf.PruneError, match="has no config of transformers"):
        pf.target(t.spec, nn.Linear(2, 2), hidden_size=1)
    with pytest.raises(pf.PruneError, match="model is a int"):
        pf.target(t.spec, 3, hidden_size=1)
    with pytest.raises(pf.ParamsError):
        pf.target(traced("mha").spec, t.model, intermediate_size=8)


def test_fields_of_configs_in_a_config() -> None:
    from prunefn.modules.target_fields import field_of

    config = transformers.Gemma3Config()
    assert str(field_of("num_key_value_heads", config)) == "text_config.num_key_value_heads"
    assert str(field_of("vision_config.hidden_size", config)) == "vision_config.hidden_size"
    with pytest.raises(pf.PruneError, match=r"write one of .text_config\.hidden_size., .vision_config\.hidden_size."):
        field_of("hidden_size", config)


def test_another_name_of_a_field_is_no_second_field() -> None:
    from prunefn.modules.target_fields import all_fields, field_of

    config = transformers.T5Config()  # its head_dim is d_kv
    assert str(field_of("head_dim", config)) == "d_kv" and "head_dim" not in map(str, all_fields(config))


def test_heads_are_those_of_the_modules_that_read_the_field() -> None:
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**tower, "vocab_size": 64, "max_position_embeddings": 8}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**tower, "image_size": 8, "patch_size": 4}, projection_dim=16
    )
    with torch.device("meta"):
        model = transformers.CLIPModel(config).eval()
        inputs = {"input_ids": torch.ones(1, 8, dtype=torch.long), "pixel_values": torch.ones(1, 3, 8, 8)}
    spec = pf.trace(model, inputs)
    why = r"divides text_config\.hidden_size .*give both, such as .*num_attention_heads=2, text_config\.hidden_size=16"
    with pytest.raises(pf.PruneError, match=why):
        pf.target(spec, model, **{"text_config.num_attention_heads": 2})
    heads = pf.target(spec, model, **{"text_config.num_attention_heads": 4, "vision_config.intermediate_size": 24})
    assert dict(heads.sizes) == {"vision_model.encoder.layers.0.mlp.fc1": 24}


def test_sizes_by_hand() -> None:
    scores = {"a": torch.tensor([3.0, 1.0, 2.0, 1.0]), "b": torch.tensor([1.0, 2.0])}
    mask = pf.select(scores, TargetSizes({"a": 2}))
    assert {g: m.tolist() for g, m in mask.items()} == {"a": [True, False, True, False], "b": [True, True]}
    for sizes, options, match in (
        ({"a": 5}, {}, "give 1 to 4"),
        ({"a": 0}, {}, "give 1 to 4"),
        ({"a": 3}, {"round_to": 2}, "which round_to, max_ratio or min_units forbid"),
        ({"a": 1}, {"max_ratio": 0.5}, "at least 2"),
    ):
        with pytest.raises(pf.PruneError, match=match):
            pf.select(scores, TargetSizes(sizes), **options)
    t = traced("llama")
    some = {g: s for g, s in t.scores.items() if "layers.0" in g}
    with pytest.raises(pf.PruneError, match=r"layers\.1\.mlp\.gate_proj', which has no score"):
        pf.select(some, pf.target(t.spec, t.model, intermediate_size=40), spec=t.spec)


def test_layers_by_their_number(tmp_path: Path) -> None:
    t, influence = traced("llama"), pf.criteria.block_influence()
    target = pf.target(t.spec, t.model, num_hidden_layers=1, intermediate_size=40)
    assert [(a.groups, a.kept) for a in target.layers] == [(("model.layers.0", "model.layers.1"), 1)]
    stats = pf.collect_stats(t.params, [{"input_ids": IDS}], spec=t.spec, criterion=influence)
    layers = pf.only(pf.score(stats, criterion=influence), pf.kind("layer"), spec=t.spec)
    mask = pf.select({**t.scores, **layers}, target, spec=t.spec)
    worst = min(layers, key=lambda g: float(layers[g]))
    assert {g for g, m in mask.items() if not m.any()} == {worst}
    small = pf.to_module(pf.apply(t.params, mask, spec=t.spec), spec=pf.shrink(t.spec, mask), model=t.model)
    assert (small.config.num_hidden_layers, small.config.intermediate_size) == (1, 40)
    small.save_pretrained(tmp_path)
    assert torch.equal(type(small).from_pretrained(tmp_path)(IDS).logits, small(IDS).logits)
    with pytest.raises(pf.PruneError, match=r"layer 'model.layers.0' has no score"):
        pf.select(t.scores, target, spec=t.spec)
