"""The moments of all sites for one batch: the program is compiled with them as outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..errors import StatsError
from ..program.compiled import Compiled, argument, compiled
from ..spec.parts import Geometry, Site
from ..spec.spec import Spec
from ..spec.stacked import Stacked
from ..types import Moments, Params
from .experts import emit_expert_moments, expert_moments_by_name
from .moments import merge_moments, site_moments
from .taps import tap_means
from .weights import PositionWeights, weights_at


class Probes(NamedTuple):
    """What is measured: distinct values, distinct convolutions (taps) that read them, and contractions inside experts."""

    values: tuple[tuple[str, int], ...]
    taps: tuple[tuple[str, int, Geometry | None], ...]
    stacked: tuple[Stacked, ...] = ()

    @property
    def outputs(self) -> int:
        """Return the number of outputs that `emit_moments` adds."""
        return sum(map(len, self))

    @property
    def reads(self) -> list[str]:
        """Return the values that are read."""
        return [*(value for value, _ in self.values), *(v for s in self.stacked for v in s.reads)]


class Measuring(NamedTuple):
    """A program whose outputs are moments, and what they describe."""

    run: Compiled
    probes: Probes


def probes_of(sites: Sequence[Site], stacked: Sequence[Stacked] = ()) -> Probes:
    """Return what is measured for some sites, and for contractions inside experts."""
    values = tuple(dict.fromkeys(v for s in sites for v in s.values))
    taps = tuple(dict.fromkeys((*v, s.geometry) for s in sites if s.taps for v in s.values))
    return Probes(values, taps, tuple(stacked))


def statistics_beyond(needs: Collection[str]) -> tuple[bool, bool]:
    """Return whether mean absolute values and covariances are needed, as `site_moments` takes them."""
    return "absolute" in needs, "covariance" in needs


def emit_moments(
    graph: fx.Graph,
    env: Mapping[str, Any],
    probes: Probes,
    spec: Spec,
    extra: tuple[bool, bool],
    weights: fx.Node | None,
) -> list[fx.Node]:
    """Add the moments of all values, the means of all taps, and the moments of all experts, to a graph."""

    def call_at_value(function: Callable[..., Any], value: str, dim: int, *args: Any) -> fx.Node:
        """Add a call right after its value is computed, so that the value need not be kept."""
        place, more = env[value], dict[str, Any]()
        if weights is not None:
            with graph.inserting_after(place):
                place = more["weights"] = graph.call_function(weights_at, (weights, value, dim, env[value]))
        with graph.inserting_after(place):
            return graph.call_function(function, (env[value], dim, *args), more)

    moments = [call_at_value(site_moments, value, dim, *extra) for value, dim in probes.values]
    taps = [call_at_value(tap_means, *at) for at in probes.taps]
    return [*moments, *taps, *(emit_expert_moments(graph, env, s, spec, extra, weights) for s in probes.stacked)]


def compile_moments(
    params: Params,
    sites: Sequence[Site],
    stacked: Sequence[Stacked],
    spec: Spec,
    needs: Collection[str],
    *,
    weighted: bool,
) -> Measuring:
    """Compile the program with moments as outputs: one per distinct value, one per distinct convolution that reads it, and those
    of experts."""
    probes, extra = probes_of(sites, stacked), statistics_beyond(needs)

    def emit(graph: fx.Graph, env: Mapping[str, Any]) -> Any:
        weights = argument(graph, "weights") if weighted else None
        return tuple(emit_moments(graph, env, probes, spec, extra, weights))

    key = ("moments", probes, extra, weighted)
    return Measuring(compiled(spec, params, key, emit, only=probes.reads), probes)


def measure(
    params: Params,
    inputs: list[Tensor],
    sites: Sequence[Site],
    stacked: Sequence[Stacked],
    spec: Spec,
    needs: Collection[str],
    weights: PositionWeights | None,
) -> dict[str, Moments]:
    """Return the moments of each site, and of each expert's contractions, for one batch.

    Raises:
        StatsError: a site's input is not finite.
    """
    if not sites and not stacked:
        return {}
    run, probes = compile_moments(params, sites, stacked, spec, needs, weighted=weights is not None)
    with torch.no_grad():
        outputs = run(params, inputs, *([] if weights is None else [weights]))
    return moments_of(sites, probes, outputs)


def moments_of(sites: Sequence[Site], probes: Probes, outputs: Sequence[Any]) -> dict[str, Moments]:
    """Return the moments of each site from what `emit_moments` computes.

    Raises:
        StatsError: a site's input is not finite.
    """
    values, taps, stacked = probes
    moments = dict(zip(values, outputs[: len(values)], strict=True))
    tapped = dict(zip(taps, outputs[len(values) : len(values) + len(taps)], strict=True))
    of_experts = zip(stacked, outputs[len(values) + len(taps) :], strict=True)
    out: dict[str, Moments] = {}
    for s in sites:
        for value in s.values:
            m = moments[value]
            if s.taps:
                m = m._replace(**dict(zip(("taps", "tap_count"), tapped[*value, s.geometry], strict=True)))
            out[s.name] = m if s.name not in out else merge_moments(out[s.name], m)
    out |= (pair for s, found in of_experts for pair in expert_moments_by_name(s, found))
    for name, m in out.items():
        if not bool(torch.isfinite(m.mean).all() & torch.isfinite(m.m2).all()):
            raise StatsError(
                f"the input of site {name!r} is not finite in {int((~torch.isfinite(m.m2)).sum())} of {len(m.m2)} channels; "
                "look for NaN in the batches or parameters"
            )
    return out
