"""Measured normal equations: a site's inputs in the current network, and the outputs that it had in the dense one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..program.batches import device_of, each, inputs_of
from ..program.compiled import compiled
from ..spec.parts import Geometry, Site
from ..spec.spec import Spec
from ..spec.stacked import Stacked
from ..stats import experts
from ..stats.moments import cross_scatter, merge_moments, site_moments
from ..stats.taps import centre_weights, im2col
from ..stats.weights import PositionWeights, Weights, position_weights
from ..types import Batch, Inputs, Lacking, Moments, Params

ELEMENTS = 1 << 24
"""Elements of the patches that are in memory at once."""


class Inside(NamedTuple):
    """A contraction of one expert, in the dense network and in the current one, whose values have the same names."""

    stacked: Stacked
    layout: tuple[int, int | None]
    before: int
    """Position of the expert in the dense network."""
    now: int


class Task(NamedTuple):
    """A contraction to be fitted to its dense outputs."""

    site: Site
    dense_weight: Tensor
    """[g, o, i, taps], in the dense network"""
    weight: Tensor
    """[g', o', i', taps], in the current network"""
    outputs: Tensor
    """Positions of the current outputs among the dense ones [g' · o']"""
    inputs: slice
    """The inputs of each group that are fitted."""
    other: str
    """The value that the outputs are added to; empty if there is none."""
    order: tuple[int, ...]
    """The permutation of the outputs before that addition."""
    scale: Tensor
    """[g' · o'], the factor of each output before that addition; 0 where what was lost there is not repaired."""
    inside: Inside | None = None
    """Of an expert's contraction: whose rows are fitted."""


class Fit(NamedTuple):
    """The statistics of the inputs of one group of a contraction, related to the outputs that it must give."""

    inputs: Moments
    """[i · taps]"""
    outputs: Moments
    """[o], the outputs to give"""
    lacking: Moments
    """[o], those that the weight at hand does not give"""
    given: Moments
    """[o], what the weight at hand gives"""
    cross: Tensor | None
    """[o, i · taps], sum of outer products of deviations: what lacks (rows) with the inputs"""


Halves = tuple[tuple[Fit, ...], tuple[Fit, ...]]
"""The fits of each group, for either half of the samples; a half may be empty."""


def collect_fits(
    dense: tuple[Params, Spec],
    small: tuple[Params, Spec],
    batches: Iterable[Batch],
    tasks: Sequence[Task],
    *,
    covariance: bool = False,
    weights: Weights = True,
    max_batches: int | None = None,
    progress: bool = False,
) -> list[Halves]:
    """Measure sites in two networks on the same batches: the dense one, and the one with some units already removed.

    Args:
        dense, small: params and spec.
        batches, weights, max_batches, progress: as in `collect_stats`.
        tasks: the sites, of either spec, which have the same names and values.
        covariance: measure the covariances of inputs and outputs.

    Returns:
        The fits of each task. The samples of a batch are halved along dim 0 of the value that the site reads, or by batches if
        it has but one.
    """
    names = values_read(tasks)

    def seen() -> Iterator[Seen]:
        for batch in each(batches, max_batches=max_batches, progress=progress, text="statistics"):
            flat = inputs_of(batch, spec=dense[1], device=device_of(dense[0]))
            before, now = (values_of(p, s, flat, names) for p, s in (dense, small))
            yield Seen(before, now, position_weights(dense[1], flat, batch, weights))

    return fits_of(seen(), tasks, covariance=covariance)


class Seen(NamedTuple):
    """One batch in both networks."""

    before: Mapping[str, Tensor]
    """Value → what it is in the dense network."""
    now: Mapping[str, Tensor]
    """Value → what it is in the current one."""
    weights: PositionWeights | None


def values_read(tasks: Sequence[Task]) -> tuple[str, ...]:
    """Return the values that fits are made of."""
    names = [v for t in tasks for v, _ in t.site.values] + [t.other for t in tasks if t.other]
    return tuple(dict.fromkeys(names + [v for t in tasks if t.inside is not None for v in t.inside.stacked.reads]))


def fits_of(batches: Iterable[Seen], tasks: Sequence[Task], *, covariance: bool) -> list[Halves]:
    """Return the fits of each task over all batches, as `collect_fits` does."""
    out: list[list[list[Fit]]] = [[[], []] for _ in tasks]
    for number, seen in enumerate(batches):
        before, now, weighted = seen
        rows_of_stack: dict[str, tuple[experts.Rows, experts.Rows]] = {}
        for halves, task in zip(out, tasks, strict=True):
            if task.inside is not None:
                call = task.inside.stacked.call
                if call not in rows_of_stack:
                    rows_of_stack[call] = _expert_rows(task.inside, seen)
                for half, columns in _pairs(task, *rows_of_stack[call], number):
                    halves[half] = _added(halves[half], [_fit(*columns, covariance)])
                continue
            for value, dim in task.site.values:
                x, y = before[value], now[value]
                w = None if weighted is None else weighted.of(value, dim, x.shape)
                for half, part in _parts(x, task.site.geometry, task.dense_weight.shape[-1], number):
                    rows = _rows(task, dim, part, x, y, w, before.get(task.other), now.get(task.other))
                    fits = [_fit(*columns, rows.weights, covariance) for columns in rows.groups]
                    halves[half] = _added(halves[half], fits)
    return [(tuple(first), tuple(second)) for first, second in out]


def _added(before: list[Fit], fits: list[Fit]) -> list[Fit]:
    return list(map(_merge, before, fits)) if before else fits


def _expert_rows(inside: Inside, seen: Seen) -> tuple[experts.Rows, experts.Rows]:
    """Return the rows of a contraction inside experts, in the dense network and in the current one."""
    before, now = (experts.rows_of(inside.stacked, inside.layout, v, seen.weights) for v in (seen.before, seen.now))
    return before, now


def _pairs(
    task: Task, before: experts.Rows, now: experts.Rows, number: int
) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """Yield (half, (inputs, outputs to give, those that are given, weights)) of the tokens that an expert gets in both networks."""
    assert task.inside is not None
    a, b = before.of(task.inside.before), now.of(task.inside.now)
    ours, theirs = torch.isin(a.tokens, b.tokens), torch.isin(b.tokens, a.tokens)
    x, w, y = a.inputs[ours], a.weights[ours], b.inputs[theirs]
    x, y = (v.float() if v.dtype in (torch.float16, torch.bfloat16) else v for v in (x, y))
    target = _apply(task.dense_weight, x[..., None])[:, 0][:, task.outputs]
    gives, n = _apply(task.weight, y[..., None])[:, 0], len(x)
    for half, part in ((0, slice(0, n // 2)), (1, slice(n // 2, n))) if n > 1 else ((number % 2, slice(0, n)),):
        if n:
            yield half, (y[part][:, task.inputs], target[part], gives[part], w[part])


def values_of(params: Params, spec: Spec, inputs: list[Tensor], names: tuple[str, ...]) -> Mapping[str, Tensor]:
    """Run a network, and return name → value."""

    def emit(_: fx.Graph, env: Mapping[str, Any]) -> Any:
        return tuple(env[name] for name in names)

    run = compiled(spec, params, ("values", names), emit, only=names)
    with torch.no_grad():
        return dict(zip(names, run(params, inputs), strict=True))


def _parts(x: Tensor, geometry: Geometry | None, taps: int, number: int) -> Iterator[tuple[int, slice]]:
    """Yield (half, slice along dim 0) of a value, with patches of bounded size."""
    n = len(x)
    if geometry is not None and x.ndim == len(geometry.kernel) + 1:  # a single image: dim 0 are channels
        yield number % 2, slice(None)
        return
    step = max(1, ELEMENTS * n // max(1, x.numel() * taps))
    for half, (start, stop) in enumerate([(0, n // 2), (n // 2, n)]):
        for first in range(start, stop, step):
            yield half if n > 1 else number % 2, slice(first, min(first + step, stop))


class Rows(NamedTuple):
    """One row for each position: for each group, its inputs [n, i · taps], the outputs to give, and those that are given [n, o]."""

    groups: list[tuple[Tensor, Tensor, Tensor]]
    weights: Tensor | None
    """[n]"""


def _rows(
    task: Task,
    dim: int,
    part: slice,
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    other_before: Tensor | None,
    other_now: Tensor | None,
) -> Rows:
    """Return the rows of one part of a batch.

    Args:
        task: of the site.
        dim: of its inputs.
        part: along dim 0.
        x, y: the site's input in the dense network and in the current one.
        weights: of its positions.
        other_before, other_now: what the outputs are added to, in both networks.
    """
    weights = None if weights is None else weights[part]
    before, now = (patches(v[part], dim, task.site, weights) for v in (x, y))
    target = _apply(task.dense_weight, before).flatten(1)[:, task.outputs]
    if other_before is not None and other_now is not None:
        back = [task.order.index(d) for d in range(len(task.order))]
        dense_other, other = (v.permute(back)[part].movedim(dim, -1).flatten(0, -2) for v in (other_before, other_now))
        target = target + (dense_other[:, task.outputs] - other) * task.scale.to(target)
    g, _, i, _ = task.weight.shape
    gives = _apply(task.weight, now)
    target, block = target.reshape(gives.shape), now.unflatten(1, (g, i))[:, :, task.inputs]
    if weights is not None:
        weights = position_weights_of(weights, task.site)
        counted = weights > 0
        block, target, gives, weights = (v[counted.to(v.device)] for v in (block, target, gives, weights))
    return Rows([(block[:, k].flatten(1), target[:, k], gives[:, k]) for k in range(g)], weights)


def _apply(weight: Tensor, rows: Tensor) -> Tensor:
    """Return the outputs [n, g, o] of a weight [g, o, i, taps] for inputs [n, g · i, taps]."""
    g, _, i, _ = weight.shape
    return torch.einsum("ngk,gok->ngo", rows.unflatten(1, (g, i)).flatten(2), weight.flatten(2).to(rows))


def patches(x: Tensor, dim: int, site: Site, weights: Tensor | None) -> Tensor:
    """Return what each output position reads, [positions, inputs, taps], in at least float32.

    Args:
        x: the site's input.
        dim: of the channels, counted from the right.
        site: whose geometry says which positions an output reads.
        weights: of x's positions, of its shape without `dim`; those of weight zero are read as zeros by convolutions.
    """
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if not site.taps or site.geometry is None:
        return x.movedim(dim, -1).reshape(-1, x.shape[dim], 1)
    x = x if weights is None else x * (weights > 0).unsqueeze(dim).to(x)
    return im2col(x if x.ndim == len(site.geometry.kernel) + 2 else x[None], site.geometry)


def position_weights_of(weights: Tensor, site: Site) -> Tensor:
    """Return the weights of the output positions of a site from those of its input's positions, [positions]."""
    if site.taps and site.geometry is not None:
        rank = len(site.geometry.kernel)
        weights = centre_weights(weights if weights.ndim == rank + 1 else weights[None], site.geometry)
    return weights.reshape(-1).double()


def _fit(inputs: Tensor, outputs: Tensor, given: Tensor, weights: Tensor | None, covariance: bool) -> Fit:
    """Return the statistics of rows [n, …]."""
    lacking = outputs - given
    x = site_moments(inputs, -1, False, covariance, weights)
    y, z, w = (site_moments(v, -1, weights=weights) for v in (outputs, lacking, given))
    return Fit(x, y, z, w, cross_scatter(lacking, inputs, -1, z, x, weights) if covariance else None)


def _merge(a: Fit, b: Fit) -> Fit:
    """Merge the statistics of two sets of rows; the cross scatter by Chan's formula, too."""
    n, m = a.inputs.count, b.inputs.count
    if not n or not m:
        return b if not n else a
    cross = None
    if a.cross is not None and b.cross is not None:
        out, into = b.lacking.mean - a.lacking.mean, b.inputs.mean - a.inputs.mean
        cross = torch.add(a.cross, b.cross).addr_(out, into, alpha=n * m / (n + m))
    inputs, outputs, lacking, given = (merge_moments(*pair) for pair in zip(a[:4], b[:4], strict=True))
    return Fit(inputs, outputs, lacking, given, cross)


def inputs_of_fits(halves: Halves, task: Task) -> Inputs:
    """Return the statistics of a site's inputs as a compensation takes them."""
    first, second = halves
    whole = _inputs(tuple(map(_merge, first, second)) if first and second else first or second, task)
    return whole._replace(halves=(_inputs(first, task), _inputs(second, task)) if first and second else ())


def _inputs(fits: tuple[Fit, ...], task: Task) -> Inputs:
    groups, outputs, _, taps = task.weight.shape
    n = fits[0].inputs.count

    def stack(values: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(values)).to(task.weight.device)

    mean, variance = (
        stack(v).unflatten(1, (-1, taps)) for v in zip(*((f.inputs.mean, f.inputs.m2 / n) for f in fits), strict=True)
    )
    covariance = cross = None
    if fits[0].cross is not None:
        covariance = stack(f.inputs.scatter / n for f in fits if f.inputs.scatter is not None)
        cross = stack(f.cross / n for f in fits if f.cross is not None).unflatten(2, (-1, taps))
    lack = Lacking(
        stack(f.lacking.mean for f in fits),
        stack(f.lacking.m2 / n for f in fits),
        cross,
        stack(f.outputs.m2 / n for f in fits),
        stack(f.given.m2 / n for f in fits),
    )
    kept = torch.ones(groups, mean.shape[1], dtype=torch.bool, device=mean.device)
    assert lack.mean.shape == (groups, outputs)
    return Inputs(kept, mean, variance, covariance, n, lack)
