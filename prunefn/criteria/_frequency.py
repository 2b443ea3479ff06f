"""Frequency of tokens in a corpus: rare ones are removed first.

Removing what a corpus does not use is how multilingual vocabularies are trimmed: Abdaoui et al., "Load What You Need: Smaller
Versions of Multilingual BERT", SustaiNLP 2020 (arXiv 2010.05609).
"""

from __future__ import annotations

import torch

from ..errors import BatchError
from ..program.batches import inputs_of
from ..spec.spec import Spec
from ..types import Batch, Collector, Criterion, Params, Scores, Stats
from .base import collected


def frequency() -> Criterion:
    """Score the tokens of a vocabulary that `trace(…, free="vocabulary")` made a group by how often they occur in the batches.

    All inputs that hold ids of it count, padding included. Negative numbers, such as labels that a loss ignores, do not. No other
    group has a score.

    Raises:
        BatchError: (when collected) the spec has no such group.
        StatsError: (when scored) the ids were not counted; pass the criterion to `collect_stats`.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4))
    >>> spec = pf.trace(model, (torch.zeros(2, 5, dtype=torch.long),), free="vocabulary")
    >>> ids = torch.tensor([[0, 1, 1, 3, 1], [3, 0, 1, 1, 3]])
    >>> stats = pf.collect_stats(pf.params(model), [ids], spec=spec, criterion=frequency())
    >>> pf.score(stats, criterion=frequency())
    {'0.vocabulary': tensor([2., 5., 0., 3.], dtype=torch.float64)}
    >>> pf.select(pf.score(stats, criterion=frequency()), 0.5, spec=spec)
    {'0.vocabulary': tensor([False,  True, False,  True])}
    """
    return Criterion("frequency", _score, needs=(), collectors=(COUNTS,), on_request=True)


def _count(params: Params, batch: Batch, spec: Spec) -> dict[str, torch.Tensor]:
    """Return group → how often each of its positions occurs in a batch."""
    groups = {g: i.inputs for g, i in spec.program.interfaces.items() if i.inputs}
    if not groups:
        raise BatchError(
            'criterion "frequency" counts ids, but the spec has no group of them: trace(…, free="vocabulary")'
        )
    names = [i.name for i in spec.program.inputs]
    inputs = dict(zip(names, inputs_of(batch, spec=spec), strict=True))
    return {g: sum((_counts(inputs[n], spec.sizes[g]) for n in own), torch.zeros(())) for g, own in groups.items()}


def _counts(ids: torch.Tensor, units: int) -> torch.Tensor:
    flat = ids.flatten()
    if bool((flat >= units).any()):
        raise BatchError(
            f"id {int(flat.max())} is out of range: there are {units}; pf.remap gives ids of a smaller network"
        )
    return torch.bincount(flat[flat >= 0], minlength=units).double().cpu()


COUNTS = Collector("counts of ids", _count)


def _score(stats: Stats) -> Scores:
    return dict(collected(stats, COUNTS, "frequency", "frequency()"))
