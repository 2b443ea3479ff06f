"""The steps composed: params, batches → pruned params, spec and mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from functools import partial
from typing import Any, Protocol, runtime_checkable

from . import compensation as compensations
from . import criteria
from .compensation.batch_norm import recalibrate as recalibrated
from .compensation.repair import Repaired, affected, repairs, residuals, written
from .compensation.sequential import collect_pairs, steps
from .costs.analytic import cost
from .criteria.scoring import score
from .doors import door
from .errors import BatchError, PruneError, StatsError
from .frozen_dict import FrozenDict
from .parameters.transforms import apply, shrink
from .program.sharded import is_sharded
from .selection.caps import RoundTo
from .selection.choose import Ratio, select
from .spec.spec import Spec
from .stats import check_stats, collect_stats, sync_stats
from .tracing.freeze import chosen as frozen_names
from .tracing.freeze import unchangeable, unwritten
from .types import Batch, Compensation, Criterion, Info, Params, Pruned, Residual, Scope, Stats, Where
from .where import check_matches, choice, matches, only, touches


@runtime_checkable
class Prune(Protocol):
    """What `pipeline` returns."""

    def __call__(
        self,
        params: Params,
        batches: Iterable[Batch] | None,
        *,
        spec: Spec,
        stats: Stats | None = None,
        progress: bool = False,
        sync: bool = False,
    ) -> Pruned:
        """Prune.

        Args:
            params, batches, spec, progress: as for `collect_stats`.
            stats: statistics at hand, of these params; nothing is collected, and batches may be None unless the pipeline is
                sequential or recalibrates.
            sync: the batches are this process's share, which may be empty (a list without any); what is measured is put
                together over torch.distributed, so that all processes return the same.
        """
        ...


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
    max_batches: int | None = None,
    freeze: Sequence[str] | str = (),
    sequential: bool = False,
    recalibrate: bool = False,
) -> Prune:
    """Compose statistics, scores, selection, compensation and removal into one pure function.

    Args:
        criterion: default `criteria.variance()`.
        where: which groups may shrink: `kind("hidden")`, a glob, any predicate; default all.
        ratio, scope, round_to, max_ratio, min_units: as for `select`.
        compensation: default `compensation.mean()`; `compensation.none()` for none.
        max_batches: as for `collect_stats`.
        freeze: tensors that stay as they are, to the bit: names, module paths, or globs for either. Their groups stay whole,
            and what a compensation would add to one of them goes into a new bias.
        sequential: remove block by block from the input on. Each block is measured on what is left of those before it, and
            compensated towards the dense network's outputs, so that errors do not pile up. Reads the batches once for the
            scores, and once more for each block; nothing is traced again.
        recalibrate: replace the running statistics of every BatchNorm at the end, by the same batches.

    Returns:
        `prune(params, batches, *, spec) → Pruned(params, spec, mask, info)`.

    Raises:
        StatsError: (when called) a group that `where` chooses has no score; it names the groups.
        BatchError: (when called) the criterion or the compensation needs batches, and there are none.
        ParamsError: (when called) a pattern of `freeze` matches nothing.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> prune = pf.pipeline(criterion=pf.criteria.variance(), where=pf.kind("hidden"), ratio=0.5)
    >>> small = prune(pf.params(model), [torch.randn(16, 4)], spec=spec)
    >>> small.info.before.params, small.info.after.params, small.info.removed
    (58, 30, {'0': (4, 8)})
    """
    chosen: Criterion = criteria.variance() if criterion is None else criterion
    method: Compensation = compensations.mean() if compensation is None else compensation

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
        _check_batches(batches, chosen, method, sequential, recalibrate, measured=stats is not None)
        if sequential and sync:
            raise PruneError(
                "sequential=True measures block by block on one process: give every process the same batches and sync=False"
            )
        check_matches(where, spec)
        if stats is not None:
            check_stats(stats, spec, params)
        spec, may = _freeze(spec, where, freeze)
        covariance = "covariance" in method.needs
        if stats is not None:
            stats = stats._replace(spec=spec)  # which differs in where a compensation may write
        elif chosen.data or (method.needs and not sequential):
            measure = partial(_measured, params, batches, max_batches=max_batches, progress=progress, sync=sync)
            stats = measure(spec=spec, criterion=chosen, where=may, covariance=covariance and not sequential)
        else:
            stats = collect_stats(params, None, spec=spec)
        scores = score(stats, criterion=chosen)
        if where is not None:
            _check_scored([g.name for g in spec.groups.values() if matches(may, g)], scores, chosen)
        if may is not None:
            scores = only(scores, may, spec=spec)
        mask = select(
            scores, ratio, spec=spec, scope=scope, round_to=round_to, max_ratio=max_ratio, min_units=min_units
        )
        lost: dict[str, Residual] = {}
        small, now = params, spec
        for part in steps(spec, mask) if sequential else [mask]:
            done: list[Repaired] = []
            if not sequential and method.needs:
                done = list(repairs(small, stats, part, spec=now, method=method))
            elif method.needs and (sites := affected(now, part)):
                pairs = collect_pairs(
                    (params, spec),
                    (small, now),
                    batches or (),
                    sites=sites,
                    covariance=covariance,
                    max_batches=max_batches,
                    progress=progress,
                )
                moments = {name: p.small for name, p in pairs.items()}
                done = list(repairs(small, moments, part, spec=now, method=method, dense=pairs))
            lost |= residuals(done)
            small, now = apply(written(small, done, now), part, spec=now), shrink(now, part)
        if recalibrate and batches is not None:
            small = recalibrated(small, batches, spec=now, max_batches=max_batches, progress=progress, sync=sync)
        removed = {g: (int((~m).sum()), len(m)) for g, m in mask.items()}
        return Pruned(small, now, mask, Info(cost(spec), cost(now), removed, FrozenDict(lost), FrozenDict(scores)))

    return prune


def _measured(params: Params, batches: Iterable[Batch] | None, *, sync: bool, **options: Any) -> Stats:
    """`collect_stats`, of all processes if wanted."""
    if not sync:
        return collect_stats(params, batches, **options)
    nothing = isinstance(batches, Sized) and not len(batches) and not any(map(is_sharded, params.values()))
    return sync_stats(Stats() if nothing else collect_stats(params, batches, **options))


def _check_batches(
    batches: Iterable[Batch] | None,
    criterion: Criterion,
    method: Compensation,
    sequential: bool,
    recalibrate: bool,
    *,
    measured: bool,
) -> None:
    """There are batches if something needs them, and they can be read as often as needed.

    Raises:
        BatchError: says what needs them.
    """
    if batches is None:
        if method.needs and not criterion.data and not measured:
            raise BatchError(f"compensation {method.name!r} needs batches; or use compensation=compensation.none()")
        if needy := "sequential=True" if sequential and method.needs else "recalibrate=True" if recalibrate else "":
            raise BatchError(f"{needy} needs batches")
    elif (sequential or recalibrate) and iter(batches) is batches:
        what = "sequential=True" if sequential else "recalibrate=True"
        raise BatchError(
            f"{what} reads the batches several times, but this is an iterator; give a list or a DataLoader"
        )


def _freeze(spec: Spec, where: Where | str | None, patterns: Sequence[str] | str) -> tuple[Spec, Where | str | None]:
    """The spec in which nothing writes to the frozen tensors, and the groups that are left to choose from."""
    slots = spec.slots
    names = frozen_names(patterns, [t for t in spec.axes if t not in slots])
    if not names:
        return spec, where
    free = ~touches(*unchangeable(spec, names))
    may = free if where is None else choice(where) & free
    if not any(may(g) for g in spec.groups.values()):
        raise PruneError(f"freeze={patterns!r} leaves no group" + ("" if where is None else f" that matches {where!r}"))
    return unwritten(spec, names), may


def _check_scored(wanted: Sequence[str], scores: dict, criterion: Criterion) -> None:
    if missing := [g for g in wanted if g not in scores]:
        names = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise StatsError(
            f"criterion {criterion.name!r} has no score for {len(missing)} of the chosen groups: {names}; they have no "
            "site to be measured at: leave them out by `where`, or use a criterion on weights"
        )
