"""Random networks: a hypothesis strategy that draws a readable recipe, and the module of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from .nets.around import Extra, Twice, Windows
from .nets.base import ACTIVATIONS, NORMS, Block, Recipe
from .nets.image import Branches, C2f, Conv, Dense, Glu, Pieces, Residual, Shuffle, Squeeze, Up
from .nets.maze import OPS, Maze, Step
from .nets.odd import (
    WEIGHTS,
    Builtin,
    Computed,
    Latents,
    Merge,
    Outer,
    Overlap,
    Partial,
    Reshape,
    Rotary,
    Unfold,
)
from .nets.space import Flat, Lattice, PixelDown, PixelUp, Resample, Siamese
from .nets.tokens import (
    Along,
    Attention,
    FeedForward,
    Linear,
    Mixer,
    PerHead,
    Queries,
    Tied,
    Twins,
)
from .toys.base import randomised

CLASSES = 3


class Net(NamedTuple):
    """The recipe of a network; where the form changes between blocks, pixels become tokens or tokens pixels."""

    space: tuple[int, int]
    stem: int
    blocks: tuple[Recipe, ...]
    head: str = "mean"

    def inputs(self, batch: int) -> Tensor:
        """Random images; the same at every call."""
        generator = torch.Generator().manual_seed(batch)
        return torch.randn(batch, 3, *self.space, dtype=torch.float64, generator=generator)


class ToTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class ToImage(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.high = max(d for d in range(1, tokens + 1) if tokens % d == 0 and d * d <= tokens)

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], self.high, -1)


class Head(nn.Module):
    """Mean over positions, or all positions, and a linear layer."""

    def __init__(self, how: str, form: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.how, self.over = how, (2, 3) if form == "image" else (1,)
        channels = shape[0] if form == "image" else shape[-1]
        self.fc = nn.Linear(channels if how == "mean" else shape.numel(), CLASSES)  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(self.over) if self.how == "mean" else x.flatten(1))


class Network(nn.Module):
    """A recipe as a module in float64 and eval mode, with random values; `expects`: groups that must be found."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, net.stem, 3, padding=1)
        self.blocks, self.changes = nn.ModuleList(), nn.ModuleList()
        self.expects: dict[str, int] = {}
        x, form = self.stem(torch.zeros(2, 3, *net.space)), "image"
        for i, recipe in enumerate(net.blocks):
            change: Callable[[], nn.Module] = ToTokens if form == "image" else lambda x=x: ToImage(x.shape[1])
            self.changes.append(nn.Identity() if recipe.form == form else change())
            x, form = self.changes[-1](x), recipe.form
            self.expects |= {f"blocks.{i}.{g}": n for g, n in recipe.expects(*x.shape[1:]).items()}
            self.blocks.append(Block(recipe, x.shape[1:]).eval())
            x = self.blocks[-1](x)
        self.head = Head(net.head, form, x.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for change, block in zip(self.changes, self.blocks, strict=True):
            x = block(change(x))
        return self.head(x)


def build(net: Net) -> Network:
    """The module of a recipe; the same at every call."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Network(net)
        randomised(model).double()
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(2 / max(1, p[0].numel()) ** 0.5)
        return model.eval()


# ---- drawing recipes

WIDTH = st.sampled_from([4, 12, 8, 16, 6, 10, 7, 15, 24])
SMALL = st.sampled_from([2, 4, 6, 3, 8, 5, 12])
FACTOR = st.sampled_from([2, 4, 3, 6, 1])
GROUPS = st.sampled_from([1, 2, 0, 4, 3])
NORM, ACT = st.sampled_from(NORMS), st.sampled_from(ACTIVATIONS)
FLAG = st.booleans()


def few(values: st.SearchStrategy[Any], low: int = 2) -> st.SearchStrategy[tuple[Any, ...]]:
    """A short tuple."""
    return st.lists(values, min_size=low, max_size=4).map(tuple)


def one(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


GATE = one("none", "scale", "map", "pool")
GATES = one("none", "apart", "glu", "chunk", "slice", "halves", "pairs", "steps")
WAYS = one("sdpa", "hand", "einsum", "talking", "cosine", "across", "linear")

STEP = st.builds(Step, factors=few(one(2, 3, 4, 6), 1), turn=st.integers(0, 3), op=one(*OPS), at=st.integers(0, 3))
MAZE = st.builds(Maze, width=one(12, 8, 16, 24, 6, 10), steps=few(STEP), join=one("none", "add", "multiply", "cat"))
STEADY_IMAGE = st.one_of(
    MAZE,
    st.builds(Residual, mid=SMALL, width=one(0), groups=GROUPS, norm=NORM, pre=FLAG, gate=GATE),
    st.builds(Shuffle, mid=WIDTH, groups=one(2, 3, 4), native=FLAG),
    st.builds(Squeeze, reduced=SMALL, linear=FLAG),
    st.builds(Siamese, mid=SMALL, out=SMALL),
    st.builds(Lattice, rows=FACTOR, columns=FACTOR, other=FACTOR),
    st.builds(Computed, mid=SMALL, out=SMALL, how=one(*WEIGHTS)),
    st.builds(Unfold, mid=SMALL, out=SMALL),
    st.builds(Overlap, width=WIDTH, end=st.integers(0, 11), start=st.integers(0, 11)),
    st.builds(Partial, part=st.integers(0, 7), hidden=SMALL, write=FLAG),
)
STEADY_TOKENS = st.one_of(
    st.builds(FeedForward, hidden=SMALL, norm=NORM, pre=FLAG, gate=GATES),
    st.builds(Attention, heads=FACTOR, dim=one(2, 4, 3), layout=one("kind", "head", "unit"), how=WAYS, norm=NORM),
    st.builds(
        Queries, heads=FACTOR, dim=one(2, 4), value=one(2, 3), shared=one(1, 2, 3), how=one("repeat", "native", "expand"),
        norm=FLAG,
    ),
    st.builds(Mixer, hidden=SMALL, norm=NORM, einsum=FLAG),
    st.builds(PerHead, heads=FACTOR, dim=one(2, 4), out=one(2, 3), norm=FLAG, swap=FLAG),
    st.builds(Tied, hidden=SMALL),
    st.builds(Twins, hidden=SMALL),
    st.builds(Along, hidden=SMALL, kernel=one(1, 3)),
    st.builds(Rotary, heads=FACTOR, half=one(2, 3), pairs=FLAG),
    st.builds(Builtin, heads=FACTOR, dim=one(2, 4), hidden=SMALL, first=FLAG),
    st.builds(Outer, left=SMALL, right=SMALL, turned=FLAG),
)  # fmt: skip
IMAGE = st.one_of(
    STEADY_IMAGE,
    st.builds(Residual, mid=SMALL, width=WIDTH, groups=GROUPS, norm=NORM, pre=FLAG, gate=GATE),
    st.builds(Conv, width=WIDTH, kernel=one(1, 3), stride=one(1, 2), groups=GROUPS, norm=NORM, act=ACT),
    st.builds(Up, width=WIDTH, groups=GROUPS, bias=FLAG),
    st.builds(Dense, growth=one(2, 4, 3), steps=one(1, 2, 3), norm=NORM),
    st.builds(Branches, widths=few(SMALL), keep=FLAG, twice=FLAG, width=WIDTH),
    st.builds(C2f, mid=SMALL, steps=one(1, 2), cut=one("chunk", "split", "slice"), width=WIDTH),
    st.builds(Pieces, sizes=few(SMALL, 3), width=WIDTH, multiply=FLAG),
    st.builds(Glu, mid=SMALL, width=WIDTH, fused=FLAG),
    st.builds(Resample, how=one("max", "avg", "adaptive", "nearest", "bilinear"), width=WIDTH),
    st.builds(PixelUp, width=SMALL, native=FLAG),
    st.builds(PixelDown, width=WIDTH, merge=FLAG),
    st.builds(Flat, mid=SMALL, width=SMALL),
    st.builds(Twice, inner=STEADY_IMAGE),
)
TOKENS = st.one_of(
    STEADY_TOKENS,
    st.builds(Reshape, rows=one(4, 6, 8, 9), width=SMALL),
    st.builds(Merge, width=WIDTH, back=FLAG),
    st.builds(Latents, count=one(4, 6), heads=FACTOR, dim=one(2, 3)),
    st.builds(Linear, width=WIDTH, norm=NORM, act=ACT),
    st.builds(Windows, size=one(2, 4, 3), inner=STEADY_TOKENS, grid=FLAG),
    st.builds(Extra, tokens=one(1, 2), inner=STEADY_TOKENS),
    st.builds(Twice, inner=STEADY_TOKENS),
)


def nets(low: int = 3, high: int = 12) -> st.SearchStrategy[Net]:
    """Recipes of `low` to `high` blocks: runs of one form, with changes between them."""
    run = st.one_of(st.lists(IMAGE, min_size=1, max_size=4), st.lists(TOKENS, min_size=1, max_size=4))
    blocks = st.lists(run, min_size=1, max_size=5).map(lambda runs: tuple(b for r in runs for b in r)[:high])
    return st.builds(
        Net,
        space=one((4, 4), (2, 4), (2, 3), (4, 6)),
        stem=WIDTH,
        blocks=blocks.filter(lambda b: len(b) >= low),
        head=one("mean", "all"),
    )
