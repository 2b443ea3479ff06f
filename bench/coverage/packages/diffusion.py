"""diffusers: networks that denoise, and the autoencoders around them."""

from __future__ import annotations

from functools import partial

import torch

from .base import Model, constant, feed, filled, model, normal, whole

LATENTS = normal(4, 16, 16)
TIME = whole(1000)
TEXT = normal(7, 24)


def models() -> list[Model]:
    """U-Nets, transformers and autoencoders."""
    return [*_unets(), *_transformers(), *_autoencoders()]


def _unets() -> list[Model]:
    plain = partial(model, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4)
    crossed = partial(plain, in_channels=4, out_channels=4, cross_attention_dim=24, attention_head_dim=2)
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    own = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    condition = feed(LATENTS, TIME, TEXT)
    cubes = {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }
    return [
        plain("diffusers.UNet2DModel", feed(normal(3, 16, 16), TIME), sample_size=16, attention_head_dim=8, **own),
        crossed("diffusers.UNet2DConditionModel", condition, sample_size=16, down_block_types=down, up_block_types=up),
        crossed(
            "diffusers.UNet2DConditionModel",
            feed(
                LATENTS,
                TIME,
                TEXT,
                added_cond_kwargs=lambda b, g: {
                    "text_embeds": torch.randn(b, 20, generator=g),
                    "time_ids": torch.randint(0, 64, (b, 6), generator=g),
                },
            ),
            variant="XL",
            sample_size=16,
            down_block_types=down,
            up_block_types=up,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=68,
            transformer_layers_per_block=(1, 2),
        ),
        plain(
            "diffusers.ControlNetModel",
            feed(LATENTS, TIME, TEXT, normal(3, 32, 32)),
            in_channels=4,
            cross_attention_dim=24,
            attention_head_dim=2,
            down_block_types=down,
            conditioning_embedding_out_channels=(8, 16),
        ),
        crossed("diffusers.UNet3DConditionModel", feed(normal(4, 2, 16, 16), TIME, TEXT), sample_size=16, **cubes),
        model(
            "diffusers.UNet1DModel",
            feed(normal(2, 64), TIME),
            sample_size=64,
            in_channels=2,
            out_channels=2,
            extra_in_channels=64,
            block_out_channels=(32, 32, 64),
        ),
        model("diffusers.T2IAdapter", feed(normal(3, 64, 64)), channels=[16, 24, 32, 32], num_res_blocks=1),
    ]


def _transformers() -> list[Model]:
    dit = partial(model, num_attention_heads=4, attention_head_dim=8, num_layers=2)
    small = normal(4, 8, 8)
    joint = partial(
        model,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=20,
        caption_projection_dim=32,
        pos_embed_max_size=16,
        out_channels=4,
    )
    words = normal(5, 20)
    return [
        dit(
            "diffusers.DiTTransformer2DModel",
            feed(small, TIME, whole(10)),
            in_channels=4,
            sample_size=8,
            num_embeds_ada_norm=10,
            norm_num_groups=4,
        ),
        dit(
            "diffusers.PixArtTransformer2DModel",
            feed(small, words, TIME, constant({"resolution": None, "aspect_ratio": None})),
            in_channels=4,
            out_channels=8,
            sample_size=8,
            cross_attention_dim=32,
            caption_channels=20,
            use_additional_conditions=False,
        ),
        joint(
            "diffusers.SD3Transformer2DModel",
            feed(small, words, normal(24), TIME),
            num_layers=2,
            pooled_projection_dim=24,
        ),
        joint(
            "diffusers.AuraFlowTransformer2DModel",
            feed(small, words, TIME),
            num_mmdit_layers=1,
            num_single_dit_layers=1,
        ),
        model(
            "diffusers.FluxTransformer2DModel",
            feed(normal(16, 4), words, normal(24), TIME, constant(_grid(4)), constant(torch.zeros(5, 3))),
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=20,
            pooled_projection_dim=24,
            axes_dims_rope=(4, 4, 8),
        ),
        model(
            "diffusers.PriorTransformer",
            feed(normal(16), TIME, normal(16), normal(5, 16)),
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            embedding_dim=16,
            num_embeddings=5,
        ),
        model(
            "diffusers.CogVideoXTransformer3DModel",
            feed(normal(2, 4, 8, 8), normal(6, 12), TIME),
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=12,
            num_layers=2,
            sample_width=8,
            sample_height=8,
            sample_frames=5,
            max_text_seq_length=6,
        ),
        model(
            "diffusers.WanTransformer3DModel",
            feed(normal(4, 2, 8, 8), TIME, normal(6, 16)),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=40,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        model(
            "diffusers.SanaTransformer2DModel",
            feed(small, normal(6, 12), TIME),
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=12,
            sample_size=8,
        ),
        model(
            "diffusers.LTXVideoTransformer3DModel",
            feed(
                normal(32, 8),
                normal(6, 12),
                TIME,
                filled(1, 6),
                num_frames=constant(2),
                height=constant(4),
                width=constant(4),
            ),
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=12,
        ),
        model(
            "diffusers.StableAudioDiTModel",
            feed(normal(4, 16), TIME, normal(6, 12), normal(1, 20)),
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_attention_heads=2,
            cross_attention_dim=16,
            cross_attention_input_dim=12,
            time_proj_dim=16,
            global_states_input_dim=20,
        ),
        model(
            "diffusers.Transformer2DModel",
            feed(normal(16, 8, 8), TEXT),
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=16,
            norm_num_groups=4,
            cross_attention_dim=24,
        ),
    ]


def _grid(side: int) -> torch.Tensor:
    """The rows and columns of an image of this many patches on a side."""
    at = torch.arange(side, dtype=torch.float32)
    return torch.stack([torch.zeros(side * side), at.repeat_interleave(side), at.repeat(side)], -1)


def _autoencoders() -> list[Model]:
    two = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    image = feed(normal(3, 16, 16))
    return [
        model(
            "diffusers.AutoencoderKL", image, block_out_channels=(16, 32), latent_channels=4, norm_num_groups=4, **two
        ),
        model(
            "diffusers.VQModel",
            image,
            block_out_channels=(16, 32),
            num_vq_embeddings=32,
            latent_channels=3,
            norm_num_groups=4,
            **two,
        ),
        model(
            "diffusers.AsymmetricAutoencoderKL",
            image,
            down_block_out_channels=(16, 32),
            up_block_out_channels=(24, 32),
            norm_num_groups=4,
            **two,
        ),
        model(
            "diffusers.AutoencoderTiny",
            image,
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 2),
            num_decoder_blocks=(2, 1),
        ),
        model(
            "diffusers.AutoencoderDC",
            image,
            latent_channels=8,
            attention_head_dim=8,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(16, 32),
            decoder_block_out_channels=(16, 32),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
        ),
        model(
            "diffusers.AutoencoderOobleck",
            feed(normal(2, 64)),
            encoder_hidden_size=12,
            downsampling_ratios=[2, 4],
            channel_multiples=[1, 2],
            decoder_channels=12,
            decoder_input_channels=6,
        ),
    ]
