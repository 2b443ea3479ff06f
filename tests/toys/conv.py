"""Convolutions and shuffles of channels and pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Case, images, vectors


class Residual(nn.Module):
    """A stream that two blocks add to, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down1, self.norm1, self.up1 = (
            nn.Conv2d(8, 5, 1, bias=False),
            nn.BatchNorm2d(5),
            nn.Conv2d(5, 8, 3, padding=1),
        )
        self.down2, self.up2 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.up1(F.relu(self.norm1(self.down1(x))))
        x = F.relu(x + self.up2(F.gelu(self.down2(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Concat(nn.Module):
    """Two branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


class CatTwice(nn.Module):
    """One value stands twice in a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(self.norm(torch.cat([x, x], 1)).relu())


class C2f(nn.Module):
    """YOLO's block: one half goes through a chain, and all steps are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 1)
        self.steps = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.leave = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.enter(x).chunk(2, 1))
        for step in self.steps:
            y.append(y[-1] + step(y[-1]).relu())
        return self.leave(torch.cat(y, 1))


class Dense(nn.Module):
    """DenseNet: each layer sees all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(3 + 4 * i), nn.ReLU(), nn.Conv2d(3 + 4 * i, 4, 3, padding=1)) for i in range(3)
        )
        self.head = nn.Conv2d(15, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x)


class SplitUnequal(nn.Module):
    """A dim is split into parts of different sizes, each with its own consumer; the third is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 10), nn.Linear(3, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right, _ = self.a(x).split([3, 5, 2], -1)
        return self.b(left.relu()) * self.c(right)


class Ghost(nn.Module):
    """GhostNet: cheap features are concatenated, and what is too much is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap, self.head = (
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.Conv2d(10, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return self.head(torch.cat([x, self.cheap(x)], 1)[:, :10])


class FlattenHW(nn.Module):
    """Flatten with more than one pixel: each channel is a run of columns of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6 * 2 * 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


class GroupedConv(nn.Module):
    """ResNeXt: a convolution in groups between two dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.norm, self.b = (
            nn.Conv2d(3, 12, 1),
            nn.Conv2d(12, 6, 3, padding=1, groups=3),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.g(self.a(x).relu())).relu())


class DepthwiseConv(nn.Module):
    """MobileNetV2: expand, depthwise, project; a depthwise multiplier as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.dw, self.project = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 4, 1),
        )
        self.multiply, self.head = nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(F.relu6(self.dw(F.relu6(self.expand(x)))))
        return self.head(self.multiply(x).relu())


class ConvTranspose(nn.Module):
    """A decoder, dense or grouped."""

    def __init__(self, groups: int = 1, mid: int = 6) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, mid, 3, stride=2, padding=1, output_padding=1, groups=groups)
        self.norm, self.b = nn.BatchNorm2d(mid), nn.Conv2d(mid, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.up(self.a(x).relu())).relu())


class DepthwiseTranspose(nn.Module):
    """A depthwise transposed convolution whose result is added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b = (
            nn.Conv2d(3, 4, 1),
            nn.ConvTranspose2d(4, 4, 3, padding=1, groups=4),
            nn.Conv2d(4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x + self.up(x))


class UNet(nn.Module):
    """Pool, upsample, and join the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Conv2d(10, 2, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        y = F.interpolate(self.inner(F.max_pool2d(x, 2)), scale_factor=2, mode="bilinear")
        return self.leave(torch.cat([y, x], 1))


class Conv1d3d(nn.Module):
    """Convolutions of other ranks, with `same` padding, stride and dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 6, 3, padding="same", dilation=2), nn.Conv1d(6, 4, 2, stride=2, bias=False)
        self.c, self.d = nn.Conv3d(4, 5, (1, 2, 2), padding=(0, 1, 1)), nn.Conv3d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        return self.d(self.c(x[:, :, :, None, None]).relu())


class SingleChannel(nn.Module):
    """Axes of size one are no groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 1, 1), nn.Conv2d(1, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x).relu()).sigmoid()).relu())


class SqueezeExcite(nn.Module):
    """A gate computed from pooled channels multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.reduce, self.expand, self.b = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(4, 8, 1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid())


class WeightStandardised(nn.Module):
    """The weight that convolves is computed from the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gain = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3), nn.Parameter(torch.ones(6, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        w = self.a.weight
        mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True)
        return self.b(F.conv2d(x, (w - mean) / (var + 1e-5).sqrt() * self.gain, self.a.bias).relu())


class ChannelShuffle(nn.Module):
    """ShuffleNet: groups and channels change places, by reshape or by the op."""

    def __init__(self, op: bool = False) -> None:
        super().__init__()
        self.op = op
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        if self.op:
            return self.b(F.channel_shuffle(x, 2))
        n, c, h, w = x.shape
        return self.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3 * 4, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.pixel_shuffle(self.a(x), 2).relu())


class PixelUnshuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5 * 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.pixel_unshuffle(self.a(x).relu(), 2))


class SpatialGate(nn.Module):
    """CBAM: the mean and the largest over channels make a map that multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.map, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x * self.map(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)).sigmoid())


class ChannelConv(nn.Module):
    """ECA: a convolution runs along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.along, self.b = nn.Conv2d(3, 8, 1), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x * self.along(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None])


class SplitAttention(nn.Module):
    """ResNeSt: a softmax over branches, which lie beside the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.radix, self.gate = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.Conv2d(4, 8, 1)
        self.b = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.radix(self.a(x)).relu()
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w)
        gate = self.gate(x.sum(1).mean((2, 3), keepdim=True))
        return self.b((x * gate.view(n, 2, c // 2, 1, 1).softmax(1)).sum(1))


class MixedGroups(nn.Module):
    """Concatenation, group norm and a grouped convolution cut the same channels in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.GroupNorm(6, 12)
        self.g, self.head = nn.Conv2d(12, 6, 1, groups=3), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.g(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu()).relu())


class FoldedChannels(nn.Module):
    """Channels go into the batch and back: sizes are products of the symbolic batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.each, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        y = self.each(x.view(n * c, 1, h, w)) + torch.zeros(n * c, 1, h, w, dtype=x.dtype)
        return self.b(y.view(n, c, h, w))


class LastChannels(nn.Module):
    """Channels last: a layer norm per pixel, then flatten with the channels inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3), nn.LayerNorm(6), nn.Linear(2 * 3 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x).permute(0, 2, 3, 1)).reshape(x.shape[0], -1))


class Unfold(nn.Module):
    """A convolution by hand: windows times a matrix, and windows put back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.weight, self.b = nn.Conv2d(3, 4, 1), nn.Parameter(torch.zeros(5 * 9, 4 * 9)), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(self.a(x).relu(), 3, padding=1)
        return self.b(F.fold(self.weight @ windows, x.shape[-2:], 3, padding=1).relu())


class Unpool(nn.Module):
    """SegNet: where the largest stood is remembered, and used by other channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mid, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, where = F.max_pool2d(self.a(x), 2, return_indices=True)
        return self.b(F.max_unpool2d(self.mid(y), where, 2))


class ScaledStandardised(nn.Module):
    """NFNet: a batch norm, in training mode, standardises the rows of the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gain = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 6, 3), nn.Parameter(torch.ones(6))
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        w = self.b.weight
        w = F.batch_norm(w.reshape(1, 6, -1), None, None, self.gain, training=True, momentum=0.0, eps=1e-6).reshape_as(
            w
        )
        return self.head(F.conv2d(self.a(x).relu(), w, self.b.bias).relu())


class ResponseNorm(nn.Module):
    """ConvNeXt V2: each channel's norm over space, divided by the mean over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.gain, self.bias = nn.Parameter(torch.zeros(1, 6, 1, 1)), nn.Parameter(torch.zeros(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        norm = x.norm(p=2, dim=(2, 3), keepdim=True)
        return self.b(x + self.gain * (x * norm / (norm.mean(1, keepdim=True) + 1e-6)) + self.bias)


class DynamicConv(nn.Module):
    """CondConv: every sample has its own weights, and the batch becomes groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.route, self.experts = nn.Conv2d(3, 4, 1), nn.Linear(4, 3), nn.Parameter(torch.zeros(3, 5 * 4 * 9))
        self.b = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        weight = self.route(x.mean((2, 3))).softmax(-1) @ self.experts
        y = F.conv2d(x.reshape(1, n * c, h, w), weight.view(n * 5, c, 3, 3), padding=1, groups=n)
        return self.b(y.view(n, 5, h, w))


CASES = {
    "residual": Case(Residual, images),
    "concat": Case(Concat, images),
    "cat_twice": Case(CatTwice, images),
    "c2f": Case(C2f, images),
    "dense": Case(Dense, images),
    "split_unequal": Case(SplitUnequal, vectors),
    "ghost": Case(Ghost, images),
    "flatten_hw": Case(FlattenHW, lambda n: (torch.randn(n, 3, 4, 5),)),
    "grouped_conv": Case(GroupedConv, images),
    "depthwise_conv": Case(DepthwiseConv, images),
    "conv_transpose": Case(ConvTranspose, images),
    "conv_transpose_grouped": Case(lambda: ConvTranspose(groups=2), images),
    "depthwise_transpose": Case(DepthwiseTranspose, images),
    "unet": Case(UNet, images),
    "conv1d_3d": Case(Conv1d3d, lambda n: (torch.randn(n, 2, 8),)),
    "single_channel": Case(SingleChannel, lambda n: (torch.randn(n, 1, 6, 6),)),
    "squeeze_excite": Case(SqueezeExcite, images),
    "weight_standardised": Case(WeightStandardised, images),
    "shuffle_reshape": Case(ChannelShuffle, images),
    "shuffle_op": Case(lambda: ChannelShuffle(op=True), images),
    "pixel_shuffle": Case(PixelShuffle, images),
    "pixel_unshuffle": Case(PixelUnshuffle, images),
    "spatial_gate": Case(SpatialGate, images),
    "channel_conv": Case(ChannelConv, images),
    "split_attention": Case(SplitAttention, images),
    "mixed_groups": Case(MixedGroups, images),
    "folded_channels": Case(FoldedChannels, images),
    "last_channels": Case(LastChannels, lambda n: (torch.randn(n, 3, 4, 5),)),
    "unfold": Case(Unfold, images),
    "unpool": Case(Unpool, images),
    "scaled_standardised": Case(ScaledStandardised, images),
    "response_norm": Case(ResponseNorm, images),
    "dynamic_conv": Case(DynamicConv, images),
}
