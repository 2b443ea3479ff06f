"""OBD-C: channel-wise Optimal Brain Damage of Wang et al., "EigenDamage", ICML 2019 (arXiv 1905.05934), section 3."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..doors import door
from ..spec.spec import Spec
from ..types import Batch, Collector, Criterion, Params, Scores, Stats
from . import reduction as reductions
from ._fisher import check_chunk
from .base import collected, member_sums, spec_of, weight_reader
from .gradients import Loss, Objective, cross_entropy, loss_name, squared_gradients, weights_of
from .reduction import Reduction


class SquaredWeightGradients(NamedTuple):
    """Collector of Σ over samples of (∂L_n/∂w)²: effective tensor → tensor of its shape."""

    loss: Loss
    chunk: int

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> Mapping[str, Tensor]:
        objective = Objective("obd_c", self.loss)
        data = objective.data(params, batch, spec)
        weights = weights_of(params, spec)
        return squared_gradients(objective.of_weights(params, spec), weights, data, spec, self.chunk)


@door
def obd_c(loss: Loss = cross_entropy, *, chunk_size: int = 8, reduction: Reduction = reductions.sum) -> Criterion:
    """Score units by Σ w² F over their slices of all effective tensors (see `magnitude`).

    F is the mean over samples of (∂L_n/∂w)². The factor ½ is left out.

    Args:
        loss: as in `taylor`; it is called under `vmap`.
        chunk_size: number of samples whose gradients are in memory at once; those of one sample take as much as the weights.
        reduction: of the members; biases are members, too.

    Raises:
        PruneError: chunk_size is below one.
        BatchError: (when collected) a batch has no labels.
        StatsError: (when scored) the gradients were not collected; pass the criterion to `collect_stats`.
    """
    check_chunk("obd_c", chunk_size)
    collector = Collector(f"squared gradients of {loss_name(loss)}", SquaredWeightGradients(loss, chunk_size))
    return Criterion(
        "obd_c", partial(_score, collector=collector, reduction=reduction), (), (collector,), increments=True
    )


def _score(stats: Stats, *, collector: Collector, reduction: Reduction) -> Scores:
    sums = collected(stats, collector, "obd_c", "obd_c(…)")

    weight = weight_reader(stats)

    def values(t: str) -> Tensor:
        return weight(t).square() * sums[t] / max(stats.samples, 1)

    return {g: reduction(s) for g, s in member_sums(spec_of(stats), values).items()}
