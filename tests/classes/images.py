"""Networks of convolutions: skips, gates, coincidences of groups, shuffles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .case import Case, images


class UNet(nn.Module):
    """Skips that are concatenated; a list of widths."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 16)) -> None:
        super().__init__()
        self.widths = list(widths)
        a, b, c = widths
        self.down = nn.ModuleList([nn.Conv2d(3, a, 3, padding=1), nn.Conv2d(a, b, 3, 2, 1), nn.Conv2d(b, c, 3, 2, 1)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(c, b, 2, 2), nn.ConvTranspose2d(2 * b, a, 2, 2)])
        self.head = nn.Conv2d(2 * a, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for conv in self.down:
            x = conv(x).relu()
            skips.append(x)
        for up, skip in zip(self.up, skips[-2::-1], strict=True):
            x = torch.cat([up(x).relu(), skip], 1)
        return self.head(x)


class SqueezeExcite(nn.Module):
    def __init__(self, c: int = 16, r: int = 4) -> None:
        super().__init__()
        self.channels = c
        self.conv, self.fc = (
            nn.Conv2d(3, c, 3, padding=1),
            nn.Sequential(nn.Linear(c, c // r), nn.ReLU(), nn.Linear(c // r, c)),
        )
        self.out = nn.Conv2d(c, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, c, _, _ = x.size()
        y = self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).sigmoid().view(b, self.channels, 1, 1)
        return self.out(x * y.expand_as(x))


class GroupNormCoincidence(nn.Module):
    """A norm of 8 groups over frozen channels, beside heads of width 8."""

    class Attention(nn.Module):
        def __init__(self, d: int = 32, h: int = 4) -> None:
            super().__init__()
            self.h, self.norm = h, nn.GroupNorm(8, d)
            self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x.flatten(2)).transpose(1, 2)
            q, k, v = (f(y) for f in (self.q, self.k, self.v))
            e = k.shape[-1] // self.h
            q, k, v = (z.view(z.shape[0], -1, self.h, e).transpose(1, 2) for z in (q, k, v))
            o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return x + self.out(o).transpose(1, 2).reshape(x.shape)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 16, 3), nn.GroupNorm(8, 16), nn.Conv2d(16, 32, 3)
        self.attn = self.Attention()

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(self.b(self.n(self.a(x)).relu()))


class ConvCoincidence(nn.Module):
    """A grouped convolution whose number of groups equals the number of heads behind it."""

    def __init__(self, c: int = 16, g: int = 4) -> None:
        super().__init__()
        self.groups, self.heads = g, 4
        self.a, self.b = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1, groups=g)
        self.qk, self.v, self.out = nn.Conv2d(c, 2 * 4 * 6, 1), nn.Conv2d(c, 4 * 6, 1), nn.Conv2d(4 * 6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        b, _, h, w = x.shape
        q, k = self.qk(x).view(b, 2, self.heads, -1, h * w).unbind(1)
        v = self.v(x).view(b, self.heads, -1, h * w)
        y = v @ (q.transpose(-1, -2) @ k).softmax(-2)
        return self.out(y.reshape(b, -1, h, w))


class Shuffle(nn.Module):
    """ShuffleNet's shuffle, with its groups in an attribute."""

    def __init__(self, c: int = 12, g: int = 3) -> None:
        super().__init__()
        self.g = g
        self.a, self.b, self.c = nn.Conv2d(3, c, 1), nn.Conv2d(c, c, 1, groups=g), nn.Conv2d(c, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        b, c, h, w = x.shape
        return self.c(x.view(b, self.g, c // self.g, h, w).transpose(1, 2).reshape(b, c, h, w).relu())


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.up(self.a(x)).relu())


class Flat(nn.Module):
    """The classifier of a small image network, flattened by kept sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.out_ch, self.side = 8, 4
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8 * 4 * 4, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().view(-1, self.out_ch * self.side * self.side)
        return self.fc2(self.fc1(x).relu())


class FlatFeatures(nn.Module):
    """The same, with the product kept."""

    def __init__(self) -> None:
        super().__init__()
        self.num_flat = 8 * 4 * 4
        self.features, self.fc = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()), nn.Linear(self.num_flat, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).view(-1, self.num_flat))


class Unflat(nn.Module):
    """The generator of a GAN: the number of channels is in the Unflatten layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.unflat = nn.Linear(192, 8 * 4 * 4), nn.Unflatten(1, (8, 4, 4))
        self.up = nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.unflat(self.fc(x.flatten(1))).relu())


class CspSplit(nn.Module):
    """C2f of YOLO: chunks of kept width, concatenated."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.c = c
        self.cv1, self.m = nn.Conv2d(3, 2 * c, 1), nn.ModuleList([nn.Conv2d(c, c, 3, padding=1) for _ in range(2)])
        self.cv2 = nn.Conv2d(4 * c, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(m(y[-1]).relu() for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Depthwise(nn.Module):
    """Depthwise convolution by function, with kept groups."""

    def __init__(self, c: int = 12) -> None:
        super().__init__()
        self.groups, self.c = c, c
        self.a, self.weight, self.b = nn.Conv2d(3, c, 1), nn.Parameter(torch.randn(c, 1, 3, 3)), nn.Conv2d(c, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.conv2d(self.a(x), self.weight, padding=1, groups=self.groups).relu())


class LayerNorm2d(nn.Module):
    """ConvNeXt's norm: by function for one order of dims, by hand for the other."""

    class Norm(nn.Module):
        def __init__(self, c: int, data_format: str) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))
            self.data_format, self.normalized_shape = data_format, (c,)

        def forward(self, x: Tensor) -> Tensor:
            if self.data_format == "channels_last":
                return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-6)
            u = x.mean(1, keepdim=True)
            s = (x - u).pow(2).mean(1, keepdim=True)
            x = (x - u) / torch.sqrt(s + 1e-6)
            return self.weight[:, None, None] * x + self.bias[:, None, None]

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n1 = nn.Conv2d(3, 12, 2, 2), self.Norm(12, "channels_first")
        self.dw, self.n2 = nn.Conv2d(12, 12, 3, padding=1, groups=12), self.Norm(12, "channels_last")
        self.p1, self.p2, self.out = nn.Linear(12, 24), nn.Linear(24, 12), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n1(self.stem(x))
        y = self.p2(F.gelu(self.p1(self.n2(self.dw(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.out(x + y)


class Windows(nn.Module):
    """Windows of 4 x 4 beside 4 heads: the size of the window stays."""

    def __init__(self, c: int = 12, heads: int = 4, window: int = 4) -> None:
        super().__init__()
        self.heads, self.ws, self.hd = heads, window, 6
        self.inp, self.qkv, self.out = nn.Conv2d(3, c, 1), nn.Linear(c, 3 * heads * 6), nn.Linear(heads * 6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(self.inp(x), "b c (x s) (y t) -> (b x y) (s t) c", s=self.ws, t=self.ws)
        q, k, v = self.qkv(x).view(x.shape[0], -1, 3, self.heads, self.hd).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


class Inception(nn.Module):
    """Branches whose widths are kept in a dict, split again behind the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.cfg = {"b1": 8, "b3": 12}
        self.b1, self.b3 = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 12, 3, padding=1)
        self.o1, self.o3 = nn.Conv2d(8, 2, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(torch.cat([self.b1(x), self.b3(x)], 1))
        a, b = torch.split(y, [self.cfg["b1"], self.cfg["b3"]], 1)
        return self.o1(a) + self.o3(b)


class Correlation(nn.Module):
    """RAFT's correlation, divided by the root of the width of the features."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.f, self.g = (
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, c, 1)),
            nn.Conv2d(64, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.f(x).flatten(2)
        y = a.transpose(1, 2) @ a / torch.sqrt(torch.tensor(a.shape[1], dtype=x.dtype))
        return self.g(y.view(x.shape[0], 64, 8, 8))


CASES = [
    Case(cls, images())
    for cls in (
        UNet, SqueezeExcite, GroupNormCoincidence, ConvCoincidence, Shuffle, PixelShuffle, Flat, FlatFeatures, Unflat,
        CspSplit, Depthwise, LayerNorm2d, Windows, Inception, Correlation,
    )
]  # fmt: skip
