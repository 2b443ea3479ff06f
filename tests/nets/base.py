"""A recipe is a NamedTuple that says which layers a block has and how they run; `Block` makes a module of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Layers = Mapping[str, "nn.Module | nn.Parameter"]

ACTIVATIONS = ("relu", "gelu", "silu", "hardswish", "sigmoid", "prelu")
NORMS = ("none", "batch", "layer", "group", "rms", "instance")


class Recipe(Protocol):
    """What a block is made of. It must suit every shape of its form: a number that does not divide is replaced by one that does."""

    form: str
    """`image`: [b, c, h, w]; `tokens`: [b, n, c]."""

    @property
    def layers(self) -> Callable[..., Layers]:
        """Shape of an input, without the batch → the layers."""
        ...

    def run(self, m: Any, x: Tensor) -> Tensor:
        """The forward of a module that has these layers."""
        ...

    @property
    def expects(self) -> Callable[..., Mapping[str, int]]:
        """Shape → groups that must be found in the block, whatever stands around it: name → units."""
        ...


class Block(nn.Module):
    """A recipe as a module, for inputs of one shape."""

    def __init__(self, recipe: Recipe, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.recipe = recipe
        for name, layer in recipe.layers(*shape).items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.recipe.run(self, x)


def some(**groups: int) -> dict[str, int]:
    """Groups of more than one unit; `__` stands for a dot, and a single unit is no group."""
    return {name.replace("__", "."): n for name, n in groups.items() if n > 1}


def divisor(n: int, *of: int) -> int:
    """The greatest common divisor; n = 0: as large as possible."""
    return gcd(n, *of)


class Rms(nn.Module):
    """RMSNorm by hand over the last dim."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3) * self.weight


class Moved(nn.Module):
    """A layer whose channels stand elsewhere than those of its input."""

    def __init__(self, inner: nn.Module, there: int, here: int) -> None:
        super().__init__()
        self.inner, self.there, self.here = inner, there, here

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.movedim(self.there, self.here)).movedim(self.here, self.there)


def norm(kind: str, width: int, form: str) -> nn.Module:
    """A norm of `width` channels for images or tokens."""
    flat = form == "tokens"
    first = {
        "batch": lambda: (nn.BatchNorm1d if flat else nn.BatchNorm2d)(width),
        "group": lambda: nn.GroupNorm(divisor(4, width), width),
        "instance": lambda: (nn.InstanceNorm1d if flat else nn.InstanceNorm2d)(width, affine=True),
    }
    last = {"layer": lambda: nn.LayerNorm(width), "rms": lambda: Rms(width)}
    if kind in first:
        return Moved(first[kind](), -1, 1) if flat else first[kind]()
    if kind in last:
        return last[kind]() if flat else Moved(last[kind](), 1, -1)
    return nn.Identity()


def activation(kind: str, width: int, form: str) -> nn.Module:
    """An activation of `width` channels for images or tokens."""
    if kind == "prelu":
        return nn.PReLU(width) if form == "image" else Moved(nn.PReLU(width), -1, 1)
    return {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "hardswish": nn.Hardswish, "sigmoid": nn.Sigmoid}[kind]()
