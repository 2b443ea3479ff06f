"""Blocks of images [b, c, h, w]."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layers, activation, divisor, norm, some


class Conv(NamedTuple):
    """A convolution, dense, grouped or depthwise (groups = 0), a norm and an activation."""

    width: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    norm: str = "none"
    act: str = "relu"
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        stride = self.stride if min(h, w) >= 4 else 1
        groups = divisor(self.groups, c, self.width)
        return {
            "conv": nn.Conv2d(c, self.width, self.kernel, stride, self.kernel // 2, groups=groups),
            "norm": norm(self.norm, self.width, "image"),
            "act": activation(self.act, self.width, "image"),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        return m.act(m.norm(m.conv(x)))

    def expects(self, *shape: int) -> dict[str, int]:
        return {}


class Up(NamedTuple):
    """A transposed convolution that doubles the image while it is small."""

    width: int
    groups: int = 1
    bias: bool = True
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        stride, groups = 2 if max(h, w) <= 4 else 1, divisor(self.groups, c, self.width)
        return {
            "conv": nn.ConvTranspose2d(c, self.width, 3, stride, 1, stride - 1, groups, self.bias),
            "leave": nn.Conv2d(self.width, self.width, 1),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        return m.leave(m.conv(x).relu())

    def expects(self, c: int, *space: int) -> dict[str, int]:
        return some(conv=self.width) if divisor(self.groups, c, self.width) == 1 else {}


class Residual(NamedTuple):
    """A bottleneck that is added to its input (width = 0) or to a projection, scaled by a gate."""

    mid: int
    width: int = 0
    groups: int = 1
    norm: str = "batch"
    pre: bool = False
    gate: str = "none"
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        width, gates = self.width or c, {"scale": nn.Parameter(torch.ones(self.width or c, 1, 1))}
        return {
            "a": nn.Conv2d(c, self.mid, 1, bias=self.pre),
            "b": nn.Conv2d(self.mid, self.mid, 3, padding=1, groups=divisor(self.groups, self.mid)),
            "z": nn.Conv2d(self.mid, width, 1),
            "norm": norm(self.norm, c if self.pre else width, "image"),
            "mid": norm(self.norm, self.mid, "image"),
            "gate": gates.get(self.gate, nn.Conv2d(c, 1 if self.gate == "map" else width, 1)),
            "skip": nn.Conv2d(c, self.width, 1) if self.width else nn.Identity(),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        y = m.norm(x) if self.pre else x
        y = m.z(F.relu(m.b(F.relu(m.mid(m.a(y))))))
        y = y if self.pre else m.norm(y)
        if self.gate == "scale":
            y = m.gate * y
        elif self.gate != "none":
            y = m.gate(x).mean((2, 3), keepdim=True).sigmoid() * y if self.gate == "pool" else m.gate(x).sigmoid() * y
        return m.skip(x) + y

    def expects(self, *shape: int) -> dict[str, int]:
        groups = divisor(self.groups, self.mid)
        if self.norm == "group" or 1 < groups < self.mid:
            return {}
        return some(a=self.mid, b=self.mid) if groups == 1 else some(a=self.mid)


class Dense(NamedTuple):
    """DenseNet: each layer sees all before it."""

    growth: int
    steps: int
    norm: str = "batch"
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        widths = [c + i * self.growth for i in range(self.steps)]
        return {
            "norms": nn.ModuleList(norm(self.norm, n, "image") for n in widths),
            "convs": nn.ModuleList(nn.Conv2d(n, self.growth, 3, padding=1) for n in widths),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        for layer, conv in zip(m.norms, m.convs, strict=True):
            x = torch.cat([x, conv(layer(x).relu())], 1)
        return x

    def expects(self, *shape: int) -> dict[str, int]:
        return {}


class Branches(NamedTuple):
    """Inception: branches side by side; `twice`: what comes out, and its negative (CReLU)."""

    widths: tuple[int, ...]
    keep: bool = False
    twice: bool = False
    width: int = 12
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        total = (sum(self.widths) + c * self.keep) * (1 + self.twice)
        convs = (nn.Conv2d(c, n, k := 1 + 2 * (i % 2), padding=k // 2) for i, n in enumerate(self.widths))
        return {"branches": nn.ModuleList(convs), "leave": nn.Conv2d(total, self.width, 1)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        y = torch.cat([*(b(x) for b in m.branches), *[F.max_pool2d(x, 3, 1, 1)] * self.keep], 1)
        return m.leave(torch.cat([y, -y], 1).relu() if self.twice else y.relu())

    def expects(self, *shape: int) -> dict[str, int]:
        return {f"branches.{i}": n for i, n in enumerate(self.widths) if n > 1}


class C2f(NamedTuple):
    """YOLO: a part of the channels goes through a chain, and all steps are concatenated."""

    mid: int
    steps: int
    cut: str = "chunk"
    width: int = 12
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        return {
            "enter": nn.Conv2d(c, 2 * self.mid, 1),
            "steps": nn.ModuleList(nn.Conv2d(self.mid, self.mid, 3, padding=1) for _ in range(self.steps)),
            "leave": nn.Conv2d((2 + self.steps) * self.mid, self.width, 1),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        x, n = m.enter(x), self.mid
        cuts = {
            "chunk": lambda: x.chunk(2, 1),
            "split": lambda: x.split([n, n], 1),
            "slice": lambda: (x[:, :n], x[:, n:]),
        }
        y = list(cuts[self.cut]())
        for step in m.steps:
            y.append(y[-1] + step(y[-1]).relu())
        return m.leave(torch.cat(y, 1))

    def expects(self, *shape: int) -> dict[str, int]:
        return some(enter__0=self.mid, enter__1=self.mid)


class Pieces(NamedTuple):
    """Channels are split into parts of any sizes, each with a consumer of its own; the last part is dropped."""

    sizes: tuple[int, ...]
    width: int
    multiply: bool = False
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        leave = (nn.Conv2d(n, self.width, 1) for n in self.sizes[:-1])
        return {"enter": nn.Conv2d(c, sum(self.sizes), 1), "leave": nn.ModuleList(leave)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        parts = m.enter(x).tanh().split(list(self.sizes), 1)
        first, *rest = (layer(p) for layer, p in zip(m.leave, parts, strict=False))
        for y in rest:
            first = first * y if self.multiply else first + y
        return first

    def expects(self, *shape: int) -> dict[str, int]:
        return {f"enter.{i}": n for i, n in enumerate(self.sizes) if n > 1}


class Glu(NamedTuple):
    """One half of the channels is a gate of the other."""

    mid: int
    width: int
    fused: bool = True
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        return {"enter": nn.Conv2d(c, 2 * self.mid, 1), "leave": nn.Conv2d(self.mid, self.width, 3, padding=1)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        x = m.enter(x)
        return m.leave(F.glu(x, 1) if self.fused else F.silu(x[:, : self.mid]) * x[:, self.mid :])

    def expects(self, *shape: int) -> dict[str, int]:
        return some(enter__0=self.mid)


class Shuffle(NamedTuple):
    """ShuffleNet: grouped convolutions with a shuffle between them."""

    mid: int
    groups: int
    native: bool = False
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        g = divisor(self.groups, c, self.mid)
        return {
            "a": nn.Conv2d(c, self.mid, 1, groups=g),
            "dw": nn.Conv2d(self.mid, self.mid, 3, padding=1, groups=self.mid),
            "z": nn.Conv2d(self.mid, c, 1, groups=g),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        g, y = m.a.groups, m.a(x).relu()
        by_hand = not self.native or g == 1
        y = y.unflatten(1, (g, -1)).transpose(1, 2).flatten(1, 2) if by_hand else F.channel_shuffle(y, g)
        return x + m.z(m.dw(y))

    def expects(self, *shape: int) -> dict[str, int]:
        return {}


class Squeeze(NamedTuple):
    """Squeeze-excite, with linear layers or convolutions."""

    reduced: int
    linear: bool = False
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        kind: Any = nn.Linear if self.linear else lambda a, b: nn.Conv2d(a, b, 1)
        return {"down": kind(c, self.reduced), "up": kind(self.reduced, c)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        y = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        y = m.up(m.down(y).relu()).sigmoid()
        return x * (y[:, :, None, None] if self.linear else y)

    def expects(self, *shape: int) -> dict[str, int]:
        return some(down=self.reduced)
