"""Metrics of language models: means over tokens instead of samples."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..doors import door
from ..errors import BatchError
from ..tokens.likelihood import labels_in, likelihood, logits_of, mask_in


class TokenMetrics(NamedTuple):
    """Metrics for `Setup`: means of a batch, which `finish` turns into those of all tokens."""

    shift: bool = True

    def __call__(self, output: Any, *rest: Any) -> dict[str, Tensor]:
        """Return the sum of negative log-likelihoods and the number of tokens, both per sample."""
        batch = rest[0] if rest and isinstance(rest[0], Mapping) else {}
        labels = labels_in([x for x in rest if isinstance(x, Tensor)], batch)
        if labels is None:
            raise BatchError(
                "the batches have no labels of tokens; give dicts with input_ids and labels, or (input, labels)"
            )
        part = likelihood(logits_of(output), labels, mask_in(batch, tuple(labels.shape)), shift=self.shift)
        return {"nll": part.nll / len(labels), "tokens": torch.tensor(float(part.tokens) / len(labels)).double()}

    def finish(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the loss, the mean over all tokens, and its exp, the perplexity."""
        if not means["tokens"]:
            raise BatchError("the held-out data has no token to predict")
        loss = means["nll"] / means["tokens"]
        return {"loss": loss, "perplexity": exp(loss) if loss < 700 else inf}


@door
def token_metrics(*, shift: bool = True) -> TokenMetrics:
    """Return the metrics `loss` and `perplexity` of a language model for `Setup(…, metrics=…)`, each token of equal weight.

    Which tokens count, and what `shift` means, is as for `pf.perplexity`.

    >>> import torch
    >>> from prunefn.train import Setup, evaluate
    >>> model = torch.nn.Sequential(torch.nn.Embedding(4, 4), torch.nn.Linear(4, 4))
    >>> _ = torch.nn.init.zeros_(model[1].weight), torch.nn.init.zeros_(model[1].bias)
    >>> ids = torch.tensor([[0, 1, 2], [3, 2, -100]])
    >>> setup = Setup([], held_out=[(ids.clamp_min(0), ids)], metrics=token_metrics(), device="cpu")
    >>> round(evaluate(model, setup)["perplexity"], 4)
    4.0
    """
    return TokenMetrics(shift)
