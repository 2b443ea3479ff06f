"""Rows and moments of the inputs of each expert, over the tokens that it gets.

A row of an expert with gate g counts as g² over the mean of g² of all experts that its token gets, as squared errors of outputs
do. So a token that has one expert, or experts of equal gates, counts once for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..spec.axis import size
from ..spec.spec import Spec
from ..spec.stacked import Stacked
from ..types import Moments
from .moments import site_moments
from .weights import PositionWeights, weights_at


class ExpertRows(NamedTuple):
    """What an expert gets."""

    inputs: Tensor
    """[n, in]"""
    tokens: Tensor
    """[n], positions among all tokens, rising"""
    weights: Tensor
    """[n], float64, above 0"""


class Rows(NamedTuple):
    """All rows of a contraction inside experts."""

    inputs: Tensor
    """[rows, in]"""
    experts: Tensor
    """[rows]"""
    tokens: Tensor
    """[rows]"""
    weights: Tensor
    """[rows]"""

    def of(self, expert: int) -> ExpertRows:
        """Return the rows that an expert gets, by token."""
        at = ((self.experts == expert) & (self.weights > 0)).nonzero()[:, 0]
        at = at[self.tokens[at].argsort()]
        return ExpertRows(self.inputs[at], self.tokens[at], self.weights[at])


def layout_of(s: Stacked, spec: Spec) -> tuple[int, int | None]:
    """Return the dim of the inputs, and that of the experts if all have a row of each token; both from the right."""
    axes = spec.program.axes[s.value[0]]
    return s.value[1], None if s.order else axes.index(s.experts) - len(axes)


def rows_of(
    s: Stacked, layout: tuple[int, int | None], values: Mapping[str, Tensor], weights: PositionWeights | None
) -> Rows:
    """Return the rows of a contraction, from the values that it reads; layout: of `layout_of`."""
    scores, dim = s.tokens
    w = None if weights is None else weights.of(scores, dim, values[scores].shape)
    order, ids = (values[v] if v else None for v in (s.order, s.ids))
    return rows_at(values[s.value[0]], values[s.gates], order, ids, *layout, w)


def rows_at(
    x: Tensor,
    gates: Tensor,
    order: Tensor | None,
    ids: Tensor | None,
    dim: int,
    experts: int | None,
    weights: Tensor | None,
) -> Rows:
    """Return the rows of an input, as `Stacked` describes it.

    Args:
        x: the input.
        gates, order, ids: as in `Stacked`.
        dim, experts: of `layout_of`.
        weights: of the tokens, [tokens…]; None: all count once.
    """
    if order is not None and ids is not None:
        chosen = ids.shape[-1]
        inputs, expert_of, tokens = x, ids.reshape(-1)[order], order // chosen
        relative = _relative(gates.reshape(-1, chosen)).reshape(-1)[order]
    else:
        assert experts is not None
        gates = gates.squeeze(dim) if gates.ndim == x.ndim else gates
        at = experts if experts > dim else experts + 1  # the dim of the experts once that of the inputs is gone
        relative = _relative(gates.expand([n for d, n in enumerate(x.shape) if d != x.ndim + dim]).movedim(at, -1))
        inputs = x.movedim((experts, dim), (-2, -1)).flatten(0, -2)
        count = relative.shape[-1]
        row = torch.arange(len(inputs), device=x.device)
        expert_of, tokens, relative = row % count, row // count, relative.reshape(-1)
    if weights is not None:
        relative = relative * weights.reshape(-1).to(relative)[tokens]
    return Rows(inputs, expert_of, tokens, relative)


def _relative(gates: Tensor) -> Tensor:
    """Return g² over its mean over the experts that a token gets, whose gates are not zero: [tokens…, experts], float64."""
    squares = gates.double().square()
    chosen = (squares > 0).sum(-1, keepdim=True).clamp_min(1)
    return squares / (squares.sum(-1, keepdim=True) / chosen).clamp_min(torch.finfo(squares.dtype).tiny)


def emit_expert_moments(
    graph: fx.Graph,
    env: Mapping[str, Any],
    s: Stacked,
    spec: Spec,
    extra: tuple[bool, bool],
    weights: fx.Node | None,
) -> fx.Node:
    """Add the moments of all experts to a graph, a list, right after the contraction's input and what says whose it is are there."""
    nodes = [env[v] for v in s.reads]
    place = max(nodes, key=list(graph.nodes).index)
    w = None
    if weights is not None:
        scores, dim = s.tokens
        with graph.inserting_after(place):
            place = w = graph.call_function(weights_at, (weights, scores, dim, env[scores]))
    values = [env[v] if v else None for v in (s.value[0], s.gates, s.order, s.ids)]
    with graph.inserting_after(place):
        return graph.call_function(
            expert_moments, (*values, *layout_of(s, spec), w, size(s.experts, spec.sizes), *extra)
        )


@torch.fx.wrap
def expert_moments(
    x: Tensor,
    gates: Tensor,
    order: Tensor | None,
    ids: Tensor | None,
    dim: int,
    experts_dim: int | None,
    weights: Tensor | None,
    experts: int,
    absolute: bool,
    covariance: bool,
) -> list[Moments]:
    """Return the moments of each expert's inputs; see `rows_at`."""
    rows = rows_at(x, gates, order, ids, dim, experts_dim, weights)
    each = (rows.of(e) for e in range(experts))
    return [site_moments(r.inputs, -1, absolute, covariance, r.weights) for r in each]


def expert_moments_by_name(s: Stacked, found: list[Moments]) -> Iterator[tuple[str, Moments]]:
    """Yield the name of each expert's contraction with its moments."""
    yield from ((f"{s.name}[{e}]", m) for e, m in enumerate(found))
