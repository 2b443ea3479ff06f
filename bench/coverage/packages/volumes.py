"""monai: networks for medical images, most of them in two or three dimensions."""

from __future__ import annotations

from functools import partial

from .base import Model, feed, model, normal, whole

NETS = "monai.networks.nets"
FLAT, CUBE = feed(normal(1, 32, 32)), feed(normal(1, 16, 16, 16))
U = {"channels": (8, 12, 20), "strides": (2, 2)}


def models() -> list[Model]:
    """Segmentation, classification, registration, generation."""
    return [*_segmentation(), *_classification(), *_generation()]


def _segmentation() -> list[Model]:
    flat = partial(model, spatial_dims=2, in_channels=1, out_channels=3)
    two, three = (16, 16, 24, 32, 40, 16), [3, 3, 3]
    return [
        flat(f"{NETS}.UNet", FLAT, num_res_units=2, **U),
        model(f"{NETS}.UNet", CUBE, variant="3d", spatial_dims=3, in_channels=1, out_channels=3, norm="BATCH", **U),
        flat(f"{NETS}.BasicUNet", FLAT, features=two),
        flat(f"{NETS}.BasicUNetPlusPlus", FLAT, features=two),
        flat(f"{NETS}.AttentionUnet", FLAT, **U),
        flat(
            f"{NETS}.DynUNet",
            FLAT,
            kernel_size=three,
            strides=[1, 2, 2],
            upsample_kernel_size=[2, 2],
            filters=[8, 12, 20],
            res_block=True,
        ),
        flat(
            f"{NETS}.SegResNet",
            FLAT,
            init_filters=8,
            num_groups=4,
            norm=("GROUP", {"num_groups": 4}),
            blocks_down=(1, 1, 2),
            blocks_up=(1, 1),
        ),
        flat(f"{NETS}.SegResNetDS", FLAT, init_filters=8, blocks_down=(1, 1, 2)),
        model(f"{NETS}.VNet", CUBE),
        model(
            f"{NETS}.UNETR",
            FLAT,
            spatial_dims=2,
            in_channels=1,
            out_channels=3,
            img_size=32,
            feature_size=8,
            hidden_size=48,
            mlp_dim=80,
            num_heads=4,
        ),
        model(
            f"{NETS}.SwinUNETR",
            feed(normal(1, 64, 64)),
            spatial_dims=2,
            in_channels=1,
            out_channels=3,
            feature_size=12,
            depths=(1, 1, 1, 1),
            num_heads=(2, 2, 4, 4),
            window_size=4,
        ),
        model(f"{NETS}.HighResNet", FLAT, spatial_dims=2, in_channels=1, out_channels=3),
        model(f"{NETS}.FlexibleUNet", feed(normal(3, 32, 32)), 3, 3, "resnet10", decoder_channels=(40, 24, 20, 16, 12)),
        flat(
            f"{NETS}.MedNeXt",
            FLAT,
            init_filters=8,
            kernel_size=3,
            blocks_down=(1, 1),
            blocks_up=(1, 1),
            blocks_bottleneck=1,
        ),
        model(f"{NETS}.RegUNet", FLAT, spatial_dims=2, in_channels=1, num_channel_initial=8, depth=2),
        model(f"{NETS}.LocalNet", FLAT, spatial_dims=2, in_channels=1, num_channel_initial=8, extract_levels=(0, 1, 2)),
        model(
            f"{NETS}.VoxelMorphUNet",
            feed(normal(2, 32, 32)),
            spatial_dims=2,
            in_channels=2,
            unet_out_channels=8,
            channels=(8, 12, 12, 8),
            final_conv_channels=(12, 12),
        ),
        model(f"{NETS}.Quicknat", FLAT, num_classes=3, num_filters=12, kernel_size=3),
    ]


def _classification() -> list[Model]:
    vit = {
        "in_channels": 1,
        "img_size": 32,
        "patch_size": 8,
        "hidden_size": 48,
        "mlp_dim": 80,
        "num_layers": 2,
        "num_heads": 4,
        "spatial_dims": 2,
    }
    se = {"groups": 1, "reduction": 4, "inplanes": 16, "num_classes": 5, "dropout_prob": None}
    regress = {"in_shape": (1, 32, 32), **U}
    return [
        model(f"{NETS}.ViT", FLAT, classification=True, num_classes=5, **vit),
        model(f"{NETS}.ViTAutoEnc", FLAT, **{**vit, "patch_size": 4}),
        model(
            f"{NETS}.DenseNet",
            FLAT,
            spatial_dims=2,
            in_channels=1,
            out_channels=5,
            init_features=12,
            growth_rate=8,
            block_config=(2, 3),
        ),
        model(f"{NETS}.ResNet", CUBE, "bottleneck", [1, 1, 1, 1], [8, 12, 16, 20], n_input_channels=1, num_classes=5),
        model(f"{NETS}.SENet", FLAT, 2, 1, "se_bottleneck", (1, 1, 1, 1), **se),
        model(f"{NETS}.EfficientNetBN", feed(normal(3, 64, 64)), "efficientnet-b0", pretrained=False, num_classes=5),
        model(f"{NETS}.Regressor", FLAT, out_shape=(2,), **regress),
        model(f"{NETS}.Classifier", FLAT, classes=5, **regress),
        model(f"{NETS}.Critic", FLAT, **regress),
    ]


def _generation() -> list[Model]:
    diffusion = {
        "spatial_dims": 2,
        "in_channels": 1,
        "num_res_blocks": 1,
        "channels": (16, 24),
        "attention_levels": (False, True),
        "norm_num_groups": 4,
    }
    return [
        model(
            f"{NETS}.DiffusionModelUNet",
            feed(normal(1, 16, 16), whole(1000)),
            out_channels=1,
            num_head_channels=8,
            **diffusion,
        ),
        model(
            f"{NETS}.DiffusionModelUNet",
            feed(normal(1, 16, 16), whole(1000), normal(5, 12)),
            variant="conditioned",
            out_channels=1,
            num_head_channels=8,
            with_conditioning=True,
            cross_attention_dim=12,
            **diffusion,
        ),
        model(
            f"{NETS}.VQVAE",
            FLAT,
            2,
            1,
            1,
            channels=(12, 16),
            num_res_layers=1,
            num_res_channels=(12, 16),
            embedding_dim=8,
            downsample_parameters=((2, 4, 1, 1),) * 2,
            upsample_parameters=((2, 4, 1, 1, 0),) * 2,
        ),
        model(
            f"{NETS}.AutoEncoder",
            FLAT,
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            inter_channels=[12, 16],
            channels=(8, 12),
            strides=(2, 2),
        ),
        model(
            f"{NETS}.VarAutoEncoder",
            FLAT,
            spatial_dims=2,
            in_shape=(1, 32, 32),
            out_channels=1,
            latent_size=6,
            use_mean_at_inference=True,
            channels=(8, 12),
            strides=(2, 2),
        ),
        model(f"{NETS}.PatchDiscriminator", FLAT, spatial_dims=2, channels=8, in_channels=1, num_layers_d=2),
        model(
            f"{NETS}.Generator",
            feed(normal(10)),
            latent_shape=(10,),
            start_shape=(12, 4, 4),
            channels=(12, 8),
            strides=(2, 2),
        ),
        model(
            f"{NETS}.DecoderOnlyTransformer",
            feed(whole(30, 9)),
            num_tokens=30,
            max_seq_len=16,
            attn_layers_dim=32,
            attn_layers_depth=2,
            attn_layers_heads=4,
        ),
    ]
