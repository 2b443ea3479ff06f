"""Unusual code: other names for self, calls that are overridden, branches that do not run, results that nobody reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, images, tokens, vectors


class OtherSelf(nn.Module):
    def __init__(this, d: int = 12) -> None:
        super().__init__()
        this.wid = d
        this.a, this.b = nn.Linear(6, d), nn.Linear(d, 3)

    def forward(this, x: Tensor) -> Tensor:
        return this.b(this.a(x).view(-1, this.wid).relu())


class OtherSelfInside(nn.Module):
    """The attribute that fails is in a module whose forward calls itself by another name."""

    class Split(nn.Module):
        def __init__(m, at: int) -> None:
            super().__init__()
            m.position = at

        def forward(m, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, : m.position], x[:, m.position :]

    def __init__(self) -> None:
        super().__init__()
        self.a, self.split, self.b, self.c = nn.Linear(6, 20), self.Split(12), nn.Linear(12, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.split(self.a(x).relu())
        return self.b(x) + self.c(y)


class OwnCall(nn.Module):
    """Overrides the call, and works in a method of its own."""

    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.n = d
        self.a, self.b = nn.Linear(6, d), nn.Linear(d, 3)

    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x))

    def head(self, h: Tensor) -> Tensor:
        return self.b(h.reshape(h.shape[0], self.n).relu())


class DeadHead(nn.Module):
    """An auxiliary head that runs in eval mode, too, but whose result only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.aux, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        side = self.aux(h)
        return torch.stack([self.b(h), side[:, :1].expand(-1, 4, -1, -1)]) if self.training else self.b(h)


class DeadUpdate(nn.Module):
    """The last update of a stream is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r, self.o = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        y = self.o(h)
        h = h + self.r(h)
        return y


class DeadBlocks(nn.Module):
    """Several layers behind each other whose result is never read; their own width is nobody's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(6, 16), nn.Linear(16, 3)
        self.dead = nn.Sequential(nn.Linear(16, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 16))
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        y = self.o(h)
        h = self.norm(h + self.dead(h))
        return y


class NeverCalled(nn.Module):
    """A layer that no branch reaches keeps its size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.spare, self.b = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(self.spare(h)) if self.training else self.b(h)


class TwoPaths(nn.Module):
    """A flag decides; the attribute of the branch that does not run equals a pruned size."""

    def __init__(self) -> None:
        super().__init__()
        self.fast, self.slow_dim = True, 12
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(h) if self.fast else self.b(h.view(-1, self.slow_dim))


class Checked(nn.Module):
    """Code that checks sizes by assertions, and a number of layers that equals a width."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        self.depth, self.embed_dim = 6, d
        self.inp, self.out = nn.Linear(4, d), nn.Linear(d, 3)
        self.layers = nn.ModuleList([nn.Linear(d, d) for _ in range(6)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        assert x.shape[-1] == self.embed_dim, f"{x.shape[-1]} is not {self.embed_dim}"
        for i in range(self.depth):
            x = x + self.layers[i](x).relu()
        return self.out(x)


class Steps(nn.Module):
    """A number of repetitions equals a width; the class runs at any number, but gives other outputs."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        self.steps, self.size = 6, d
        self.inp, self.mid, self.out = nn.Linear(4, d), nn.Linear(d, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x).reshape(-1, self.size)
        for _ in range(self.steps):
            x = self.mid(x).tanh()
        return self.out(x)


class Cross(nn.Module):
    """Two streams whose widths and heads are equal numbers of different axes."""

    class Half(nn.Module):
        def __init__(self, d: int, h: int) -> None:
            super().__init__()
            self.h, self.d = h, d
            self.f, self.g = nn.Linear(6, d * h), nn.Linear(d * h, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.f(x).view(*x.shape[:2], self.h, self.d)
            return self.g(y.softmax(-2).flatten(2))

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = self.Half(4, 8), self.Half(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x)


class ByShape(nn.Module):
    """A helper that is no method reads the sizes from the module that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = 4, 6
        self.a, self.b = nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(mixed(self.a(x), self))


def mixed(x: Tensor, owner: Any) -> Tensor:
    y = x.view(*x.shape[:-1], owner.p, owner.q)
    return y.cumsum(-2).flatten(-2).relu()


CASES = [
    *(
        Case(cls, vectors(6))
        for cls in (OtherSelf, OtherSelfInside, OwnCall, DeadUpdate, DeadBlocks, NeverCalled, TwoPaths)
    ),
    Case(DeadHead, images()),
    *(Case(cls, vectors(4)) for cls in (Checked, Steps)),
    Case(Cross, tokens(6)),
    Case(ByShape, tokens(6)),
]
