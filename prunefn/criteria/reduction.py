"""Reductions: one score of a unit from those of its members (rows, columns, norm weights); Tensor [members, units] → [units]."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..doors import door

__all__ = ["Reduction", "first", "max", "mean", "prod", "sum"]


Reduction = Callable[[Tensor], Tensor]
"""Scores of a group's members, in the order in which the program uses them, [members, units] → [units]."""


@door
def mean(scores: Tensor) -> Tensor:
    """Their mean: a group's scores do not grow with the number of its members.

    >>> import torch
    >>> mean(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    tensor([2., 5.])
    """
    return scores.mean(0)


@door
def sum(scores: Tensor) -> Tensor:
    """Their sum.

    >>> import torch
    >>> sum(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    tensor([ 4., 10.])
    """
    return scores.sum(0)


@door
def max(scores: Tensor) -> Tensor:
    """The largest.

    >>> import torch
    >>> max(torch.tensor([[1.0, 9.0], [3.0, 8.0]]))
    tensor([3., 9.])
    """
    return scores.amax(0)


@door
def prod(scores: Tensor) -> Tensor:
    """Their product: zero as soon as one member is.

    >>> import torch
    >>> prod(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    tensor([ 3., 16.])
    """
    return scores.prod(0)


@door
def first(scores: Tensor) -> Tensor:
    """That of the first member, which for groups inside a block is the weight that produces the units.

    >>> import torch
    >>> first(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    tensor([1., 2.])
    """
    return scores[0]


def __dir__() -> list[str]:
    return __all__
