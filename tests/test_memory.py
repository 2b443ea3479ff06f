"""Bytes of parameters and of the cache of keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import prunefn as pf

transformers = pytest.importorskip("transformers")


def test_the_cache_is_that_of_the_class() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "intermediate_size": 48,
    }
    config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, use_cache=False, **sizes)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 50, (2, 7))
    spec, params = pf.trace(model, {"input_ids": ids}), pf.params(model)
    scores = pf.score(pf.collect_stats(params, None, spec=spec), criterion=pf.criteria.magnitude())
    fields = {"num_key_value_heads": 1, "num_attention_heads": 4, "intermediate_size": 40}
    mask = pf.select(scores, pf.target(spec, model, **fields), spec=spec)
    small: Any = pf.to_module(pf.apply(params, mask, spec=spec), spec=pf.shrink(spec, mask), model=model)
    for module, kept in ((model, None), (small, mask)):
        cache = module(ids, use_cache=True).past_key_values
        found = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
        expected = pf.memory(spec, kept, batch=2, length=7, dtype=torch.float32)
        assert expected == (sum(t.nbytes for t in module.parameters()), found)
    half = pf.memory(spec, dtype=torch.float32, cache_dtype=torch.int8, length=5)
    assert half.cache == 2 * 5 * 2 * 2 * 4 and pf.memory(spec).cache == 0

    for scope in (pf.scope.uniform(), pf.scope.global_(normalize=True)):
        budget = pf.budget.memory(0.7, batch=8, length=500)
        less = pf.select(scores, budget, spec=spec, scope=scope)
        assert sum(pf.memory(spec, less, batch=8, length=500)) <= 0.7 * sum(pf.memory(spec, batch=8, length=500))


def test_a_network_without_attention_has_no_cache() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    spec = pf.trace(model, (torch.randn(2, 4),))
    assert pf.memory(spec, dtype=torch.float32) == (4 * 58, 0)
    with pytest.raises(pf.BudgetError, match="no scaled_dot_product_attention"):
        pf.memory(spec, length=3)
    with pytest.raises(pf.PruneError, match="batch is 0"):
        pf.budget.memory(0.5, batch=0, length=3)
