"""Criteria of the experts of a mixture: how many tokens choose them, and how much they add."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .._shapes import Float
from ..doors import door
from ..errors import BatchError
from ..program.batches import device_of, inputs_of
from ..program.compiled import argument, compiled
from ..spec.axis import unit_of
from ..spec.routing import Route, routes_of
from ..spec.spec import Spec, check_runnable
from ..stats.weights import position_weights, weights_at
from ..types import Batch, Collector, Criterion, Params, Scores, Stats
from .base import collected

TOKENS, COUNT, NORM = 0, 1, 2
"""Rows of what is collected, [2 or 3, units]: tokens (the same number for all units), tokens that chose the unit, Σ over these of
the norm of what it added."""


class Choices(NamedTuple):
    """Collector of sums over tokens: group of experts → [2 or 3, units], float64."""

    norms: bool
    """Whether to measure what the experts add, too."""

    def __call__(self, params: Params, batch: Batch, spec: Spec) -> Mapping[str, Tensor]:
        check_runnable(spec)
        routes = {g: r for g, r in routes_of(spec).items() if r.parts or not self.norms}
        if not routes:
            raise BatchError(_none_text(spec))
        inputs = inputs_of(batch, spec=spec, device=device_of(params))
        weights = position_weights(spec, inputs, batch, True)
        of_position = {g: unit_of(r.axis, g, spec.sizes) for g, r in routes.items()}

        def emit(graph: fx.Graph, env: Mapping[str, Any]) -> Any:
            weighted = argument(graph, "weights") if weights is not None else None
            rows = []
            for n, (g, r) in enumerate(routes.items()):
                c = r.choice
                at = (weighted, c.scores, c.dim, env[c.scores])
                w = None if weighted is None else graph.call_function(weights_at, at)
                ids = env.get(c.ids)
                ids = graph.call_method("unsqueeze", (ids, -1)) if c.single else ids
                scores = graph.call_method("movedim", (env[c.scores], c.dim, -1))
                units = argument(graph, f"units_{n}")
                args = (scores, ids, _added(graph, env, r) if self.norms else None, r.every, w, units, spec.sizes[g])
                rows.append(graph.call_function(sums_of, args))
            return tuple(rows)

        wanted = [
            v
            for r in routes.values()
            for v in (r.choice.scores, r.choice.ids, self.norms * r.parts, self.norms * r.scale)
            if v
        ]
        run = compiled(spec, params, ("experts", self.norms, weights is not None), emit, only=wanted)
        more = [] if weights is None else [weights]
        with torch.no_grad():
            rows = run(params, inputs, *more, *(u.to(device_of(params)) for u in of_position.values()))
        return dict(zip(routes, rows, strict=True))


def _added(graph: fx.Graph, env: Mapping[str, Any], route: Route) -> Any:
    """Return what each choice adds."""
    if not route.scale:
        return env[route.parts]
    return graph.call_function(torch.mul, (env[route.parts], graph.call_method("unsqueeze", (env[route.scale], -1))))


@torch.fx.wrap
def sums_of(
    scores: Tensor,
    ids: Tensor | None,
    parts: Tensor | None,
    every: bool,
    weights: Tensor | None,
    of_position: Tensor,
    units: int,
) -> Float[Tensor, "rows units"]:
    """Return the sums over tokens for the units of a group of experts: see `TOKENS`.

    Args:
        scores: by which positions are chosen, [tokens…, positions].
        ids: the positions that each token chooses, [tokens…, chosen]; None: all.
        parts: what is added for each choice, [tokens…, chosen, channels], or by each position, [tokens…, positions, channels].
        every: whether it is by each position.
        weights: of the tokens, [tokens…]; None: all count once.
        of_position: unit of each position, [positions].
        units: number of units.
    """
    positions = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape) if ids is None else ids
    flat = positions.flatten(0, -2)
    w = torch.ones(len(flat), device=flat.device) if weights is None else weights.to(flat.device).flatten()
    w, chosen = w.double(), of_position[flat]
    sums = [w.sum().expand(units), _per_unit(w[:, None].expand(chosen.shape), chosen, units)]
    if parts is not None:
        norms = torch.linalg.vector_norm(parts.double(), dim=-1).flatten(0, -2)
        norms = norms.gather(1, flat) if every else norms
        sums.append(_per_unit(w[:, None] * norms, chosen, units))
    return torch.stack(sums)


def _per_unit(values: Tensor, chosen: Tensor, units: int) -> Float[Tensor, " units"]:
    return values.new_zeros(units).index_add(0, chosen.flatten(), values.flatten())


def _none_text(spec: Spec) -> str:
    """Return why no experts are measured."""
    if routes_of(spec):
        return (
            "the program adds what the experts compute in one product with their weights, so that no value holds what each of them "
            "adds; use criteria.expert_frequency()"
        )
    return "the spec has no group of experts, which a router chooses or weighs; see spec.groups"


CHOSEN = Collector("choices of experts", Choices(norms=False))
ADDED = Collector("choices of experts, and what they add", Choices(norms=True))


@door
def expert_frequency() -> Criterion:
    """Score the experts of a mixture by the share of tokens that choose them, from 0 to 1.

    Where all experts compute for every token, weighted by a softmax, the share is 1 for all; use `reap`.

    Other groups have no score: choose `pf.kind("experts")`. Padding does not count where a mask or lengths are among the inputs.
    No labels are needed.

    Raises:
        BatchError: (when collected) the spec has no group of experts.
        TraceError: (when collected) the spec was recorded.
        StatsError: (when scored) it was not collected; pass the criterion to `collect_stats`.

    >>> import torch, prunefn as pf
    >>> class Mixture(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.router, self.weight = torch.nn.Linear(4, 3), torch.nn.Parameter(torch.ones(3, 4, 4))
    ...     def forward(self, x):
    ...         value, choice = self.router(x).softmax(-1).topk(1)
    ...         outputs = torch.einsum("bi,bkio->bko", x, self.weight[choice])
    ...         return (value[..., None] * outputs).sum(1)
    >>> model, x = Mixture(), torch.randn(8, 4)
    >>> model.router.weight.data, model.router.bias.data = torch.zeros(3, 4), torch.tensor([0.0, 2.0, 1.0])
    >>> spec, criterion = pf.trace(model, (x,)), expert_frequency()
    >>> pf.score(pf.collect_stats(pf.params(model), [x], spec=spec, criterion=criterion), criterion=criterion)
    {'router.experts': tensor([0., 1., 0.], dtype=torch.float64)}
    """
    return Criterion(
        "expert_frequency",
        partial(_score, name="expert_frequency", collector=CHOSEN, of=_share),
        (),
        (CHOSEN,),
        on_request=True,
    )


@door
def reap() -> Criterion:
    """Score the experts of a mixture by the mean norm of what they add, over the tokens that choose them; 0 if none does.

    What an expert adds is its output times the weight that the router gives it, g_j(x) ‖f_j(x)‖ for a token x. Otherwise as
    `expert_frequency`.

    Source: Lasby et al., "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression", 2025 (arXiv 2510.13999).

    Raises:
        BatchError: (when collected) the spec has no group of experts, or no value holds what each of them adds.
        TraceError, StatsError: as for `expert_frequency`.
    """
    return Criterion(
        "reap", partial(_score, name="reap", collector=ADDED, of=_mean_norm), (), (ADDED,), on_request=True
    )


def _score(stats: Stats, *, name: str, collector: Collector, of: Callable[[Tensor], Tensor]) -> Scores:
    return {g: of(s) for g, s in collected(stats, collector, name, f"{name}()").items()}


def _share(s: Tensor) -> Tensor:
    return s[COUNT] / s[TOKENS].clamp_min(1)


def _mean_norm(s: Tensor) -> Tensor:
    return s[NORM] / torch.where(s[COUNT] > 0, s[COUNT], 1)
