"""Compensation of streams for the branches that a mask removes: the mean of what they added becomes a bias of the sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..program.batches import device_of, each, inputs_of
from ..program.sharded import gather, spread
from ..spec.axis import keep
from ..spec.branches import PASS_ON, is_sum, without
from ..spec.parts import Site
from ..spec.program import Instruction, Slot, refs
from ..spec.spec import Spec, removed_branches
from ..stats.branches import mean_added
from ..stats.weights import Weights, position_weights
from ..tracing.branches import Scale, other_branch
from ..types import Batch, Mask, Params, Stats
from .fits import values_of
from .shifts import LEAST_SCALE, add_shift, output_scale


def with_means(params: Params, stats: Stats, mask: Mask, spec: Spec) -> Params:
    """Return params with a bias at each sum that loses branches, of the mean that they added.

    Raises:
        StatsError: the mean was not collected.
    """
    out = dict(params)
    left = without(spec, removed_branches(spec, mask))
    for target, mean in _shifts(stats, mask, spec):  # one bias may serve several branches
        out = shifted(out, {target: mean}, left)
    return out


def mean_losses(
    dense: tuple[Params, Spec],
    now: tuple[Params, Spec],
    batches: Iterable[Batch],
    values: Mapping[str, Slot],
    removed: Mask,
    *,
    weights: Weights = True,
    max_batches: int | None = None,
    progress: bool = False,
    **_: Any,
) -> dict[str, Tensor]:
    """Return bias → the mean of what a sum lacks in the network as it is now, [channels], float64.

    Args:
        dense, now: params and spec.
        batches, weights, max_batches, progress: as in `collect_stats`.
        values: sum → its bias.
        removed: mask of the dense network that led to the network as it is now.
    """
    totals, counts = dict[str, Tensor](), dict.fromkeys(values, 0.0)
    for batch in each(batches, max_batches=max_batches, progress=progress, text="statistics"):
        flat = inputs_of(batch, spec=dense[1], device=device_of(dense[0]))
        before, after = (values_of(p, s, flat, tuple(values)) for p, s in (dense, now))
        weighted = position_weights(dense[1], flat, batch, weights)
        for name, slot in values.items():
            x, y = (v[name].movedim(slot.dim, -1).flatten(0, -2).double() for v in (before, after))
            kept = keep(slot.axis, removed, dense[1].sizes).to(x.device)
            w = None if weighted is None else weighted.of(name, slot.dim, before[name].shape)
            w = x.new_ones(len(x)) if w is None else w.to(x).flatten()
            lost = w @ (x[:, kept] - y)
            totals[name] = totals[name] + lost if name in totals else lost
            counts[name] += float(w.sum())
    return {slot.tensor: totals[name] / max(counts[name], 1.0) for name, slot in values.items()}


def _table(instruction: str, spec: Spec) -> tuple[str, tuple[int, ...]] | None:
    """Return the parameter that a stream was last added to, such as positions, and the shape in which a shift is added to it."""
    end = _end(instruction, spec)
    if end is None or not is_sum(end):
        return None
    slot = next(s for s in spec.program.slots if s.instruction == instruction)
    tables = (spec.parameters - spec.unwritable).difference(spec.tied.values())
    for name in (n for n in end.reads() if n in tables):
        axes = spec.axes[name]
        readers = [i for i in spec.program.instructions if name in i.reads()]
        if len(axes) >= -slot.dim and axes[slot.dim] == slot.axis and len(readers) == 1:
            return name, (-1, *(1,) * (-slot.dim - 1))
    return None


def _end(instruction: str, spec: Spec) -> Instruction | None:
    """Return the last op that adds to a stream before some sums that only pass it on; None if the stream is read in between."""
    instructions = {i.name: i for i in spec.program.instructions}
    read = [*refs(spec.program.outputs), *(n for i in spec.program.instructions for n in i.reads())]
    while (i := instructions.get(instruction)) is not None and i.op == PASS_ON:
        value = i.args[0].name
        if read.count(value) != 1:
            return None
        instruction = value.removeprefix("%")
    return i


class Host(NamedTuple):
    """The contraction that was the last to add to a stream, and what scales its outputs before the sum."""

    site: Site
    scales: tuple[Scale, ...]


def _host(instruction: str, spec: Spec) -> Host | None:
    """Return the contraction with a bias whose output a stream has added last; None if the stream is read in between."""
    if (end := _end(instruction, spec)) is None:
        return None
    for site in spec.sites.values():
        branch = other_branch(site, spec) if site.bias is not None or site.norm is not None else None
        if branch is not None and branch.addition == end.name:
            dims = len(spec.program.axes.get(f"%{site.calls[0]}", ()))
            return Host(site, branch.scales) if branch.order == tuple(range(dims)) else None
    return None


def sums_without(mask: Mask, spec: Spec) -> dict[str, Slot]:
    """Return the sums that lose branches → their biases."""
    slots = {s.tensor: s for s in spec.program.slots}
    lost = [spec.branches[n] for n in removed_branches(spec, mask)]
    return {b.output: slots[b.shift] for b in lost if b.shift}


def outside(mask: Mask, spec: Spec) -> Mask:
    """Return the mask without groups that go as a whole with the removed branches."""
    removed = removed_branches(spec, mask)
    left = without(spec, removed).groups
    return {g: m for g, m in mask.items() if g in left or g in removed}


def shifted(params: Params, shifts: Mapping[str, Tensor], spec: Spec) -> Params:
    """Return params with shifts of streams added to them.

    A shift is added to the bias of the layer that was the last to add to the stream, if nothing else reads the stream between;
    then the original class has room for it. Else it becomes a bias of the sum.

    Args:
        params: of the spec.
        shifts: bias of a sum → its shift, [channels].
        spec: without the removed branches.
    """
    out, shifts = dict(params), dict(shifts)
    sums = {s.tensor: s.instruction for s in spec.program.slots}
    for target in list(shifts):
        if target in sums and target not in out and (table := _table(sums[target], spec)) is not None:
            name, shape = table
            out[name] = out[name] + shifts.pop(target).to(out[name]).reshape(shape)
            continue
        host = _host(sums[target], spec) if target in sums and target not in out else None
        factor = None if host is None else output_scale(host.scales, out, spec)
        if host is not None and factor is not None and bool((factor.abs() > LEAST_SCALE * factor.abs().amax()).all()):
            add_shift(out, host.site, shifts[target].to(factor) / factor, spec)
            del shifts[target]
    like = next(t for n, t in params.items() if n in spec.parameters and t.is_floating_point())
    for target, shift in shifts.items():
        current = out.get(target)
        total = shift if current is None else gather(current).double() + shift
        out[target] = spread(total.to(like.dtype).to(like.device), like)
    return out


def _shifts(stats: Stats, mask: Mask, spec: Spec) -> Iterator[tuple[str, Tensor]]:
    """Yield (bias, what is added to it) for each removed branch that is not part of another removed one."""
    removed = removed_branches(spec, mask)
    for name in (n for n in spec.branches if n in removed):
        terms = set(spec.branches[name].terms)
        inside = any(terms < set(spec.branches[o].terms) for o in removed)
        if spec.branches[name].shift and not inside:
            yield spec.branches[name].shift, mean_added(stats, name)
