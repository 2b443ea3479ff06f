"""Prune in stages: whole layers by their number, then experts by theirs, then what the ratio or the budgets remove."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .. import compensation as compensations
from .. import criteria
from ..by_name.tables import compensation_of, criterion_of
from ..costs.analytic import cost
from ..errors import BatchError
from ..frozen_dict import FrozenDict
from ..parameters.transforms import compose
from ..pipelines import pipeline
from ..plans import Prune as Pruner
from ..selection import budget
from ..selection.counts import KINDS, counted
from ..spec.parts import EXPERTS
from ..spec.routing import routes_of
from ..spec.spec import Spec
from ..types import Budget, Count, Criterion, Info, Params, Pruned
from ..where import kind
from .pipelines import COUNTED, amount_of
from .sections import Prune

Run = Callable[[Pruner, Params, Spec], Pruned]
"""Calls a pipeline with params, the batches of the command, and a spec."""
Maker = Callable[[Any], Pruner]
"""Ratio or budgets → pipeline."""


class Rest(NamedTuple):
    """What is removed after whole layers and experts."""

    make: Maker
    amount: Any
    """A ratio, a budget of the dense network's cost, or several."""


def has_counts(section: Prune) -> bool:
    """Return whether a section says how many layers or experts stay."""
    return any(getattr(section, n) is not None for n in COUNTED)


def rest_of(section: Prune, make: Maker) -> Rest | None:
    """Return what is removed after whole layers and experts; None if the section has nothing but these."""
    names = ("ratio", "macs", "params", "activations")
    if all(getattr(section, n) is None for n in names):
        return None
    return Rest(make, amount_of(section.model_copy(update=dict.fromkeys(COUNTED))))


def in_stages(params: Params, spec: Spec, section: Prune, rest: Rest | None, run: Run, *, data: bool) -> Pruned:
    """Prune whole layers, experts, and the rest; the budgets of the rest are of the dense network.

    Args:
        params, spec: dense.
        section: with numbers of layers or experts.
        rest: of `rest_of`.
        run: calls a pipeline.
        data: whether there are batches.

    Raises:
        BatchError: layers go by a criterion of activations, but there are no data.
        PruneError: the model has no layers, or no experts.
    """
    unpruned = Pruned(params, spec, {}, Info(cost(spec), cost(spec), {}))
    now = unpruned
    for make in (_layers, _experts):
        if (prune := make(section, now.spec, data)) is not None:
            now = _joined(now, run(prune, now.params, now.spec), spec)
    if rest is not None and (amount := _left(rest.amount, spec, now.spec)) is not None:
        now = _joined(now, run(rest.make(amount), now.params, now.spec), spec)
    return now


def _layers(section: Prune, spec: Spec, data: bool) -> Pruner | None:
    """Return the pipeline that removes whole layers; None if their number is not given."""
    if section.layers is None:
        return None
    criterion = criterion_of(section.layers_criterion or "block_influence")
    if criterion.data and not data:
        raise BatchError(
            f"prune.layers is {section.layers}, and {criterion.name} scores layers with data: give --data, or --layers-criterion random"
        )
    return _pipeline(section, criterion, budget.layers(section.layers), spec, means=data and not spec.configured)


def _experts(section: Prune, spec: Spec, data: bool) -> Pruner | None:
    """Return the pipeline that removes experts; None if their number is not given."""
    if section.experts is None:
        return None
    groups = [g for g, group in spec.groups.items() if group.kind == EXPERTS]
    measurable = data and all(g in (routes := routes_of(spec)) and routes[g].parts for g in groups)
    default = criteria.reap() if measurable else criteria.expert_frequency() if data else criteria.magnitude()
    criterion = default if section.experts_criterion is None else criterion_of(section.experts_criterion)
    return _pipeline(section, criterion, budget.experts(section.experts), spec, means=False)


def _pipeline(section: Prune, criterion: Criterion, count: Count, spec: Spec, *, means: bool) -> Pruner:
    """Return a pipeline that removes groups of one kind; means: whether it makes up for them by default."""
    counted(count, spec)  # before anything is measured
    default = compensations.mean() if means else compensations.none()
    method = default if section.compensation is None else compensation_of(section.compensation)
    return pipeline(
        criterion=criterion, where=kind(KINDS[count.what]), ratio=count, compensation=method, freeze=section.freeze
    )


def _left(amount: Any, dense: Spec, spec: Spec) -> Any:
    """Return an amount for a network that is smaller already: budgets of the dense cost as those of its own; None if all are met."""
    if not isinstance(amount, Budget | list):
        return amount
    out = []
    for b in amount if isinstance(amount, list) else [amount]:
        keep = b.keep * b.cost(dense.sizes, dense) / max(b.cost(spec.sizes, spec), 1)
        if keep < 1:
            out.append(b._replace(keep=keep))
    return out or None


def _joined(first: Pruned, second: Pruned, dense: Spec) -> Pruned:
    """Return what two stages have done together."""
    mask = compose(first.mask, second.mask)
    info = Info(
        cost(dense),
        second.info.after,
        {g: (int((~m).sum()), len(m)) for g, m in mask.items()},
        FrozenDict({**first.info.residuals, **second.info.residuals}),
        FrozenDict({**second.info.scores, **first.info.scores}),
        tuple(dict.fromkeys((*first.info.notes, *second.info.notes))),
    )
    return Pruned(second.params, second.spec, mask, info)
