"""Adam as a pure function on dicts of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, pi
from typing import NamedTuple

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8


class Adam(NamedTuple):
    """Moments of the gradients (Kingma and Ba, ICLR 2015), each name → tensor of the parameter's shape."""

    first: Mapping[str, Tensor]
    """Mean."""
    second: Mapping[str, Tensor]
    """Mean of squares."""
    step: int = 0
    """Number of gradients."""

    @staticmethod
    def start(params: Mapping[str, Tensor]) -> Adam:
        """Return the moments before the first gradient."""
        zeros = {n: torch.zeros_like(t) for n, t in params.items()}
        return Adam(zeros, zeros)

    def add(self, gradients: Mapping[str, Tensor]) -> Adam:
        """Return the moments with one more gradient."""
        first = {n: torch.lerp(self.first[n], g, 1 - BETAS[0]) for n, g in gradients.items()}
        second = {n: torch.lerp(self.second[n], g.square(), 1 - BETAS[1]) for n, g in gradients.items()}
        return Adam(first, second, self.step + 1)

    def scale(self, name: str) -> Tensor:
        """Return 1 / (√v̂ + ε), by which gradients of this parameter are multiplied."""
        return 1 / ((self.second[name] / (1 - BETAS[1] ** self.step)).sqrt() + EPS)

    def direction(self, name: str) -> Tensor:
        """Return m̂ / (√v̂ + ε): the update is −lr times it."""
        return self.first[name] / (1 - BETAS[0] ** self.step) * self.scale(name)


def clipped(gradients: Sequence[Tensor], norm: float | None) -> Sequence[Tensor]:
    """Return gradients scaled so that the norm of all of them together is at most `norm`; None: as they are.

    >>> [g.item() for g in clipped([torch.tensor(3.0), torch.tensor(4.0)], 1.0)]  # doctest: +ELLIPSIS
    [0.6..., 0.8...]
    """
    if norm is None:
        return gradients
    whole = torch.stack([g.norm() for g in gradients]).norm()
    return [g * (norm / whole.clamp_min(norm)) for g in gradients]


def one_cycle(step: int, steps: int, lr: float, *, rising: float = 0.3, start: float = 25.0, end: float = 1e4) -> float:
    """Return the learning rate of a step from 0: up to `lr` and down along half cosines (Smith and Topin, 2018), as in torch.

    Args:
        step: of 0 … steps − 1.
        steps: of the cycle.
        lr: highest learning rate.
        rising: fraction of the steps that it rises.
        start: lr over the first learning rate.
        end: first learning rate over the last.

    >>> [round(one_cycle(step, 10, 1.0), 2) for step in (0, 2, 9)]
    [0.04, 1.0, 0.0]
    """
    first, last, peak = lr / start, lr / start / end, max(rising * steps - 1, 0.0)
    if step < peak:
        return _half_cosine(first, lr, step / peak)
    return _half_cosine(lr, last, (step - peak) / max(steps - 1 - peak, 1e-12))


def _half_cosine(a: float, b: float, share: float) -> float:
    return b + (a - b) / 2 * (1 + cos(pi * min(share, 1.0)))
