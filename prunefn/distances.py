"""Distances of a network's outputs from those of the dense network: losses without labels, for gates and recovery.

Padding does not count: positions that an attention mask or lengths among the inputs leave out are no part of a mean.

>>> auto()(torch.zeros(2, 3), torch.zeros(2, 3)).item()
0.0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import trees
from .doors import door
from .errors import BatchError, PruneError
from .stats.weights import IGNORED
from .tokens.likelihood import logits_of, next_tokens
from .tokens.positions import EVERYWHERE, Positions
from .tokens.top import TopLogits

__all__ = ["auto", "combined", "inner", "kl", "relative_mse", "tokens"]

Distance = Callable[[Any, Any], Tensor]
"""(output, dense output) → scalar that is 0 if both are equal. With a method `at`, it is called as `at(output, dense output,
positions)` instead, and leaves out positions that do not count."""


def compare(distance: Distance, output: Any, dense: Any, positions: Positions) -> Tensor:
    """Return the distance of outputs, over the positions that count if it knows of positions."""
    at = getattr(distance, "at", None)
    return distance(output, dense) if at is None else at(output, dense, positions)


class Auto(NamedTuple):
    """The distance `auto`."""

    def __call__(self, output: Any, dense: Any) -> Tensor:
        """Return the distance over all positions."""
        return self.at(output, dense, EVERYWHERE)

    def at(self, output: Any, dense: Any, positions: Positions) -> Tensor:
        """Return the distance over the positions that count."""
        logits, target = (getattr(x, "logits", x) for x in (output, dense))
        named = logits is not output
        if isinstance(logits, Tensor) and (named or logits.ndim == 2) and logits.shape[-1] > 1:
            return KL().at(logits, target, positions)
        return RelativeMSE().at(output, dense, positions)


class KL(NamedTuple):
    """The distance `kl`."""

    temperature: float = 1.0
    class_dim: int = -1

    def __call__(self, output: Any, dense: Any) -> Tensor:
        """Return the distance over all positions."""
        return self.at(output, dense, EVERYWHERE)

    def at(self, output: Any, dense: Any, positions: Positions) -> Tensor:
        """Return the distance over the positions that count."""
        logits, target = (getattr(x, "logits", x) for x in (output, dense))
        if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
            raise BatchError(
                f"distances.kl takes one tensor of scores, but the network's output is a {type(output).__name__}; use "
                "distances.relative_mse(), or a function (output, dense output) → scalar"
            )
        if self.class_dim in (-1, logits.ndim - 1):
            logits, target = (positions.counted(x) for x in (logits, target))
        return self.temperature**2 * divergence(logits, target, self.temperature, self.class_dim).mean()


class RelativeMSE(NamedTuple):
    """The distance `relative_mse`."""

    def __call__(self, output: Any, dense: Any) -> Tensor:
        """Return the distance over all positions."""
        return self.at(output, dense, EVERYWHERE)

    def at(self, output: Any, dense: Any, positions: Positions) -> Tensor:
        """Return the distance over the positions that count."""
        pairs = list(zip(_floats(output), _floats(dense), strict=True))
        if not pairs or any(a.shape != b.shape for a, b in pairs):
            shapes = [tuple(map(tuple, (a.shape, b.shape))) for a, b in pairs if a.shape != b.shape]
            what = f"shapes {shapes[0][0]} and {shapes[0][1]}" if shapes else "no floating-point tensors"
            raise BatchError(
                f"outputs of the network and the dense network have {what}; they must have the same shapes"
            )
        return torch.stack([relative_error(*(positions.counted(x) for x in pair)) for pair in pairs]).mean()


class Tokens(NamedTuple):
    """The distance `tokens`."""

    temperature: float = 1.0
    alpha: float = 0.0
    shift: bool = True

    def __call__(self, output: Any, dense: Any) -> Tensor:
        """Return the distance over all positions; without labels, which only a batch has."""
        return self.at(output, dense, EVERYWHERE)

    def at(self, output: Any, dense: Any, positions: Positions) -> Tensor:
        """Return the distance over the positions whose tokens count."""
        logits, target = logits_of(output), dense if isinstance(dense, TopLogits) else logits_of(dense)
        if logits.shape != target.shape:
            raise BatchError(
                f"the network's logits have shape {tuple(logits.shape)}, but the dense network's {tuple(target.shape)}"
            )
        labels = self._labels(positions, logits)
        counted = labels != IGNORED
        if not bool(counted.any()):
            raise BatchError("a batch has no token to predict: all labels are -100, padding, or single tokens")
        logits, labels = _wide(logits)[counted], labels[counted]
        loss = self.temperature**2 * self._divergence(logits, target, counted).mean()
        return loss if not self.alpha else self.alpha * F.cross_entropy(logits, labels) + (1 - self.alpha) * loss

    def _divergence(self, logits: Tensor, dense: Tensor | TopLogits, counted: Tensor) -> Tensor:
        """Return the divergence of logits at the positions that count from dense logits at all positions."""
        if isinstance(dense, Tensor):
            return divergence(logits, _wide(dense)[counted], self.temperature)
        if dense.temperature != self.temperature:
            raise PruneError(
                f"the dense logits were written at temperature {dense.temperature}; write distances.tokens({dense.temperature}), not "
                f"{self.temperature}"
            )
        return dense.at(counted).divergence(logits)

    def _labels(self, positions: Positions, logits: Tensor) -> Tensor:
        """Return the label that each position predicts, −100 where it does not count: int64 [batch, length]."""
        labels = positions.labels
        if labels is None:
            if self.alpha:
                raise BatchError(
                    f"alpha={self.alpha} weights the loss of labels, but the batch has no labels and no tokens; give labels, or alpha=0"
                )
            return torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
        if labels.shape != logits.shape[:2]:
            raise BatchError(
                f"the labels have shape {tuple(labels.shape)}, but the logits {tuple(logits.shape)}; there must be one label for each "
                "position"
            )
        return next_tokens(labels, positions.mask(labels.shape), shift=self.shift)


class Inner(NamedTuple):
    """The distance `inner`."""

    values: tuple[str, ...]
    project: bool = False

    def __call__(self, output: Any, dense: Any) -> Tensor:
        """Return the distance of tuples of values, each [positions …, features]."""
        errors = [relative_error(a, b) for a, b in zip(output, dense, strict=True)]
        return torch.stack(errors).mean()


class Combined(NamedTuple):
    """The distance `combined`."""

    a: Distance
    b: Distance
    alpha: float

    def __call__(self, output: Any, dense: Any) -> Tensor:
        """Return the distance over all positions."""
        return self.at(output, dense, EVERYWHERE)

    def at(self, output: Any, dense: Any, positions: Positions) -> Tensor:
        """Return the distance over the positions that count."""
        if any(isinstance(d, Inner) for _, d in terms(self)):
            raise PruneError(f"distances.inner compares values inside of networks, {ONLY_RECOVER}")
        return torch.stack([w * compare(d, output, dense, positions) for w, d in terms(self)]).sum()


ONLY_RECOVER = "which recover does alone; give another distance here"
"""Where `inner` has no values to compare."""


def terms(distance: Distance) -> list[tuple[float, Distance]]:
    """Return the parts of a distance with their weights."""
    if not isinstance(distance, Combined):
        return [(1.0, distance)]
    sides = ((distance.alpha, distance.a), (1 - distance.alpha, distance.b))
    return [(weight * w, d) for weight, side in sides for w, d in terms(side)]


@door
def auto() -> Distance:
    """Return `kl` of class scores, and `relative_mse` of other outputs.

    Class scores are an output with `logits`, as transformers give it, or a tensor [batch, classes] with two classes or more. Give
    `relative_mse()` for a network whose output [batch, features] is an embedding, `kl(class_dim=1)` for scores of every pixel, and
    `tokens()` for a language model whose output is a tensor, or where labels of −100 leave out positions.
    """
    return Auto()


@door
def kl(temperature: float = 1.0, class_dim: int = -1) -> Distance:
    """Return T² · KL(dense ‖ output) of softmaxes at temperature T, in nats, the mean over samples and positions that count.

    Args:
        temperature: T, above 0.
        class_dim: dim of the classes.

    Raises:
        PruneError: the temperature is not above 0.
        BatchError: (when called) an output is no tensor, and has no tensor `logits`.

    >>> kl()(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986123]]))  # ¼ log ½ + ¾ log 1½
    tensor(0.1308)
    """
    return KL(_checked(temperature), class_dim)


@door
def tokens(temperature: float = 1.0, alpha: float = 0.0, shift: bool = True) -> Distance:
    """Return α · cross entropy of the labels + (1 − α) · T² · KL(dense ‖ output) of token logits, in nats (Hinton et al., 2015).

    Both are means over the tokens that `perplexity` counts: the logits at position t are of label t + 1, and a label of −100 does
    not count, nor does padding by an attention mask among the inputs. The labels are those of the batch, else its tokens.

    Args:
        temperature: T of the divergence, above 0.
        alpha: weight of the labels, in [0, 1]; 0 needs none.
        shift: False if the logits at position t are of label t, as in encoder-decoders and masked language models.

    Raises:
        PruneError: the temperature is not above 0, or alpha not in [0, 1].
        BatchError: (when called) the output has no logits [batch, length, vocabulary], or no token counts.

    >>> uniform, skewed = torch.zeros(1, 2, 2), torch.tensor([0.0, 1.0986123]).expand(1, 2, 2)
    >>> tokens()(uniform, skewed)  # as for kl
    tensor(0.1308)
    """
    if not 0 <= alpha <= 1:
        raise PruneError(f"alpha is {alpha}; it is the weight of the labels, and must be in [0, 1]")
    return Tokens(_checked(temperature), alpha, shift)


@door
def inner(values: Sequence[str] | str, *, project: bool = False) -> Distance:
    """Return the relative error of values inside of the network: hidden states, outputs of attention; for `recover` alone.

    The mean squared difference over the variance of the dense value, at the positions that are no padding, averaged over the
    values. Where the network lost units of a value, the units that are left are compared if `recover` has `mask=`; with `project`,
    a linear map of all of them is compared with the dense value instead (Minitron, arXiv 2407.14679): the least-squares fit on the
    training batches, before the first step. Without either, the value is left out.

    Args:
        values: paths of modules, whose results are compared, such as "model.layers.*"; a star stands for one step of a path. Or
            names of values, such as "%softmax_1", as in `spec.program.instructions`.
        project: compare narrower values after a linear map.

    >>> inner("model.layers.*")
    Inner(values=('model.layers.*',), project=False)
    """
    return Inner((values,) if isinstance(values, str) else tuple(values), project)


@door
def combined(a: Distance, b: Distance, alpha: float = 0.5) -> Distance:
    """Return α a + (1 − α) b.

    Args:
        a, b: distances, also combined ones.
        alpha: weight of a, in [0, 1].

    Raises:
        PruneError: alpha is not in [0, 1].

    >>> x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986123]])
    >>> combined(kl(), relative_mse(), 0.5)(x, y)  # ½ · 0.1308 + ½ · 2
    tensor(1.0654)
    """
    if not 0 <= alpha <= 1:
        raise PruneError(f"alpha is {alpha}; it is the weight of the first distance, and must be in [0, 1]")
    return Combined(a, b, alpha)


@door
def relative_mse() -> Distance:
    """Return the mean squared difference over the variance of the dense output, averaged over the tensors of the outputs.

    The variance is over all elements of a tensor in the batch that count; of a constant one, its mean square is taken.

    Raises:
        BatchError: (when called) outputs have no floating-point tensors, or tensors of different shapes.

    >>> relative_mse()(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
    tensor(1.)
    """
    return RelativeMSE()


def divergence(logits: Tensor, dense: Tensor, temperature: float, class_dim: int = -1) -> Tensor:
    """Return KL(dense ‖ logits) of softmaxes at a temperature, of the shape of the logits without the classes."""
    a, b = (F.log_softmax(x / temperature, class_dim) for x in (logits, dense))
    return F.kl_div(a, b, reduction="none", log_target=True).sum(class_dim)


def relative_error(value: Tensor, dense: Tensor) -> Tensor:
    """Return the mean squared difference over the variance of the dense value, or over its mean square if it is constant."""
    signal = dense.var(correction=0)
    signal = torch.where(signal > 0, signal, dense.square().mean())
    return (value - dense).square().mean() / torch.where(signal > 0, signal, 1.0)


def _checked(temperature: float) -> float:
    """Return a temperature; raise PruneError if it is not above 0."""
    if not temperature > 0:
        raise PruneError(f"temperature is {temperature}; it must be above 0")
    return temperature


def _wide(x: Tensor) -> Tensor:
    """Return a tensor in float32, or in its own dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _floats(output: Any) -> list[Tensor]:
    return [x for x in trees.tensors(output) if x.is_floating_point()]


def __dir__() -> list[str]:
    return __all__
