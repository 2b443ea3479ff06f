"""Channels that are factored, turned, cut and joined in any order: what a reshape, a slice or a concatenation may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layers, divisor

LIMIT = 64
"""Steps that would make more channels than this do nothing."""


class Step(NamedTuple):
    """Channels as a product of factors, which are rotated; then something is done along one of them."""

    factors: tuple[int, ...]
    turn: int
    op: str
    at: int

    def shape(self, n: int) -> tuple[int, ...]:
        """Factors of n channels that are as near as can be to those that were asked for."""
        out = []
        for f in self.factors:
            out.append(divisor(f, n))
            n //= out[-1]
        return (*out, n)

    def run(self, m: Any, x: Tensor) -> Tensor:
        """x [b, c, h, w] → [b, c', h, w]."""
        shape = self.shape(x.shape[1])
        x = x.unflatten(1, shape)
        turn = self.turn % len(shape)
        order = [1 + (d + turn) % len(shape) for d in range(len(shape))]
        x = x.permute(0, *order, -2, -1)
        y = OPS[self.op](m, x, 1 + self.at % len(shape))
        return (y if y[0].numel() <= LIMIT * x.shape[-1] * x.shape[-2] else x).flatten(1, -3)

    def weight(self, n: int) -> nn.Parameter | None:
        """What the op needs: a vector, or a matrix of the factor that it runs along."""
        shape = self.shape(n)
        size = shape[(self.at + self.turn) % len(shape)]
        widths = {"scale": (size,), "matrix": (3, size), "norm": (size,)}
        return nn.Parameter(torch.ones(widths[self.op])) if self.op in widths else None


def along(w: Tensor, x: Tensor, d: int) -> Tensor:
    """A vector that broadcasts along dim d."""
    return w.reshape(-1, *(1,) * (x.ndim - d - 1))


def halves(x: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Two parts of a dim, as equal as can be; x itself twice where it has one position."""
    n = x.shape[d]
    return (x, x) if n == 1 else (x.narrow(d, 0, n // 2), x.narrow(d, n // 2, n - n // 2))


def glu(x: Tensor, d: int) -> Tensor:
    return F.glu(x, d) if x.shape[d] % 2 == 0 else x


def mirrored(x: Tensor, d: int) -> Tensor:
    """Added to its transpose where two dims are as long."""
    other = d + 1 if d + 3 < x.ndim else 1
    return x + x.transpose(d, other).sin() if x.shape[d] == x.shape[other] else x


OPS: dict[str, Callable[[Any, Tensor, int], Tensor]] = {
    "none": lambda m, x, d: x,
    "scale": lambda m, x, d: x * along(m, x, d),
    "matrix": lambda m, x, d: F.linear(x.movedim(d, -1), m).movedim(-1, d),
    "norm": lambda m, x, d: F.layer_norm(x.movedim(d, -1), x.shape[d : d + 1], m).movedim(-1, d),
    "twice": lambda m, x, d: torch.cat([x, x.sin()], d),
    "first": lambda m, x, d: halves(x, d)[0],
    "second": lambda m, x, d: halves(x, d)[1],
    "swap": lambda m, x, d: torch.cat(halves(x, d)[::-1], d) if x.shape[d] > 1 else x,
    "step": lambda m, x, d: x[(slice(None),) * d + (slice(None, None, 2),)],
    "glu": lambda m, x, d: glu(x, d),
    "gate": lambda m, x, d: x * x.mean(d, keepdim=True).sigmoid(),
    "repeat": lambda m, x, d: x.repeat_interleave(2, d),
    "tile": lambda m, x, d: x.repeat(*(2 if i == d else 1 for i in range(x.ndim))),
    "pad": lambda m, x, d: F.pad(x, (0,) * 2 * (x.ndim - d - 1) + (1, 1)),
    "mirror": lambda m, x, d: mirrored(x, d),
    "rolled": lambda m, x, d: x * torch.cat(halves(x, d)[::-1], d) if x.shape[d] > 1 else x,
    "softmax": lambda m, x, d: x.softmax(d),
    "stack": lambda m, x, d: torch.stack([x, x.cos()], d).flatten(d, d + 1),
}


class Maze(NamedTuple):
    """Steps between two convolutions; the way round them is added, multiplied or put beside where it fits."""

    width: int
    steps: tuple[Step, ...]
    join: str = "none"
    form = "image"

    def layers(self, c: int, h: int, w: int) -> Layers:
        weights, x = {}, torch.zeros(1, self.width, 1, 1)
        for i, step in enumerate(self.steps):
            weights[f"w{i}"] = step.weight(x.shape[1])
            x = step.run(weights[f"w{i}"], x)
        n = x.shape[1] + self.width * (self.join == "cat")
        layers = {"enter": nn.Conv2d(c, self.width, 1), "leave": nn.Conv2d(n, c, 1)}
        return layers | {name: p for name, p in weights.items() if p is not None}

    def run(self, m: Any, x: Tensor) -> Tensor:
        y = first = m.enter(x).tanh()
        for i, step in enumerate(self.steps):
            y = step.run(getattr(m, f"w{i}", None), y)
        if self.join == "cat":
            y = torch.cat([y, first], 1)
        elif self.join != "none" and y.shape == first.shape:
            y = y + first if self.join == "add" else y * first
        return x + m.leave(y)

    def expects(self, *shape: int) -> dict[str, int]:
        return {}
