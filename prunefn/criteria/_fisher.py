"""Fisher information of a unit: Theis et al., "Faster Gaze Prediction with Dense Networks and Fisher Pruning", 2018
(arXiv 1801.05787), eq. 9; Liu et al., "Group Fisher Pruning", ICML 2021 (arXiv 2108.00708), for coupled channels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..doors import door
from ..errors import PruneError
from ..program.batches import device_of
from ..spec.spec import Spec
from ..types import Batch, Collector, Criterion, Params, Scores, Stats, Where
from .base import collected
from .gradients import Loss, Objective, cross_entropy, loss_name, squared_gradients
from .unit_mask import ones


class SquaredMaskGradients(NamedTuple):
    """Collector of Σ over samples of (∂L_n/∂m)²: group → [units]."""

    loss: Loss
    chunk: int
    where: Where | str | None

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> Mapping[str, Tensor]:
        objective = Objective("fisher", self.loss)
        data = objective.data(params, batch, spec)
        at = ones(spec, device_of(params), self.where)
        return squared_gradients(objective.of_masks(params, spec, at), at, data, spec, self.chunk)


@door
def fisher(loss: Loss = cross_entropy, *, chunk_size: int = 32, where: Where | str | None = None) -> Criterion:
    """Score units by the mean over samples of (∂L_n/∂m)² at a mask m of ones on the units (see `mask_params`).

    Every group has a score. L_n is the loss of sample n alone, as a batch of one. The factor ½ of the papers is left out.

    Args:
        loss: as in `taylor`; it is called under `vmap`.
        chunk_size: number of samples whose gradients are in memory at once.
        where: as in `taylor`.

    Raises:
        PruneError: chunk_size is below one.
        BatchError: (when collected) a batch has no labels.
        StatsError: (when scored) the gradients were not collected; pass the criterion to `collect_stats`.
    """
    check_chunk("fisher", chunk_size)
    at = "" if where is None else f" at {where!r}"
    collector = Collector(
        f"squared mask gradients of {loss_name(loss)}{at}", SquaredMaskGradients(loss, chunk_size, where)
    )
    score = partial(_score, collector=collector)
    return Criterion("fisher", score, (), (collector,), increments=True, on_request=where is not None)


def check_chunk(name: str, chunk: int) -> None:
    """Check that the chunk size is at least one sample.

    Raises:
        PruneError: chunk is below one.
    """
    if chunk < 1:
        raise PruneError(f"{name}'s chunk_size is {chunk}; it must be 1 or more, such as 32")


def _score(stats: Stats, *, collector: Collector) -> Scores:
    sums = collected(stats, collector, "fisher", "fisher(…)")
    return {g: s / max(stats.samples, 1) for g, s in sums.items()}
