"""The likelihood of tokens: which of them count, and what the network's logits say about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BatchError
from ..stats.weights import IGNORED, KEPT, PADDED
from ..tracing.arguments import LABELS

IDS = ("input_ids", "decoder_input_ids", "ids", "tokens")
"""Inputs that hold tokens, which are the labels of a language model where there are no others."""


class Likelihood(NamedTuple):
    """The negative log-likelihood of some tokens, in nats."""

    nll: Tensor
    """Sum over tokens, float64."""
    tokens: int
    """Number of tokens that count."""


def logits_of(output: Any) -> Tensor:
    """Return the logits [batch, length, vocabulary] of an output: a tensor, an output with `logits`, or a tuple that starts with them.

    Raises:
        BatchError: the output has none.
    """
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    first = output[0] if isinstance(output, tuple | list) and len(output) else output
    logits = named if isinstance(named, Tensor) else first
    if not isinstance(logits, Tensor) or logits.ndim != 3 or not logits.is_floating_point():
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
        raise BatchError(
            f"the network returns a {type(output).__name__}{shape}; perplexity needs logits [batch, length, vocabulary]: a tensor, an "
            "output with `logits`, or a tuple that starts with them"
        )
    return logits


def labels_in(rest: Iterable[Any], named: Mapping[str, Any]) -> Tensor | None:
    """Return the labels of tokens in a batch: those under a name of labels, else the first tensor of whole numbers in the rest,
    else the tokens themselves; None if there are none of these."""
    ids = [named[n] for n in IDS if n in named]
    for value in (*(named[n] for n in LABELS if n in named), *rest, *ids, *named.values()):
        if isinstance(value, Tensor) and value.ndim == 2 and value.dtype in (torch.int64, torch.int32, torch.int16):
            return value.long()
    return None


def mask_in(named: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor | None:
    """Return which positions are no padding, by the masks among named tensors; None if there is no mask of this shape."""
    for name in (*KEPT, *PADDED):
        mask = named.get(name)
        if isinstance(mask, Tensor) and tuple(mask.shape) == shape:
            return mask == 0 if name in PADDED else mask != 0
    return None


def likelihood(logits: Tensor, labels: Tensor, mask: Tensor | None, *, shift: bool) -> Likelihood:
    """Return the likelihood of the labels that count.

    Args:
        logits: [batch, length, vocabulary].
        labels: [batch, length]; −100 does not count.
        mask: [batch, length], true where a position is no padding; None: none is.
        shift: the logits at position t are of label t + 1; it counts if both positions are no padding.

    Raises:
        BatchError: the shapes differ, or a label is outside of the vocabulary.

    >>> nll, n = likelihood(torch.zeros(1, 3, 4), torch.tensor([[1, 2, -100]]), None, shift=True)
    >>> n, round(float(nll.exp()), 4)
    (1, 4.0)
    """
    if labels.shape != logits.shape[:2]:
        raise BatchError(
            f"the labels have shape {tuple(labels.shape)}, but the logits {tuple(logits.shape)}; there must be one label for each position"
        )
    labels = next_tokens(labels, mask, shift=shift)
    counted = labels != IGNORED
    tokens = int(counted.sum())
    chosen, targets = logits[counted], labels[counted]
    if tokens and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[-1]:
        raise BatchError(
            f"labels range from {int(targets.min())} to {int(targets.max())}, but there are logits for 0 to {logits.shape[-1] - 1}; "
            f"write {IGNORED} where a position does not count"
        )
    wide = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    return Likelihood(F.cross_entropy(wide, targets, reduction="none").double().sum(), tokens)


def next_tokens(labels: Tensor, mask: Tensor | None, *, shift: bool) -> Tensor:
    """Return the label that each position predicts, int64 [batch, length]; −100 where none that counts.

    Args:
        labels: [batch, length]; −100 does not count.
        mask: [batch, length], true where a position is no padding; None: none is.
        shift: position t predicts label t + 1; it counts if both positions are no padding.

    >>> next_tokens(torch.tensor([[1, 2, 3]]), torch.tensor([[True, True, False]]), shift=True)
    tensor([[   2, -100, -100]])
    """
    if mask is not None:
        labels = labels.masked_fill(~mask, IGNORED)
    if not shift:
        return labels
    after = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return after if mask is None else after.masked_fill(~mask, IGNORED)


def classes_last(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [n, classes] and labels [n] of token logits [batch, length, classes] with labels [batch, length].

    All others stay as they are; torch takes [batch, classes, length], which comes first where both fit.

    >>> x, y = classes_last(torch.zeros(2, 5, 7), torch.zeros(2, 5, dtype=torch.long))
    >>> x.shape, y.shape
    (torch.Size([10, 7]), torch.Size([10]))
    """
    second = (*logits.shape[:1], *logits.shape[2:])
    if logits.ndim > 2 and logits.shape[:-1] == labels.shape != second:
        return logits.flatten(0, -2), labels.flatten()
    return logits, labels
