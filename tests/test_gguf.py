"""The page on serving: its GGUF writer, on a pruned Llama, read back by gguf and by transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import prunefn as pf

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
PAGE = Path(__file__).parents[1] / "docs" / "serving.md"


def writer() -> Any:
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S) if "def write_gguf" in c)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["write_gguf"]


def test_a_pruned_llama_in_llama_cpps_layout(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    small = tmp_path / "small"
    target = {"num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = torch.randint(64, (4, 12), generator=torch.Generator().manual_seed(0))
    pf.prune_pretrained(
        tmp_path / "dense",
        small,
        batches=[tokens],
        target=target,
        compensation=pf.compensation.none(),
        progress=False,
    )
    writer()(small, small / "small.gguf")

    model = transformers.LlamaForCausalLM.from_pretrained(small).eval()
    reader = gguf.GGUFReader(small / "small.gguf")
    field = {n: reader.fields[f"llama.{n}"].contents() for n in ("block_count", "feed_forward_length")}
    assert field == {"block_count": 2, "feed_forward_length": 64}
    counts = [reader.fields[f"llama.attention.{n}"].contents() for n in ("head_count", "head_count_kv", "key_length")]
    assert counts == [4, 2, 8]
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    assert len(tensors) == len(model.state_dict()) - 1  # the tied head
    own = model.model.layers[1]
    assert torch.equal(tensors["blk.1.ffn_down.weight"], own.mlp.down_proj.weight)
    assert tensors["blk.1.attn_k.weight"].shape == (16, 64)
    assert torch.equal(
        tensors["blk.1.attn_k.weight"].unflatten(0, (2, 4, 2)).transpose(1, 2).flatten(0, 2),
        own.self_attn.k_proj.weight,
    )

    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        small, gguf_file="small.gguf", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
