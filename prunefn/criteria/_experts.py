"""Criteria of the experts of a mixture: how many tokens choose them, and how much they add."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..doors import door
from ..errors import BatchError
from ..program.batches import device_of, inputs_of
from ..program.compiled import argument, compiled
from ..spec.routing import routes_of
from ..spec.spec import Spec, check_runnable
from ..stats import choices
from ..stats.choices import COUNT, NORM, TOKENS, emit_choices, units_of, values_of
from ..stats.weights import position_weights
from ..types import Batch, Collector, Criterion, Params, Scores, Stats
from .base import collected


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

        def emit(graph: fx.Graph, env: Mapping[str, Any]) -> Any:
            weighted = argument(graph, "weights") if weights is not None else None
            return tuple(emit_choices(graph, env, routes, spec, self.norms, weighted))

        wanted = [v for r in routes.values() for v in values_of(r, self.norms)]
        run = compiled(spec, params, ("experts", self.norms, weights is not None), emit, only=wanted)
        more = [] if weights is None else [weights]
        with torch.no_grad():
            rows = run(params, inputs, *more, *units_of(routes, spec, device_of(params)))
        return dict(zip(routes, rows, strict=True))


def _none_text(spec: Spec) -> str:
    """Return why no experts are measured."""
    if routes_of(spec):
        return (
            "the program adds what the experts compute in one product with their weights, so that no value holds what each of them "
            "adds; use criteria.expert_frequency()"
        )
    return "the spec has no group of experts, which a router chooses or weighs; see spec.groups"


CHOSEN = Collector(choices.CHOSEN, Choices(norms=False))
ADDED = Collector(choices.ADDED, Choices(norms=True))


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
