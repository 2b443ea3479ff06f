"""A tiny Llama with random weights, and documents of tokens."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch

import prunefn as pf
from prunefn.data import text

transformers = pytest.importorskip("transformers")
DOCUMENTS = [list(range(1, 6)), list(range(6, 20)), [20], list(range(21, 30))]


class Traced(NamedTuple):
    model: Any
    params: pf.Params
    spec: pf.Spec


@lru_cache
def llama() -> Traced:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    config = transformers.LlamaConfig(vocab_size=50, use_cache=False, **sizes)
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    for p in model.parameters():
        p.mul_(5)  # so that the tokens' likelihoods differ
    batch = text(DOCUMENTS, length=6, batch_size=2)[0]
    spec = pf.trace(model, {n: batch[n] for n in ("input_ids", "attention_mask")})
    return Traced(model, pf.params(model), spec)


def tied_llama() -> Any:
    """One with a tied table, in bfloat16."""
    model = llama().model
    config = transformers.LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": True, "dtype": "bfloat16"})
    out = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    out.load_state_dict({n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}, strict=False)
    return out.to(torch.bfloat16)
