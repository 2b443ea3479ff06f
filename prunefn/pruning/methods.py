"""Groups, criteria, scopes and losses that a config names, as values."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import criteria
from ..by_name import tables as by_name
from ..criteria import reduction
from ..criteria.scoring import score
from ..errors import PruneError, nearest
from ..selection import scope as scopes
from ..sparse.slicing import sliced
from ..spec.axis import leaves
from ..spec.parts import Group
from ..spec.spec import Spec
from ..stats import collect_stats
from ..train.losses import bn_l1, growing
from ..types import Criterion, Mask, Params, Scope, Scores
from ..where import Choice
from .config import ChannelArgs, SliceArgs

BY_METHOD = {
    "BNScalePruner": "bn_scale",
    "Magnitude": "magnitude",
    "LAMP": "lamp",
    "FPGM": "fpgm",
    "Random": "random({seed})",
    "VBP": "variance",
}
"""`pruning_method` → the criterion's name."""
NORMS = "normalized(magnitude(2.0, reduction=reduction.sum), normalizer.mean)"
"""Σw² over all coupled tensors, divided by the mean of the group."""


def match_layers(args: ChannelArgs) -> Choice:
    """Return the predicate of the groups that one of the layers outputs.

    A layer outputs a group by an output dim of its weight or bias, or as a norm over the group's channels."""
    layers = frozenset(args.layers)

    def chosen(group: Group) -> bool:
        return any(m.role != "in" and m.tensor.rpartition(".")[0] in layers for m in group.members)

    return Choice(chosen, f"layers({', '.join(map(repr, args.layers))})")


def check_layers(args: ChannelArgs, spec: Spec) -> None:
    """Check that every layer has channels that may be pruned.

    Raises:
        PruneError: names the first layer that does not exist or has none, and why.
    """
    modules = dict.fromkeys(t.rpartition(".")[0] for t in spec.axes)
    where = match_layers(args)
    for layer in args.layers:
        if layer not in modules:
            raise PruneError(
                f"channel_sparsity_args.layers: the model has no layer {layer!r} with parameters{nearest(layer, modules)}"
            )
        if not any(match_layers(args.model_copy(update={"layers": (layer,)}))(g) for g in spec.groups.values()):
            raise PruneError(
                f"channel_sparsity_args.layers: the outputs of {layer!r} cannot be pruned; leave it out\n{spec.explain(layer)}"
            )
    if args.pruning_method == "BNScalePruner":
        scored = criteria.bn_scale().score(collect_stats(_make_ones(spec), None, spec=spec))
        if bare := [n for n, g in spec.groups.items() if where(g) and n not in scored]:
            raise PruneError(
                f"channel_sparsity_args.pruning_method 'BNScalePruner' has no norm with a scale to score group {bare[0]!r} "
                "by; leave its layers out, or use another method"
            )


def check_blocks(args: SliceArgs, channel: ChannelArgs | None, spec: Spec, short_blocks: bool) -> None:
    """Check that the blocks of slices divide the filters, before and after channels are pruned.

    Raises:
        PruneError: names the first layer whose filters they do not divide.
    """
    for s in sliced(spec, block=args.block_size):
        n, out = spec.shape(s.name)[0], spec.axes[s.name][0]
        if n % s.block and not short_blocks:
            raise PruneError(
                f"slice_sparsity_args.block_size: {s.name!r} has {n} filters, no multiple of {s.block}; use a block size that "
                "divides them, or Pruning.of(…, short_blocks=True)"
            )
        shrinks = channel is not None and any(
            g in spec.groups and match_layers(channel)(spec.groups[g]) for g in leaves(out)
        )
        if channel is not None and shrinks and channel.block_size % s.block and not short_blocks:
            raise PruneError(
                f"channel_sparsity_args.block_size is {channel.block_size}: it would leave {s.name!r} with numbers of filters that "
                f"are no multiples of {s.block}, the block of its slices; use a multiple of that, or Pruning.of(…, short_blocks=True)"
            )


def make_criterion(args: ChannelArgs, seed: int) -> Criterion:
    """Return the criterion of a pruning method.

    `GroupNormPruner` scores a unit by Σw² over all coupled tensors, divided by the mean of the group. `MACAwareImportance` weighs
    that against the group's MACs by `MAC_params`.
    """
    if args.pruning_method not in ("GroupNormPruner", "MACAwareImportance"):
        return by_name.criterion_of(BY_METHOD[args.pruning_method].format(seed=seed))
    norms, macs = by_name.criterion_of(NORMS), args.MAC_params
    if args.pruning_method == "GroupNormPruner" or not macs.use_macs:
        return norms
    return criteria.mac_aware(norms, macs.alpha) if macs.type == "Sum" else criteria.mac_aware_product(norms, macs.beta)


def make_scope(args: ChannelArgs) -> Scope:
    """Return the scope within which units are ranked."""
    if not args.global_pruning:
        return scopes.local()
    return scopes.isomorphic() if args.isomorphic else scopes.global_()


def channel_loss(args: ChannelArgs, params: Params, spec: Spec, masked: Mask) -> Tensor:
    """Return the loss of `Pruning.channel_regularize`, a scalar.

    Args:
        args: of the config.
        params: of the spec, tracked by autograd.
        spec: of the params.
        masked: group → bool [units], False = masked; the scores ignore masked channels.
    """
    where, strength = match_layers(args), args.regularize
    if args.pruning_method == "BNScalePruner":
        return strength.reg * bn_l1(params, spec=spec, where=where) if strength.reg else zero_loss(params)
    factors = dict.fromkeys(spec.groups, strength.reg * strength.gamma)
    if args.pruning_method == "MACAwareImportance":
        macs = {n: spec.macs_of(n) for n, g in spec.groups.items() if where(g)}
        most = max(1, *macs.values())
        factors |= {n: factors[n] + strength.mac_reg * m / most for n, m in macs.items()}
    if not any(factors.values()):
        return zero_loss(params)
    scores = _measure_norms({n: t.detach() for n, t in params.items()}, spec, masked)
    return growing(params, scores, spec=spec, alpha=strength.alpha_shrinkage_reg, where=where, weights=factors)


def _measure_norms(params: Params, spec: Spec, masked: Mask) -> Scores:
    """Return Σw² of each unit; masked units get the smallest value of the others."""
    squares = criteria.magnitude(2.0, bias=True, reduction=reduction.sum)
    scores = score(collect_stats(params, None, spec=spec), criterion=squares)
    active = {
        g: masked[g].to(s.device) if g in masked else torch.ones_like(s, dtype=torch.bool) for g, s in scores.items()
    }
    return {g: s.where(active[g], s[active[g]].min()) for g, s in scores.items()}


def zero_loss(params: Params) -> Tensor:
    """Return a scalar zero on the device of the params."""
    return next(iter(params.values())).new_zeros((), dtype=torch.get_default_dtype())


def _make_ones(spec: Spec) -> Params:
    """Return params of ones."""
    slots = spec.slots
    return {t: torch.ones(spec.shape(t)) for t in spec.axes if t not in slots}
