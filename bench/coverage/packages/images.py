"""segmentation_models_pytorch, vit-pytorch, spandrel, kornia, ultralytics: what sees images."""

from __future__ import annotations

from functools import partial

from torch import nn

from .base import Model, feed, model, normal, uniform

PHOTO = feed(normal(3, 64, 64))
SMALL = feed(uniform(3, 16, 16))


def models() -> list[Model]:
    """Segmentation, classification, restoration, local features, detection."""
    return [*_segmentation(), *_transformers(), *_restoration(), *_features(), *_detection()]


def _segmentation() -> list[Model]:
    smp = partial(model, encoder_weights=None, classes=3)
    few = {"decoder_channels": (40, 32, 24, 16, 12)}
    name = "segmentation_models_pytorch"
    return [
        smp(f"{name}.Unet", PHOTO, encoder_name="resnet18", **few),
        smp(
            f"{name}.Unet",
            PHOTO,
            variant="scse",
            encoder_name="efficientnet-b0",
            decoder_attention_type="scse",
            decoder_channels=(48, 40, 32, 24, 16),
        ),
        smp(f"{name}.UnetPlusPlus", PHOTO, encoder_name="mobilenet_v2", **few),
        smp(f"{name}.MAnet", PHOTO, encoder_name="resnet18", **few),
        smp(f"{name}.Linknet", PHOTO, encoder_name="timm-regnety_002"),
        smp(
            f"{name}.FPN", PHOTO, encoder_name="resnet18", decoder_pyramid_channels=32, decoder_segmentation_channels=32
        ),
        smp(f"{name}.PSPNet", PHOTO, encoder_name="vgg11", psp_out_channels=48),
        smp(f"{name}.DeepLabV3", PHOTO, encoder_name="resnet18", decoder_channels=24),
        smp(f"{name}.DeepLabV3Plus", PHOTO, encoder_name="mobilenet_v2", decoder_channels=24),
        smp(f"{name}.PAN", feed(normal(3, 128, 128)), encoder_name="resnet18", decoder_channels=16),
        smp(f"{name}.UPerNet", PHOTO, encoder_name="resnet18", decoder_channels=32),
        smp(f"{name}.Segformer", PHOTO, encoder_name="mit_b0", decoder_segmentation_channels=48),
    ]


def _transformers() -> list[Model]:
    vit = {
        "image_size": 32,
        "patch_size": 8,
        "num_classes": 5,
        "dim": 48,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 80,
        "dim_head": 16,
    }
    little = {"num_classes": 5, "dim": 16, "depth": (1, 1), "dim_head": 8}
    image = feed(normal(3, 32, 32))
    of = partial(model)
    return [
        of("vit_pytorch.ViT", image, **vit),
        of("vit_pytorch.SimpleViT", image, **vit),
        of("vit_pytorch.deepvit.DeepViT", image, **vit),
        of("vit_pytorch.cait.CaiT", image, cls_depth=1, **vit),
        of("vit_pytorch.xcit.XCiT", image, cls_depth=1, **vit),
        of("vit_pytorch.rvt.RvT", image, **vit),
        of("vit_pytorch.parallel_vit.ViT", image, variant="parallel", **vit),
        of("vit_pytorch.vit_for_small_dataset.ViT", image, variant="small data", **vit),
        of("vit_pytorch.simple_uvit.SimpleUViT", image, **vit),
        of(
            "vit_pytorch.t2t.T2TViT",
            image,
            image_size=32,
            num_classes=5,
            dim=48,
            depth=2,
            heads=4,
            mlp_dim=80,
            dim_head=16,
            t2t_layers=((7, 4), (3, 2)),
        ),
        of(
            "vit_pytorch.cct.CCT",
            image,
            img_size=32,
            embedding_dim=48,
            num_layers=2,
            num_heads=4,
            mlp_ratio=2,
            num_classes=5,
        ),
        of(
            "vit_pytorch.cross_vit.CrossViT",
            image,
            image_size=32,
            num_classes=5,
            sm_dim=24,
            lg_dim=32,
            sm_patch_size=4,
            sm_enc_heads=2,
            sm_enc_mlp_dim=40,
            sm_enc_dim_head=8,
            lg_patch_size=8,
            lg_enc_depth=1,
            lg_enc_heads=2,
            lg_enc_mlp_dim=48,
            lg_enc_dim_head=8,
            cross_attn_heads=2,
            cross_attn_dim_head=8,
            depth=1,
        ),
        of(
            "vit_pytorch.pit.PiT",
            image,
            image_size=32,
            patch_size=8,
            num_classes=5,
            dim=32,
            depth=(1, 1),
            heads=2,
            mlp_dim=48,
            dim_head=8,
        ),
        of(
            "vit_pytorch.levit.LeViT",
            feed(normal(3, 64, 64)),
            image_size=64,
            num_classes=5,
            dim=(24, 32),
            stages=2,
            depth=1,
            heads=(2, 4),
            mlp_mult=2,
            dim_key=8,
            dim_value=12,
        ),
        of(
            "vit_pytorch.cvt.CvT",
            feed(normal(3, 64, 64)),
            num_classes=5,
            s1_emb_dim=16,
            s2_emb_dim=24,
            s2_heads=2,
            s2_depth=1,
            s3_emb_dim=32,
            s3_heads=2,
            s3_depth=1,
        ),
        of("vit_pytorch.sep_vit.SepViT", feed(normal(3, 56, 56)), heads=(2, 2), **little),
        of("vit_pytorch.max_vit.MaxViT", image, window_size=4, **little),
        of(
            "vit_pytorch.nest.NesT",
            image,
            image_size=32,
            patch_size=4,
            num_classes=5,
            dim=24,
            heads=2,
            num_hierarchies=2,
            block_repeats=(1, 1),
            dim_head=8,
        ),
        of(
            "vit_pytorch.mobile_vit.MobileViT",
            feed(normal(3, 64, 64)),
            (64, 64),
            [32, 40, 48],
            [8, 12, 16, 16, 20, 20, 24, 24, 28, 28, 40],
            5,
            depths=(1, 1, 1),
        ),
        of(
            "vit_pytorch.scalable_vit.ScalableViT",
            image,
            num_classes=5,
            dim=16,
            depth=(1, 1),
            heads=(2, 2),
            reduction_factor=(2, 1),
            window_size=(4, 4),
            iwsa_dim_key=8,
            iwsa_dim_value=8,
            ssa_dim_key=8,
            ssa_dim_value=8,
        ),
    ]


def _restoration() -> list[Model]:
    at = "spandrel.architectures"
    swin = {
        "img_size": 16,
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 4,
        "mlp_ratio": 2.0,
        "upscale": 2,
        "upsampler": "pixelshuffle",
    }
    windows = {"img_size": 16, "embed_dim": 24, "depth": [2, 2], "num_heads": [2, 2], "upscale": 2}
    return [
        model(f"{at}.ESRGAN.__arch.RRDB.RRDBNet", SMALL, in_nc=3, out_nc=3, num_filters=16, num_blocks=2, scale=2),
        model(f"{at}.Compact.__arch.SRVGG.SRVGGNetCompact", SMALL, num_feat=16, num_conv=3, upscale=2),
        model(f"{at}.SwinIR.SwinIR", SMALL, **swin),
        model(f"{at}.HAT.HAT", SMALL, squeeze_factor=4, num_feat=16, **swin),
        model(f"{at}.DRCT.DRCT", SMALL, gc=8, **swin),
        model(f"{at}.ATD.ATD", SMALL, category_size=32, num_tokens=8, **swin),
        model(f"{at}.DAT.DAT", SMALL, split_size=[4, 4], **windows),
        model(f"{at}.RGT.RGT", SMALL, split_size=[4, 4], **windows),
        model(f"{at}.OmniSR.OmniSR", SMALL, num_feat=16, window_size=8, up_scale=2),
        model(f"{at}.SPAN.SPAN", SMALL, num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=2),
        model(f"{at}.NAFNet.NAFNet", SMALL, width=12, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]),
        model(f"{at}.SCUNet.SCUNet", feed(uniform(3, 64, 64)), config=[1] * 7, dim=64),
        model(f"{at}.PLKSR.PLKSR", SMALL, dim=16, n_blocks=2, upscaling_factor=2, kernel_size=7),
        model(f"{at}.SAFMN.SAFMN", SMALL, dim=16, n_blocks=2, upscaling_factor=2),
        model(f"{at}.RCAN.RCAN", SMALL, scale=2, n_resgroups=2, n_resblocks=2, n_feats=16, reduction=4),
        model(f"{at}.FBCNN.FBCNN", SMALL, nc=[8, 12, 16, 512], nb=1),
    ]


def _features() -> list[Model]:
    patch = feed(normal(1, 32, 32))
    return [
        model("kornia.feature.HardNet", patch, pretrained=False),
        model("kornia.feature.SOSNet", patch, pretrained=False),
        model("kornia.feature.HyNet", patch, pretrained=False),
        model("kornia.feature.TFeat", patch, pretrained=False),
        model("kornia.feature.XFeatModel", feed(normal(1, 64, 64))),
        model(
            "kornia.models.vit.VisionTransformer",
            feed(normal(3, 32, 32)),
            image_size=32,
            patch_size=8,
            embed_dim=48,
            depth=2,
            num_heads=4,
        ),
        model("kornia.models.vit_mobile.MobileViT", feed(normal(3, 256, 256)), mode="xxs"),
        model("kornia.models.dexined.DexiNed", PHOTO, pretrained=False),
    ]


def _detection() -> list[Model]:
    return [_yolo(n) for n in ("yolov5n", "yolov9t", "yolov10n", "yolo12n", "yolo11n-obb")]


def _yolo(name: str) -> Model:
    return model("bench.coverage.packages.images.ultralytics", feed(uniform(3, 96, 96)), name)._replace(
        name=f"ultralytics.{name}"
    )


def ultralytics(name: str) -> nn.Module:
    """The network of a YOLO from its YAML."""
    from ultralytics import YOLO  # type: ignore[import-not-found]

    return YOLO(f"{name}.yaml", verbose=False).model
