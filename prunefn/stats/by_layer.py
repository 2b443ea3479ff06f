"""Statistics layer by layer: what one layer gives for all batches is what the next one reads, so that one layer is in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, fx
from tqdm import tqdm

from ..frozen_dict import FrozenDict
from ..program.batches import device_of, inputs_of
from ..program.compiled import Compiled, argument, compiled
from ..program.inputs import samples
from ..program.segments import Segment, segments
from ..program.sharded import gather
from ..spec.parts import Site
from ..spec.routing import Route
from ..spec.spec import Spec
from ..spec.stacked import Stacked
from ..types import Batch, Params, Stats
from . import choices
from .branches import COLLECTED, Place, emit_sums, places_of
from .choices import emit_choices
from .collect import merge_stats
from .measure import Probes, emit_moments, moments_of, probes_of, statistics_beyond
from .weights import PositionWeights, position_weights

Values = dict[str, Tensor]
"""Value of the program → what it is for one batch."""


@runtime_checkable
class States(Protocol):
    """What layers hand to the layers after them, for each batch."""

    def read(self, batch: int) -> Values:
        """Return what the segment before gave for a batch; nothing before the first."""
        ...

    def write(self, batch: int, values: Values) -> None:
        """Keep what a segment gives for a batch, for the segment after it."""
        ...


class Held:
    """States in memory."""

    def __init__(self) -> None:
        self.values: dict[int, Values] = {}

    def read(self, batch: int) -> Values:
        """Return what was written last."""
        return self.values.get(batch, {})

    def write(self, batch: int, values: Values) -> None:
        """Replace what was written before."""
        self.values[batch] = values


class Measure(NamedTuple):
    """What is measured in one segment."""

    segment: Segment
    sites: tuple[Site, ...]
    """With the calls that read a value of this segment."""
    places: Mapping[str, Place]
    """Branch or layer that ends in this segment → where it is measured."""
    needs: frozenset[str] = frozenset()
    stacked: tuple[Stacked, ...] = ()
    """Contractions inside experts."""
    routes: Mapping[str, Route] = FrozenDict()
    """Group of experts → how tokens choose them."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Return the values that the segment must compute or take over."""
        measured = probes_of(self.sites, self.stacked).reads
        measured += [v for r in self.routes.values() for v in choices.values_of(r, True)]
        return tuple(
            dict.fromkeys([*measured, *(v for p in self.places.values() for v in p.reads), *self.segment.gives])
        )


def measures(
    spec: Spec,
    sites: Iterable[Site],
    stacked: Iterable[Stacked] = (),
    routes: Mapping[str, Route] = FrozenDict(),
    *,
    blocks: bool,
    needs: Collection[str] = (),
) -> list[Measure]:
    """Return what is measured in each segment of a program.

    Args:
        spec: of the program.
        sites: contractions whose inputs are measured.
        stacked: contractions inside experts whose inputs are measured.
        routes: group of experts → how tokens choose them; measured as `criteria.reap` does, or `criteria.expert_frequency`.
        blocks: whether branches and layers are measured as `criteria.block_influence` does.
        needs: statistics of sites, as criteria name them.
    """
    places = places_of(spec) if blocks else {}
    reads = {p.after: tuple(v for v in p.reads if v != p.after and v.startswith("%")) for p in places.values()}
    return [
        Measure(
            s,
            tuple(site for whole in sites if (site := _within(whole, s.own)) is not None),
            {g: p for g, p in places.items() if p.after in s.own},
            frozenset(needs),
            tuple(one for one in stacked if one.value[0] in s.own),
            FrozenDict({g: r for g, r in routes.items() if r.choice.scores in s.own}),
        )
        for s in segments(spec, reads)
    ]


def _within(site: Site, values: Collection[str]) -> Site | None:
    """Return a site with the calls that read some values; None if none does."""
    pairs = [(v, c) for v, c in zip(site.values, site.calls, strict=True) if v[0] in values]
    return site._replace(values=tuple(v for v, _ in pairs), calls=tuple(c for _, c in pairs)) if pairs else None


class _Compiled(NamedTuple):
    """The program of a segment: moments, sums of branches, sums of experts, then the values that it gives."""

    run: Compiled
    probes: Probes


def collect_segment(
    params: Params,
    batches: Sequence[Batch],
    states: States,
    measure: Measure,
    *,
    start: Stats,
    bar: tqdm | None = None,
) -> Stats:
    """Run a segment over all batches and return its statistics; its parameters are in memory meanwhile.

    The numbers are those of `collect_stats` on the whole network, bit for bit.

    Args:
        params: of the spec; tensors on disk are read once.
        batches: all of them, in the same order for each segment.
        states: hold what the segment takes over, and get what it gives.
        measure: what is measured.
        start: statistics with the spec and the params, of no batches.
        bar: is advanced with each batch.

    Raises:
        StatsError: a site's input is not finite.
    """
    spec, device, segment = start.spec, device_of(params), measure.segment
    assert spec is not None
    at_hand = {**params, **held(params, segment.tensors(measure.wanted))}
    total = start
    for n, batch in enumerate(batches):
        inputs = inputs_of(batch, spec=spec, device=device)
        weights = position_weights(spec, inputs, batch, True)
        before = states.read(n)
        found, given = _run(at_hand, inputs, before, measure, spec, weights)
        states.write(n, {v: given[v] if v in given else before[v] for v in segment.hands})
        one = start._replace(
            sites=FrozenDict(found.sites), sums=FrozenDict(found.sums), batches=1, samples=samples(spec, inputs)
        )
        total = merge_stats(total, one)
        if bar is not None:
            bar.update()
    return total


def held(params: Params, names: Iterable[str]) -> Params:
    """Return tensors in memory; tied ones once."""
    by_id: dict[int, Tensor] = {}
    return {n: by_id.setdefault(id(params[n]), gather(params[n])) for n in names}


class _Found(NamedTuple):
    """The statistics of one batch."""

    sites: Mapping[str, Any]
    sums: Mapping[str, Mapping[str, Tensor]]


def _run(
    params: Params,
    inputs: Sequence[Tensor],
    before: Values,
    measure: Measure,
    spec: Spec,
    weights: PositionWeights | None,
) -> tuple[_Found, Values]:
    """Return the statistics of a segment for one batch, and the values that it gives."""
    if not measure.wanted:
        return _Found({}, {}), {}
    run, probes = _compile(params, measure, spec, weighted=weights is not None)
    more = [before[v] for v in measure.segment.takes]
    with torch.no_grad():
        units = choices.units_of(measure.routes, spec, device_of(params))
        outputs = run(params, [*inputs, *more], *([] if weights is None else [weights]), *units)
    at, places, routes = probes.outputs, measure.places, measure.routes
    sites = moments_of(measure.sites, probes, outputs[:at])
    sums = {COLLECTED: dict(zip(places, outputs[at : at + len(places)], strict=True))}
    at += len(places)
    for g, rows in zip(routes, outputs[at : at + len(routes)], strict=True):
        sums.setdefault(choices.collector_of(routes[g]), {})[g] = rows
    given = dict(zip(measure.segment.gives, outputs[at + len(routes) :], strict=True))
    return _Found(sites, {name: FrozenDict(found) for name, found in sums.items() if found}), given


def _compile(params: Params, measure: Measure, spec: Spec, *, weighted: bool) -> _Compiled:
    """Return the program of a segment."""
    probes, extra, gives = (
        probes_of(measure.sites, measure.stacked),
        statistics_beyond(measure.needs),
        measure.segment.gives,
    )

    def emit(graph: fx.Graph, env: Mapping[str, Any]) -> Any:
        weights = argument(graph, "weights") if weighted else None
        moments = emit_moments(graph, env, probes, spec, extra, weights)
        sums = emit_sums(graph, env, measure.places, weights)
        chosen = emit_choices(graph, env, measure.routes, spec, True, weights)
        return (*moments, *sums, *chosen, *(env[v] for v in gives))

    key = (
        "segment",
        probes,
        tuple(measure.places),
        tuple(measure.routes),
        extra,
        weighted,
        measure.segment.takes,
        gives,
    )
    run = compiled(spec, params, key, emit, only=measure.wanted, program=measure.segment.program)
    return _Compiled(run, probes)


def union(parts: Iterable[Stats], start: Stats) -> Stats:
    """Return the statistics of all segments together, which are all of the same batches."""
    total = start
    for part in parts:
        merged = merge_stats(total, part)
        total = merged._replace(batches=part.batches, samples=part.samples)
    return total
