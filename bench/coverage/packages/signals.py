"""torchaudio, speechbrain, whisper, encodec: what hears."""

from __future__ import annotations

from torch import nn

from .base import Model, feed, filled, model, normal, whole

FRAMES = normal(20, 16)
"""[batch, time, features]"""
WAVE = feed(normal(1, 320))
HERE = "bench.coverage.packages.signals"


def models() -> list[Model]:
    """Speech recognition and synthesis, separation, speakers, codecs."""
    return [*_torchaudio(), *_speechbrain(), *_codecs()]


def _torchaudio() -> list[Model]:
    of = "torchaudio.models"
    lengths = filled(20)
    wave = {
        "extractor_mode": "group_norm",
        "extractor_conv_layer_config": [(16, 10, 5), (24, 3, 2)],
        "extractor_conv_bias": False,
        "encoder_embed_dim": 32,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 2,
        "encoder_num_heads": 4,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 48,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": False,
        "encoder_layer_drop": 0.0,
        "aux_num_out": 7,
    }
    return [
        model(f"{of}.wav2vec2_model", feed(normal(640)), **wave),
        model(f"{of}.Conformer", feed(FRAMES, lengths), 16, 4, 40, 2, 7),
        model(
            f"{of}.ConvTasNet",
            WAVE,
            enc_num_feats=16,
            msk_num_feats=12,
            msk_num_hidden_feats=20,
            msk_num_layers=2,
            msk_num_stacks=2,
        ),
        model(f"{of}.DeepSpeech", feed(normal(1, 20, 16)), 16, n_hidden=24, n_class=7),
        model(f"{of}.Emformer", feed(normal(20, 16), filled(16)), 16, 4, 40, 2, 4, right_context_length=4),
        model(
            f"{of}.HDemucs", feed(normal(2, 4096)), sources=["a", "b"], channels=8, nfft=1024, depth=5, norm_starts=3
        ),
        model(
            f"{of}.Tacotron2",
            feed(whole(30, 9), filled(9), normal(12, 8), filled(8)),
            n_mels=12,
            n_symbol=30,
            symbol_embedding_dim=16,
            encoder_embedding_dim=16,
            decoder_rnn_dim=24,
            attention_rnn_dim=24,
            attention_hidden_dim=12,
            attention_location_n_filter=4,
            attention_location_kernel_size=5,
            prenet_dim=12,
            postnet_embedding_dim=16,
            decoder_dropout=0.0,
            attention_dropout=0.0,
        ),
        model(
            f"{of}.WaveRNN",
            feed(normal(1, 48), normal(1, 12, 12)),
            upsample_scales=[2, 3],
            n_classes=8,
            hop_length=6,
            n_res_block=2,
            n_rnn=16,
            n_fc=20,
            n_freq=12,
            n_hidden=12,
            n_output=12,
        ),
        model(f"{of}.Wav2Letter", feed(normal(1, 1000)), num_classes=7),
    ]


def _speechbrain() -> list[Model]:
    of = "speechbrain.lobes.models"
    asr = {"d_model": 32, "nhead": 4, "num_encoder_layers": 2, "num_decoder_layers": 1, "d_ffn": 48}
    return [
        model(
            f"{of}.ECAPA_TDNN.ECAPA_TDNN",
            feed(FRAMES),
            16,
            lin_neurons=20,
            channels=[16, 16, 16, 16, 40],
            attention_channels=12,
            res2net_scale=4,
            se_channels=12,
        ),
        model(
            f"{of}.Xvector.Xvector", feed(FRAMES), in_channels=16, tdnn_channels=[16, 20, 24, 20, 40], lin_neurons=20
        ),
        model(
            f"{of}.CRDNN.CRDNN",
            feed(FRAMES),
            input_shape=[None, None, 16],
            cnn_channels=[8, 12],
            rnn_layers=1,
            rnn_neurons=16,
            dnn_neurons=20,
        ),
        model(f"{of}.conv_tasnet.MaskNet", feed(normal(16, 20)), N=16, B=12, H=20, P=3, X=2, R=2, C=2),
        model(f"{of}.transformer.TransformerASR.TransformerASR", feed(FRAMES, whole(30, 7, low=1)), 30, 16, **asr),
        model(
            f"{of}.transformer.TransformerASR.TransformerASR",
            feed(FRAMES, whole(30, 7, low=1)),
            30,
            16,
            variant="conformer",
            encoder_module="conformer",
            attention_type="RelPosMHAXL",
            kernel_size=7,
            normalize_before=True,
            causal=False,
            **asr,
        ),
        model(
            f"{of}.transformer.TransformerLM.TransformerLM",
            feed(whole(30, 9, low=1)),
            30,
            d_model=32,
            nhead=4,
            num_encoder_layers=2,
            d_ffn=48,
        ),
        model(f"{of}.RNNLM.RNNLM", feed(whole(30, 9)), 30, embedding_dim=16, rnn_neurons=20, dnn_neurons=24),
        model(
            f"{of}.HifiGAN.HifiganGenerator",
            feed(normal(12, 10)),
            12,
            1,
            "1",
            [[1, 3, 5], [1, 3, 5]],
            [3, 5],
            [4, 4],
            16,
            [2, 2],
            inference_padding=0,
        ),
        model(
            f"{of}.ResNet.ResNet", feed(FRAMES), 16, channels=[8, 12, 16, 20], block_sizes=[1, 1, 1, 1], lin_neurons=20
        ),
    ]


def _codecs() -> list[Model]:
    sea = {"dimension": 16, "n_filters": 8, "ratios": [4, 2], "lstm": 1}
    return [
        model("encodec.modules.SEANetEncoder", WAVE, **sea),
        model("encodec.modules.SEANetDecoder", feed(normal(16, 20)), **sea),
        model(f"{HERE}.whisper", feed(normal(12, 32), whole(30, 7)))._replace(name="whisper.Whisper"),
    ]


def whisper() -> nn.Module:
    """OpenAI's Whisper."""
    from whisper.model import ModelDimensions, Whisper  # type: ignore[import-not-found]

    return Whisper(ModelDimensions(12, 16, 32, 4, 2, 30, 16, 32, 4, 2))
