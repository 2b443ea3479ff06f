"""`Pruning`: config, spec and state of a pruning as one immutable value."""

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
from .methods import channel_loss, check_blocks, check_layers, zero_loss
from .module import read_params, read_trainable, rebuild, strip_weights
from .state import restore, store


class Step(NamedTuple):
    """Result of `Pruning.prune`."""

    model: nn.Module
    """The original model if nothing changed, else a new one of its class."""
    pruning: Pruning
    """For the next call."""
    masks: dict[str, Tensor]
    """Parameter → bool of its shape, False = must stay zero; see `hold_zero`."""
    new_optimizer: bool
    """Whether the model is new, and needs an optimizer over its own parameters."""
    report: str
    """A line for the log."""
    cut: Mask
    """Group → bool [units of `before`], False = removed from the tensors."""
    before: Spec
    """Of the original model."""
    original: nn.Module
    """The model before the step."""

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer over the original model, for one over the new model with equal groups and order.

        Raises:
            ParamsError: as `train.optimizer.slice_optimizer`.
        """
        return optimizers.slice_optimizer(optimizer, self.cut, spec=self.before, model=self.original)

    def hold_zero(self, optimizer: torch.optim.Optimizer) -> None:
        """Set masked weights and their optimizer state to zero, in place; call it after every step of the optimizer."""
        optimizers.hold_zero(dict(self.model.named_parameters()), optimizer, self.masks)


class Pruning(NamedTuple):
    """Pruning by a config; made by `Pruning.of`. It is immutable: each step returns the next value."""

    config: Config
    skeleton: nn.Module
    """A copy of the dense model whose weights are on the meta device."""
    channels: Channels
    slices: dict[str, Tensor]
    """Parameter → bool of the model's shape, False = in a pruned slice."""
    slice_ratio: float
    """Ratio of pruned slices so far."""
    seed: int
    short_blocks: bool
    """As for `Pruning.of`."""

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
            config: a value of `prunefn.pruning.config.load`, or what that reads.
            model: dense, in any mode, on any device. A copy without weights is kept; later changes of attributes have no effect.
            args: example inputs, as for `pf.trace`; None: normal numbers in the shapes of `input_shape`. Several shapes are several
                arguments, or one tuple with `"container": "tuple"`.
            state: of `state_dict`, to resume from; see `at_init`.
            seed: of the default inputs and of `Random` scores.
            short_blocks: whether the last block of a layer may be shorter, where block_size does not divide its filters; otherwise
                that is an error.

        Raises:
            PruneError: the config is invalid, or names layers that do not exist or cannot be pruned, or a block_size that does
                not divide the filters; there are neither args nor an `input_shape`; or the state belongs to another model.
            TraceError: the model cannot be traced.
        """
        checked = config if isinstance(config, Config) else load(config)
        dense = trace(model, _make_example(checked, model, seed) if args is None else args)
        new = cls(checked, strip_weights(model), Channels(dense, dense, {}, {}), {}, 0.0, seed, short_blocks)
        if (channel := new._channel_args) is not None:
            check_layers(channel, dense)
        if (slice_args := new._slice_args) is not None:
            check_blocks(slice_args, channel, dense, short_blocks)
        return new if state is None else new._replace(**restore(state, dense))

    @property
    def spec(self) -> Spec:
        """Spec of the model that `prune` takes next."""
        return self.channels.spec

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter → bool of its shape, False = in a masked channel or a pruned slice."""
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
        """Args of slices; None also under `infer`, where only the architecture matters."""
        args, channel = self.config.slice_sparsity_args, self._channel_args
        return args if args is not None and args.enabled and not (channel is not None and channel.infer) else None

    def channel_regularize(self, model: nn.Module) -> Tensor:
        """Return the loss that shrinks channels, a scalar to be added to the task's loss.

        For `BNScalePruner`, it is reg · Σ|γ| over the scales of the chosen groups (`bn_l1`). For all other methods, it is
        `growing`, whose gradient is f · 2^{α (g_max − g) / (g_max − g_min)} · w on all coupled weights of a unit of norm g, with
        α = alpha_shrinkage_reg and f = reg · gamma; for `MACAwareImportance`, f = reg · gamma + mac_reg · (MACs of the group) /
        (largest MACs of a group). Masked channels are ignored. The loss is 0 once no more channels are pruned, and under `infer`.

        Raises:
            ParamsError: the model does not have the sizes of `spec`.
        """
        args, params = self._channel_args, read_trainable(model, self.spec)
        if args is None or args.infer or self.channels.finished or self.channels.ratio >= args.ratio(args.end_epoch):
            return zero_loss(params)
        return channel_loss(args, params, self.spec, self.channels.masked)

    def slice_regularize(self, model: nn.Module) -> Tensor:
        """Return the loss that shrinks slices, a scalar to be added to the task's loss: reg · Σ log ‖slice‖₂ (`slice_log_norm`).

        It is 0 once the whole prune_rate is masked, and in pruning_mode "Unprune".

        Raises:
            ParamsError: as for `channel_regularize`.
        """
        args, params = self._slice_args, read_trainable(model, self.spec)
        if args is None or not args.reg or self.slice_ratio >= args.prune_rate:
            return zero_loss(params)
        return args.reg * slice_log_norm(params, spec=self.spec, mask=self.channels.masked, **self._slice_options(args))

    def prune(self, model: nn.Module, epoch: int, *, batches: Iterable[Batch] | None = None) -> Step:
        """Prune channels, then slices of the remaining ones, up to the schedule's ratios. Call it once an epoch, or less often.

        Without prune_at_target, each step removes its channels from the tensors, up to global_prune_rate, but not below mac_target.
        With it, channels are masked by a schedule that ends at 1; once the MACs are at most mac_target, all masked channels are
        removed. Whenever channels are pruned, slices are selected again, because their blocks change.

        Args:
            model: with the sizes of `spec`, in any mode; it is not changed.
            epoch: from 0.
            batches: for pruning_method `VBP`, as for `pf.collect_stats`.

        Raises:
            ParamsError: the model does not have the sizes of `spec`.
            BudgetError: mac_target cannot be met, or block size and max_pruning_rate do not allow the ratio.
            BatchError: the method needs batches.
        """
        args = self._channel_args
        ratio = self.channels.ratio if args is None or self.channels.finished else args.ratio(epoch)
        slice_ratio = 0.0 if self._slice_args is None else max(self.slice_ratio, self._slice_args.ratio(epoch))
        return self._advance(model, f"epoch {epoch}", ratio, slice_ratio, batches)

    def at_init(self, model: nn.Module, *, batches: Iterable[Batch] | None = None) -> Step:
        """Return the model at the sizes of this pruning, before training, so that weights of a checkpoint fit.

        With the state of a checkpoint, these are the checkpoint's sizes. Otherwise, with prune_channels_at_init or infer, all
        channels are pruned now, by the weights of the model; with neither, nothing is.

        Args:
            model: dense, or already at these sizes; it is not changed.
            batches: as for `prune`.

        Raises:
            ParamsError: the model has other sizes. BudgetError, BatchError: as for `prune`.
        """
        args, dense = self._channel_args, self.channels.dense
        own = params(model)
        cut = self.channels.kept
        if cut and all(n in dense.axes and tuple(t.shape) == dense.shape(n) for n, t in own.items()):
            small = apply(own, cut, spec=dense)
            small = apply_sparse(small, {n: m for n, m in self.masks.items() if n in small})
            new = rebuild(small, self.spec, self.skeleton, model)
            return Step(new, self, self.masks, True, f"at init: {self._report()}", cut, dense, model)
        at_once = args is not None and args.at_once and not self.channels.finished
        ratio = args.ratio(0) if args is not None and at_once else self.channels.ratio
        return self._advance(model, "at init", ratio, self.slice_ratio, batches)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs beside the weights: a flat dict of tensors, for `torch.save` or safetensors."""
        return store(self.channels, self.slices, self.slice_ratio)

    # ---- one step

    def _advance(
        self, model: nn.Module, when: str, ratio: float, slice_ratio: float, batches: Iterable[Batch] | None
    ) -> Step:
        """Prune channels and slices up to these ratios."""
        now: Params = read_params(model, self.spec)
        args, new, cut, fewer, actions = self._channel_args, self, Mask(), False, list[str]()
        masks = {} if self._slice_args is None else self.slices
        if args is not None and ratio > self.channels.ratio:
            now, channels, cut = prune_channels(
                apply_sparse(now, masks), self.channels, args, ratio, batches=batches, seed=self.seed
            )
            masks = {n: take(m, self.spec.axes[n], cut, self.spec.sizes) for n, m in masks.items()}
            new = new._replace(channels=channels)
            if fewer := channels.pruned > self.channels.pruned:
                actions.append(f"channels {'removed' if cut else 'masked'}")
        if self._slice_args is not None and slice_ratio and (slice_ratio > self.slice_ratio or fewer):
            spec, masked = new.spec, new.channels.masked
            now = apply_sparse(now, masks)
            masks = slices(now, slice_ratio, spec=spec, mask=masked, **self._slice_options(self._slice_args))
            actions.append("slices masked")
        new = new._replace(slices=masks, slice_ratio=slice_ratio)
        report = f"{when}: {', '.join(actions) or 'nothing to prune'}; {new._report()}"
        if not actions:
            return Step(model, new, new.masks, False, report, {}, self.spec, model)
        module = rebuild(apply_sparse(now, masks), new.spec, self.skeleton, model)
        return Step(module, new, new.masks, True, report, cut, self.spec, model)

    def _slice_options(self, args: SliceArgs) -> dict[str, Any]:
        """Return the options of `sparse.slices`."""
        return {
            "block": args.block_size,
            "protect_first": args.disable_first_index,
            "short_blocks": self.short_blocks,
        }

    def _report(self) -> str:
        """Return a text with the remaining channels, MACs and slices."""
        args, macs = self._channel_args, f"{self.channels.macs:.1%}".replace("%", " %")
        left = "" if args is None else "{} of {} channels and ".format(*self.channels.counts(args))
        met = args is not None and args.mac_target and self.channels.macs <= args.mac_target
        target = "; the target of MACs is met" if met else ""
        zeros = (
            f"; {self.slice_ratio:.1%} of the eligible slices are zero".replace("%", " %") if self.slice_ratio else ""
        )
        return f"{left}{macs} of the MACs are left{target}{zeros}"


def _make_example(config: Config, model: nn.Module, seed: int) -> tuple[Any, ...]:
    """Return example inputs in the shapes of the config."""
    args = config.channel_sparsity_args
    if args is None or args.input_shape is None:
        raise PruneError(
            "there are no example inputs: give Pruning.of(config, model, args), or channel_sparsity_args.input_shape"
        )
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    generator = torch.Generator().manual_seed(seed)
    several = all(isinstance(s, tuple) for s in args.input_shape)
    shapes: list[Any] = [*args.input_shape] if several else [args.input_shape]
    inputs = tuple(torch.randn(s, generator=generator).to(dtype) for s in shapes)
    return (inputs,) if args.container == "tuple" else inputs
