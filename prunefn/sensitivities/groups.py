"""Sensitivity of groups: what it costs to prune one group alone, predicted from statistics and measured on batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from .. import compensation as compensations
from .. import criteria
from ..compensation.repair import few_samples, repairs_of_sites, residuals, warn_of_few_samples, written
from ..costs.analytic import cost
from ..criteria.scoring import score
from ..display.progress import progress_bar
from ..distances import Distance
from ..doors import door
from ..errors import PruneError, StatsError
from ..parameters.transforms import apply, check_names, shrink
from ..pipelines import check_scored
from ..program.sharded import check_plain
from ..selection import scope as scopes
from ..selection.choose import select
from ..spec.axis import leaves
from ..spec.spec import Spec
from ..stats import check_stats
from ..types import Batch, Compensation, Criterion, Mask, Params, Stats, Where
from ..where import check_matches, matches, only
from .effects import Effect, Sensitivity, most_sensitive_first
from .meter import Loss, Meter, Network, meter


@door
def sensitivity(
    params: Params,
    stats: Stats,
    *,
    spec: Spec,
    batches: Iterable[Batch] | None = None,
    metric: Loss | None = None,
    distance: Distance | None = None,
    criterion: Criterion | None = None,
    compensation: Compensation | None = None,
    where: Where | str | None = None,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    max_batches: int | None = None,
    progress: bool = False,
) -> Sensitivity:
    """Predict, and with batches measure, what it costs to remove a fraction of each group's units, one group at a time.

    Units of least score are removed, and the layers that read them are compensated. There are up to three numbers:

    * predicted, from the statistics alone: the sum over the group's sites of `residual(…)[site].relative`, the squared error of the
      outputs of the layers that read the units, on new samples, as a fraction of their variance. 0 means no loss, and 1 for a
      layer that its output is as bad as a constant. It is comparable between ratios, criteria and compensations. It does not
      say how much the network's output depends on a layer, and norms over the units are not accounted for.
    * estimated, if the criterion's scores are increments of a loss: their sum over the removed units. For `criteria.obs()` with
      Fisher information of the outputs, ½ Σ Δ estimates the rise of the loss of a sample (of all its positions together) in nats
      after affine compensation, which is comparable between groups, too: it ranks them well, but is too low where much is removed.
      Without it, Σ Δ is a relative error.
    * measured: each group is pruned for real, and the network is run on the batches. Use batches that the statistics have not seen.

    Args:
        params: of the spec, not pruned.
        stats: of the params; those of `collect_stats(…, criterion=criteria.obs())` have all that the defaults use.
        spec: of the params; traced in eval mode if something is measured.
        batches: to measure on; kept in memory, and all of them are read for each network. None: nothing is measured.
        metric: (output, *rest of the batch) → mean over the batch, such as an accuracy or a loss of labels. Its change against the
            dense network is reported.
        distance: (output, dense output) → scalar, without labels. Default, without a metric: `distances.auto()`, which for classes
            is the Kullback-Leibler divergence from the dense outputs in nats, the mean over samples and positions.
        criterion: units are removed in the order of its scores. Default: the first of `criteria.obs()`, `criteria.obs(None)` and
            `criteria.weighted_variance()` for which the statistics suffice.
        compensation: default: `affine`, with `mean` as its fallback, if the statistics have covariances; else `mean`.
        where: groups to prune; default: all that have a score.
        ratios: fractions of a group's units, above 0 and below 1, rounded down to whole units.
        max_batches: measure on this many batches.
        progress: show a progress bar.

    Returns:
        A `Sensitivity`, the most sensitive group first: print it, or use `picture(path)`, `write_csv(path)`, `to_rows()`.

    Raises:
        PruneError: a ratio is out of range; no group matches; a metric or distance has no batches, or returns no scalar.
        StatsError: the statistics are of other params, or lack what the criterion or compensation needs.
        BatchError: there are no batches, or one does not fit.
        ParamsError, TraceError: the params do not fit the spec, or it cannot be run in eval mode.

    >>> import torch, prunefn as pf
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> spec, params, x = pf.trace(model, (torch.randn(2, 4),)), pf.params(model), torch.randn(256, 4)
    >>> stats = pf.collect_stats(params, [x[:128]], spec=spec, criterion=pf.criteria.obs())
    >>> found = sensitivity(params, stats, spec=spec, batches=[x[128:]], ratios=[0.25, 0.5])
    >>> [(e.group, e.removed, e.macs_saved) for e in found.effects]
    [('0', 2, 14), ('0', 4, 28)]
    >>> 0 < found.effects[0].predicted < found.effects[1].predicted, 0 < found.effects[0].measured < found.effects[1].measured
    (True, True)
    """
    check_names(params, spec)
    check_plain(params, "sensitivity", "gather the parameters first")
    check_stats(stats, spec, params)
    check_matches(where, spec)
    gauge = meter((params, spec), batches, metric=metric, distance=distance, max_batches=max_batches)
    ratios = _check_ratios(ratios)
    criterion = _default_criterion(stats) if criterion is None else criterion
    scores = score(stats, criterion=criterion)
    if where is not None:
        check_scored(where, spec, scores, criterion)
        scores = only(scores, where, spec=spec)
    if not scores:
        raise PruneError(f"criterion {criterion.name!r} scores no group of this spec: there is nothing to prune")
    method = _default_compensation(stats) if compensation is None else compensation
    effects, few = list[list[Effect]](), dict[str, str]()
    total = len(scores) * (1 if gauge is None else len(gauge.batches))
    with torch.no_grad(), progress_bar(total=total, text="sensitivity", show=progress) as bar:
        dense = None if gauge is None else gauge.reference()
        for group, values in scores.items():
            masks = [select({group: values}, r, spec=spec, scope=scopes.local()) for r in ratios]
            pruned = [_prune(params, stats, spec, group, m, method) for m in masks]
            changes = _changes(pruned, gauge, dense, bar.update)
            sums = [float(values[~m[group].to(values.device)].sum()) if criterion.increments else None for m in masks]
            rows = zip(ratios, pruned, sums, changes, strict=True)
            effects.append([p.effect(spec, group, ratio, estimate, change) for ratio, p, estimate, change in rows])
            few |= {site: text for p in pruned for site, text in p.few.items() if site not in few}
    warn_of_few_samples(list(few.values()), method)
    unscored = tuple(n for n, g in spec.groups.items() if where is None and matches(None, g) and n not in scores)
    name = "" if gauge is None else gauge.name
    return Sensitivity(
        most_sensitive_first(effects), cost(spec).macs, criterion.name, method.name, name, dense, unscored
    )


class _Pruned(NamedTuple):
    """The network without some units of one group."""

    network: Network
    mask: Mask
    predicted: float | None
    few: dict[str, str]
    """Site → a text that it has few samples."""

    def effect(self, spec: Spec, group: str, ratio: float, estimated: float | None, measured: float | None) -> Effect:
        """Return the effect; its numbers are those of `Effect`."""
        saved = cost(spec).macs - cost(spec, self.mask).macs
        removed = int((~self.mask[group]).sum())
        kind, units = spec.groups[group].kind, spec.sizes[group]
        return Effect(group, kind, units, ratio, removed, saved, self.predicted, estimated, measured)


def _prune(params: Params, stats: Stats, spec: Spec, group: str, mask: Mask, method: Compensation) -> _Pruned:
    """Return the compensated network without the units of a group that the mask removes."""
    repaired = list(repairs_of_sites(params, stats, mask, spec=spec, method=method))
    few = {r.site.name: text for r in repaired for text in few_samples(r, method)}
    has_site = any(group in leaves(s.axis) for s in spec.sites.values())
    predicted = sum(r.relative for r in residuals(repaired).values()) if has_site else None
    pruned = apply(written(params, repaired, spec), mask, spec=spec)
    return _Pruned((pruned, shrink(spec, mask)), mask, predicted, few)


def _changes(
    pruned: Sequence[_Pruned], gauge: Meter | None, dense: float | None, advance: Callable[[], object]
) -> list[float | None]:
    """Return the measured effect of each mask; None without batches. A network that lost no unit is not run."""
    if gauge is None:
        advance()
        return [None] * len(pruned)
    smaller = [not all(bool(m.all()) for m in p.mask.values()) for p in pruned]
    means = iter(gauge.means([p.network for p, less in zip(pruned, smaller, strict=True) if less], advance))
    return [next(means) - (dense or 0.0) if less else 0.0 for less in smaller]


def _check_ratios(ratios: Sequence[float]) -> list[float]:
    """Return the ratios in rising order, each once; raise PruneError if one is out of range, or there are none."""
    if not ratios:
        raise PruneError("ratios is empty; give fractions of a group's units to remove, such as (0.25, 0.5)")
    if bad := [r for r in ratios if not 0 < r < 1]:
        raise PruneError(f"ratios has {bad[0]}; each is the fraction of units removed and must be above 0 and below 1")
    return sorted(set(ratios))


def _default_criterion(stats: Stats) -> Criterion:
    """Return the first criterion for which the statistics suffice.

    Raises:
        StatsError: no site was measured.
    """
    if not stats.sites:
        raise StatsError(
            "sensitivity needs statistics of sites; use collect_stats(params, batches, spec=spec, criterion=criteria.obs())"
        )
    best = criteria.obs()
    if not _has_covariances(stats):
        return criteria.weighted_variance()
    return best if all(c.name in stats.sums for c in best.collectors) else criteria.obs(None)


def _default_compensation(stats: Stats) -> Compensation:
    """Return affine compensation if the statistics have covariances, else that of means."""
    mean = compensations.mean()
    return compensations.affine(fallback=mean) if _has_covariances(stats) else mean


def _has_covariances(stats: Stats) -> bool:
    return bool(stats.sites) and all(m.scatter is not None for m in stats.sites.values())
