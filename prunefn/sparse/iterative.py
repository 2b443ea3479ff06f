"""Iterative pruning: rounds of selection with training between them, and masks that change in each epoch of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..doors import door
from ..errors import PruneError
from ..frozen_dict import FrozenDict
from ..spec.spec import Spec
from ..stats import collect_stats
from ..types import Batch, Criterion, Params, Stats
from . import criteria
from .choose import select
from .layouts import Masks
from .pattern import Pattern
from .reconstruction import reconstruct
from .scope import WeightScope
from .scoring import score
from .slicing import apply_sparse

Schedule = Callable[[int], float]
"""Number of rounds or epochs done → fraction removed, such as those of `prunefn.train.schedule`."""
Between = Callable[[int, Params, Masks], Params]
"""Training between rounds: (round, from 1; params with zeros; current masks) → params."""


@door
def rounds(
    params: Params,
    batches: Iterable[Batch] | None,
    schedule: Schedule,
    steps: int,
    *,
    spec: Spec,
    criterion: Criterion | None = None,
    pattern: Pattern | None = None,
    scope: WeightScope | None = None,
    weights: Sequence[str] | str | None = None,
    ridge: float | None = None,
    between: Between | None = None,
) -> tuple[Params, Masks]:
    """Prune in rounds: in each round, score the remaining weights, remove up to the schedule's fraction, and train.

    Removed weights stay removed.

    Args:
        params: of the spec.
        batches: for criteria that need data, and for `ridge`; read once into a list, and measured in each round.
        schedule: rounds done → fraction removed: `train.schedule.linear(0.8, 4)`, `geometric`, `cubic`.
        steps: number of rounds; a schedule of `train.schedule` has it as `.steps`.
        spec: of the params.
        criterion, pattern, scope: as in `sparse.score` and `sparse.select`.
        weights: weights to prune, as in `sparse.score`; default: all.
        ridge: reconstruct with this ridge in each round, from the same batches; None: removed weights are set to zero only.
        between: trains with the masks held, such as by `train(model, data, masks=masks)`; None: no training.

    Returns:
        Params with zeros, and the masks. Further training needs the masks to keep the zeros.

    Raises:
        PruneError: as in `select` and `score`; or steps is below one.

    >>> import prunefn as pf
    >>> from prunefn.train import schedule
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> spec, cubic = pf.trace(model, (torch.randn(2, 4),)), schedule.cubic(0.75, 3)
    >>> params, masks = rounds(pf.params(model), None, cubic, cubic.steps, spec=spec)
    >>> {n: int((~m).sum()) for n, m in masks.items()}
    {'0.weight': 12, '2.weight': 6}
    """
    if steps < 1:
        raise PruneError(f"there are {steps} rounds; there must be at least one")
    criterion, masks = criteria.magnitude() if criterion is None else criterion, {}
    data = None if batches is None else list(batches)
    for step in range(1, steps + 1):
        needed = data if criterion.data or ridge is not None else None
        stats = collect_stats(params, needed, spec=spec, criterion=criterion, covariance=ridge is not None)
        scores = score(stats, criterion=criterion, weights=weights)
        masks = select(scores, schedule(step), spec=spec, pattern=pattern, scope=scope, within=masks)
        if ridge is None:
            params = apply_sparse(params, masks)
        else:
            params = reconstruct(params, stats, masks, spec=spec, ridge=ridge)
        if between is not None:
            params = apply_sparse(between(step, params, masks), masks)
    return params, masks


@door
def renewed(
    schedule: Schedule,
    *,
    spec: Spec,
    criterion: Criterion | None = None,
    pattern: Pattern | None = None,
    scope: WeightScope | None = None,
    weights: Sequence[str] | str | None = None,
) -> Callable[[int, Mapping[str, Tensor]], Masks]:
    """Return masks that are selected again in each epoch, from the weights alone.

    They are for `train.regularizers.Regularizer(name, masks=renewed(…))`. A removed weight may return if its score is high enough:
    weights that are held at zero rank last by magnitude.

    Args:
        schedule: epochs done before this one → fraction removed in it.
        spec: of the network.
        criterion: one that needs no data; default: `sparse.criteria.magnitude()`.
        pattern, scope: as in `sparse.select`.
        weights: weights to mask, as in `sparse.score`; default: all.

    Returns:
        (epoch, parameters) → weight masks.

    Raises:
        PruneError: the criterion needs data; use `rounds`.

    >>> import prunefn as pf
    >>> spec = pf.trace(torch.nn.Sequential(torch.nn.Linear(2, 1)), (torch.randn(2, 2),))
    >>> masks = renewed(lambda epoch: (0.0, 0.5)[epoch], spec=spec)
    >>> [masks(e, {"0.weight": torch.tensor([[1.0, 2.0]])})["0.weight"].int().tolist() for e in (0, 1)]
    [[[1, 1]], [[0, 1]]]
    """
    criterion = criteria.magnitude() if criterion is None else criterion
    if criterion.data:
        raise PruneError(
            f"masks that are renewed in training cannot use {criterion.name!r}, which needs data; use rounds"
        )
    options = {"spec": spec, "criterion": criterion, "pattern": pattern, "scope": scope, "weights": weights}
    return partial(_select_for_epoch, schedule=schedule, **options)


@torch.no_grad()
def _select_for_epoch(
    epoch: int,
    params: Mapping[str, Tensor],
    *,
    schedule: Schedule,
    spec: Spec,
    criterion: Criterion,
    pattern: Pattern | None,
    scope: WeightScope | None,
    weights: Sequence[str] | str | None,
) -> Masks:
    """Return the masks of an epoch."""
    scores = score(Stats(spec, FrozenDict(params)), criterion=criterion, weights=weights)
    return select(scores, schedule(epoch), spec=spec, pattern=pattern, scope=scope)
