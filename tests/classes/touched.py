"""Modules that others have touched: hooks that compute weights, buffers that are written, other precisions."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from ..small import randn
from .case import Case, images, vectors


class Small(nn.Module):
    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.width = d
        self.a, self.b = nn.Linear(6, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().view(-1, self.width))


def hooked(name: str, change: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    """A network whose first layer is changed."""

    def build() -> nn.Module:
        model = Small()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            change(model.a)
        return model

    build.__name__ = name
    return build


class Ema(Small):
    """Writes to a buffer in eval mode, too."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        self.seen.copy_(0.9 * self.seen + 0.1 * h.mean(0))
        return self.b(h.reshape(-1, self.width) - self.seen)


class Counter(Small):
    """Counts its calls in a number that equals no size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Ring(nn.Module):
    """Writes its features into a queue that is a buffer of their width."""

    queue: Tensor

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.dim = d
        self.a, self.b = nn.Linear(6, d), nn.Linear(d, 3)
        self.register_buffer("queue", torch.randn(4, d))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).view(-1, self.dim)
        y = self.b(h + self.queue.mean(0))
        self.queue.copy_(torch.cat([h.mean(0, keepdim=True), self.queue[:-1]]))
        return y


def of_type(name: str, dtype: torch.dtype) -> Case:
    def build() -> nn.Module:
        return Small()

    build.__name__ = name
    return Case(build, lambda b: (randn(b, 6, seed=b).to(dtype),))


class NormedConvs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        self.b = parametrizations.spectral_norm(nn.Conv2d(8, 4, 3))
        self.c, self.dim = nn.Linear(4 * 4 * 4, 2), 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        return self.c(x.view(-1, self.dim * x.shape[2] * x.shape[3]))


CASES = [
    *(
        Case(hooked(name, change), vectors(6))
        for name, change in {
            "unstructured": lambda m: prune.l1_unstructured(m, "weight", 0.5),
            "structured": lambda m: prune.ln_structured(m, "weight", 0.5, n=2, dim=0),
            "old_weight_norm": nn.utils.weight_norm,
            "old_spectral_norm": nn.utils.spectral_norm,
            "weight_norm": parametrizations.weight_norm,
            "spectral_norm": parametrizations.spectral_norm,
            "forward_hook": lambda m: m.register_forward_hook(lambda _, args, y: y * 2),
        }.items()
    ),
    *(Case(cls, vectors(6)) for cls in (Ema, Counter, Ring)),
    *(
        of_type(name, t)
        for name, t in {"half": torch.float16, "bfloat": torch.bfloat16, "double": torch.float64}.items()
    ),
    Case(NormedConvs, images()),
]
