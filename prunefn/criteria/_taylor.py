"""First-order importance: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017
(the gradient times activation), and "Importance Estimation for Neural Network Pruning", CVPR 2019, eq. 8 (gates)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..doors import door
from ..program.batches import device_of
from ..spec.spec import Spec
from ..types import Batch, Collector, Criterion, Params, Scores, Stats, Where
from . import reduction as reductions
from .base import collected, member_sums, spec_of, weight_reader
from .gradients import Loss, Objective, cross_entropy, loss_name, mean_gradients, weights_of
from .reduction import Reduction
from .unit_mask import ones


class MaskGradients(NamedTuple):
    """Collector of Σ over samples of ∂L/∂m, or of its magnitude in each batch: group → [units]."""

    loss: Loss
    absolute: bool
    where: Where | str | None

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> Mapping[str, Tensor]:
        objective = Objective("taylor", self.loss)
        data = objective.data(params, batch, spec)
        at = ones(spec, device_of(params), self.where)
        gradients = mean_gradients(objective.of_masks(params, spec, at), at, data)
        return {g: v.abs() for g, v in gradients.items()} if self.absolute else gradients


class WeightGradients(NamedTuple):
    """Collector of Σ over samples of ∂L/∂w: effective tensor → tensor of its shape."""

    loss: Loss
    criterion: str = "taylor"

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> Mapping[str, Tensor]:
        objective = Objective(self.criterion, self.loss)
        data = objective.data(params, batch, spec)
        return mean_gradients(objective.of_weights(params, spec), weights_of(params, spec), data)


@door
def taylor(
    loss: Loss = cross_entropy,
    *,
    absolute: bool = False,
    weights: bool = False,
    reduction: Reduction = reductions.sum,
    where: Where | str | None = None,
) -> Criterion:
    """Score units by |∂L/∂m| at a mask m of ones on the units: to first order, the change of the loss when a unit is removed.

    The mask multiplies the unit in everything that reads it (see `mask_params`), so that all coupled tensors are summed with
    their signs: at a linear consumer, the score is |Σ w·∂L/∂w| over the unit's column. Every group has a score.

    Args:
        loss: (output, *rest of the batch) → scalar, a mean over samples; default: cross entropy with the labels that follow
            the inputs.
        absolute: score by the mean over batches of |∂L/∂m|, instead of the magnitude of the mean over all data.
        weights: score by Σ|w·∂L/∂w| over the unit's slices of all effective tensors (see `magnitude`) instead, including
            norms and biases. On a random or untrained network, this is SNIP (Lee et al., ICLR 2019) for units.
        reduction: of the members' sums, used with `weights`.
        where: groups to score; None: all but whole branches and layers, which `pf.kind("layer")` chooses. Not used with `weights`.

    Raises:
        BatchError: (when collected) a batch has no labels.
        StatsError: (when scored) the gradients were not collected; pass the criterion to `collect_stats`.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data, model[1].weight.data = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, -4.0]])
    >>> spec, x = pf.trace(model, (torch.randn(2, 1),)), torch.tensor([[1.0], [3.0]])
    >>> criterion = taylor(torch.mean)  # the output is 3x − 8x; x is 2 in the mean
    >>> pf.score(pf.collect_stats(pf.params(model), [x], spec=spec, criterion=criterion), criterion=criterion)
    {'0': tensor([ 6., 16.], dtype=torch.float64)}
    """
    if weights:
        collector = Collector(f"gradients of {loss_name(loss)}", WeightGradients(loss))
        return Criterion(
            "taylor",
            partial(_score_weights, collector=collector, reduction=reduction),
            (),
            (collector,),
            increments=True,
        )
    kind = "magnitudes of mask gradients" if absolute else "mask gradients"
    at = "" if where is None else f" at {where!r}"
    collector = Collector(f"{kind} of {loss_name(loss)}{at}", MaskGradients(loss, absolute, where))
    scores = partial(_score_masks, collector=collector)
    return Criterion("taylor", scores, (), (collector,), increments=True, on_request=where is not None)


def _score_masks(stats: Stats, *, collector: Collector) -> Scores:
    sums = collected(stats, collector, "taylor", "taylor(…)")
    return {g: (s / max(stats.samples, 1)).abs() for g, s in sums.items()}


def _score_weights(stats: Stats, *, collector: Collector, reduction: Reduction) -> Scores:
    sums = collected(stats, collector, "taylor", "taylor(…, weights=True)")

    weight = weight_reader(stats)

    def values(t: str) -> Tensor:
        return (weight(t) * sums[t]).abs() / max(stats.samples, 1)

    return {g: reduction(s) for g, s in member_sums(spec_of(stats), values).items()}
