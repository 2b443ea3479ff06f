"""The most likely tokens of each position, with the rest of the vocabulary as one event."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import BatchError


class TopLogits(NamedTuple):
    """Log-probabilities of the k most likely tokens of each position, and of all others together."""

    values: Tensor
    """Log-probabilities at the temperature, the largest first: [… k]."""
    indices: Tensor
    """Tokens that they are of, int64 [… k]."""
    rest: Tensor
    """Log-probability of all other tokens together, [… ]; −∞ if there are no others."""
    vocabulary: int
    temperature: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the logits that these are the largest of."""
        return (*self.rest.shape, self.vocabulary)

    def at(self, positions: Tensor) -> TopLogits:
        """Return those at some positions, by a bool tensor or indices."""
        return self._replace(values=self.values[positions], indices=self.indices[positions], rest=self.rest[positions])

    def normalized(self) -> TopLogits:
        """Return them as probabilities that sum up to 1 in spite of rounding."""
        total = torch.logaddexp(self.values.logsumexp(-1), self.rest)
        return self._replace(values=self.values - total[..., None], rest=self.rest - total)

    def divergence(self, logits: Tensor) -> Tensor:
        """Return KL(these ‖ logits) at the temperature, where all other tokens are one event: [… ].

        Merging events never raises a divergence, so this is at most the divergence over the whole vocabulary; it is that
        divergence where k is the size of the vocabulary.

        Args:
            logits: [… vocabulary].

        >>> dense, logits = torch.tensor([[2.0, 1.0, 0.0]]), torch.zeros(1, 3)
        >>> [round(top_of(dense, k).divergence(logits).item(), 4) for k in (1, 2, 3)]
        [0.2291, 0.2662, 0.2662]
        """
        log_q = (logits / self.temperature).log_softmax(-1)
        kl = (self.values.exp() * (self.values - log_q.gather(-1, self.indices))).sum(-1)
        if self.values.shape[-1] == self.vocabulary:
            return kl
        others = log_q.scatter(-1, self.indices, -torch.inf).logsumexp(-1)
        none = self.rest == -torch.inf
        rest = torch.where(none, 0.0, self.rest)
        return kl + torch.where(none, 0.0, rest.exp() * (rest - others))


def top_of(logits: Tensor, k: int, temperature: float = 1.0) -> TopLogits:
    """Return the k largest logits of each position.

    Args:
        logits: [… vocabulary].
        k: at most the size of the vocabulary.
        temperature: above 0.

    Raises:
        BatchError: there are fewer logits than k.
    """
    vocabulary = logits.shape[-1]
    if k > vocabulary:
        raise BatchError(f"top_k is {k}, but the network has logits of {vocabulary} tokens; give at most {vocabulary}")
    log_p = (logits / temperature).log_softmax(-1)
    values, indices = log_p.topk(k, dim=-1)
    return TopLogits(values, indices, log_p.scatter(-1, indices, -torch.inf).logsumexp(-1), vocabulary, temperature)
