"""Movement: Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020 (arXiv 2005.07683), eq. 5, for units."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..doors import door
from ..spec.spec import Spec
from ..types import Batch, Collector, Criterion, Params, Scores, Stats
from .base import collected, member_sums
from .gradients import Loss, Objective, cross_entropy, loss_name, mean_gradients, weights_of


class Movement(NamedTuple):
    """Collector of −Σ over samples of w·∂L/∂w, summed over the unit's slices of all effective tensors: group → [units]."""

    loss: Loss

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> Mapping[str, Tensor]:
        objective = Objective("movement", self.loss)
        data, weights = objective.data(params, batch, spec), weights_of(params, spec)
        gradients = mean_gradients(objective.of_weights(params, spec), weights, data)
        return {g: -s.sum(0) for g, s in member_sums(spec, lambda t: weights[t].double() * gradients[t]).items()}


@door
def movement(loss: Loss = cross_entropy) -> Criterion:
    """Score units by −Σ w·∂L/∂w over their slices of all effective tensors (see `magnitude`).

    Scores are high where gradient descent moves the weights away from zero; scores below zero are usual. The score is a mean
    over samples. For a score over the steps of a training, collect from each step's params and batch, and add up
    `stats.sums`, which hold one vector for each group.

    Args:
        loss: as in `taylor`.

    Raises:
        BatchError: (when collected) a batch has no labels.
        StatsError: (when scored) the gradients were not collected; pass the criterion to `collect_stats`.
    """
    collector = Collector(f"movement by {loss_name(loss)}", Movement(loss))
    return Criterion("movement", partial(_score, collector=collector), (), (collector,))


def _score(stats: Stats, *, collector: Collector) -> Scores:
    sums = collected(stats, collector, "movement", "movement(…)")
    return {g: s / max(stats.samples, 1) for g, s in sums.items()}
