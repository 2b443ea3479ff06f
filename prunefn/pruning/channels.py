"""Which channels go next. All is counted in the units of the dense network, so that shares and caps mean the same at every step."""

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
from .methods import criterion_of, scope_of, sources


class Channels(NamedTuple):
    """How far the pruning of channels has come."""

    dense: Spec
    spec: Spec
    """Of the model now."""
    there: Mask
    """Group → bool [dense units], the model has them; groups that are whole are left out."""
    live: Mask
    """Group → bool [dense units], the model has them, and they are not masked."""
    share: float = 0.0
    """Of the schedule, so far."""
    reached: bool = False
    """The target of MACs is met, or all went at once: no channel goes any more."""

    @property
    def masked(self) -> Mask:
        """Group → bool [units of the model], False where a unit is masked."""
        return {g: m[self.there[g]] if g in self.there else m for g, m in self.live.items()}

    @property
    def macs(self) -> float:
        """Share of the dense MACs that is left under the mask."""
        return cost(self.dense, self.live).macs / max(cost(self.dense).macs, 1)

    @property
    def gone(self) -> int:
        """How many channels are removed or masked."""
        return _gone(self.live)

    def counts(self, args: ChannelArgs) -> tuple[int, int]:
        """(channels that are left, channels) of the chosen groups."""
        groups = [n for n, g in self.dense.groups.items() if sources(args)(g)]
        left = sum(int(self.live[n].sum()) if n in self.live else self.dense.sizes[n] for n in groups)
        return left, sum(self.dense.sizes[n] for n in groups)


class Cut(NamedTuple):
    """Channels that went."""

    params: Params
    """Of `channels.spec`, what is masked is zero."""
    channels: Channels
    mask: Mask
    """Group → bool [units of the spec before], what was removed for real."""


def prune_channels(
    params: Params, channels: Channels, args: ChannelArgs, share: float, *, batches: Iterable[Batch] | None, seed: int
) -> Cut:
    """Bring the share of pruned channels to that of the schedule.

    Scores are of the network without its masked channels, as if these were removed already. What went before goes first.
    """
    spec, masked = channels.spec, channels.masked
    small, small_spec = apply(params, masked, spec=spec), shrink(spec, masked)
    stats, scores = _scores(small, small_spec, args, batches, seed)
    live, reached = _choose(scores, channels, args, share)
    done = reached or args.at_once
    if args.pruning_method == "VBP":
        newly = {g: m[_of(channels.live, g, m)] for g, m in live.items()}
        small = compensate(small, stats, newly, spec=small_spec, method=compensation.mean())
        params = expand(small, masked, spec=spec)
    if args.prune_at_target and not done:
        after = channels._replace(live=live, share=share)
        return Cut(zero(params, after.masked, spec=spec), after, {})
    cut = {g: m[_of(channels.there, g, m)] for g, m in live.items()}
    after = Channels(channels.dense, shrink(spec, cut), live, live, share, done)
    return Cut(apply(params, cut, spec=spec), after, cut)


def _scores(
    params: Params, spec: Spec, args: ChannelArgs, batches: Iterable[Batch] | None, seed: int
) -> tuple[Stats, Scores]:
    criterion, where = criterion_of(args, seed), sources(args)
    if criterion.data and batches is None:
        raise BatchError(f"pruning_method {args.pruning_method!r} needs batches: prune(model, epoch, batches=…)")
    stats = collect_stats(params, batches if criterion.data else None, spec=spec, criterion=criterion, where=where)
    scores = score(stats, criterion=criterion)
    if missing := [n for n, g in spec.groups.items() if where(g) and n not in scores]:
        raise PruneError(
            f"pruning_method {args.pruning_method!r} has no score for group {missing[0]!r}; leave its layers out of "
            "channel_sparsity_args.layers, or take another method"
        )
    return stats, only(scores, where, spec=spec)


def _choose(scores: Scores, channels: Channels, args: ChannelArgs, share: float) -> tuple[Mask, bool]:
    """(what stays live in the dense network, whether the target of MACs is met)"""
    dense = channels.dense
    ranked = _in_dense(scores, channels)
    rules = {"spec": dense, "scope": scope_of(args), "round_to": args.block_size, "max_ratio": args.max_pruning_rate}
    target = budget.macs(args.mac_target) if args.mac_target else None
    met = False
    if args.prune_at_target and target is not None:
        live = select(ranked, target, **rules)
        units = sum(map(len, live.values()))
        asked = int(share * units + 1e-9)
        if not (met := _gone(live) <= asked):
            live = select(ranked, _units_left(1 - asked / units, list(ranked)), **rules)
    else:
        live = select(ranked, share, **rules)
        most = args.mac_target * cost(dense).macs
        if target is not None and (met := cost(dense, live).macs <= most):
            live = select(ranked, target, **rules)
    return {g: m & _of(channels.live, g, m) for g, m in live.items()}, met


def _in_dense(scores: Scores, channels: Channels) -> Scores:
    """Scores of all units of the dense network, those that went below all others."""
    low = min(float(s.min()) for s in scores.values())
    low -= max(1.0, abs(low))
    out = {}
    for g, s in scores.items():
        every = s.new_full((channels.dense.sizes[g],), low)
        out[g] = s.clone() if g not in channels.live else every.masked_scatter(channels.live[g].to(s.device), s)
    return out


def _units_left(keep: float, groups: list[str]) -> Budget:
    """At most this share of the units of some groups."""

    def units(sizes: Mapping[str, int], _: Spec) -> float:
        return float(sum(sizes[g] for g in groups))

    return budget.custom(keep, units, name="units", falls=True)


def _of(mask: Mask, group: str, like: Tensor) -> Tensor:
    return mask[group] if group in mask else torch.ones_like(like)


def _gone(mask: Mask) -> int:
    return sum(int((~m).sum()) for m in mask.values())
