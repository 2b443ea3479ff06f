"""Statistics of activations: moments per site, in one pass, merged exactly.

No hooks are used: the program is compiled with the moments of its sites as outputs, and instructions that the sites do not
need are not run. One pass serves every later criterion, ratio and compensation.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from ..display.units import quantity
from ..doors import door
from ..errors import BatchError, StatsError
from ..frozen_dict import FrozenDict
from ..parameters.transforms import check_names
from ..program.batches import device_of, each, inputs_of
from ..program.inputs import samples
from ..program.sharded import agreed, check_plain, gather, is_sharded, together
from ..spec.axis import size
from ..spec.parts import Site
from ..spec.spec import Spec
from ..spec.stacked import Stacked
from ..types import Batch, Criterion, Moments, Params, Stats, Where
from ..where import sites_of, stacked_over
from .fingerprint import fingerprint, spec_of, taken
from .measure import compile_moments, measure
from .moments import merge_moments
from .saved import Plan, resumed
from .weights import PositionWeights, Weights, position_weights, weights_name

log = logging.getLogger(__name__)

NEEDS = ("moments", "absolute", "covariance")
"""Optional statistics that can be measured at sites."""


@door
def collect_stats(
    params: Params,
    batches: Iterable[Batch] | None,
    *,
    spec: Spec,
    criterion: Criterion | Sequence[Criterion] = (),
    covariance: bool = False,
    where: Where | str | None = None,
    weights: Weights = True,
    max_batches: int | None = None,
    progress: bool = False,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
) -> Stats:
    """Measure the inputs of all contractions in one pass over the batches.

    Args:
        params: of the spec. A DTensor is gathered just before its first use and dropped after its last, on all processes at once:
            each process passes its own share of the batches (possibly none), and `sync_stats` merges the results.
        batches: any iterable of batches as a loader gives them: tensors, tuples (inputs first, as the model takes them) or dicts by
            input name, with labels after them or under further keys; None for criteria that need no data.
        spec: of the params.
        criterion: one or several; their collectors run in the same pass.
        covariance: measure covariances at the sites even if no criterion needs them, for `compensation.affine()` and
            `residual`; `stats_bytes` returns the memory that they need.
        where: only sites of groups that match (`pf.kind("hidden")`, a glob, any predicate).
        weights: of the positions of a batch, so that padding does not count. True: those of the masks and lengths among the
            inputs (`attention_mask`, `src_key_padding_mask`, `lengths` and the like). The name of an input, or a function of the
            batch → [samples] or [samples, positions], are weights ≥ 0. False: all positions count alike. The axes of the spec
            carry them to every site; a loss of labels ignores positions whose label is −100.
        max_batches: stop after this many batches.
        progress: show a progress bar.
        resume: a file that the statistics so far are written to, one for each process. If the file exists, collection resumes
            after its last batch. Batches already measured are read and skipped; the result is bit-identical.
        save_every: number of batches between two writes; batches measured since the last write are lost if the process dies.

    Returns:
        Stats with the moments of each site in float64: count, mean, M2; mean of |x| and covariance where needed. The contractions
        of experts whose weights are stacked have moments each, over the tokens that a router sends them: `down_proj[3]` are those
        of the expert at position 3. A token counts by its gate g there, as g² over the mean of g² of all experts that it gets.

    Raises:
        BatchError: no batches, or a batch that does not fit.
        StatsError: a site's input is not finite; the covariances do not fit into memory; a criterion needs unknown statistics;
            the file belongs to other params or another spec, or was measured on other batches.
        ParamsError: the params do not fit the spec; DTensors with a criterion that needs gradients or with `resume`.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> stats = pf.collect_stats(pf.params(model), [torch.randn(8, 4), torch.randn(5, 4)], spec=spec)
    >>> {name: (m.count, tuple(m.mean.shape)) for name, m in stats.sites.items()}
    {'2': (13, (3,))}
    """
    check_names(params, spec)
    criteria = [criterion] if isinstance(criterion, Criterion) else list(criterion)
    start = Stats(spec, FrozenDict(params), fingerprints=FrozenDict(taken(params)))
    if batches is None:
        if data_criteria := [c.name for c in criteria if c.data]:
            raise BatchError(f"criterion {data_criteria[0]!r} needs batches")
        return start
    needs = _needs(criteria, covariance)
    sites, stacked = sites_of(spec, where), stacked_over(spec, where)
    device = device_of(params)
    if "covariance" in needs:
        _check_memory(stats_bytes(spec, where=where, covariance=True), device)
    collectors = list({c.name: c for one in criteria for c in one.collectors}.values())

    if any(is_sharded(t) for t in params.values()):
        if collectors:
            what = f"collector {collectors[0].name!r} of criterion {next(c.name for c in criteria if c.collectors)!r}"
            check_plain(params, what, "use a criterion on activations or on weights")
        if resume is not None:
            check_plain(params, "collect_stats(…, resume=…)", "leave resume out")
        # A process without batches still takes part in gathering.
        stream = each(batches, max_batches=max_batches, progress=progress, text="statistics", least=0)
        ready = (
            _Ready(x := inputs_of(b, spec=spec, device=device), position_weights(spec, x, b, weights)) for b in stream
        )
        return together(partial(_step_together, start, sites, stacked, needs), ready, start, params)

    def step(total: Stats, batch: Batch) -> Stats:
        inputs = inputs_of(batch, spec=spec, device=device)
        sums = {c.name: FrozenDict(dict(c.collect(params, batch, spec))) for c in collectors}
        weighted = position_weights(spec, inputs, batch, weights)
        measured = FrozenDict(measure(params, inputs, sites, stacked, spec, needs, weighted))
        return merge_stats(
            total, start._replace(sites=measured, sums=FrozenDict(sums), batches=1, samples=samples(spec, inputs))
        )

    stream = each(batches, max_batches=max_batches, progress=progress, text="statistics")
    if resume is None:
        return reduce(step, stream, start)
    plan = Plan([s.name for s in (*sites, *stacked)], needs, [c.name for c in collectors], weights_name(weights))
    return resumed(step, stream, start, path=resume, every=save_every, most=max_batches, plan=plan)


class _Ready(NamedTuple):
    """A batch that is read."""

    inputs: list[Tensor]
    weights: PositionWeights | None


def _step_together(
    start: Stats,
    sites: Sequence[Site],
    stacked: Sequence[Stacked],
    needs: Collection[str],
    total: Stats,
    ready: _Ready | None,
) -> Stats:
    """Return `total` merged with a batch; without a batch, only take part in the gathering that other processes need."""
    assert start.spec is not None
    if ready is not None:
        found = measure(dict(start.params), ready.inputs, sites, stacked, start.spec, needs, ready.weights)
        measured = FrozenDict(found)
        return merge_stats(total, start._replace(sites=measured, batches=1, samples=samples(start.spec, ready.inputs)))
    if sites or stacked:
        for name in compile_moments(dict(start.params), sites, stacked, start.spec, needs, weighted=False).run.gathered:
            gather(start.params[name])
    return total


@door
def stats_bytes(spec: Spec, *, where: Where | str | None = None, covariance: bool = True) -> int:
    """Return the bytes that the statistics of a pass take.

    While batches are merged, three further copies of the largest covariance are needed.

    Args:
        spec: of the params.
        where: as in `collect_stats`.
        covariance: count covariances too: 8 · d² bytes for each distinct value of width d that sites read, and for each expert.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 1000), torch.nn.ReLU(), torch.nn.Linear(1000, 2))
    >>> stats_bytes(pf.trace(model, (torch.randn(2, 4),)))
    8016000
    """
    sites = sites_of(spec, where)
    widths = {s.values: size(s.axis, spec.sizes) for s in sites}
    inside = [d for s in stacked_over(spec, where) for d in [size(s.axis, spec.sizes)] * size(s.experts, spec.sizes)]
    vectors = sum(16 * d for d in (*(size(s.axis, spec.sizes) for s in sites), *inside))
    return vectors + (sum(8 * d * d for d in (*widths.values(), *inside)) if covariance else 0)


def _needs(criteria: Sequence[Criterion], covariance: bool) -> frozenset[str]:
    """Return the statistics to measure at sites beyond moments.

    Raises:
        StatsError: a criterion needs unknown statistics.
    """
    for c in criteria:
        if unknown := [n for n in c.needs if n not in NEEDS]:
            raise StatsError(f"criterion {c.name!r} needs {unknown[0]!r}; what can be measured is {', '.join(NEEDS)}")
    return frozenset({n for c in criteria for n in c.needs} | ({"covariance"} if covariance else set()))


def _check_memory(needed: int, device: torch.device) -> None:
    """Log the bytes that the covariances need, and check that the device has them.

    Raises:
        StatsError: the covariances need more memory than the device has.
    """
    log.info("statistics with covariances take %s", quantity(needed, "B", 3))
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[0]
    elif "SC_PHYS_PAGES" in os.sysconf_names:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return
    if needed > available:
        raise StatsError(
            f"statistics with covariances would take {quantity(needed, 'B', 3)}, but {device} has {quantity(available, 'B', 3)}; choose "
            "fewer groups by `where`, or leave covariances out"
        )


# ---- merging


@door
def merge_stats(a: Stats, b: Stats) -> Stats:
    """Return the statistics of both sets of batches together.

    Merging is associative and commutative up to float64 rounding; `Stats()` is its identity. The specs may be traced at other
    sizes of the inputs: a network whose height and width are fixed by its export is measured with a spec for each size.

    Raises:
        StatsError: the statistics are of different specs or parameters.
    """
    if a.spec is None or b.spec is None:
        return b if a.spec is None else a
    if not a.spec.fits(b.spec):
        raise StatsError(
            "the statistics are of specs with other groups or sites; collect both with specs of one network"
        )
    if not (a.params is b.params and a.fingerprints is b.fingerprints) and _changed_params(a, b):
        raise StatsError("the statistics are of different parameters; collect both with the same params")
    sums: dict[str, Mapping[str, Tensor]] = dict(a.sums)
    for name, groups in b.sums.items():
        before = sums.get(name, {})
        sums[name] = FrozenDict({**before, **{g: before[g] + v if g in before else v for g, v in groups.items()}})
    return Stats(
        a.spec,
        a.params,
        FrozenDict(_merge_sites(a.sites, b.sites)),
        FrozenDict(sums),
        a.batches + b.batches,
        a.samples + b.samples,
        a.fingerprints,
    )


def _merge_sites(a: Mapping[str, Moments], b: Mapping[str, Moments]) -> dict[str, Moments]:
    """Merge moments site by site; a covariance that several sites share is merged once and stays shared."""
    out = dict(a)
    shared: dict[tuple[int, int], Tensor | None] = {}
    for name, m in b.items():
        if (before := out.get(name)) is None:
            out[name] = m
            continue
        key = id(before.scatter), id(m.scatter)
        merged = merge_moments(before._replace(scatter=None) if key in shared else before, m)
        out[name] = merged._replace(scatter=shared.setdefault(key, merged.scatter))
    return out


def _changed_params(a: Stats, b: Stats) -> list[str]:
    """Return the names of parameters whose values differ between the two statistics."""

    def is_same(name: str) -> bool:
        if name not in a.params or name not in b.params:
            return False
        one, two = a.params[name], b.params[name]
        if name not in a.fingerprints and name not in b.fingerprints and one is two:
            return True
        marks = [s.fingerprints.get(name) or fingerprint(gather(t)) for s, t in ((a, one), (b, two))]
        return marks[0] == marks[1]

    return [name for name in {**a.params, **b.params} if not is_same(name)]


def check_stats(stats: Stats, spec: Spec, params: Params | None = None) -> None:
    """Check that the statistics belong to this spec and these parameters, unchanged since they were measured.

    Args:
        stats: of `collect_stats`; for statistics made by hand, only the spec is checked.
        spec: the spec that the statistics are used with.
        params: the params that they are used with; None: the statistics' own.

    Raises:
        StatsError: the statistics are empty, or of another spec or other parameters; names a parameter that differs.
    """
    if not spec_of(stats).fits(spec):
        raise StatsError("the statistics are of another spec; collect them with the spec that they are used with")
    if not stats.fingerprints:
        return
    current = stats.params if params is None else params
    if changed := agreed(
        _changed_params(stats, stats._replace(params=current, fingerprints=FrozenDict(taken(current)))), current
    ):
        raise StatsError(
            f"the statistics are of other parameters: {changed[0]!r} has changed since they were measured, or is another; collect "
            "them again with these params"
        )
