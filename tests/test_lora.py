"""LoRA of peft on a pruned network: trained, merged, and back in params of the same spec."""

from __future__ import annotations

import pytest
import torch

import prunefn as pf

from .llamas import llama
from .test_token_recovery import batches

peft = pytest.importorskip("peft", reason="peft is in the extra dev: pip install peft")


def test_lora_is_trained_and_merged_into_params() -> None:
    from prunefn.train import Recipe, Setup, token_metrics, train

    t = llama()
    prune = pf.pipeline(
        criterion=pf.criteria.variance(),
        where=pf.kind("hidden", "heads"),
        scope=pf.scope.local(),
        ratio=0.5,
        compensation=pf.compensation.none(),
    )
    small = prune(t.params, batches(), spec=t.spec)
    model = pf.to_module(small.params, spec=small.spec, model=t.model)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM")
    lora = peft.get_peft_model(model, config)
    setup = Setup(batches(), held_out=batches(), metrics=token_metrics(), better="perplexity", device="cpu")
    done = train(lora, setup, Recipe(epochs=2, lr=1e-2))
    assert done.metrics["perplexity"] < pf.perplexity(small.params, batches(), spec=small.spec)
    inputs = {n: batches()[0][n] for n in ("input_ids", "attention_mask")}
    expected = done.model(**inputs).logits
    merged = pf.params(done.model.merge_and_unload())
    assert {n: p.shape for n, p in merged.items()} == {n: p.shape for n, p in small.params.items()}
    torch.testing.assert_close(pf.forward(merged, **inputs, spec=small.spec).logits, expected, rtol=1e-3, atol=1e-3)
    changed = {n for n in merged if not torch.equal(merged[n], small.params[n])}
    assert changed == {n for n in merged if n.split(".")[-2] in config.target_modules}
