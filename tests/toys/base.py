"""How a toy is built and fed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Case(NamedTuple):
    """How to build a toy and feed it."""

    factory: Callable[[], nn.Module]
    args: Callable[[int], tuple[Any, ...]]
    """Batch size → example inputs."""
    kwargs: Callable[[int], dict[str, Any]] = lambda n: {}

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A new one with random values, in eval mode; the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return cast(randomised(self.factory()), dtype).eval()

    def inputs(self, batch: int = 2, dtype: torch.dtype = torch.float64) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Random (args, kwargs) of this batch size; the same at every call."""

        def precise(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch)
            return tuple(map(precise, self.args(batch))), {k: precise(v) for k, v in self.kwargs(batch).items()}


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """To a precision, as `model.to` does, but tied buffers stay tied and complex ones complex."""
    done: dict[Tensor, Tensor] = {}

    def one(t: Tensor) -> Tensor:
        if t not in done:
            done[t] = t.to(dtype) if t.is_floating_point() else t.to(dtype.to_complex()) if t.is_complex() else t
        return done[t]

    return model._apply(one)


def randomised(model: nn.Module) -> nn.Module:
    """No value is 0 or 1 by construction: norms, running statistics and biases are random too."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.5 + 0.1)
        for name, b in model.named_buffers():
            if b.is_floating_point() and "running" in name:
                b.copy_(torch.rand(b.shape) + 0.5)
    return model


def images(n: int) -> tuple[Tensor]:
    return (torch.randn(n, 3, 8, 8),)


def vectors(n: int) -> tuple[Tensor]:
    return (torch.randn(n, 4),)


def tokens(width: int) -> Callable[[int], tuple[Tensor]]:
    return lambda n: (torch.randn(n, 5, width),)
