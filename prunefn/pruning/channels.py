"""Choice of the channels to prune next. Ratios and caps refer to the units of the dense network at every step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .. import compensation
from ..compensation.repair import compensate
from ..costs.analytic import cost
from ..criteria.scoring import score
from ..errors import BatchError, PruneError
from ..parameters.transforms import apply, expand, shrink, zero
from ..selection import budget
from ..selection.choose import select
from ..spec.spec import Spec
from ..stats import collect_stats
from ..types import Batch, Budget, Mask, Params, Scores, Stats
from ..where import only
from .config import ChannelArgs
from .methods import make_criterion, make_scope, match_layers


class Channels(NamedTuple):
    """Channels that are kept, masked and removed so far."""

    dense: Spec
    spec: Spec
    """Of the current model."""
    kept: Mask
    """Group → bool [dense units], True = the model has the unit; whole groups are absent."""
    active: Mask
    """Group → bool [dense units], True = the model has the unit, and it is not masked."""
    ratio: float = 0.0
    """Of the schedule, so far."""
    finished: bool = False
    """Whether no more channels are pruned: the target of MACs is met, or all were pruned at once."""

    @property
    def masked(self) -> Mask:
        """Group → bool [units of the model], False = masked."""
        return {g: m[self.kept[g]] if g in self.kept else m for g, m in self.active.items()}

    @property
    def macs(self) -> float:
        """Fraction of the dense MACs that the active units cost."""
        return cost(self.dense, self.active).macs / max(cost(self.dense).macs, 1)

    @property
    def pruned(self) -> int:
        """Number of channels that are removed or masked."""
        return _count_false(self.active)

    def counts(self, args: ChannelArgs) -> tuple[int, int]:
        """Return the numbers of active and of all channels of the chosen groups."""
        groups = [n for n, g in self.dense.groups.items() if match_layers(args)(g)]
        active = sum(int(self.active[n].sum()) if n in self.active else self.dense.sizes[n] for n in groups)
        return active, sum(self.dense.sizes[n] for n in groups)


class Cut(NamedTuple):
    """Result of a step on channels."""

    params: Params
    """Of `channels.spec`; masked channels are zero."""
    channels: Channels
    mask: Mask
    """Group → bool [units of the spec before], False = removed from the tensors."""


def prune_channels(
    params: Params, channels: Channels, args: ChannelArgs, ratio: float, *, batches: Iterable[Batch] | None, seed: int
) -> Cut:
    """Prune channels until the schedule's ratio of them is pruned.

    Scores are those of the network without its masked channels. Channels that were pruned before stay pruned.

    Raises:
        BatchError: the method needs batches.
        BudgetError: the target of MACs or the ratio cannot be met.
        PruneError: the method has no score for a group.
    """
    spec, masked = channels.spec, channels.masked
    small, small_spec = apply(params, masked, spec=spec), shrink(spec, masked)
    stats, scores = _score(small, small_spec, args, batches, seed)
    active, met = _choose(scores, channels, args, ratio)
    finished = met or args.at_once
    if args.pruning_method == "VBP":
        new = {g: m[_mask_of(channels.active, g, m)] for g, m in active.items()}
        small = compensate(small, stats, new, spec=small_spec, method=compensation.mean())
        params = expand(small, masked, spec=spec)
    if args.prune_at_target and not finished:
        after = channels._replace(active=active, ratio=ratio)
        return Cut(zero(params, after.masked, spec=spec), after, {})
    cut = {g: m[_mask_of(channels.kept, g, m)] for g, m in active.items()}
    after = Channels(channels.dense, shrink(spec, cut), active, active, ratio, finished)
    return Cut(apply(params, cut, spec=spec), after, cut)


def _score(
    params: Params, spec: Spec, args: ChannelArgs, batches: Iterable[Batch] | None, seed: int
) -> tuple[Stats, Scores]:
    """Return statistics, and scores of all chosen groups."""
    criterion, where = make_criterion(args, seed), match_layers(args)
    if criterion.data and batches is None:
        raise BatchError(f"pruning_method {args.pruning_method!r} needs batches: prune(model, epoch, batches=…)")
    stats = collect_stats(params, batches if criterion.data else None, spec=spec, criterion=criterion, where=where)
    scores = score(stats, criterion=criterion)
    if missing := [n for n, g in spec.groups.items() if where(g) and n not in scores]:
        raise PruneError(
            f"pruning_method {args.pruning_method!r} has no score for group {missing[0]!r}; leave its layers out of "
            "channel_sparsity_args.layers, or use another method"
        )
    return stats, only(scores, where, spec=spec)


def _choose(scores: Scores, channels: Channels, args: ChannelArgs, ratio: float) -> tuple[Mask, bool]:
    """Return the active units of the dense network, and whether the target of MACs is met."""
    dense = channels.dense
    ranked = _expand_scores(scores, channels)
    rules = {"spec": dense, "scope": make_scope(args), "round_to": args.block_size, "max_ratio": args.max_pruning_rate}
    target = budget.macs(args.mac_target) if args.mac_target else None
    met = False
    if args.prune_at_target and target is not None:
        active = select(ranked, target, **rules)
        units = sum(map(len, active.values()))
        count = int(ratio * units + 1e-9)  # 0.29 · 100 is 28.999…, and means 29
        if not (met := _count_false(active) <= count):
            active = select(ranked, _units_budget(1 - count / units, list(ranked)), **rules)
    else:
        active = select(ranked, ratio, **rules)
        most = args.mac_target * cost(dense).macs
        if target is not None and (met := cost(dense, active).macs <= most):
            active = select(ranked, target, **rules)
    return {g: m & _mask_of(channels.active, g, m) for g, m in active.items()}, met


def _expand_scores(scores: Scores, channels: Channels) -> Scores:
    """Return scores of all units of the dense network; those of pruned units are below all others."""
    low = min(float(s.min()) for s in scores.values())
    low -= max(1.0, abs(low))
    out = {}
    for g, s in scores.items():
        every = s.new_full((channels.dense.sizes[g],), low)
        out[g] = s.clone() if g not in channels.active else every.masked_scatter(channels.active[g].to(s.device), s)
    return out


def _units_budget(keep: float, groups: list[str]) -> Budget:
    """Return a budget that keeps at most this fraction of the units of some groups."""

    def units(sizes: Mapping[str, int], _: Spec) -> float:
        return float(sum(sizes[g] for g in groups))

    return budget.custom(keep, units, name="units", falls=True)


def _mask_of(mask: Mask, group: str, like: Tensor) -> Tensor:
    """Return the mask of a group, all True if the group is absent."""
    return mask[group] if group in mask else torch.ones_like(like)


def _count_false(mask: Mask) -> int:
    """Return the number of units that a mask does not keep."""
    return sum(int((~m).sum()) for m in mask.values())
