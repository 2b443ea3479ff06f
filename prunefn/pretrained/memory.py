"""The memory that a run layer by layer takes, stated before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor

from ..compensation.by_layer import Pair, values_of_fits
from ..program.segments import Segment
from ..spec.axis import size
from ..spec.program import refs
from ..spec.spec import Spec
from ..spec.stacked import stacked_of
from ..stats.by_layer import Measure
from .opened import Opened

COPIES = 6
"""Matrices of the size of the largest covariance that are in memory while it is merged, or solved with."""
FLOAT64 = 8


def needed_bytes(measures: Sequence[Measure], opened: Opened, batch: Mapping[str, Tensor]) -> int:
    """Return an upper bound of the bytes that one segment at a time takes, besides Python, torch and the tokens.

    A segment has its parameters, the values of one batch that are alive at the same time, and its statistics; scoring takes some
    matrices of the size of a covariance and of a weight in float64.
    """
    sizes = {**opened.spec.sizes, **_free_sizes(opened.spec, batch)}
    return max((_of_segment(m, opened, sizes) for m in measures), default=0)


def needed_for_repair(layers: Sequence[Pair], opened: Opened, batch: Mapping[str, Tensor]) -> int:
    """Return an upper bound of the bytes that fitting one layer at a time takes, besides Python, torch and the tokens.

    A layer is there twice, dense and pruned. The statistics of both halves of the samples, and of all, are of the kept inputs.
    """
    sizes = {**opened.spec.sizes, **_free_sizes(opened.spec, batch)}
    return max((_of_pair(p, opened, sizes) for p in layers), default=0)


def _of_pair(pair: Pair, opened: Opened, sizes: Mapping[str, int]) -> int:
    spec, item = opened.spec, opened.dtype.itemsize
    sites = [spec.sites[n] for together in pair.sites for n in together]
    wanted = [*values_of_fits(sites, spec, pair.stacked), *pair.dense.hands]
    names = {spec.tied.get(n, n) for n in pair.dense.tensors(wanted)}
    weights = sum(prod(spec.shape(n)) for n in names) * item
    values = _alive(pair.dense, wanted, sizes) * item
    fits = 0
    for together in pair.sites:
        fitted = [spec.sites[n] for n in together]
        width = size(fitted[0].axis, spec.sizes)
        rows = sum(size(s.out, spec.sizes) for s in fitted)
        fits = max(fits, FLOAT64 * COPIES * (width * width + 2 * width * rows))
    for s in (s for s in stacked_of(spec) if s.call in pair.stacked):
        width, rows = size(s.axis, spec.sizes), size(s.out, spec.sizes)
        fits = max(fits, size(s.experts, spec.sizes) * FLOAT64 * COPIES * (width * width + 2 * width * rows))
    return 3 * weights + 2 * values + fits


def _free_sizes(spec: Spec, batch: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of the inputs that a batch has."""
    named = dict(zip((i.name for i in spec.program.inputs), batch.values(), strict=False))
    return {leaf: named[name].shape[dim] for leaf, (name, dim) in spec.program.free.items() if name in named}


def _of_segment(m: Measure, opened: Opened, sizes: Mapping[str, int]) -> int:
    spec, item = opened.spec, opened.dtype.itemsize
    names = {spec.tied.get(n, n) for n in m.segment.tensors(m.wanted)}
    weights = sum(prod(spec.shape(n)) for n in names) * item
    # a tensor in another type is there twice while it is converted
    weights += max((prod(spec.shape(n)) for n in names), default=0) * item
    inside = [n for s in m.stacked for n in [size(s.axis, spec.sizes)] * size(s.experts, spec.sizes)]
    widths = [*{s.values: size(s.axis, spec.sizes) for s in m.sites}.values(), *inside]
    statistics = FLOAT64 * 4 * sum((*(size(s.axis, spec.sizes) for s in m.sites), *inside))
    scoring = 0
    if "covariance" in m.needs and widths:
        widest = max(widths)
        # the eliminations of all experts run together
        statistics += FLOAT64 * (sum(d * d for d in widths) + COPIES * max(widest**2, sum(d * d for d in inside)))
        measured = (*m.sites, *m.stacked)
        scoring = (
            FLOAT64 * COPIES * max((prod(spec.shape(s.weight)) for s in measured if s.weight in spec.axes), default=0)
        )
    return weights + statistics + max(_alive(m.segment, m.wanted, sizes) * item, scoring)


def _alive(segment: Segment, wanted: Sequence[str], sizes: Mapping[str, int]) -> int:
    """Return the most elements of results that are alive at once; views count as if they were copies."""
    program = segment.program
    elements = {v: prod(size(a, sizes) for a in axes) for v, axes in program.axes.items()}
    last = {
        name: n for n, i in enumerate(program.instructions) for name in refs((i.args, tuple(v for _, v in i.kwargs)))
    }
    kept = set(wanted)
    live, most = dict[str, int](), 0
    for n, i in enumerate(program.instructions):
        live[f"%{i.name}"] = elements.get(f"%{i.name}", 0)
        most = max(most, sum(live.values()))
        live = {v: e for v, e in live.items() if last.get(v, -1) > n or v in kept}
    # moments of float32 values are computed in float64 for some rows; twice the largest value is an upper bound
    return most + 2 * max((elements[v] for v in wanted if v in elements), default=0)
