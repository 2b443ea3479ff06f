"""The sequential mode layer by layer: one layer of the dense and of the pruned network is in memory, and what both give is handed on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from tqdm import tqdm

from ..parameters.transforms import shrink
from ..program.batches import device_of, inputs_of
from ..program.compiled import compiled
from ..program.segments import Segment, cuts, lives_at, segments
from ..spec.parts import Site
from ..spec.spec import Spec, removed_branches, take
from ..spec.stacked import stacked_of
from ..stats.by_layer import States, Values, held
from ..stats.weights import PositionWeights, position_weights
from ..tracing.branches import other_branch
from ..types import Batch, Compensation, Mask, Params
from .fits import Halves, Seen, Task, fits_of, values_read
from .repair import Repaired, affected, affected_experts, written
from .sequential import by_input, expert_tasks, fitted, task_of


class Pair(NamedTuple):
    """A layer in the dense network and in the pruned one."""

    dense: Segment
    small: Segment
    sites: tuple[tuple[str, ...], ...]
    """Contractions of the pruned layer that are fitted, by the order of the program; those that read the same value together."""
    stacked: tuple[str, ...] = ()
    """Instructions of the contractions inside experts that lost inputs; they are fitted last."""

    @property
    def passes(self) -> int:
        """Return how often the batches run through: for each value that contractions read, and to hand on what the layer gives."""
        return len(self.sites) + len(self.stacked) + 1


def pairs(spec: Spec, mask: Mask) -> list[Pair]:
    """Return the layers of a network and of what a mask leaves of it, in order.

    Args:
        spec: of the dense network.
        mask: of the units to remove.
    """
    small, lost = shrink(spec, mask), {s.name for s in affected(spec, mask)} | behind(spec, mask)
    ends = lives_at(small, {}, cuts(spec))
    both = zip(segments(spec, at=ends), segments(small, at=ends), strict=True)
    calls = dict.fromkeys(s.calls[0] for s in affected_experts(spec, mask))
    return [Pair(d, s, _sites_within(s, small, lost), tuple(c for c in calls if f"%{c}" in s.own)) for d, s in both]


def behind(spec: Spec, mask: Mask) -> set[str]:
    """Return the contractions whose outputs are added to a stream behind a branch that a mask removes: they can make up for it.

    The fit of such a contraction is towards the sum that the dense network has there.
    """
    position = {i.name: n for n, i in enumerate(spec.program.instructions)}
    ends = [position[t.addition] for b in removed_branches(spec, mask) for t in spec.branches[b].terms]
    tied = {*spec.tied, *spec.tied.values()}
    later = (s for s in spec.sites.values() if ends and position[s.calls[0]] > min(ends) and s.weight not in tied)
    return {s.name for s in later if other_branch(s, spec) is not None}


def _sites_within(segment: Segment, small: Spec, names: set[str]) -> tuple[tuple[str, ...], ...]:
    sites = (small.sites[n] for n in names if n in small.sites)
    inside = [s for s in sites if all(f"%{c}" in segment.own for c in s.calls)]
    return tuple(tuple(s.name for s in together) for together in by_input(inside, small))


class Side(NamedTuple):
    """One of the two networks, at a layer."""

    params: Params
    """Those of the layer are in memory."""
    spec: Spec
    segment: Segment
    states: States

    def values(self, number: int, inputs: Sequence[Tensor], names: Sequence[str]) -> Values:
        """Return values of the layer for a batch."""
        if not names:
            return {}
        before = self.states.read(number)
        more = [before[v] for v in self.segment.takes]
        known = {v: before[v] for v in names if v in before}
        wanted = tuple(v for v in names if v not in known)
        if not wanted:
            return known

        def emit(_: fx.Graph, env: Mapping[str, Any]) -> Any:
            return tuple(env[name] for name in wanted)

        key = ("segment values", self.segment.takes, wanted)
        run = compiled(self.spec, self.params, key, emit, only=wanted, program=self.segment.program)
        with torch.no_grad():
            return known | dict(zip(wanted, run(self.params, [*inputs, *more]), strict=True))

    def hand_on(self, number: int, inputs: Sequence[Tensor]) -> None:
        """Compute what the layers behind need of a batch, and write it."""
        self.states.write(number, self.values(number, inputs, self.segment.hands))


def fit_layer(
    dense: tuple[Params, Spec],
    small: Spec,
    mask: Mask,
    batches: Sequence[Batch],
    pair: Pair,
    states: tuple[States, States],
    method: Compensation,
    *,
    bar: tqdm | None = None,
) -> tuple[Params, list[Repaired]]:
    """Fit the contractions of a layer that lost inputs to their dense outputs, one after the other, and hand on what it gives.

    Their inputs are those of the network whose earlier layers are pruned and fitted.

    Args:
        dense: params (which may be on disk) and spec.
        small: spec after the mask.
        mask: of the units to remove.
        batches: all of them, in the same order for each layer.
        pair: the layer.
        states: of the dense network and of the pruned one.
        method: of compensation.
        bar: is advanced with each batch and pass.

    Returns:
        The params of the pruned layer, and what was fitted.
    """
    params, spec = dense
    before = Side(params, spec, pair.dense, states[0])
    sites = [[small.sites[n] for n in together] for together in pair.sites]
    needed = values_of_fits([s for together in sites for s in together], spec, pair.stacked)
    before = before._replace(params={**params, **held(params, pair.dense.tensors((*needed, *pair.dense.hands)))})
    layer = _pruned(before.params, params, pair.small.tensors((*needed, *pair.small.hands)), spec, mask)
    repaired = list[Repaired]()
    for together in (*sites, *pair.stacked):
        now = Side({**params, **layer}, small, pair.small, states[1])
        networks = (before.params, spec), (now.params, small)
        if isinstance(together, str):
            tasks = expert_tasks(together, *networks, mask)
        else:
            tasks = [task_of(spec.sites[s.name], *networks, mask) for s in together]
        collect = partial(_collect, before, now, batches, covariance="covariance" in method.needs, bar=bar)
        found = fitted(tasks, collect, method, small)
        changed = written(now.params, found, small)
        layer = {n: changed[n] for n in changed if n in layer or changed[n] is not now.params.get(n)}
        repaired += found
    now = Side({**params, **layer}, small, pair.small, states[1])
    for number, (inputs, _) in enumerate(_inputs(batches, spec, params)):
        for side in (before, now):
            side.hand_on(number, inputs)
        if bar is not None:
            bar.update()
    return layer, repaired


def values_of_fits(sites: Sequence[Site], spec: Spec, stacked: Collection[str] = ()) -> list[str]:
    """Return the values of the program that fits are about: what the sites read and give, and the sums that this enters.

    Args:
        sites: of contractions.
        spec: of the program.
        stacked: instructions of contractions inside experts.
    """
    inside = [v for s in stacked_of(spec) if s.call in stacked for v in (*s.reads, f"%{s.call}")]
    branches = (other_branch(spec.sites[s.name], spec) for s in sites)
    sums = [v for b in branches if b is not None for v in (b.value, f"%{b.addition}")]
    return [*(v for s in sites for v, _ in s.values), *(f"%{c}" for s in sites for c in s.calls), *sums, *inside]


def _pruned(at_hand: Params, params: Params, names: frozenset[str], spec: Spec, mask: Mask) -> Params:
    """Return tensors without what a mask removes; tied ones once."""
    by_id: dict[int, Tensor] = {}
    for n in names:
        if id(params[n]) not in by_id:
            by_id[id(params[n])] = take(at_hand[n], spec.axes[n], mask, spec.sizes)
    return {n: by_id[id(params[n])] for n in names}


def _inputs(
    batches: Sequence[Batch], spec: Spec, params: Params
) -> Iterator[tuple[list[Tensor], PositionWeights | None]]:
    """Yield the inputs of each batch, and the weights of their positions."""
    for batch in batches:
        inputs = inputs_of(batch, spec=spec, device=device_of(params))
        yield inputs, position_weights(spec, inputs, batch, True)


def _collect(
    before: Side, now: Side, batches: Sequence[Batch], tasks: Sequence[Task], *, covariance: bool, bar: tqdm | None
) -> list[Halves]:
    """Measure tasks over all batches."""
    names = values_read(tasks)

    def seen() -> Iterator[Seen]:
        for number, (inputs, weights) in enumerate(_inputs(batches, before.spec, before.params)):
            yield Seen(before.values(number, inputs, names), now.values(number, inputs, names), weights)
            if bar is not None:
                bar.update()

    return fits_of(seen(), tasks, covariance=covariance)
