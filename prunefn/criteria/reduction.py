"""Reductions: the scores of a group's members (rows, columns, norm weights) to one score a unit, [members, units] → [units]."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..doors import door

__all__ = ["Reduction", "first", "max", "mean", "prod", "sum"]


Reduction = Callable[[Tensor], Tensor]
"""Scores of a group's members, in the order in which the program uses them, [members, units] → [units]."""


@door
def mean(scores: Tensor) -> Tensor:
    """Return the mean over members, so that scores do not grow with the number of members.

    >>> import torch
    >>> mean(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    tensor([2., 5.])
    """
    return scores.mean(0)


@door
def sum(scores: Tensor) -> Tensor:
    """Return the sum over members.

    >>> import torch
    >>> sum(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    tensor([ 4., 10.])
    """
    return scores.sum(0)


@door
def max(scores: Tensor) -> Tensor:
    """Return the maximum over members.

    >>> import torch
    >>> max(torch.tensor([[1.0, 9.0], [3.0, 8.0]]))
    tensor([3., 9.])
    """
    return scores.amax(0)


@door
def prod(scores: Tensor) -> Tensor:
    """Return the product over members, which is zero if any member is.

    >>> import torch
    >>> prod(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    tensor([ 3., 16.])
    """
    return scores.prod(0)


@door
def first(scores: Tensor) -> Tensor:
    """Return the score of the first member: for groups inside a block, the weight that produces the units.

    >>> import torch
    >>> first(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    tensor([1., 2.])
    """
    return scores[0]


def __dir__() -> list[str]:
    return __all__
