"""x-transformers, open_clip, peft, sentence-transformers, torch_geometric: texts, pairs, adapters, graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import Inputs, Model, feed, model, normal, whole

WORDS = feed(whole(30, 9))
HERE = "bench.coverage.packages.texts"


def models() -> list[Model]:
    """Languages, images with texts, adapters, sentence embeddings, graphs."""
    return [*_languages(), *_pairs(), *_adapters(), *_graphs()]


def _languages() -> list[Model]:
    plain: dict[str, dict[str, Any]] = {
        "plain": {},
        "rotary": {"rotary_pos_emb": True, "ff_glu": True, "ff_swish": True, "use_rmsnorm": True},
        "grouped": {"attn_kv_heads": 2, "alibi_pos_bias": True, "sandwich_norm": True},
        "relative": {"rel_pos_bias": True, "ff_relu_squared": True, "attn_qk_norm": True},
    }
    return [
        *(
            model(f"{HERE}.decoder", WORDS, **options)._replace(name=f"x_transformers.Decoder {n}")
            for n, options in plain.items()
        ),
        model(f"{HERE}.encoder", WORDS)._replace(name="x_transformers.Encoder"),
        model(f"{HERE}.vision", feed(normal(3, 32, 32)))._replace(name="x_transformers.ViTransformerWrapper"),
        model(f"{HERE}.continuous", feed(normal(9, 12)))._replace(name="x_transformers.ContinuousTransformerWrapper"),
    ]


LAYERS = {"dim": 48, "depth": 2, "heads": 4, "attn_dim_head": 16, "ff_mult": 2}


def decoder(**options: Any) -> nn.Module:
    """A language model."""
    from x_transformers import Decoder, TransformerWrapper  # type: ignore[import-not-found]

    return TransformerWrapper(num_tokens=30, max_seq_len=16, attn_layers=Decoder(**LAYERS, **options))


def encoder() -> nn.Module:
    """A masked language model."""
    from x_transformers import Encoder, TransformerWrapper

    return TransformerWrapper(num_tokens=30, max_seq_len=16, attn_layers=Encoder(**LAYERS))


def vision() -> nn.Module:
    """A classifier of images."""
    from x_transformers import Encoder, ViTransformerWrapper

    return ViTransformerWrapper(image_size=32, patch_size=8, num_classes=5, attn_layers=Encoder(**LAYERS))


def continuous() -> nn.Module:
    """Vectors in, vectors out."""
    from x_transformers import ContinuousTransformerWrapper, Encoder

    return ContinuousTransformerWrapper(dim_in=12, dim_out=7, max_seq_len=16, attn_layers=Encoder(**LAYERS))


def _pairs() -> list[Model]:
    both = feed(normal(3, 32, 32), whole(30, 8, low=3))
    vision = {"layers": 2, "width": 48, "head_width": 12, "patch_size": 8, "image_size": 32, "mlp_ratio": 2.0}
    text = {"context_length": 8, "vocab_size": 31, "width": 32, "heads": 4, "layers": 2}
    resnet = {"layers": (1, 1, 1, 1), "width": 8, "head_width": 8, "image_size": 32}
    return [
        model("open_clip.CLIP", both, 24, vision, text),
        model("open_clip.CLIP", both, 24, resnet, text, variant="resnet"),
        model(
            "open_clip.CustomTextCLIP",
            both,
            24,
            {**vision, "pool_type": "avg", "ls_init_value": 0.1},
            {**text, "no_causal_mask": True, "pool_type": "last"},
        ),
        model(
            "open_clip.CoCa",
            both,
            32,
            {"context_length": 8, "vocab_size": 31, "width": 32, "heads": 4, "layers": 2},
            {**text, "embed_cls": True, "output_tokens": True},
            {
                **vision,
                "attentional_pool": True,
                "attn_pooler_queries": 5,
                "attn_pooler_heads": 4,
                "output_tokens": True,
            },
        ),
    ]


def _adapters() -> list[Model]:
    ids = feed(input_ids=whole(60, 9, low=5))
    return [
        *(
            model(f"{HERE}.adapted", ids, kind)._replace(name=f"peft.{kind}")
            for kind in ("LoraConfig", "IA3Config", "LoHaConfig", "VeraConfig")
        ),
        model(f"{HERE}.adapted", ids, "LoraConfig", use_dora=True)._replace(name="peft.LoraConfig dora"),
        model(f"{HERE}.sentences", _tokens)._replace(name="sentence_transformers.SentenceTransformer"),
    ]


def adapted(kind: str, **options: Any) -> nn.Module:
    """A Llama with adapters."""
    import peft  # type: ignore[import-not-found]
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=67,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    modules: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
    if kind == "IA3Config":
        modules = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    return peft.get_peft_model(LlamaForCausalLM(config), getattr(peft, kind)(**modules, **options))


def sentences() -> nn.Module:
    """A BERT with pooling."""
    import tempfile
    from pathlib import Path

    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
    from sentence_transformers.models import Pooling, Transformer  # type: ignore[import-not-found]
    from transformers import BertConfig, BertModel, BertTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        config = BertConfig(
            vocab_size=67, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4
        )
        BertModel(config).save_pretrained(folder)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(62))]
        (Path(folder) / "vocab.txt").write_text("\n".join(words))
        BertTokenizerFast(str(Path(folder) / "vocab.txt")).save_pretrained(folder)
        transformer = Transformer(folder)
    return SentenceTransformer(modules=[transformer, Pooling(48, "mean")], device="cpu")


def _tokens(batch: int) -> Inputs:
    """A dict of ids and a mask, as sentence-transformers' tokenizer makes it."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(5, 67, (batch, 9), generator=generator)
    mask = torch.ones(batch, 9, dtype=torch.int64)
    mask[1::2, -3:] = 0
    return ({"input_ids": ids, "attention_mask": mask},), {}


def _graphs() -> list[Model]:
    of = "torch_geometric.nn"
    small = {"in_channels": 12, "hidden_channels": 20, "num_layers": 2, "out_channels": 5}
    return [
        model(f"{of}.GCN", _graph, **small),
        model(f"{of}.GraphSAGE", _graph, norm="batch", **small),
        model(f"{of}.GIN", _graph, **small),
        model(f"{of}.GAT", _graph, heads=4, **small),
        model(f"{of}.EdgeCNN", _graph, **small),
        model(f"{of}.GCN", _graph, variant="jumping", jk="cat", **small),
    ]


def _graph(batch: int) -> Inputs:
    """This many copies of a graph of six nodes, as one graph."""
    generator = torch.Generator().manual_seed(batch)
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])
    joined = torch.cat([edges + 6 * i for i in range(batch)], 1)
    return (torch.randn(6 * batch, 12, generator=generator), joined), {}
