"""Criteria of branches and layers: how little they change the stream that they add to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .._shapes import Float
from ..doors import door
from ..program.batches import device_of, inputs_of
from ..program.compiled import argument, compiled
from ..spec.spec import Spec, check_runnable
from ..stats.branches import ADDED, COLLECTED, COSINE, COUNT, MEAN, STREAM
from ..stats.weights import position_weights, weights_at
from ..types import Batch, Collector, Criterion, Params, Scores, Stats
from .base import collected

TINY = 1e-30
"""Added to squared norms that are divided by."""


def _collect(params: Params, batch: Batch, spec: Spec) -> Mapping[str, Tensor]:
    """Return group → sums over positions of what its branch adds, as `stats.branches` describes them, float64."""
    check_runnable(spec)
    if not spec.branches:
        return {}
    places = _places(spec)
    inputs = inputs_of(batch, spec=spec, device=device_of(params))
    weights = position_weights(spec, inputs, batch, True)

    def emit(graph: fx.Graph, env: Mapping[str, Any]) -> Any:
        weighted = argument(graph, "weights") if weights is not None else None
        rows = []
        for before, after, added, dim in places.values():
            w = None if weighted is None else graph.call_function(weights_at, (weighted, after, dim, env[after]))
            rows.append(graph.call_function(sums_of, (env[before], env[after], [env[a] for a in added], dim, w)))
        return tuple(rows)

    wanted = [v for before, after, added, _ in places.values() for v in (before, after, *added)]
    run = compiled(spec, params, (COLLECTED, weights is not None), emit, only=wanted)
    with torch.no_grad():
        rows = run(params, inputs, *([] if weights is None else [weights]))
    return dict(zip(places, rows, strict=True))


class Place(NamedTuple):
    """Where a branch is measured."""

    before: str
    """Value: the stream before."""
    after: str
    added: tuple[str, ...]
    """What it adds, if that is one value of the program."""
    dim: int
    """Of the channels, counted from the right."""


def _places(spec: Spec) -> dict[str, Place]:
    """Return branch → where it is measured."""
    instructions = {i.name: i for i in spec.program.instructions}
    dims = {s.tensor: s.dim for s in spec.program.slots}
    out = {}
    for name, b in spec.branches.items():
        added = [instructions[t.addition].args[t.operand].name for t in b.terms]
        out[name] = Place(b.input, b.output, tuple(added) if len(added) == 1 else (), dims.get(b.shift, -1))
    return out


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


BRANCHES = Collector(COLLECTED, _collect)


@door
def block_influence() -> Criterion:
    """Score branches and layers by block influence: 1 − the mean cosine of the stream before and after, over positions.

    It is low for a block that hardly turns the stream. Other groups have no score: choose `pf.kind("layer")` or
    `pf.kind("branch")`. Padding does not count where a mask or lengths are among the inputs. No labels are needed.

    Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024, eq. 1.

    Raises:
        StatsError: (when scored) it was not collected; pass the criterion to `collect_stats`.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3).eval()
    >>> spec, x = pf.trace(model, (torch.randn(2, 5, 8),)), torch.randn(4, 5, 8)
    >>> criterion = block_influence()
    >>> scores = pf.score(pf.collect_stats(pf.params(model), [x], spec=spec, criterion=criterion), criterion=criterion)
    >>> layers = pf.only(scores, pf.kind("layer"), spec=spec)
    >>> [int(m.sum()) for m in pf.select(layers, 0.34, spec=spec).values()].count(0)
    1
    """
    score = partial(_score, of=_influence, call="block_influence()")
    return Criterion("block_influence", score, (), (BRANCHES,), on_request=True)


@door
def branch_error() -> Criterion:
    """Score branches and layers by the relative error of the stream without them: E‖y − E y‖² / E‖x + y‖² of what they add, y.

    The mean of y is left out because `compensation.mean()` makes up for it. Otherwise as `block_influence`.

    Raises:
        StatsError: (when scored) it was not collected; pass the criterion to `collect_stats`.
    """
    score = partial(_score, of=_error, call="branch_error()")
    return Criterion("branch_error", score, (), (BRANCHES,), increments=True, on_request=True)


def _score(stats: Stats, *, of: Any, call: str) -> Scores:
    sums = collected(stats, BRANCHES, call.removesuffix("()"), call)
    return {g: of(s)[None] for g, s in sums.items()}


def _influence(s: Tensor) -> Tensor:
    return 1 - s[COSINE] / s[COUNT].clamp_min(1)


def _error(s: Tensor) -> Tensor:
    n = s[COUNT].clamp_min(1)
    return (s[ADDED] / n - (s[MEAN:] / n).square().sum()).clamp_min(0) / (s[STREAM] / n + TINY)
