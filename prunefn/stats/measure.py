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
from ..types import Moments, Params
from .moments import merge_moments, site_moments
from .taps import tap_means
from .weights import PositionWeights, weights_at


class Probes(NamedTuple):
    """What is measured: distinct values, and distinct convolutions (taps) that read them."""

    values: tuple[tuple[str, int], ...]
    taps: tuple[tuple[str, int, Geometry | None], ...]


class Measuring(NamedTuple):
    """A program whose outputs are moments, and what they describe."""

    run: Compiled
    probes: Probes


def probes_of(sites: Sequence[Site]) -> Probes:
    """Return what is measured for some sites."""
    values = tuple(dict.fromkeys(v for s in sites for v in s.values))
    return Probes(values, tuple(dict.fromkeys((*v, s.geometry) for s in sites if s.taps for v in s.values)))


def statistics_beyond(needs: Collection[str]) -> tuple[bool, bool]:
    """Return whether mean absolute values and covariances are needed, as `site_moments` takes them."""
    return "absolute" in needs, "covariance" in needs


def emit_moments(
    graph: fx.Graph, env: Mapping[str, Any], probes: Probes, extra: tuple[bool, bool], weights: fx.Node | None
) -> list[fx.Node]:
    """Add the moments of all values, and the means of all taps, to a graph."""

    def call_at_value(function: Callable[..., Any], value: str, dim: int, *args: Any) -> fx.Node:
        """Add a call right after its value is computed, so that the value need not be kept."""
        place, more = env[value], dict[str, Any]()
        if weights is not None:
            with graph.inserting_after(place):
                place = more["weights"] = graph.call_function(weights_at, (weights, value, dim, env[value]))
        with graph.inserting_after(place):
            return graph.call_function(function, (env[value], dim, *args), more)

    moments = [call_at_value(site_moments, value, dim, *extra) for value, dim in probes.values]
    return [*moments, *(call_at_value(tap_means, *at) for at in probes.taps)]


def compile_moments(
    params: Params, sites: Sequence[Site], spec: Spec, needs: Collection[str], *, weighted: bool
) -> Measuring:
    """Compile the program with moments as outputs: one per distinct value, and one per distinct convolution that reads it."""
    probes, extra = probes_of(sites), statistics_beyond(needs)

    def emit(graph: fx.Graph, env: Mapping[str, Any]) -> Any:
        weights = argument(graph, "weights") if weighted else None
        return tuple(emit_moments(graph, env, probes, extra, weights))

    key = ("moments", probes, extra, weighted)
    return Measuring(compiled(spec, params, key, emit, only=[value for value, _ in probes.values]), probes)


def measure(
    params: Params,
    inputs: list[Tensor],
    sites: Sequence[Site],
    spec: Spec,
    needs: Collection[str],
    weights: PositionWeights | None,
) -> dict[str, Moments]:
    """Return the moments of each site for one batch.

    Raises:
        StatsError: a site's input is not finite.
    """
    if not sites:
        return {}
    run, probes = compile_moments(params, sites, spec, needs, weighted=weights is not None)
    with torch.no_grad():
        outputs = run(params, inputs, *([] if weights is None else [weights]))
    return moments_of(sites, probes, outputs)


def moments_of(sites: Sequence[Site], probes: Probes, outputs: Sequence[Any]) -> dict[str, Moments]:
    """Return the moments of each site from what `emit_moments` computes.

    Raises:
        StatsError: a site's input is not finite.
    """
    values, taps = probes
    moments = dict(zip(values, outputs[: len(values)], strict=True))
    tapped = dict(zip(taps, outputs[len(values) :], strict=True))
    out: dict[str, Moments] = {}
    for s in sites:
        for value in s.values:
            m = moments[value]
            if s.taps:
                m = m._replace(**dict(zip(("taps", "tap_count"), tapped[*value, s.geometry], strict=True)))
            out[s.name] = m if s.name not in out else merge_moments(out[s.name], m)
    for name, m in out.items():
        if not bool(torch.isfinite(m.mean).all() & torch.isfinite(m.m2).all()):
            raise StatsError(
                f"the input of site {name!r} is not finite in {int((~torch.isfinite(m.m2)).sum())} of {len(m.m2)} channels; "
                "look for NaN in the batches or parameters"
            )
    return out
