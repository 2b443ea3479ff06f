"""Sizes in configs, dicts, lists, closures and other containers."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import Case, tokens, vectors


class Attend(nn.Module):
    """Layers of an attention; the subclasses say where heads and head_dim are kept."""

    def __init__(self, d: int = 10, h: int = 4, e: int = 6) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (
            nn.Linear(d, h * e),
            nn.Linear(d, h * e),
            nn.Linear(d, h * e),
            nn.Linear(h * e, d),
        )

    def attend(self, x: Tensor, heads: int, width: int) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], heads, width).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.o(y.reshape(*x.shape[:2], heads * width))


class InDict(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.cfg = {"heads": 4, "dim": 6, "name": "attention", "dropout": 0.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.cfg["heads"], self.cfg["dim"])


class InNestedDict(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.cfg = {"attention": {"shape": [4, 6]}, "layers": 4}

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, *self.cfg["attention"]["shape"])


class InList(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.shape = [4, 6]

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, *self.shape)


class Shape(NamedTuple):
    heads: int
    width: int


class InNamedTuple(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.shape = Shape(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.shape.heads, self.shape.width)


@dataclass
class Config:
    n_heads: int = 4
    head_dim: int = 6
    n_layers: int = 4
    names: list[str] = field(default_factory=list)


class InDataclass(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.config.n_heads, self.config.head_dim)


@dataclass(frozen=True)
class Frozen:
    n_heads: int = 4
    head_dim: int = 6

    @property
    def inner(self) -> int:
        return self.n_heads * self.head_dim


class InFrozenDataclass(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.config = Frozen()

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.config.n_heads, self.config.inner // self.config.n_heads)


class InNamespace(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.args = argparse.Namespace(nhead=4, d_head=6, lr=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.args.nhead, self.args.d_head)


class SharedConfig(nn.Module):
    """Blocks that share one config, which says the same for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.cfg = SimpleNamespace(heads=4, dim=6, depth=2)
        self.blocks = nn.ModuleList([self.Block(self.cfg) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x

    class Block(Attend):
        def __init__(self, cfg: Any) -> None:
            super().__init__(10, cfg.heads, cfg.dim)
            self.cfg = cfg

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(x, self.cfg.heads, self.cfg.dim)


class InPartial(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.split = partial(torch.unflatten, dim=-1, sizes=(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(f(x)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class InClosure(Attend):
    def __init__(self, heads: int = 4, dim: int = 6) -> None:
        super().__init__()
        self.split = lambda t: t.view(t.shape[0], -1, heads, dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(f(x)) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class InClosureOfSelf(Attend):
    """A lambda that reads the sizes, and a layer, from the module that defines it."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.w = 4, 6
        self.split = lambda f, x: f(x).view(x.shape[0], -1, self.n, self.w).transpose(1, 2)
        self.last = lambda y: self.o(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.scaled_dot_product_attention(*(self.split(f, x) for f in (self.q, self.k, self.v))))


class InMethod(Attend):
    """A method under another name, and a partial of one."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 4
        self.run = partial(self.attend, heads=4, width=6)
        self.go = self.really

    def really(self, x: Tensor) -> Tensor:
        return self.run(x.view(*x.shape)) * self.n**0

    def forward(self, x: Tensor) -> Tensor:
        return self.go(x)


class InDefaults(Attend):
    """A lambda with the sizes as default values of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.split = lambda t, h=4, e=6: t.view(t.shape[0], -1, h, e).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(f(x)) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class InClass(Attend):
    """Sizes that all instances share as attributes of the class."""

    heads: ClassVar[int] = 4
    width: ClassVar[int] = 6

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.heads, self.width)


class InProperty(Attend):
    def __init__(self) -> None:
        super().__init__()
        self._heads, self._all = 4, 24

    @property
    def heads(self) -> int:
        return self._heads

    @cached_property
    def width(self) -> int:
        return self._all // self._heads

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.heads, self.width)


class InOrderedDict(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = OrderedDict(b=-1, h=4, e=6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(x.shape[0], *self.sizes.values()).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Helper:
    """No module, but it has sizes."""

    def __init__(self, parts: tuple[int, ...]) -> None:
        self.parts = parts

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.parts, -1)


class InObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.split = nn.Linear(6, 12 + 8), Helper((12, 8))
        self.b, self.c = nn.Linear(12, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.split(self.a(x))
        return self.b(x.relu()) + self.c(y.sigmoid())


class SplitByAttributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = 12, 8
        self.a, self.b, self.c = nn.Linear(6, 20), nn.Linear(12, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h[:, : self.n1].relu()) + self.c(h[:, self.n1 : self.n1 + self.n2].tanh())


class ModuleDicts(nn.Module):
    """Two views of one width by name, and a table of widths by name."""

    def __init__(self) -> None:
        super().__init__()
        widths = {"x": 12, "y": 8}
        self.enc = nn.ModuleDict({k: nn.Linear(6, n) for k, n in widths.items()})
        self.dec = nn.ModuleDict({k: nn.Linear(n, 3) for k, n in widths.items()})
        self.widths = widths

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.enc[k](x) for k in self.enc], -1).relu()
        parts = dict(zip(self.widths, h.split(list(self.widths.values()), -1), strict=True))
        return sum(self.dec[k](t) for k, t in parts.items())  # type: ignore[return-value]


CASES = [
    *(
        Case(cls, tokens(10))
        for cls in (
            InDict,
            InNestedDict,
            InList,
            InNamedTuple,
            InDataclass,
            InFrozenDataclass,
            InNamespace,
            SharedConfig,
        )
    ),
    *(
        Case(cls, tokens(10))
        for cls in (InPartial, InClosure, InClosureOfSelf, InMethod, InDefaults, InClass, InProperty, InOrderedDict)
    ),
    *(Case(cls, vectors(6)) for cls in (InObject, SplitByAttributes, ModuleDicts)),
]
