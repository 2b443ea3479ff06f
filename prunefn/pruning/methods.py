"""What a config names, as values: which groups, how they are scored, ranked and regularised."""

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


def sources(args: ChannelArgs) -> Choice:
    """The groups that one of the layers puts out: an output dim of a weight or bias, or the channels of a norm, in it."""
    layers = frozenset(args.layers)

    def chosen(group: Group) -> bool:
        return any(m.role != "in" and m.tensor.rpartition(".")[0] in layers for m in group.members)

    return Choice(chosen, f"layers({', '.join(map(repr, args.layers))})")


def check_layers(args: ChannelArgs, spec: Spec) -> None:
    """Every layer has channels that may be pruned.

    Raises:
        PruneError: names the layer, and says what there is or why not.
    """
    modules = dict.fromkeys(t.rpartition(".")[0] for t in spec.axes)
    where = sources(args)
    for layer in args.layers:
        if layer not in modules:
            raise PruneError(
                f"channel_sparsity_args.layers: the model has no layer {layer!r} with parameters{nearest(layer, modules)}"
            )
        if not any(sources(args.model_copy(update={"layers": (layer,)}))(g) for g in spec.groups.values()):
            raise PruneError(
                f"channel_sparsity_args.layers: the outputs of {layer!r} cannot be pruned; leave it out\n{spec.explain(layer)}"
            )
    if args.pruning_method == "BNScalePruner":
        scored = criteria.bn_scale().score(collect_stats(_ones(spec), None, spec=spec))
        if bare := [n for n, g in spec.groups.items() if where(g) and n not in scored]:
            raise PruneError(
                f"channel_sparsity_args.pruning_method 'BNScalePruner' has no norm with a scale to score group {bare[0]!r} "
                "by; leave its layers out, or take another method"
            )


def check_blocks(args: SliceArgs, channel: ChannelArgs | None, spec: Spec, short_blocks: bool) -> None:
    """The slices' blocks divide the filters now and after channels went.

    Raises:
        PruneError: names the layer.
    """
    for s in sliced(spec, block=args.block_size):
        n, out = spec.shape(s.name)[0], spec.axes[s.name][0]
        if n % s.block and not short_blocks:
            raise PruneError(
                f"slice_sparsity_args.block_size: {s.name!r} has {n} filters, no multiple of {s.block}; use a block size that "
                "divides them, or Pruning.of(…, short_blocks=True)"
            )
        shrinks = channel is not None and any(
            g in spec.groups and sources(channel)(spec.groups[g]) for g in leaves(out)
        )
        if channel is not None and shrinks and channel.block_size % s.block and not short_blocks:
            raise PruneError(
                f"channel_sparsity_args.block_size is {channel.block_size}: it would leave {s.name!r} with numbers of filters that "
                f"are no multiples of {s.block}, the block of its slices; use a multiple of that, or Pruning.of(…, short_blocks=True)"
            )


def criterion_of(args: ChannelArgs, seed: int) -> Criterion:
    """How units are scored.

    `GroupNormPruner`: Σw² over all coupled tensors, over the mean of the group. `MACAwareImportance`: the same, weighed against
    the group's MACs as `MAC_params` says.
    """
    if args.pruning_method not in ("GroupNormPruner", "MACAwareImportance"):
        return by_name.criterion_of(BY_METHOD[args.pruning_method].format(seed=seed))
    norms, given = _norms_of_units(), args.MAC_params
    if args.pruning_method == "GroupNormPruner" or not given.use_macs:
        return norms
    return (
        criteria.mac_aware(norms, given.alpha) if given.type == "Sum" else criteria.mac_aware_product(norms, given.beta)
    )


def _norms_of_units() -> Criterion:
    """Score by Σw² over all coupled tensors, over the mean of the group."""
    return by_name.criterion_of("normalized(magnitude(2.0, reduction=reduction.sum), normalizer.mean)")


def scope_of(args: ChannelArgs) -> Scope:
    """What is ranked against what."""
    if not args.global_pruning:
        return scopes.local()
    return scopes.isomorphic() if args.isomorphic else scopes.global_()


def channel_loss(args: ChannelArgs, params: Params, spec: Spec, masked: Mask) -> Tensor:
    """The loss of `Pruning.channel_regularize`, without the weights that a schedule would give it.

    Args:
        args: of the config.
        params: of the spec, with a gradient.
        spec: of the params.
        masked: group → bool [units], False where channels are masked; these have no part in the scores.
    """
    where, given = sources(args), args.regularize
    if args.pruning_method == "BNScalePruner":
        return given.reg * bn_l1(params, spec=spec, where=where) if given.reg else nothing(params)
    factors = dict.fromkeys(spec.groups, given.reg * given.gamma)
    if args.pruning_method == "MACAwareImportance":
        macs = {n: spec.macs_of(n) for n, g in spec.groups.items() if where(g)}
        most = max(1, *macs.values())
        factors |= {n: factors[n] + given.mac_reg * m / most for n, m in macs.items()}
    if not any(factors.values()):
        return nothing(params)
    scores = _norms({n: t.detach() for n, t in params.items()}, spec, masked)
    return growing(params, scores, spec=spec, alpha=given.alpha_shrinkage_reg, where=where, weights=factors)


def _norms(params: Params, spec: Spec, masked: Mask) -> Scores:
    """Σw² of each unit; masked ones count as the least of the others."""
    squares = criteria.magnitude(2.0, bias=True, reduction=reduction.sum)
    scores = score(collect_stats(params, None, spec=spec), criterion=squares)
    live = {
        g: masked[g].to(s.device) if g in masked else torch.ones_like(s, dtype=torch.bool) for g, s in scores.items()
    }
    return {g: s.where(live[g], s[live[g]].min()) for g, s in scores.items()}


def nothing(params: Params) -> Tensor:
    """A loss of zero, where the params are."""
    return next(iter(params.values())).new_zeros((), dtype=torch.get_default_dtype())


def _ones(spec: Spec) -> Params:
    slots = spec.slots
    return {t: torch.ones(spec.shape(t)) for t in spec.axes if t not in slots}
