"""Criteria of branches and layers: how little they change the stream that they add to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ..doors import door
from ..program.batches import device_of, inputs_of
from ..program.compiled import argument, compiled
from ..spec.spec import Spec, check_runnable
from ..stats.branches import ADDED, COLLECTED, COSINE, COUNT, MEAN, STREAM, TINY, emit_sums, places_of
from ..stats.weights import position_weights
from ..types import Batch, Collector, Criterion, Params, Scores, Stats
from .base import collected


def _collect(params: Params, batch: Batch, spec: Spec) -> Mapping[str, Tensor]:
    """Return group → sums over positions of what its branch adds, as `stats.branches` describes them, float64."""
    check_runnable(spec)
    if not spec.branches:
        return {}
    places = places_of(spec)
    inputs = inputs_of(batch, spec=spec, device=device_of(params))
    weights = position_weights(spec, inputs, batch, True)

    def emit(graph: fx.Graph, env: Mapping[str, Any]) -> Any:
        return tuple(emit_sums(graph, env, places, argument(graph, "weights") if weights is not None else None))

    wanted = [v for place in places.values() for v in place.reads]
    run = compiled(spec, params, (COLLECTED, weights is not None), emit, only=wanted)
    with torch.no_grad():
        rows = run(params, inputs, *([] if weights is None else [weights]))
    return dict(zip(places, rows, strict=True))


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
