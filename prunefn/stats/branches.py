"""What is collected of a branch: sums over positions, [4 + channels] in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .._shapes import Float
from ..errors import StatsError
from ..spec.spec import Spec
from ..types import Stats
from .weights import weights_at

COLLECTED = "branches"
"""Collector in `Stats.sums`."""
COUNT, COSINE, ADDED, STREAM, MEAN = 0, 1, 2, 3, 4
"""Places: positions, Σ cosines of the stream before and after, Σ‖added‖², Σ‖after‖²; from MEAN on: Σ added, [channels]."""


TINY = 1e-30
"""Added to squared norms that are divided by."""


class Place(NamedTuple):
    """Where a branch is measured."""

    before: str
    """Value: the stream before."""
    after: str
    added: tuple[str, ...]
    """What it adds, if that is one value of the program."""
    dim: int
    """Of the channels, counted from the right."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the values that are measured."""
        return (self.before, self.after, *self.added)


def places_of(spec: Spec) -> dict[str, Place]:
    """Return branch → where it is measured."""
    instructions = {i.name: i for i in spec.program.instructions}
    dims = {s.tensor: s.dim for s in spec.program.slots}
    out = {}
    for name, b in spec.branches.items():
        added = [instructions[t.addition].args[t.operand].name for t in b.terms]
        out[name] = Place(b.input, b.output, tuple(added) if len(added) == 1 else (), dims.get(b.shift, -1))
    return out


def emit_sums(
    graph: fx.Graph, env: Mapping[str, Any], places: Mapping[str, Place], weights: fx.Node | None
) -> list[fx.Node]:
    """Add the sums of all places to a graph."""
    rows = []
    for before, after, added, dim in places.values():
        w = None if weights is None else graph.call_function(weights_at, (weights, after, dim, env[after]))
        rows.append(graph.call_function(sums_of, (env[before], env[after], [env[a] for a in added], dim, w)))
    return rows


@torch.fx.wrap
def sums_of(
    before: Tensor, after: Tensor, added: list[Tensor], dim: int, weights: Tensor | None
) -> Float[Tensor, " numbers"]:
    """Return the sums over positions of what is added to a stream: see `stats.branches`.

    Args:
        before: the stream before.
        after: the stream after.
        added: what is added; empty: the difference of the two.
        dim: of the channels.
        weights: of the positions, of the shape without `dim`; None: all count once.
    """
    after = after.movedim(dim, -1).flatten(0, -2).double()
    plus = added[0].movedim(dim, -1).flatten(0, -2).double() if added else None
    without = before.movedim(dim, -1).flatten(0, -2).double() if plus is None else after - plus
    plus = after - without if plus is None else plus
    w = after.new_ones(len(after)) if weights is None else weights.to(after).flatten()
    cosines = (without * after).sum(1) / (without.square().sum(1) * after.square().sum(1) + TINY).sqrt()
    numbers = [w.sum(), w @ cosines, w @ plus.square().sum(1), w @ after.square().sum(1)]
    return torch.cat([torch.stack(numbers), w @ plus])


def mean_added(stats: Stats, group: str) -> Float[Tensor, " channels"]:
    """Return the mean of what a branch or layer adds, [channels].

    Raises:
        StatsError: it was not collected.
    """
    sums = stats.sums.get(COLLECTED, {})
    if group not in sums:
        raise StatsError(
            f"{group!r} is removed, but there is no mean of what it adds: collect_stats(…, criterion=criteria.block_influence()) "
            "measures it; or use compensation=compensation.none()"
        )
    return sums[group][MEAN:] / sums[group][COUNT].clamp_min(1)
