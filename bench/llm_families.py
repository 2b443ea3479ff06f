"""Families of transformers, tiny and random: each kind of pruning that a config can state, loaded, compared and generated with.

python bench/llm_families.py [--families NAME …] [--fresh] [--out]

Each cell is `pf.prune_pretrained(target=…)` from a folder to a folder without compensation. It has the largest difference between the
outputs of the loaded model and of the pruned program, whether `generate` says the same with and without a cache, and the fields of
the config that changed besides the stated ones; or the refusal. What is computed is kept in bench/cache/llm_families.jsonl.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from rows import CACHE, Key, work
from timing import markdown, versions, write

import prunefn as pf

HERE = Path(__file__).parent
VOCABULARY, LENGTH, IMAGE, TOKEN_OF_IMAGE = 64, 12, 16, 3
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
PLAIN = {**SIZES, **SPECIAL, "vocab_size": VOCABULARY}
KEYS = {**PLAIN, "num_key_value_heads": 2}
WIDE = {**KEYS, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
    "n_shared_experts": 1,
}
TEXT = {**PLAIN, "num_hidden_layers": 2, "max_position_embeddings": 16}
VISION = {**SIZES, "intermediate_size": 56, "num_hidden_layers": 2, "image_size": IMAGE, "patch_size": 4}
BOTH = {
    f"{part}_{name}": n
    for part in ("encoder", "decoder")
    for name, n in (("layers", 2), ("ffn_dim", 48), ("attention_heads", 4))
}
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0}
MLP, HIDDEN, HEADS, LAYERS, MOE, VOCAB = "MLP width", "hidden width", "heads", "layers", "experts", "vocabulary"
LATER, FEWER_KEYS = {"num_hidden_layers": 2}, {"num_attention_heads": 2, "num_key_value_heads": 1}
NARROW, FEWER = {"hidden_size": 24}, {"num_attention_heads": 2}
USUAL = {MLP: {"intermediate_size": 24}, HIDDEN: NARROW, LAYERS: LATER}
DECODER = {**USUAL, HEADS: FEWER_KEYS}
DIVIDED = {**USUAL, HEADS: {**FEWER, "hidden_size": 16}}
"""For classes that divide the hidden width by the number of heads."""
SPARSE = {MLP: {"moe_intermediate_size": 16}, HIDDEN: NARROW, LAYERS: LATER}
TOWERS = {MLP: {"text_config.intermediate_size": 24, "vision_config.intermediate_size": 40}}
TOWERS |= {LAYERS: {"text_config.num_hidden_layers": 1, "vision_config.num_hidden_layers": 1}}
TEXT_HALF = {"text_config.hidden_size": 16, "text_config.num_attention_heads": 2}
VISION_HALF = {"vision_config.hidden_size": 16, "vision_config.num_attention_heads": 2}


class Family(NamedTuple):
    """A class, a tiny config, and what is asked of it."""

    cls: str
    config: dict[str, Any]
    goals: dict[str, dict[str, int]]
    config_cls: str = ""

    def build(self) -> Any:
        """Return a random model."""
        config_cls = (
            self.config_cls or self.cls.partition("For")[0].removesuffix("LMHeadModel").removesuffix("Model") + "Config"
        )
        torch.manual_seed(0)
        model = getattr(transformers, self.cls)(getattr(transformers, config_cls)(**self.config)).eval()
        for p in model.parameters():
            if p.ndim > 1:
                p.data.normal_(0, 0.2)
        return model


def _causal(name: str, config: dict[str, Any], goals: dict[str, dict[str, int]], config_cls: str = "") -> Family:
    return Family(f"{name}ForCausalLM", config, goals, config_cls)


_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_FALCON = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_MAMBA = {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2, "expand": 2, "chunk_size": 4}
_MAMBA |= {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3}
_JAMBA = {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}
_JAMBA |= {"expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 4, "mamba_dt_rank": 4}
FAMILIES: dict[str, Family] = {
    "Llama": _causal("Llama", KEYS, {**DECODER, VOCAB: {"vocab_size": 48}}),
    "Mistral": _causal("Mistral", WIDE, DECODER),
    "Qwen2": _causal("Qwen2", KEYS, DECODER),
    "Qwen3": _causal("Qwen3", WIDE, DECODER),
    "Phi-3": _causal("Phi3", KEYS, DECODER),
    "OLMo-2": _causal("Olmo2", KEYS, DECODER),
    "Gemma 2": _causal("Gemma2", WIDE, DECODER),
    "Gemma 3 (text)": _causal("Gemma3", WIDE, DECODER, "Gemma3TextConfig"),
    "StableLM": _causal("StableLm", KEYS, {**DIVIDED, HEADS: {**FEWER_KEYS, "hidden_size": 16}}),
    "GPT-NeoX": _causal("GPTNeoX", PLAIN, DIVIDED),
    "GPT-2": Family(
        "GPT2LMHeadModel",
        {**_GPT2, **SPECIAL},
        {MLP: {"n_inner": 64}, HIDDEN: {"n_embd": 24}, HEADS: {"n_head": 2, "n_embd": 16}, LAYERS: {"n_layer": 2}},
    ),
    "Falcon": _causal(
        "Falcon", {**_FALCON, **SPECIAL}, {**DIVIDED, MLP: {"ffn_hidden_size": 64}, HEADS: {**FEWER, "hidden_size": 16}}
    ),
    "Mixtral": _causal("Mixtral", {**KEYS, "num_local_experts": 4}, {**DECODER, MOE: {"num_local_experts": 3}}),
    "Qwen3-MoE": _causal("Qwen3Moe", {**WIDE, **EXPERTS}, {**SPARSE, HEADS: FEWER_KEYS, MOE: {"num_experts": 3}}),
    "gpt-oss": _causal(
        "GptOss",
        {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
        {**DECODER, MOE: {"num_local_experts": 3}},
    ),
    "DeepSeek-V2": _causal(
        "DeepseekV2",
        {**PLAIN, **LATENT, "n_group": 1, "topk_method": "greedy"},
        {**SPARSE, HEADS: {**FEWER, "num_key_value_heads": 2}, MOE: {"n_routed_experts": 3}},
    ),
    "DeepSeek-V3": _causal(
        "DeepseekV3", {**PLAIN, **LATENT, "n_group": 2}, {**SPARSE, HEADS: {**FEWER, "num_key_value_heads": 2}}
    ),
    "Jamba": _causal(
        "Jamba", {**KEYS, **_JAMBA, "use_mamba_kernels": False}, {**USUAL, HEADS: FEWER_KEYS, MOE: {"num_experts": 3}}
    ),
    "Mamba-2": _causal("Mamba2", {**_MAMBA, **SPECIAL}, {HIDDEN: {"hidden_size": 16, "num_heads": 2}, LAYERS: LATER}),
    "T5": Family(
        "T5ForConditionalGeneration",
        T5,
        {MLP: {"d_ff": 24}, HIDDEN: {"d_model": 24}, HEADS: {"num_heads": 2}, LAYERS: {"num_layers": 1}},
    ),
    "T5 1.1": Family("T5ForConditionalGeneration", {**T5, "tie_word_embeddings": False}, {HIDDEN: {"d_model": 24}}),
    "BART": Family(
        "BartForConditionalGeneration",
        {"vocab_size": VOCABULARY, "d_model": 32, "max_position_embeddings": 32, **BOTH},
        {
            MLP: {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
            HIDDEN: {"d_model": 24},
            HEADS: {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16},
            LAYERS: {"encoder_layers": 1},
        },
    ),
    "Whisper": Family(
        "WhisperForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            **SPECIAL,
            **BOTH,
            "max_target_positions": 32,
            "decoder_start_token_id": 1,
            "begin_suppress_tokens": None,
        },
        {
            MLP: {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
            HIDDEN: {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
            HEADS: {"encoder_attention_heads": 2},
            LAYERS: {"decoder_layers": 1},
        },
    ),
    "BERT": Family("BertForMaskedLM", PLAIN, DIVIDED),
    "ModernBERT": Family("ModernBertForMaskedLM", PLAIN, DIVIDED),
    "CLIP": Family(
        "CLIPModel",
        {"projection_dim": 24, "text_config": TEXT, "vision_config": VISION},
        {**TOWERS, HIDDEN: {**TEXT_HALF, **VISION_HALF}, HEADS: {"text_config.num_attention_heads": 2}},
    ),
    "SigLIP": Family(
        "SiglipModel",
        {"text_config": {**TEXT, "projection_size": 32}, "vision_config": VISION},
        {**TOWERS, HIDDEN: {**TEXT_HALF, **VISION_HALF, "text_config.projection_size": 16}},
    ),
    "LLaVA, language": Family(
        "LlavaForConditionalGeneration",
        {
            "text_config": {**KEYS, "model_type": "llama"},
            "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
            "image_token_index": TOKEN_OF_IMAGE,
            "image_seq_length": 16,
            "vision_feature_layer": -1,
        },
        {kind: {f"text_config.{n}": k for n, k in goal.items()} for kind, goal in DECODER.items()},
    ),
}
FAMILIES["LLaVA, vision"] = FAMILIES["LLaVA, language"]._replace(
    goals={
        MLP: {"vision_config.intermediate_size": 24},
        HIDDEN: VISION_HALF,
        LAYERS: {"vision_config.num_hidden_layers": 1},
    }
)
HEADER = ["family", "what", "target", "difference", "generate, with and without cache", "other fields that changed"]


def inputs(family: Family) -> dict[str, torch.Tensor]:
    """Return a batch of four for a family."""
    noise = torch.Generator().manual_seed(0)
    ids = torch.randint(TOKEN_OF_IMAGE + 1, VOCABULARY, (4, LENGTH), generator=noise)
    images = torch.randn(4, 3, IMAGE, IMAGE, generator=noise)
    if family.cls.startswith("Whisper"):
        return {"input_features": torch.randn(4, 8, 32, generator=noise), "decoder_input_ids": ids[:, :6]}
    if family.cls.startswith("Llava"):
        return {"input_ids": torch.cat([torch.full((4, 16), TOKEN_OF_IMAGE), ids], 1), "pixel_values": images}
    if family.cls.endswith("ForConditionalGeneration"):
        return {"input_ids": ids, "decoder_input_ids": ids[:, :6]}
    return {"input_ids": ids, "pixel_values": images} if "vision_config" in family.config else {"input_ids": ids}


def generated(model: Any, batch: dict[str, torch.Tensor]) -> str:
    """Return whether a model generates the same with a cache and without one."""
    if not model.can_generate():
        return "–"
    first = {n: t[:1] for n, t in batch.items() if n != "decoder_input_ids"}
    options = {"suppress_tokens": [TOKEN_OF_IMAGE]} if "pixel_values" in batch else {}
    try:
        words = [
            model.generate(**first, **options, max_new_tokens=4, do_sample=False, use_cache=c) for c in (True, False)
        ]
    except Exception as error:  # the class's own code
        return f"{type(error).__name__}: {error}"
    return "equal" if torch.equal(*words) else "DIFFERENT"


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config with the paths of its fields."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def measure(name: str, kind: str, folder: Path) -> list[str]:
    """Prune a family; return the difference, generation, and other fields that changed; or the refusal."""
    family = FAMILIES[name]
    goal, batch = family.goals[kind], inputs(family)
    family.build().save_pretrained(folder / "dense")
    none = pf.compensation.none()
    try:
        done = pf.prune_pretrained(
            folder / "dense", folder / "small", batches=[batch], target=goal, compensation=none, progress=False
        )
    except pf.PruneError as error:
        return [f"refused: {' '.join(str(error).split())}".replace(str(folder), "…"), "", ""]
    before, after = (flat(json.loads((folder / n / "config.json").read_text())) for n in ("dense", "small"))
    others = [n for n in after if after[n] != before.get(n) and n not in goal]
    model = getattr(transformers, family.cls).from_pretrained(folder / "small").eval()
    return [f"{done.difference:.1g}", generated(model, batch), ", ".join(others)]


def table(found: dict[Key, list[str]]) -> list[list[str]]:
    """Return rows of text."""
    rows = []
    for (name, kind), cells in found.items():
        goal = ", ".join(f"{n}={k}" for n, k in FAMILIES[str(name)].goals[str(kind)].items())
        rows.append([str(name), str(kind), goal, *cells])
    return rows


def remarks(found: dict[Key, list[str]]) -> str:
    """Return what was done, and the sums."""
    loaded = [cells for cells in found.values() if not cells[0].startswith("refused")]
    exact = sum(float(cells[0]) == 0 for cells in loaded)
    return (
        f"Tiny random models of transformers ({VOCABULARY} tokens, hidden width 32, 2 to 4 layers). {len(found)} targets of "
        f"{len({FAMILIES[str(k[0])].cls for k in found})} classes: {len(loaded)} load into their class, {exact} of them "
        f"with outputs equal to the bit; {len(found) - len(loaded)} are refused before anything is written. Nothing here is by the name "
        "of a class. T5 with fewer encoder layers generates only without a cache: transformers sizes the decoder's cache by "
        "`num_layers`, and a fresh T5 of such a config fails in the same way; give `num_decoder_layers` the same number."
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--fresh", action="store_true", help="compute everything anew")
    parser.add_argument("--out", action="store_true", help="write bench/results/llm_families.{md,csv}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kept = CACHE / "llm_families.jsonl"
    if args.fresh:
        kept.unlink(missing_ok=True)

    def run(job: Key) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            return measure(str(job[0]), str(job[1]), Path(folder))

    jobs: list[Key] = [(f, kind) for f in args.families for kind in FAMILIES[f].goals]
    found = work(kept, jobs, run, "families")
    rows = table(found)
    print(f"{markdown(HEADER, rows)}\n\n{remarks(found)}\n\n{versions()}")
    if args.out:
        write(
            HERE / "results",
            "llm_families",
            "Families of language models, each kind of pruning",
            HEADER,
            rows,
            remarks(found),
        )


if __name__ == "__main__":
    main()
