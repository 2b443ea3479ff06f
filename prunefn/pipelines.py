"""Pipelines: all steps composed, from params and batches to pruned params, spec and mask."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence, Sized
from functools import partial
from typing import Any

from torch import Tensor

from .compensation.batch_norm import recalibrate as recalibrated
from .compensation.branches import with_means
from .compensation.repair import repairs, residuals, written
from .compensation.sequential import remove
from .costs.analytic import cost
from .criteria.scoring import score
from .distillation.recovery import recover
from .doors import door
from .errors import BatchError, PruneError, StatsError, warn
from .frozen_dict import FrozenDict
from .notes import notes_on
from .parameters.transforms import apply, shrink
from .plans import Chosen, Pipeline, Plan
from .program.sharded import is_sharded
from .selection.caps import RoundTo
from .selection.choose import Ratio, select
from .spec.branches import branches_with
from .spec.spec import Spec
from .stats import check_stats, collect_stats, sync_stats
from .stats.weights import Weights
from .tracing.freeze import chosen as frozen_names
from .tracing.freeze import unchangeable, unwritten
from .types import Batch, Compensation, Criterion, Info, Mask, Params, Pruned, Residual, Scope, Scores, Stats, Where
from .where import check_matches, choice, glob, matches, only, touches

LARGE, NEARLY_EMPTY = 32, 1 / 16
"""Groups of at least so many units that keep at most this fraction are named by a warning."""
MOST_NAMED = 3
"""Number of groups that a warning names."""


@door
def pipeline(
    *,
    criterion: Criterion | None = None,
    where: Where | str | None = None,
    ratio: Ratio = 0.5,
    scope: Scope | None = None,
    compensation: Compensation | None = None,
    round_to: RoundTo = 1,
    max_ratio: float | Mapping[str, float] = 1.0,
    min_units: int | Mapping[str, int] = 1,
    weights: Weights = True,
    max_batches: int | None = None,
    freeze: Sequence[str] | str = (),
    sequential: bool | None = None,
    recalibrate: bool = False,
    recover_steps: int = 0,
) -> Pipeline:
    """Compose statistics, scores, selection, compensation and removal into one pure function.

    Without a criterion, a pipeline that is called with batches removes the units of least loss by the optimal brain surgeon, per
    saved MAC, and fits what is left block by block: `criteria.obs()`, `scope.knapsack()`, `compensation.affine()` and
    `sequential=True`. Without batches and statistics, it ranks magnitudes, divided by their mean in each group, and compensates
    nothing. With a criterion, the defaults are `scope.global_()`, `compensation.mean()` and `sequential=False`.

    Args:
        criterion: that scores the units.
        where: groups that may shrink: `kind("hidden")`, a glob, any predicate; default: all.
        ratio, scope, round_to, max_ratio, min_units: as in `select`.
        compensation: `compensation.none()` for none.
        weights, max_batches: as in `collect_stats`.
        freeze: tensors that stay bit-identical: names, module paths, or globs for either. Their groups are not pruned; a
            shift that a compensation would add to a frozen tensor is added to a new bias.
        sequential: prune block by block from the input on. Each block is measured in the network with earlier blocks pruned,
            and compensated towards the dense network's outputs, so that errors do not accumulate. The batches are read once
            for the scores, and once more for each block; nothing is traced again.
        recalibrate: replace the running statistics of every BatchNorm at the end, with the same batches.
        recover_steps: train for this many steps towards the dense outputs at last, with the same batches and without labels, by
            `recover`; 0: nothing is trained.

    Returns:
        `prune(params, batches, *, spec) → Pruned(params, spec, mask, info)`.

    Raises:
        StatsError: (when called) groups that match `where` have no score; names them.
        PruneWarning: (when called) one ranking of raw scores nearly empties a group, or scores that are no losses are weighed
            against costs.
        BatchError: (when called) a step needs batches, but `batches` is None; or an iterator cannot be read several times.
        ParamsError: (when called) a pattern of `freeze` matches nothing.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> prune = pf.pipeline(criterion=pf.criteria.variance(), where=pf.kind("hidden"), ratio=0.5)
    >>> small = prune(pf.params(model), [torch.randn(16, 4)], spec=spec)
    >>> small.info.before.params, small.info.after.params, small.info.removed
    (58, 30, {'0': (4, 8)})
    """
    arguments = locals().copy()
    given = Plan(criterion, scope, compensation, sequential)
    reading: dict[str, Any] = {"weights": weights, "max_batches": max_batches}
    limits: dict[str, Any] = {"round_to": round_to, "max_ratio": max_ratio, "min_units": min_units}

    @door
    def prune(
        params: Params,
        batches: Iterable[Batch] | None,
        *,
        spec: Spec,
        stats: Stats | None = None,
        progress: bool = False,
        sync: bool = False,
    ) -> Pruned:
        one_pass = batches is None or sync or any(map(is_sharded, params.values()))
        plan = given.complete(batches is not None or stats is not None, one_pass)
        _check_batches(batches, plan, _rereads(plan, recalibrate, recover_steps), measured=stats is not None)
        _check_sync(sync, plan.sequential, recover_steps)
        check_matches(where, spec)
        if stats is not None:
            check_stats(stats, spec, params)
        spec, free = _freeze(spec, where, freeze)
        if stats is not None:
            stats = stats._replace(spec=spec)  # which differs in where a compensation may write
        elif plan.criterion.data or (plan.compensation.needs and not plan.sequential):
            measure = partial(_collect_stats, params, batches, progress=progress, sync=sync, **reading)
            covariance = plan.covariance and not plan.sequential
            stats = measure(spec=spec, criterion=plan.criterion, where=free, covariance=covariance)
        else:
            stats = collect_stats(params, None, spec=spec)
        notes = notes_on(params, stats, plan, spec)
        scores = score(stats, criterion=plan.criterion, where=free)
        if where is not None:
            check_scored(free, spec, scores, plan.criterion)
        scores = _chosen_scores(scores, free, spec, plan.criterion)
        mask = select(scores, ratio, spec=spec, scope=plan.scope, **limits)
        _warn_of_collapse(mask, plan)
        options = {"progress": progress, **reading}
        pruned, current, errors = _remove(params, mask, stats, batches or (), spec, plan, options)
        ends, dense = {"max_batches": max_batches, "progress": progress}, (params, spec)
        if recalibrate and batches is not None:
            pruned = recalibrated(pruned, batches, spec=current, sync=sync, **ends)
        if recover_steps and batches is not None:
            pruned = recover(pruned, batches, spec=current, dense=dense, steps=recover_steps, freeze=freeze, **ends)
        return Pruned(pruned, current, mask, _info(spec, current, mask, errors, scores)._replace(notes=notes))

    return Pipeline(prune, given, arguments, inspect.signature(pipeline))


def _remove(
    params: Params,
    mask: Mask,
    stats: Stats,
    batches: Iterable[Batch],
    spec: Spec,
    plan: Chosen,
    options: Mapping[str, Any],
) -> tuple[Params, Spec, dict[str, Residual]]:
    """Compensate and remove; return the pruned params, their spec, and site → error."""
    method = plan.compensation
    if plan.sequential:
        return remove(params, mask, batches, spec=spec, method=method, covariance=plan.covariance, **options)
    repaired = list(repairs(params, stats, mask, spec=spec, method=method)) if method.needs else []
    compensated = written(params, repaired, spec)
    compensated = with_means(compensated, stats, mask, spec) if method.needs else compensated
    return apply(compensated, mask, spec=spec), shrink(spec, mask), residuals(repaired)


def _warn_of_collapse(mask: Mask, plan: Chosen) -> None:
    """Warn of groups that a ranking nearly empties because scores of different groups are not comparable."""
    name, scope = plan.criterion.name, plan.scope
    if scope.per is not None and scope.normalize is None and not plan.criterion.increments:
        warn(
            f"scope.{scope.name}() weighs scores against costs, but those of criterion {name!r} are no losses that add up over "
            "groups; use criteria.obs(), criteria.fisher() or criteria.taylor(), or normalize=…"
        )
    if scope.classes is not None or scope.per is not None or scope.normalize is not None or plan.criterion.increments:
        return
    kept = {g: (int(m.sum()), len(m)) for g, m in mask.items()}
    if lost := [f"{g!r} keeps {k} of {n} units" for g, (k, n) in kept.items() if n >= LARGE and k <= NEARLY_EMPTY * n]:
        more = f", and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
        warn(
            f"one ranking of the raw scores of criterion {name!r} nearly empties groups: {', '.join(lost[:MOST_NAMED])}{more}; "
            "use scope.global_(normalize=True), scope.local(), or max_ratio=0.9"
        )


def _info(spec: Spec, current: Spec, mask: Mask, errors: dict[str, Residual], scores: dict[str, Tensor]) -> Info:
    removed = {g: (int((~m).sum()), len(m)) for g, m in mask.items()}
    return Info(cost(spec), cost(current), removed, FrozenDict(errors), FrozenDict(scores))


def _collect_stats(params: Params, batches: Iterable[Batch] | None, *, sync: bool, **options: Any) -> Stats:
    """Collect statistics; with `sync`, merge those of all processes."""
    if not sync:
        return collect_stats(params, batches, **options)
    no_batches = isinstance(batches, Sized) and not len(batches) and not any(map(is_sharded, params.values()))
    return sync_stats(Stats() if no_batches else collect_stats(params, batches, **options))


def _rereads(plan: Chosen, recalibrate: bool, recover_steps: int) -> list[str]:
    """Return the options by which the batches are read again after the scores."""
    options = {"sequential=True": plan.sequential and bool(plan.compensation.needs), "recalibrate=True": recalibrate}
    return [o for o, on in {**options, f"recover_steps={recover_steps}": recover_steps > 0}.items() if on]


def _check_sync(sync: bool, sequential: bool, recover_steps: int) -> None:
    """Check that no step that runs on one process is asked for on several; raise PruneError if so."""
    if sync and sequential:
        raise PruneError(
            "sequential=True measures block by block on one process: give every process the same batches and sync=False"
        )
    if sync and recover_steps:
        raise PruneError(
            f"recover_steps={recover_steps} trains on one process; leave it out, and call pf.recover on one"
        )


def _check_batches(batches: Iterable[Batch] | None, plan: Chosen, rereads: Sequence[str], *, measured: bool) -> None:
    """Check that there are batches if a step needs them, and that they can be read as often as needed by these options.

    Raises:
        BatchError: names the step that needs them.
    """
    method = plan.compensation
    if batches is None:
        if method.needs and not plan.criterion.data and not measured:
            raise BatchError(f"compensation {method.name!r} needs batches; or use compensation=compensation.none()")
        if rereads:
            raise BatchError(f"{rereads[0]} needs batches")
    elif rereads and iter(batches) is batches:
        raise BatchError(
            f"{rereads[0]} reads the batches several times, but this is an iterator; give a list or a DataLoader"
        )


def _freeze(spec: Spec, where: Where | str | None, patterns: Sequence[str] | str) -> tuple[Spec, Where | str | None]:
    """Return the spec in which no step writes to the frozen tensors, and the predicate of the groups that may still shrink.

    Raises:
        PruneError: no group may shrink.
    """
    slots = spec.slots
    names = frozen_names(patterns, [t for t in spec.axes if t not in slots])
    if not names:
        return spec, where
    unaffected = ~touches(*unchangeable(spec, names)) & ~glob(*branches_with(spec, names))
    free = unaffected if where is None else choice(where) & unaffected
    if not any(free(g) for g in spec.groups.values()):
        raise PruneError(f"freeze={patterns!r} leaves no group" + ("" if where is None else f" that matches {where!r}"))
    return unwritten(spec, names), free


def _chosen_scores(scores: Scores, free: Where | str | None, spec: Spec, criterion: Criterion) -> Scores:
    """Return the scores of the groups that may shrink.

    Raises:
        PruneError: no groups were chosen, and the criterion scores whole blocks.
    """
    if free is not None:
        return only(scores, free, spec=spec)
    if blocks := [g for g in scores if g in spec.branches]:
        raise PruneError(
            f"criterion {criterion.name!r} scores whole blocks, such as {blocks[0]!r}, which go on request only: write "
            "where=pf.kind('layer') or where=pf.kind('branch')"
        )
    return scores


def check_scored(where: Where | str | None, spec: Spec, scores: Scores, criterion: Criterion) -> None:
    """Check that the chosen groups have scores; raise StatsError if not."""
    if missing := [g.name for g in spec.groups.values() if matches(where, g) and g.name not in scores]:
        names = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise StatsError(
            f"criterion {criterion.name!r} has no score for {len(missing)} of the chosen groups: {names}; they have no "
            "site to be measured at: leave them out by `where`, or use a criterion on weights"
        )
