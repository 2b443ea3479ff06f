"""Real architectures for the laws: small images, random parameters that leave no branch dead."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import timm
import torch
import torchvision.models as tv
from torch import Tensor, nn

import prunefn as pf

TORCHVISION = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "regnet_y_400mf", "shufflenet_v2_x0_5",
    "googlenet", "squeezenet1_1", "vgg11_bn", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t",
)  # fmt: skip
TIMM = ("deit_tiny_patch16_224", "convnext_atto", "resnet26d", "edgenext_xx_small", "mobilevit_xxs", "levit_128s")
NAMES = TORCHVISION + TIMM
SIDE = 64

torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention's fused kernel rounds differently


class Subject(NamedTuple):
    """A traced network."""

    model: nn.Module
    spec: pf.Spec
    params: pf.Params
    x: Tensor


def build(name: str) -> nn.Module:
    """The architecture for small images, in eval mode."""
    if name == "googlenet":
        return tv.googlenet(init_weights=False, aux_logits=False)
    if name == "vit_b_16":
        return tv.vit_b_16(image_size=SIDE)
    if name in TORCHVISION:
        return getattr(tv, name)()
    sized = name.startswith(("deit", "levit"))
    return timm.create_model(name, **({"img_size": SIDE} if sized else {}))


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Constant tensors (norms, layer scales, zero heads, running statistics) get values at which nothing is dead or trivial."""
    generator = torch.Generator().manual_seed(seed)
    running = [(n, t) for n, t in model.named_buffers() if "running" in n]
    for name, t in [*model.named_parameters(), *running]:
        if t.is_floating_point() and t.numel() > 1 and bool((t == t.flatten()[0]).all()):
            positive = t.ndim < 2 and name.endswith(("weight", "gamma", "var"))
            noise = (
                torch.rand(t.shape, generator=generator) + 0.5
                if positive
                else torch.randn(t.shape, generator=generator) * 0.2
            )
            t.detach().copy_(noise)
        elif t.is_floating_point() and t.ndim > 1:
            fan_in = t[0].numel()
            t.detach().copy_(torch.randn(t.shape, generator=generator) * (1.4 / fan_in**0.5))
    return model


@cache
def subject(name: str) -> Subject:
    """Built, randomised and traced once for all tests of a process."""
    torch.manual_seed(0)
    model = randomize(build(name), 1).eval().requires_grad_(False)
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    return Subject(model, pf.trace(model, (x,)), pf.params(model), x)


def random_mask(spec: pf.Spec, seed: int, keep: float = 0.5, groups: list[str] | None = None) -> pf.Mask:
    """About `keep` of the units of each group, at least one."""
    generator = torch.Generator().manual_seed(seed)
    mask = {}
    for name in spec.groups if groups is None else groups:
        n = spec.sizes[name]
        mask[name] = torch.rand(n, generator=generator).argsort() < max(1, round(keep * n))
    return mask


def double(params: pf.Params) -> pf.Params:
    """Floating tensors in float64."""
    return {n: t.double() if t.is_floating_point() else t for n, t in params.items()}
