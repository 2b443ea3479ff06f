"""Images in, images or densities out: diffusion, adversaries, super-resolution, flows, radiance fields, segmentation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ..toys.base import Case, images


class TimeBlock(nn.Module):
    """A residual block of a diffusion model: the step's embedding is added between its convolutions."""

    def __init__(self, i: int, o: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, i), nn.Conv2d(i, o, 3, padding=1)
        self.time = nn.Linear(time, o)
        self.norm2, self.conv2 = nn.GroupNorm(2, o), nn.Conv2d(o, o, 3, padding=1)
        self.skip = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class DiffusionUNet(nn.Module):
    """Down, middle, up with concatenated skips; sines of the step, embedded by an MLP."""

    def __init__(self, width: int = 8, time: int = 8) -> None:
        super().__init__()
        self.half = time // 2
        self.embed = nn.Sequential(nn.Linear(time, 12), nn.SiLU(), nn.Linear(12, 12))
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.down1, self.down2 = TimeBlock(width, width, 12), TimeBlock(width, 2 * width, 12)
        self.shrink = nn.Conv2d(width, width, 3, 2, 1)
        self.middle = TimeBlock(2 * width, 2 * width, 12)
        self.up = TimeBlock(3 * width, width, 12)
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rates = torch.exp(-math.log(100) * torch.arange(self.half, dtype=x.dtype) / self.half)
        angles = t[:, None] * rates
        t = self.embed(torch.cat([angles.sin(), angles.cos()], -1))
        first = self.down1(self.enter(x), t)
        y = self.middle(self.down2(self.shrink(first), t), t)
        y = F.interpolate(y, scale_factor=2.0, mode="nearest")
        return self.leave(F.silu(self.up(torch.cat([y, first], 1), t)))


class Pyramid(nn.Module):
    """Segmentation by parallel dilated convolutions and a pooled branch, joined with early features."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(width, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.branches = nn.ModuleList([nn.Conv2d(8, 4, 3, padding=d, dilation=d) for d in (1, 2)])
        self.pooled, self.project = nn.Conv2d(8, 4, 1), nn.Conv2d(12, 6, 1)
        self.early, self.classes = nn.Conv2d(width, 3, 1), nn.Conv2d(9, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        deep = self.deep(low)
        whole = self.pooled(F.adaptive_avg_pool2d(deep, 1)).expand(-1, -1, *deep.shape[-2:])
        y = self.project(torch.cat([*(b(deep).relu() for b in self.branches), whole], 1)).relu()
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear")
        return self.classes(torch.cat([y, self.early(low).relu()], 1))


def twice(i: int, o: int) -> nn.Sequential:
    """Two convolutions with norms."""
    layers = [(nn.Conv2d(a, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for a in (i, o)]
    return nn.Sequential(*(module for three in layers for module in three))


class UNet(nn.Module):
    """Segmentation: two levels down and up; what a level had on the way down is concatenated or added on the way up."""

    def __init__(self, added: bool, width: int = 4) -> None:
        super().__init__()
        self.added, w = added, (width, 6, 8)
        self.down = nn.ModuleList([twice(3, w[0]), twice(w[0], w[1])])
        self.middle = twice(w[1], w[2])
        self.ups = nn.ModuleList([nn.ConvTranspose2d(w[2], w[1], 2, 2), nn.ConvTranspose2d(w[1], w[0], 2, 2)])
        times = 1 if added else 2
        self.joined = nn.ModuleList([twice(times * w[1], w[1]), twice(times * w[0], w[0])])
        self.classes = nn.Conv2d(w[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down:
            skips.append(level(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.middle(x)
        for up, joined, skip in zip(self.ups, self.joined, reversed(skips), strict=True):
            x = up(x)
            x = joined(x + skip if self.added else torch.cat([skip, x], 1))
        return self.classes(x)


class Critic(nn.Module):
    """A discriminator whose weights are divided by their largest singular values."""

    def __init__(self) -> None:
        super().__init__()
        self.a = spectral_norm(nn.Conv2d(3, 6, 3, 2, 1))
        self.b = nn.Conv2d(6, 8, 3, 2, 1)
        self.c = spectral_norm(nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.b(F.leaky_relu(self.a(x), 0.2)), 0.2)
        return self.c(y.sum((2, 3)))


class SuperResolution(nn.Module):
    """Residual blocks with a scale, a global skip, and channels that become pixels."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(width, 8, 3, padding=1), nn.Conv2d(8, width, 3, padding=1)]) for _ in range(2)]
        )
        self.up, self.leave = nn.Conv2d(width, 4 * width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = first = self.enter(x)
        for a, b in self.body:
            y = y + 0.1 * b(a(y).relu())
        return self.leave(F.pixel_shuffle(self.up(y + first), 2))


class Coupling(nn.Module):
    """A normalising flow: each half is scaled and shifted by a function of the other."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            [nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 6)) for _ in range(2)]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        density = 0
        for net in self.nets:
            a, b = x.chunk(2, -1)
            scale, shift = net(a).chunk(2, -1)
            x, density = torch.cat([b * scale.tanh().exp() + shift, a], -1), density + scale.tanh().sum(-1)
        return x, density


class RadianceField(nn.Module):
    """Positions as sines, a skip that concatenates them again, and a colour that sees the direction."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.ModuleList([nn.Linear(15, width), nn.Linear(width, width)])
        self.second = nn.ModuleList([nn.Linear(width + 15, width), nn.Linear(width, width)])
        self.density, self.feature = nn.Linear(width, 1), nn.Linear(width, width)
        self.colour = nn.Sequential(nn.Linear(width + 3, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor, view: Tensor) -> Tensor:
        sines = torch.cat([x, *(f(2.0**i * x) for i in range(2) for f in (torch.sin, torch.cos))], -1)
        y = sines
        for layer in self.first:
            y = layer(y).relu()
        y = torch.cat([sines, y], -1)
        for layer in self.second:
            y = layer(y).relu()
        return torch.cat([self.colour(torch.cat([self.feature(y), view], -1)), self.density(y).relu()], -1)


class Modulated(nn.Module):
    """Features that are scaled and shifted by what a condition says."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width, affine=False)
        self.film, self.conv = nn.Linear(5, 2 * width), nn.Conv2d(width, 7, 3, padding=1)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
        y = (self.norm(self.enter(x)) * (1 + scale) + shift).relu()
        return self.head(self.conv(y).relu().mean((2, 3)))


CASES = {
    "diffusion_unet": Case(DiffusionUNet, lambda n: (torch.randn(n, 3, 8, 8), torch.rand(n) * 10)),
    "pyramid": Case(Pyramid, images),
    "unet_concatenated": Case(lambda: UNet(added=False), images),
    "unet_added": Case(lambda: UNet(added=True), images),
    "critic": Case(Critic, images),
    "super_resolution": Case(SuperResolution, images),
    "coupling": Case(Coupling, lambda n: (torch.randn(n, 6),)),
    "radiance_field": Case(RadianceField, lambda n: (torch.randn(n, 3), torch.randn(n, 3))),
    "modulated": Case(Modulated, lambda n: (torch.randn(n, 3, 8, 8), torch.randn(n, 5))),
}
