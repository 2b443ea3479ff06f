"""Networks for small images, of classes of torchvision and timm; the ready configs and the course train them.

>>> import torch
>>> import prunefn as pf
>>> pf.cost(pf.trace(small_resnet18(), (torch.randn(1, 3, 32, 32),))).macs / 1e9
0.55542272
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ._extras import needs
from .doors import door
from .errors import PruneError

__all__ = ["small_resnet", "small_resnet18", "small_vit"]

STAGES = 4
"""Stages of torchvision's ResNet."""


@door
def small_resnet(
    num_classes: int = 10, in_chans: int = 1, widths: Sequence[int] = (32, 64), depth: int = 2
) -> nn.Module:
    """Return torchvision's ResNet with basic blocks and a stem for small images: 3 × 3, stride 1, no pooling.

    Args:
        num_classes: number of outputs.
        in_chans: channels of an image.
        widths: channels of each stage, one to four; from the second on, a stage halves the resolution.
        depth: number of blocks of a stage.

    Raises:
        PruneError: there is no stage, or more than four.

    >>> network = small_resnet(widths=(8, 16))
    >>> network.layer2[0].conv1, network.fc.in_features
    (Conv2d(8, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False), 16)
    """
    if not 1 <= len(widths) <= STAGES:
        raise PruneError(f"widths={tuple(widths)}: give the channels of one to {STAGES} stages")
    with needs("vision", "small_resnet"):
        from torchvision.models import ResNet
        from torchvision.models.resnet import BasicBlock
    model = ResNet(BasicBlock, [depth] * STAGES, num_classes=num_classes)
    model.inplanes = widths[0]
    model.conv1 = nn.Conv2d(in_chans, widths[0], kernel_size=3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(widths[0])
    model.maxpool = nn.Identity()  # type: ignore[assignment]
    for i in range(STAGES):
        stage = (
            model._make_layer(BasicBlock, widths[i], depth, 1 if i == 0 else 2) if i < len(widths) else nn.Identity()
        )
        setattr(model, f"layer{i + 1}", stage)
    model.fc = nn.Linear(widths[-1], num_classes)
    return model


@door
def small_resnet18(num_classes: int = 10, in_chans: int = 3, width: int = 64) -> nn.Module:
    """Return a ResNet-18 with a stem for small images: 3 × 3, stride 1, no pooling (He et al., CVPR 2016, as usual for CIFAR-10).

    Args:
        num_classes: size of the output.
        in_chans: channels of an image.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
    """
    return small_resnet(num_classes, in_chans, [width << i for i in range(STAGES)], depth=2)


@door
def small_vit(
    num_classes: int = 10,
    in_chans: int = 1,
    img_size: int = 8,
    patch_size: int = 2,
    dim: int = 32,
    depth: int = 3,
    heads: int = 4,
    mlp_ratio: float = 4.0,
) -> nn.Module:
    """Return timm's VisionTransformer in DeiT's shape, small: a class token, pre-norm blocks, one projection for q, k and v.

    Args:
        num_classes: number of outputs.
        in_chans: channels of an image.
        img_size: pixels of a side of an image.
        patch_size: pixels of a side of the patch that becomes a token.
        dim: width of the residual stream; `heads` must divide it.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_ratio: hidden width of the MLPs as a multiple of `dim`.

    >>> small_vit(depth=1).blocks[0].mlp.fc1
    Linear(in_features=32, out_features=128, bias=True)
    """
    with needs("vision", "small_vit"):
        from timm.models.vision_transformer import VisionTransformer
    return VisionTransformer(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio,
    )


def __dir__() -> list[str]:
    return __all__
