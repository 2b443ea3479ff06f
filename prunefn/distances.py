"""Distances of a network's outputs from those of the dense network: losses without labels, for gates and recovery.

>>> auto()(torch.zeros(2, 3), torch.zeros(2, 3)).item()
0.0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import trees
from .doors import door
from .errors import BatchError, PruneError

__all__ = ["auto", "kl", "relative_mse"]

Distance = Callable[[Any, Any], Tensor]
"""(output, dense output) → scalar that is 0 if both are equal."""


@door
def auto() -> Distance:
    """Return `kl` of class scores, and `relative_mse` of other outputs.

    Class scores are an output with `logits`, as transformers give it, or a tensor [batch, classes] with two classes or more. Give
    `relative_mse()` for a network whose output [batch, features] is an embedding, and `kl(class_dim=1)` for scores of every pixel.
    """

    def distance(output: Any, dense: Any) -> Tensor:
        logits, target = (getattr(x, "logits", x) for x in (output, dense))
        named = logits is not output
        if isinstance(logits, Tensor) and (named or logits.ndim == 2) and logits.shape[-1] > 1:
            return kl()(logits, target)
        return relative_mse()(output, dense)

    return distance


@door
def kl(temperature: float = 1.0, class_dim: int = -1) -> Distance:
    """Return T² · KL(dense ‖ output) of softmaxes at temperature T, in nats, the mean over samples and positions.

    Args:
        temperature: T, above 0.
        class_dim: dim of the classes.

    Raises:
        PruneError: the temperature is not above 0.
        BatchError: (when called) an output is no tensor, and has no tensor `logits`.

    >>> kl()(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986123]]))  # ¼ log ½ + ¾ log 1½
    tensor(0.1308)
    """
    if not temperature > 0:
        raise PruneError(f"temperature is {temperature}; it must be above 0")

    def distance(output: Any, dense: Any) -> Tensor:
        logits, target = (getattr(x, "logits", x) for x in (output, dense))
        if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
            raise BatchError(
                f"distances.kl takes one tensor of scores, but the network's output is a {type(output).__name__}; use "
                "distances.relative_mse(), or a function (output, dense output) → scalar"
            )
        a, b = (F.log_softmax(x / temperature, class_dim) for x in (logits, target))
        return temperature**2 * F.kl_div(a, b, reduction="none", log_target=True).sum(class_dim).mean()

    return distance


@door
def relative_mse() -> Distance:
    """Return the mean squared difference over the variance of the dense output, averaged over the tensors of the outputs.

    The variance is over all elements of a tensor in the batch; of a constant one, its mean square is taken.

    Raises:
        BatchError: (when called) outputs have no floating-point tensors, or tensors of different shapes.

    >>> relative_mse()(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
    tensor(1.)
    """

    def distance(output: Any, dense: Any) -> Tensor:
        pairs = list(zip(_floats(output), _floats(dense), strict=True))
        if not pairs or any(a.shape != b.shape for a, b in pairs):
            shapes = [tuple(map(tuple, (a.shape, b.shape))) for a, b in pairs if a.shape != b.shape]
            what = f"shapes {shapes[0][0]} and {shapes[0][1]}" if shapes else "no floating-point tensors"
            raise BatchError(
                f"outputs of the network and the dense network have {what}; they must have the same shapes"
            )
        return torch.stack([relative_error(a, b) for a, b in pairs]).mean()

    return distance


def relative_error(value: Tensor, dense: Tensor) -> Tensor:
    """Return the mean squared difference over the variance of the dense value, or over its mean square if it is constant."""
    signal = dense.var(correction=0)
    signal = torch.where(signal > 0, signal, dense.square().mean())
    return (value - dense).square().mean() / torch.where(signal > 0, signal, 1.0)


def _floats(output: Any) -> list[Tensor]:
    return [x for x in trees.tensors(output) if x.is_floating_point()]


def __dir__() -> list[str]:
    return __all__
