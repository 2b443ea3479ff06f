"""What is collected of the experts of a mixture: sums over tokens for each of them, [2 or 3, experts] in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from .._shapes import Float
from ..program.compiled import argument
from ..spec.axis import unit_of
from ..spec.routing import Route
from ..spec.spec import Spec
from .weights import weights_at

CHOSEN, ADDED = "choices of experts", "choices of experts, and what they add"
"""Collectors in `Stats.sums`: without and with the row `NORM`."""
TOKENS, COUNT, NORM = 0, 1, 2
"""Rows: tokens (the same number for all experts), tokens that chose the expert, Σ over these of the norm of what it added."""


def collector_of(route: Route) -> str:
    """Return the collector that a route can have: what the experts add is known if the program has a value that holds it."""
    return ADDED if route.parts else CHOSEN


def values_of(route: Route, norms: bool) -> list[str]:
    """Return the values of the program that are read for a route."""
    choice = route.choice
    return [v for v in (choice.scores, choice.ids, norms * route.parts, norms * route.scale) if v]


def units_of(routes: Mapping[str, Route], spec: Spec, device: torch.device) -> list[Tensor]:
    """Return the unit of each position of the router's axis, for each route; the last arguments of a program with `emit_choices`."""
    return [unit_of(r.axis, g, spec.sizes).to(device) for g, r in routes.items()]


def emit_choices(
    graph: fx.Graph,
    env: Mapping[str, Any],
    routes: Mapping[str, Route],
    spec: Spec,
    norms: bool,
    weights: fx.Node | None,
) -> list[fx.Node]:
    """Add the sums of all routes to a graph; the units of their positions are further arguments of it, `units_of`.

    Args:
        graph: of a program.
        env: its values.
        routes: group → route.
        spec: of the program.
        norms: whether to measure what the experts add, where a value holds it.
        weights: of the positions; None: all count once.
    """
    rows = []
    for n, (g, r) in enumerate(routes.items()):
        c = r.choice
        w = None if weights is None else graph.call_function(weights_at, (weights, c.scores, c.dim, env[c.scores]))
        ids = env[c.ids] if c.ids else None
        ids = graph.call_method("unsqueeze", (ids, -1)) if c.single else ids
        scores = graph.call_method("movedim", (env[c.scores], c.dim, -1))
        added = _added(graph, env, r) if norms and r.parts else None
        units = argument(graph, f"units_{n}")
        rows.append(graph.call_function(sums_of, (scores, ids, added, r.every, w, units, spec.sizes[g])))
    return rows


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
    """Return the sums over tokens for the units of a group of experts: see `stats.choices`.

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
