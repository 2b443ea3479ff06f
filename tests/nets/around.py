"""Blocks around a block: on windows, beside learned tokens, called twice."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .base import Block, Layers, Recipe, divisor


class Windows(NamedTuple):
    """A block on windows of tokens that stand for samples; `grid`: every so many tokens make a window."""

    size: int
    inner: Recipe
    grid: bool = False
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        return {"inner": Block(self.inner, (divisor(self.size, n), c))}

    def run(self, m: Any, x: Tensor) -> Tensor:
        b, n, c = x.shape
        s = divisor(self.size, n)
        if self.grid:
            y = m.inner(x.view(b, s, n // s, c).transpose(1, 2).reshape(b * (n // s), s, c))
            return y.view(b, n // s, s, c).transpose(1, 2).reshape(b, n, c)
        return m.inner(x.reshape(-1, s, c)).reshape(b, n, c)

    def expects(self, n: int, c: int) -> dict[str, int]:
        return {f"inner.{g}": k for g, k in self.inner.expects(divisor(self.size, n), c).items()}


class Extra(NamedTuple):
    """A block that sees learned tokens beside the others, and drops them; learned positions are added."""

    tokens: int
    inner: Recipe
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        return {
            "extra": nn.Parameter(torch.ones(1, self.tokens, c)),
            "position": nn.Parameter(torch.ones(1, n + self.tokens, c)),
            "inner": Block(self.inner, (n + self.tokens, c)),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        x = torch.cat([m.extra.expand(x.shape[0], -1, -1), x], 1) + m.position
        return m.inner(x)[:, self.tokens :]

    def expects(self, n: int, c: int) -> dict[str, int]:
        return {f"inner.{g}": k for g, k in self.inner.expects(n + self.tokens, c).items()}


class Twice(NamedTuple):
    """A block that keeps the shape is called twice."""

    inner: Recipe

    @property
    def form(self) -> str:
        """That of the block."""
        return self.inner.form

    def layers(self, *shape: int) -> Layers:
        return {"inner": Block(self.inner, shape)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        return m.inner(m.inner(x))

    def expects(self, *shape: int) -> dict[str, int]:
        return {f"inner.{g}": k for g, k in self.inner.expects(*shape).items()}
