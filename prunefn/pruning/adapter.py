"""`Pruning`: config, spec and state as one immutable value."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..parameters.transforms import apply, params
from ..sparse.slicing import apply_sparse, slices
from ..spec.spec import Spec, take
from ..tracing.api import trace
from ..train import optimizer as optimizers
from ..train.losses import slice_log_norm
from ..types import Batch, Mask, Params
from .channels import Channels, prune_channels
from .config import ChannelArgs, Config, SliceArgs, load
from .methods import channel_loss, check_blocks, check_layers, nothing
from .module import fitting, live_params, rebuilt, skeleton
from .state import restored, stored


class Step(NamedTuple):
    """What `Pruning.prune` returns."""

    model: nn.Module
    """To go on with: the model that was given, if nothing changed, else a new one of its class."""
    pruning: Pruning
    masks: dict[str, Tensor]
    """Weight masks, parameter → bool of its shape: what is False must stay zero; see `hold_zero`."""
    new_optimizer: bool
    """Whether the model is new, so that an optimizer over its parameters is needed."""
    report: str
    """A line for the log."""
    cut: Mask
    """Group → bool [units of `before`]: what was removed for real."""
    before: Spec
    """Of the model that was given."""
    given: nn.Module
    """The model that was given."""

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of an optimizer over the model that was given, for one over the new model with the same groups and order.

        Raises:
            ParamsError: as `train.optimizer.slice_optimizer`.
        """
        return optimizers.slice_optimizer(optimizer, self.cut, spec=self.before, model=self.given)

    def hold_zero(self, optimizer: torch.optim.Optimizer) -> None:
        """Set what is masked to zero again, in place, in the model and in the optimizer; call it after each of its steps."""
        optimizers.hold_zero(dict(self.model.named_parameters()), optimizer, self.masks)


class Pruning(NamedTuple):
    """Pruning by a config; made by `Pruning.of`, never changed: each step returns the next."""

    config: Config
    bones: nn.Module
    """The original class at its dense sizes: a copy without weights (they are on the meta device)."""
    channels: Channels
    slices: dict[str, Tensor]
    """Weight masks of the slices, in the shapes of the model."""
    rate: float
    """Of the slices, so far."""
    seed: int
    short_blocks: bool

    @classmethod
    def of(
        cls,
        config: Config | str | os.PathLike[str] | Mapping[str, Any],
        model: nn.Module,
        args: tuple[Any, ...] | None = None,
        *,
        state: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        short_blocks: bool = False,
    ) -> Pruning:
        """Trace a dense model once, and check the config against it.

        Args:
            config: of `prunefn.pruning.config.load`, or what that reads.
            model: dense, in any mode, on any device; it is not kept. Attributes that are changed later are not followed.
            args: example inputs, as for `pf.trace`; default: normal numbers in the shapes of `input_shape`. Several shapes are as
                many arguments, or one tuple with `"container": "tuple"`.
            state: of `state_dict`, to go on from; see `at_init`.
            seed: of the default inputs and of `Random` scores.
            short_blocks: where the slices' block_size does not divide the filters, a shorter last block is left; else an error.

        Raises:
            PruneError: the config is invalid, or names layers that are not there or cannot be pruned, or a block_size that does
                not divide; or there are neither args nor an `input_shape`; or the state is of something else.
            TraceError: the model cannot be traced.
        """
        chosen = config if isinstance(config, Config) else load(config)
        dense = trace(model, _example(chosen, model, seed) if args is None else args)
        new = cls(chosen, skeleton(model), Channels(dense, dense, {}, {}), {}, 0.0, seed, short_blocks)
        if (channel := new._channel_args) is not None:
            check_layers(channel, dense)
        if (slice_args := new._slice_args) is not None:
            check_blocks(slice_args, channel, dense, short_blocks)
        return new if state is None else new._replace(**restored(state, dense))

    @property
    def spec(self) -> Spec:
        """Of the model that `prune` expects."""
        return self.channels.spec

    @property
    def masks(self) -> dict[str, Tensor]:
        """Weight masks of channels and slices together."""
        out = optimizers.weight_masks(self.channels.masked, spec=self.spec)
        for name, kept in self.slices.items():
            if not bool(kept.all()):
                out[name] = out[name].to(kept.device) & kept if name in out else kept
        return out

    @property
    def _channel_args(self) -> ChannelArgs | None:
        args = self.config.channel_sparsity_args
        return args if args is not None and args.is_prune else None

    @property
    def _slice_args(self) -> SliceArgs | None:
        """None under `infer`, too, where only the architecture counts."""
        args, channel = self.config.slice_sparsity_args, self._channel_args
        return args if args is not None and args.on and not (channel is not None and channel.infer) else None

    def channel_regularize(self, model: nn.Module) -> Tensor:
        """The loss that makes channels small, to be added to the task's: a scalar.

        `BNScalePruner`: reg · Σ|γ| over the scales of the chosen groups (`bn_l1`). All other methods: `growing`, whose gradient is
        f · 2^{α (g_max − g) / (g_max − g_min)} · w on all coupled weights of a unit of norm g, with α = alpha_shrinkage_reg and
        f = reg · gamma; under `MACAwareImportance`, f = reg · gamma + mac_reg · (MACs of the group) / (MACs of the dearest).
        Masked channels have no part in it. Zero once no channel goes any more, and under `infer`.

        Raises:
            ParamsError: the model does not have the sizes that the pruning has come to.
        """
        args, now = self._channel_args, live_params(model, self.spec)
        if args is None or args.infer or self.channels.reached or self.channels.share >= args.share(args.end_epoch):
            return nothing(now)
        return channel_loss(args, now, self.spec, self.channels.masked)

    def slice_regularize(self, model: nn.Module) -> Tensor:
        """The loss that makes slices small, to be added to the task's: reg · Σ log ‖slice‖₂ (`slice_log_norm`), a scalar.

        Zero once the whole prune_rate is masked, and in pruning_mode "Unprune".

        Raises:
            ParamsError: as for `channel_regularize`.
        """
        args, now = self._slice_args, live_params(model, self.spec)
        if args is None or not args.reg or self.rate >= args.prune_rate:
            return nothing(now)
        return args.reg * slice_log_norm(now, spec=self.spec, mask=self.channels.masked, **self._cutting(args))

    def prune(self, model: nn.Module, epoch: int, *, batches: Iterable[Batch] | None = None) -> Step:
        """Prune what the schedule says for this epoch: channels, then slices of what is left. Call it once an epoch, or less often.

        Without prune_at_target, channels are removed at once, up to global_prune_rate, but no further than mac_target. With it,
        they are masked, at a rate that would end at 1, until the MACs left are mac_target or less, and then all are removed. Where
        channels went, slices are chosen anew, since their blocks are others.

        Args:
            model: trained or not since the last step, in any mode; it is not changed.
            epoch: counted from 0.
            batches: for pruning_method `VBP`, as for `pf.collect_stats`.

        Raises:
            ParamsError: the model does not have the sizes that the pruning has come to.
            BudgetError: mac_target cannot be met, or the block size and max_pruning_rate do not let so many channels go.
            BatchError: the method needs batches.
        """
        args = self._channel_args
        share = self.channels.share if args is None or self.channels.reached else args.share(epoch)
        rate = 0.0 if self._slice_args is None else max(self.rate, self._slice_args.rate(epoch))
        return self._to(model, fitting(model, self.spec), f"epoch {epoch}", share, rate, batches)

    def at_init(self, model: nn.Module, *, batches: Iterable[Batch] | None = None) -> Step:
        """Before training: the model at the sizes where this pruning stands, so that a checkpoint of that moment fits.

        With the state of a checkpoint, these are the sizes of then. Otherwise, with prune_channels_at_init or infer, all channels
        go now, by the weights that the model has; with neither, nothing does.

        Args:
            model: dense, or at these sizes already; it is not changed.
            batches: as for `prune`.

        Raises:
            ParamsError: the model has other sizes. BudgetError, BatchError: as for `prune`.
        """
        args, dense = self._channel_args, self.channels.dense
        now = params(model)
        cut = self.channels.there
        if cut and all(n in dense.axes and tuple(t.shape) == dense.shape(n) for n, t in now.items()):
            small = apply(now, cut, spec=dense)
            small = apply_sparse(small, {n: m for n, m in self.masks.items() if n in small})
            new = rebuilt(small, self.spec, self.bones, model)
            return Step(new, self, self.masks, True, f"at init: {self._stands()}", cut, dense, model)
        at_once = args is not None and args.at_once and not self.channels.reached
        share = args.share(0) if args is not None and at_once else self.channels.share
        return self._to(model, fitting(model, self.spec), "at init", share, self.rate, batches)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside the weights: a flat dict of tensors, for `torch.save` or safetensors."""
        return stored(self.channels, self.slices, self.rate)

    # ---- one step

    def _to(
        self,
        model: nn.Module,
        now: Params,
        when: str,
        share: float,
        rate: float,
        batches: Iterable[Batch] | None,
    ) -> Step:
        """Bring channels and slices to these shares."""
        args, new, cut, went, did = self._channel_args, self, Mask(), False, list[str]()
        masks = {} if self._slice_args is None else self.slices
        if args is not None and share > self.channels.share:
            now, channels, cut = prune_channels(
                apply_sparse(now, masks), self.channels, args, share, batches=batches, seed=self.seed
            )
            masks = {n: take(m, self.spec.axes[n], cut, self.spec.sizes) for n, m in masks.items()}
            new = new._replace(channels=channels)
            if went := channels.gone > self.channels.gone:
                did.append(f"channels {'removed' if cut else 'masked'}")
        if self._slice_args is not None and rate and (rate > self.rate or went):
            spec, masked = new.spec, new.channels.masked
            now = apply_sparse(now, masks)
            masks = slices(now, rate, spec=spec, mask=masked, **self._cutting(self._slice_args))
            did.append("slices masked")
        new = new._replace(slices=masks, rate=rate)
        report = f"{when}: {', '.join(did) or 'nothing to prune'}; {new._stands()}"
        if not did:
            return Step(model, new, new.masks, False, report, {}, self.spec, model)
        module = rebuilt(apply_sparse(now, masks), new.spec, self.bones, model)
        return Step(module, new, new.masks, True, report, cut, self.spec, model)

    def _cutting(self, args: SliceArgs) -> dict[str, Any]:
        return {
            "block": args.block_size,
            "protect_first": args.disable_first_index,
            "short_blocks": self.short_blocks,
        }

    def _stands(self) -> str:
        """What is left."""
        args, macs = self._channel_args, f"{self.channels.macs:.1%}".replace("%", " %")
        left = "" if args is None else "{} of {} channels and ".format(*self.channels.counts(args))
        met = args is not None and args.mac_target and self.channels.macs <= args.mac_target
        target = "; the target of MACs is met" if met else ""
        zeros = f"; {self.rate:.1%} of the eligible slices are zero".replace("%", " %") if self.rate else ""
        return f"{left}{macs} of the MACs are left{target}{zeros}"


def _example(config: Config, model: nn.Module, seed: int) -> tuple[Any, ...]:
    """Example inputs as the config says."""
    args = config.channel_sparsity_args
    if args is None or args.input_shape is None:
        raise PruneError(
            "there are no example inputs: give Pruning.of(config, model, args), or channel_sparsity_args.input_shape"
        )
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    generator = torch.Generator().manual_seed(seed)
    given = [s if isinstance(s, tuple) else None for s in args.input_shape]
    shapes: list[Any] = [args.input_shape] if None in given else given
    inputs = tuple(torch.randn(s, generator=generator).to(dtype) for s in shapes)
    return (inputs,) if args.container == "tuple" else inputs
