"""Blocks of images that change their size, or read pixels as channels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layers, some


class Resample(NamedTuple):
    """Pooling or upsampling, then a convolution."""

    how: str
    width: int
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        return {"conv": nn.Conv2d(c, self.width, 1)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        small, large = min(x.shape[2:]) < 4, max(x.shape[2:]) > 4
        stride, scale = 1 if small else 2, 1 if large else 2
        return m.conv(
            {
                "max": lambda: F.max_pool2d(x, 3, stride, 1),
                "avg": lambda: F.avg_pool2d(x, 3, stride, 1),
                "adaptive": lambda: F.adaptive_avg_pool2d(x, 2),
                "nearest": lambda: F.interpolate(x, scale_factor=scale),
                "bilinear": lambda: F.interpolate(x, scale_factor=scale, mode="bilinear"),
            }[self.how]()
        )

    def expects(self, *shape: int) -> dict[str, int]:
        return {}


class PixelUp(NamedTuple):
    """Pixel shuffle while the image is small, by torch or by reshapes."""

    width: int
    native: bool = True
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        r = 2 if max(h, w) <= 4 else 1
        return {"enter": nn.Conv2d(c, self.width * r * r, 1), "leave": nn.Conv2d(self.width, self.width, 1)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        y = m.enter(x)
        b, c, h, w = y.shape
        r = 1 if c == self.width else 2
        if self.native:
            return m.leave(F.pixel_shuffle(y, r))
        y = y.reshape(b, self.width, r, r, h, w).permute(0, 1, 4, 2, 5, 3)
        return m.leave(y.reshape(b, self.width, h * r, w * r).relu())

    def expects(self, c: int, h: int, w: int) -> dict[str, int]:
        return some(enter__hidden=self.width) if max(h, w) <= 4 else some(enter=self.width)


class PixelDown(NamedTuple):
    """Pixel unshuffle (or Swin's patch merging) where the sides are even."""

    width: int
    merge: bool = False
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        fits = not (h % 2 or w % 2) and min(h, w) >= 4
        return {"conv": nn.Conv2d(c * 4 if fits else c, self.width, 1)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        if m.conv.in_channels != x.shape[1]:
            corners = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)] if self.merge else []
            x = torch.cat(corners, 1) if self.merge else F.pixel_unshuffle(x, 2)
        return m.conv(x)

    def expects(self, *shape: int) -> dict[str, int]:
        return {}


class Flat(NamedTuple):
    """All positions of all channels meet in a linear layer, and come back as another image."""

    mid: int
    width: int
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        return {"down": nn.Linear(c * h * w, self.mid), "up": nn.Linear(self.mid, self.width * h * w)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        return m.up(m.down(x.flatten(1)).relu()).reshape(x.shape[0], self.width, *x.shape[2:])

    def expects(self, *shape: int) -> dict[str, int]:
        return some(down=self.mid)


class Siamese(NamedTuple):
    """One convolution serves both halves of the channels."""

    mid: int
    out: int
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        return {
            "enter": nn.Conv2d(c, 2 * self.mid, 1),
            "both": nn.Conv2d(self.mid, self.out, 3, padding=1),
            "leave": nn.Conv2d(2 * self.out, c, 1),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        a, b = m.enter(x).relu().chunk(2, 1)
        return x + m.leave(torch.cat([m.both(a), m.both(b)], 1).relu())

    def expects(self, *shape: int) -> dict[str, int]:
        return some(enter__0=self.mid, both=self.out)


class Lattice(NamedTuple):
    """Channels as a matrix: transposed (or reshaped to other factors) between two convolutions."""

    rows: int
    columns: int
    other: int
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        n = self.rows * self.columns * self.other
        return {
            "enter": nn.Conv2d(c, n, 1),
            "row": nn.Parameter(torch.ones(self.rows, 1, 1, 1)),
            "column": nn.Parameter(torch.ones(self.other * self.columns, 1, 1)),
            "leave": nn.Conv2d(n, c, 1),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        y = m.enter(x).relu().unflatten(1, (self.rows, self.columns * self.other)) * m.row
        y = y.flatten(1, 2).unflatten(1, (self.rows * self.columns, self.other)).transpose(1, 2).flatten(1, 2)
        y = y.unflatten(1, (self.other * self.columns, self.rows)).transpose(1, 2) * m.column
        return x + m.leave(y.flatten(1, 2))

    def expects(self, *shape: int) -> dict[str, int]:
        return {}
