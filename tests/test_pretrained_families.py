"""Families of language models from folder to folder: the layout of their files, their configs, and their own generation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import prunefn as pf
from prunefn.files.folder import entries_of, shards
from prunefn.pretrained.work import ENDING

transformers = pytest.importorskip("transformers")
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KEYS = {**SMALL, "num_key_value_heads": 2}
BART = {
    **{
        f"{part}_{name}": n
        for part in ("encoder", "decoder")
        for name, n in (("layers", 2), ("ffn_dim", 48), ("attention_heads", 4))
    },
    "vocab_size": 64,
    "d_model": 32,
    "max_position_embeddings": 32,
}
BART_NARROW = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24}
MAMBA = {
    **{n: SMALL[n] for n in ("vocab_size", "hidden_size", "num_hidden_layers", "bos_token_id", "eos_token_id")},
    "num_heads": 4,
    "head_dim": 16,
    "state_size": 8,
    "n_groups": 2,
    "expand": 2,
    "chunk_size": 4,
}
IDS = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "decoder_input_ids": IDS[:, :6]}


def saved(folder: Path, name: str, config: dict[str, Any]) -> Any:
    cls = getattr(transformers, f"{name}ForConditionalGeneration" if name == "Bart" else f"{name}ForCausalLM")
    torch.manual_seed(0)
    model = cls(getattr(transformers, f"{name}Config")(**config)).eval()
    for p in model.parameters():
        if p.ndim > 1:
            p.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    return cls


@pytest.mark.parametrize(
    ("name", "config", "target", "also"),
    [
        ("Mixtral", {**KEYS, "num_local_experts": 4}, {"intermediate_size": 24, "num_local_experts": 3}, set()),
        ("Qwen2", KEYS, {"num_attention_heads": 2, "num_key_value_heads": 1}, {"head_dim"}),
        ("GPTNeoX", SMALL, {"num_hidden_layers": 1}, set()),
        ("Bart", BART, BART_NARROW, set()),
        ("Phi3", KEYS, {"num_attention_heads": 2, "num_key_value_heads": 1}, {"head_dim"}),
        ("Mamba2", MAMBA, {"hidden_size": 16, "num_heads": 2, "num_hidden_layers": 1}, set()),
    ],
    ids=["Mixtral", "Qwen2", "GPTNeoX", "Bart", "Phi3", "Mamba2"],
)
def test_a_family_keeps_its_layout_and_generates(
    name: str, config: dict[str, Any], target: dict[str, int], also: set[str], tmp_path: Path
) -> None:
    dense, small = tmp_path / "dense", tmp_path / "small"
    cls = saved(dense, name, config)
    batches = [BATCH if name == "Bart" else {"input_ids": IDS}]
    done = pf.prune_pretrained(
        dense, small, batches=batches, target=target, progress=False, compensation=pf.compensation.none()
    )
    assert done.difference is not None and done.difference < 1e-4
    before, after = (json.loads((f / "config.json").read_text()) for f in (dense, small))
    assert {n for n in after if after[n] != before.get(n)} == {*target, *also} and target.items() <= after.items()
    gone = re.compile(
        r"experts\.3\." if name == "Mixtral" else r"layers\.1\." if "num_hidden_layers" in target else "nothing"
    )
    assert entries_of(shards(small)).keys() == {n for n in entries_of(shards(dense)) if not gone.search(n)}
    model = cls.from_pretrained(small)
    words = [model.generate(IDS[:1], max_new_tokens=4, do_sample=False, use_cache=c) for c in (True, False)]
    assert torch.equal(*words)


@pytest.mark.parametrize(("name", "config"), [("Mixtral", {**KEYS, "num_local_experts": 4}), ("GPTNeoX", SMALL)])
def test_the_ops_on_files_name_the_one_that_reads_the_layout(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    cls = saved(tmp_path / "dense", name, {**config, "num_hidden_layers": 1})
    model = cls.from_pretrained(tmp_path / "dense").eval()
    spec = pf.trace(model, (), {"input_ids": IDS})
    with pytest.raises(pf.ParamsError, match=r"pf\.prune_pretrained and `prunefn llm prune`"):
        pf.lazy_params(tmp_path / "dense", spec=spec)
    with pytest.raises(pf.ParamsError, match=r"pf\.prune_pretrained and `prunefn llm prune`"):
        pf.apply_checkpoint(tmp_path / "dense", tmp_path / "small", {}, spec=spec, progress=False)


def refused(folder: Path, name: str, config: dict[str, Any], target: dict[str, int], why: str) -> None:
    saved(folder / "dense", name, config)
    with pytest.raises(pf.PruneError, match=why):
        pf.prune_pretrained(folder / "dense", folder / "small", batches=[IDS], target=target, progress=False)
    assert not (folder / "small").exists() and not (folder / f"small{ENDING}").exists()


def test_a_scale_of_the_embeddings_is_a_reason(tmp_path: Path) -> None:
    why = r"computes 'model\.embed_tokens\.embed_scale' from its sizes: 4\.899 at the new ones, 5\.657"
    refused(tmp_path, "Gemma2", {**KEYS, "head_dim": 8, "num_hidden_layers": 1}, {"hidden_size": 24}, why)


def test_narrower_heads_are_a_reason(tmp_path: Path) -> None:
    config = {**SMALL, "num_hidden_layers": 1}
    scale = r"computes 0\.408248 for .* in 'gpt_neox\.layers\.0\.attention', where the pruned network has 0\.353553"
    refused(tmp_path, "GPTNeoX", config, {"hidden_size": 24}, f"{scale}.*narrower.*such as num_attention_heads=3")


def test_quantized_tensors_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "dense", "Qwen2", KEYS)
    file = tmp_path / "dense" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(pf.PruneError, match=r"quantized \(fp8\)"):
        pf.prune_pretrained(tmp_path / "dense", tmp_path / "small", batches=[IDS], target={"intermediate_size": 24})
