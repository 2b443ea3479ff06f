"""Models of transformers from small configs: random weights, two layers, widths that are not all equal, no caches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
VOCABULARY = 67


class Case(NamedTuple):
    """How a model is built and fed."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    """Batch size → (args, kwargs); the same at every call."""


def models() -> dict[str, Case]:
    """All models by name; transformers is imported when one is built.

    >>> case = models()["bert"]
    >>> case.inputs(2)[1]["input_ids"].shape
    torch.Size([2, 11])
    """
    return {**_vision(), **_encoders(), **_decoders(), **_other()}


def _build(name: str, config: str, **options: Any) -> nn.Module:
    """The class `name` of transformers, of a config class with these options."""
    import transformers

    return getattr(transformers, name)(getattr(transformers, config)(**options))


def _case(name: str, inputs: Callable[[int], Inputs], config: str = "", **options: Any) -> Case:
    head = next(h for h in ("For", "LMHead", "Model", "With") if h in name)
    return Case(partial(_build, name, config or f"{name.partition(head)[0]}Config", **options), inputs)


class Logits(nn.Module):
    """Of a model's results only the logits: a hidden state that is returned, too, could not be pruned."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs).logits


def _only_logits(case: Case) -> Case:
    return case._replace(build=lambda: Logits(case.build()))


# ---- what goes in


def _generator(batch: int) -> torch.Generator:
    return torch.Generator().manual_seed(batch)


def _ids(batch: int, length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(5, VOCABULARY, (batch, length), generator=generator)  # no special tokens


def _images(batch: int, side: int = 32) -> Inputs:
    return (), {"pixel_values": torch.randn(batch, 3, side, side, generator=_generator(batch))}


def _text(batch: int, length: int = 11) -> Inputs:
    return (), {"input_ids": _ids(batch, length, _generator(batch))}


def _masked_text(batch: int, length: int = 11) -> Inputs:
    """The last tokens of the odd rows are padding."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1::2, -3:] = 0
    return (), {**_text(batch, length)[1], "attention_mask": mask}


def _pairs(batch: int) -> Inputs:
    generator = _generator(batch)
    return (), {"input_ids": _ids(batch, 11, generator), "decoder_input_ids": _ids(batch, 7, generator)}


def _speech(batch: int) -> Inputs:
    generator = _generator(batch)
    features = torch.randn(batch, 12, 32, generator=generator)
    return (), {"input_features": features, "decoder_input_ids": _ids(batch, 7, generator)}


def _wave(batch: int) -> Inputs:
    return (), {"input_values": torch.randn(batch, 640, generator=_generator(batch))}


def _image_and_text(batch: int) -> Inputs:
    return (), {**_images(batch)[1], **_text(batch)[1]}


# ---- what is built

ENCODER: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
DECODER: dict[str, Any] = {
    **ENCODER,
    "vocab_size": VOCABULARY,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {**DECODER, "num_key_value_heads": 2}


def _vision() -> dict[str, Case]:
    vit: dict[str, Any] = {**ENCODER, "image_size": 32, "patch_size": 8, "num_labels": 5}
    swin: dict[str, Any] = {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "num_labels": 5,
    }
    swin |= {"window_size": 4, "mlp_ratio": 3.0}
    stages: dict[str, Any] = {
        "num_encoder_blocks": 2,
        "depths": [1, 2],
        "sr_ratios": [2, 1],
        "hidden_sizes": [16, 40],
        "strides": [4, 2],
    }
    stages |= {"patch_sizes": [7, 3], "num_attention_heads": [1, 4], "mlp_ratios": [2, 3], "decoder_hidden_size": 36}
    clip: dict[str, Any] = {**vit, "projection_dim": 28}
    words: dict[str, Any] = {
        **ENCODER,
        "hidden_size": 32,
        "vocab_size": VOCABULARY,
        "projection_dim": 28,
        "eos_token_id": 2,
    }
    next_: dict[str, Any] = {"hidden_sizes": [16, 24, 40], "depths": [1, 2, 1], "num_stages": 3, "num_labels": 5}
    both: dict[str, Any] = {"text_config": words, "vision_config": clip, "projection_dim": 28}
    return {
        "vit": _case("ViTForImageClassification", _images, **vit),
        "deit": _case("DeiTForImageClassification", _images, **vit),
        "swin": _case("SwinForImageClassification", _images, **swin),
        "swinv2": _case("Swinv2ForImageClassification", _images, **swin),
        "dinov2": _case("Dinov2ForImageClassification", _images, **vit, mlp_ratio=3),
        "dinov2_swiglu": _case("Dinov2ForImageClassification", _images, **vit, mlp_ratio=3, use_swiglu_ffn=True),
        "convnextv2": _case("ConvNextV2ForImageClassification", _images, **next_),
        "segformer": _case("SegformerForSemanticSegmentation", _images, **stages, num_labels=5),
        "beit": _case("BeitForImageClassification", _images, **vit, use_relative_position_bias=True),
        "clip_vision": _case("CLIPVisionModelWithProjection", _images, "CLIPVisionConfig", **clip),
        "clip_text": _case("CLIPTextModelWithProjection", _text, "CLIPTextConfig", **words),
        "clip": _case("CLIPModel", _image_and_text, **both),
    }


def _encoders() -> dict[str, Case]:
    text: dict[str, Any] = {**ENCODER, "vocab_size": VOCABULARY, "num_labels": 3}
    relative: dict[str, Any] = {**text, "relative_attention": True, "max_relative_positions": 16, "type_vocab_size": 0}
    relative |= {"pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
    v2: dict[str, Any] = {**relative, "share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}
    distil: dict[str, Any] = {
        "dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 80,
        "vocab_size": VOCABULARY,
        "num_labels": 3,
    }
    return {
        "bert": _case("BertForSequenceClassification", _text, **text),
        "bert_masked": _case("BertForMaskedLM", _masked_text, **text),
        "roberta": _case("RobertaForSequenceClassification", _text, **text),
        "distilbert": _case("DistilBertForSequenceClassification", _text, **distil),
        "albert": _case("AlbertForSequenceClassification", _text, **text, embedding_size=20),
        "deberta": _case("DebertaForSequenceClassification", _text, **relative),
        "deberta_v2": _case("DebertaV2ForSequenceClassification", _text, **v2),
        "electra": _case("ElectraForSequenceClassification", _text, **text, embedding_size=20),
    }


def _decoders() -> dict[str, Case]:
    gpt2: dict[str, Any] = {
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 80,
        "vocab_size": VOCABULARY,
        "use_cache": False,
    }
    opt: dict[str, Any] = {**DECODER, "ffn_dim": 80, "word_embed_proj_dim": 28}
    opt.pop("intermediate_size")
    bloom: dict[str, Any] = {"hidden_size": 48, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "use_cache": False}
    gemma: dict[str, Any] = {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6}
    mamba: dict[str, Any] = {
        "hidden_size": 32,
        "state_size": 6,
        "num_hidden_layers": 2,
        "expand": 2,
        "time_step_rank": 5,
    }
    experts: dict[str, Any] = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
    return {
        "gpt2": _case("GPT2LMHeadModel", _text, **gpt2),
        "gpt_neox": _case("GPTNeoXForCausalLM", _text, **DECODER, rotary_pct=0.5),
        "opt": _case("OPTForCausalLM", _text, **opt),
        "bloom": _case("BloomForCausalLM", _text, **bloom),
        "llama": _case("LlamaForCausalLM", _text, **GROUPED),
        "mistral": _case("MistralForCausalLM", _text, **GROUPED, sliding_window=6),
        "qwen2": _case("Qwen2ForCausalLM", _text, **GROUPED),
        "qwen3": _case("Qwen3ForCausalLM", _text, **GROUPED, head_dim=16),
        "phi3": _case("Phi3ForCausalLM", _text, **GROUPED),
        "gemma2": _case("Gemma2ForCausalLM", _text, **gemma),
        "mixtral": _case("MixtralForCausalLM", _text, **experts),
        "mixtral_batched": _case("MixtralForCausalLM", _text, **experts, experts_implementation="batched_mm"),
        "mamba": _case("MambaForCausalLM", _text, **mamba, vocab_size=VOCABULARY, use_cache=False),
    }


def _other() -> dict[str, Case]:
    t5: dict[str, Any] = {
        "d_model": 48,
        "d_kv": 10,
        "num_heads": 4,
        "d_ff": 80,
        "num_layers": 2,
        "vocab_size": VOCABULARY,
    }
    pair: dict[str, Any] = {
        "d_model": 48,
        "vocab_size": VOCABULARY,
        "use_cache": False,
        "decoder_layers": 2,
        "encoder_layers": 2,
    }
    pair |= {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 80, "decoder_ffn_dim": 64}
    pair |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    whisper: dict[str, Any] = {**pair, "num_mel_bins": 12, "max_source_positions": 16, "max_target_positions": 20}
    wave: dict[str, Any] = {
        **ENCODER,
        "vocab_size": 32,
        "conv_dim": (24, 32, 20),
        "conv_kernel": (10, 3, 2),
        "conv_stride": (5, 2, 2),
    }
    wave |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    found = {
        "t5": _case("T5ForConditionalGeneration", _pairs, **t5, use_cache=False),
        "t5_gated": _case("T5ForConditionalGeneration", _pairs, **t5, use_cache=False, feed_forward_proj="gated-gelu"),
        "bart": _case("BartForConditionalGeneration", _pairs, **pair),
        "whisper": _case("WhisperForConditionalGeneration", _speech, **whisper),
        "wav2vec2": _case("Wav2Vec2ForCTC", _wave, **wave),
    }
    return {**found, **{f"{n}_logits": _only_logits(found[n]) for n in ("t5", "bart", "whisper")}}
