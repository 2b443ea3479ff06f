"""Blocks that compute their weights, read tables, overlap, write into slices, or reshape across dims."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layers, divisor, some


class Table(nn.Module):
    """Random numbers that are in no state dict."""

    values: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.randn(shape), persistent=False)

    def forward(self) -> Tensor:
        return self.values


class Reshape(NamedTuple):
    """Tokens and channels are dealt out afresh, row-major, without a thought."""

    rows: int
    width: int
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        return {"enter": nn.Linear(c, self.width), "leave": nn.Linear(self.columns(n), self.width)}

    def columns(self, n: int) -> int:
        """Channels after the reshape."""
        return n * self.width // divisor(self.rows, n * self.width)

    def run(self, m: Any, x: Tensor) -> Tensor:
        return m.leave(m.enter(x).reshape(x.shape[0], -1, m.leave.in_features).relu())

    def expects(self, *shape: int) -> dict[str, int]:
        return {}


WEIGHTS: dict[str, Callable[[Any], Tensor]] = {
    "folded": lambda m: m.b.weight + F.pad(m.one.weight, (1, 1, 1, 1)),
    "standard": lambda m: (m.b.weight - m.b.weight.mean((1, 2, 3), keepdim=True)) / (m.b.weight.norm() + 1),
    "low_rank": lambda m: m.b.weight + (m.p @ m.q)[:, :, None, None],
    "joined": lambda m: torch.cat([m.b.weight, m.other.weight]),
    "first": lambda m: m.b.weight[: max(1, len(m.b.weight) // 2)],
    "scaled": lambda m: m.b.weight * m.p.sum(1)[:, None, None, None],
}


class Computed(NamedTuple):
    """The second of three convolutions has a weight that is computed from parameters."""

    mid: int
    out: int
    how: str
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        out = {"joined": self.out + 3, "first": max(1, self.out // 2)}.get(self.how, self.out)
        return {
            "a": nn.Conv2d(c, self.mid, 1),
            "b": nn.Conv2d(self.mid, self.out, 3, bias=False),
            "one": nn.Conv2d(self.mid, self.out, 1, bias=False),
            "other": nn.Conv2d(self.mid, 3, 3, bias=False),
            "p": nn.Parameter(torch.ones(self.out, 2)),
            "q": nn.Parameter(torch.ones(2, self.mid)),
            "z": nn.Conv2d(out, c, 1),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        return x + m.z(F.conv2d(m.a(x).relu(), WEIGHTS[self.how](m), padding=1).relu())

    def expects(self, *shape: int) -> dict[str, int]:
        return some(a=self.mid)


class Rotary(NamedTuple):
    """Attention whose queries and keys are turned by a table, by halves or in pairs."""

    heads: int
    half: int
    pairs: bool = False
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        width = self.heads * 2 * self.half
        names = {name: nn.Linear(c, width) for name in ("q", "k", "v")}
        return names | {"proj": nn.Linear(width, c), "cos": Table(n, 2 * self.half), "sin": Table(n, 2 * self.half)}

    def turned(self, m: Any, x: Tensor) -> Tensor:
        """x [b, h, n, d] times cos, plus its other half times sin."""
        if self.pairs:
            a, b = x[..., ::2], x[..., 1::2]
            other = torch.stack([-b, a], -1).flatten(-2)
        else:
            a, b = x.chunk(2, -1)
            other = torch.cat([-b, a], -1)
        return x * m.cos() + other * m.sin()

    def run(self, m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, -1).transpose(1, 2) for layer in (m.q, m.k, m.v))
        y = F.scaled_dot_product_attention(self.turned(m, q), self.turned(m, k), v)
        return x + m.proj(y.transpose(1, 2).reshape(b, n, -1))

    def expects(self, *shape: int) -> dict[str, int]:
        value = {"v.head_dim" if self.heads > 1 else "v": 2 * self.half}
        return some(q__heads=self.heads, q__head_dim=self.half) | value


class Builtin(NamedTuple):
    """torch's own encoder layer."""

    heads: int
    dim: int
    hidden: int
    first: bool = False
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        width = self.heads * self.dim
        layer = nn.TransformerEncoderLayer(width, self.heads, self.hidden, 0.0, norm_first=self.first, batch_first=True)
        return {"enter": nn.Linear(c, width), "layer": layer, "leave": nn.Linear(width, c)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        return x + m.leave(m.layer(m.enter(x)))

    def expects(self, *shape: int) -> dict[str, int]:
        return some(layer__linear1=self.hidden, enter=self.heads * self.dim)


class Latents(NamedTuple):
    """Learned tokens ask all others, and stand for them."""

    count: int
    heads: int
    dim: int
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        width = self.heads * self.dim
        return {
            "latents": nn.Parameter(torch.ones(self.count, c)),
            "q": nn.Linear(c, width),
            "k": nn.Linear(c, width),
            "v": nn.Linear(c, width),
            "proj": nn.Linear(width, c),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        b, latents = x.shape[0], m.latents.expand(x.shape[0], -1, -1)
        q, k, v = (
            layer(t).unflatten(-1, (self.heads, self.dim)).transpose(1, 2)
            for layer, t in ((m.q, latents), (m.k, x), (m.v, x))
        )
        y = (q @ k.mT).softmax(-1) @ v
        return latents + m.proj(y.transpose(1, 2).reshape(b, self.count, -1))

    def expects(self, *shape: int) -> dict[str, int]:
        suffix = ".head_dim" if self.heads > 1 else ""
        return some(q__heads=self.heads) | {f"q{suffix}": self.dim, f"v{suffix}": self.dim}


class Outer(NamedTuple):
    """Double attention: all products of two sets of channels, over tokens that are weighed, tell every token something."""

    left: int
    right: int
    turned: bool = False
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        return {
            "a": nn.Linear(c, self.left),
            "b": nn.Linear(c, self.right),
            "table": Table(self.left),
            "leave": nn.Linear(self.left * self.right, c),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        a, b = (m.a(x) * m.table()).softmax(1), m.b(x).tanh()
        y = torch.einsum("bni,bnj->bji", a, b) if self.turned else a.mT @ b
        return x + m.leave(y.flatten(1))[:, None]

    def expects(self, *shape: int) -> dict[str, int]:
        return some(a=self.left, b=self.right)


class Unfold(NamedTuple):
    """A convolution by hand: windows, and a matrix product from the left."""

    mid: int
    out: int
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        weight = nn.Parameter(torch.ones(self.out, self.mid * 9))
        return {"enter": nn.Conv2d(c, self.mid, 1), "kernel": weight, "leave": nn.Conv2d(self.out, c, 1)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        y = m.kernel @ F.unfold(m.enter(x).relu(), 3, padding=1)
        return x + m.leave(y.reshape(x.shape[0], self.out, *x.shape[2:]).relu())

    def expects(self, *shape: int) -> dict[str, int]:
        return some(enter=self.mid, kernel=self.out)


class Overlap(NamedTuple):
    """Two runs of the channels that may overlap: multiplied where they are as long, or side by side."""

    width: int
    end: int
    start: int
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        a, b = self.lengths()
        return {"enter": nn.Conv2d(c, self.width, 1), "leave": nn.Conv2d(a if a == b else a + b, c, 1)}

    def lengths(self) -> tuple[int, int]:
        """Channels before the end and after the start."""
        return 1 + self.end % self.width, self.width - self.start % self.width

    def run(self, m: Any, x: Tensor) -> Tensor:
        a, b = self.lengths()
        y = m.enter(x).tanh()
        left, right = y[:, :a], y[:, -b:]
        return x + m.leave(left * right if a == b else torch.cat([left, right], 1))

    def expects(self, *shape: int) -> dict[str, int]:
        return {}


class Partial(NamedTuple):
    """FasterNet: a convolution of some of the channels; the others pass. `write`: into a slice of a copy."""

    part: int
    hidden: int
    write: bool = False
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        k = 1 + self.part % c
        return {
            "conv": nn.Conv2d(k, k, 3, padding=1),
            "up": nn.Conv2d(c, self.hidden, 1),
            "down": nn.Conv2d(self.hidden, c, 1),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        k = m.conv.in_channels
        if self.write:
            y = x.clone()
            y[:, :k] = m.conv(x[:, :k])
        else:
            y = torch.cat([m.conv(x[:, :k]), x[:, k:]], 1)
        return x + m.down(m.up(y).relu())

    def expects(self, *shape: int) -> dict[str, int]:
        return some(up=self.hidden)


class Merge(NamedTuple):
    """Neighbouring tokens become channels, or channels tokens."""

    width: int
    back: bool = False
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        k = 1 if self.back else divisor(2, n)
        return {"fc": nn.Linear(c * k, self.width * (2 if self.back and n <= 12 else 1)), "norm": nn.LayerNorm(c * k)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        b, n, c = x.shape
        y = m.fc(m.norm(x.reshape(b, n * c // m.fc.in_features, -1)))
        return y.reshape(b, prod(y.shape[1:]) // self.width, self.width)

    def expects(self, *shape: int) -> dict[str, int]:
        return {}
