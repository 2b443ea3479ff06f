"""Networks of timm and torchvision for 28 × 28 grey images and one CPU core: four that train in an hour, two in minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import MobileNetV2

from prunefn.nets import small_resnet18

CACHE = Path(__file__).parent.parent / "cache" / "retention"
CLASSES = 10


class Loaded(NamedTuple):
    """A trained network in eval mode and its top-1 on the test images, from 0 to 1."""

    model: nn.Module
    accuracy: float


def vit() -> nn.Module:
    """DeiT's shape (pre-norm, class token, qkv bias, MLP of 4 × width): 49 tokens, six blocks, three heads of 24."""
    return VisionTransformer(
        img_size=28, patch_size=4, in_chans=1, num_classes=CLASSES, embed_dim=72, depth=6, num_heads=3, qkv_bias=True
    )


def convnext() -> nn.Module:
    """ConvNeXt's stages 1 : 1 : 3 : 1 at a third of the tiny's width.

    The stem reads patches of 2 × 2 of the image padded to 32 × 32; the maps are 16, 8, 4 and 2 wide. Layer scale starts at
    .1, as is usual for so few blocks and epochs.
    """
    widths = (32, 64, 128, 256)
    model = ConvNeXt(in_chans=1, num_classes=CLASSES, depths=(1, 1, 3, 1), dims=widths, ls_init_value=0.1)
    model.stem[0] = nn.Conv2d(1, widths[0], kernel_size=2, stride=2, padding=2)
    return model


def resnet() -> nn.Module:
    """torchvision's ResNet-18 at a quarter of the width, with the stem for small images: 3 × 3, stride 1, no pooling."""
    return small_resnet18(CLASSES, in_chans=1, width=16)


def mobilenet_v2() -> nn.Module:
    """torchvision's MobileNetV2 at half of the width; the stem has the original stride, the second stage has stride 1."""
    stages = [
        [1, 16, 1, 1],
        [6, 24, 2, 1],  # stride 2 in the original
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    model = MobileNetV2(num_classes=CLASSES, width_mult=0.5, inverted_residual_setting=stages)
    model.features[0][0] = nn.Conv2d(1, 16, kernel_size=3, stride=2, padding=1, bias=False)
    return model


def small_resnet() -> nn.Module:
    """`resnet` with a stem of stride 2: a quarter of its MACs."""
    model = small_resnet18(CLASSES, in_chans=1, width=16)
    model.conv1 = nn.Conv2d(1, 16, kernel_size=3, stride=2, padding=1, bias=False)
    return model


def small_vit() -> nn.Module:
    """DeiT's shape: 17 tokens, four blocks, four heads of 16."""
    return VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, num_classes=CLASSES, embed_dim=64, depth=4, num_heads=4
    )


LARGE = (resnet, vit, convnext, mobilenet_v2)
SMALL = (small_resnet, small_vit)
NETWORKS: dict[str, Callable[[], nn.Module]] = {f.__name__: f for f in (*LARGE, *SMALL)}


def cached(name: str) -> Path:
    """Where the weights of a network lie, or will lie."""
    return CACHE / f"{name}.safetensors"


def load(name: str) -> Loaded:
    """A network with its trained weights.

    Raises:
        SystemExit: unknown, or not trained yet; says the command.
    """
    if name not in NETWORKS:
        raise SystemExit(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    if not cached(name).exists():
        raise SystemExit(f"{name} is not trained yet: python -m bench.retention.train --only {name}")
    model = NETWORKS[name]().eval()
    with safe_open(cached(name), "pt") as file:
        model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        return Loaded(model, float(file.metadata()["accuracy"]))
