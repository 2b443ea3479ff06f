"""Config of channel and slice pruning: `pruning_config.json`, read and checked once, and never written.

The file is an object with the keys `channel_sparsity_args` and `slice_sparsity_args`, at least one of them. It is read into an
immutable `Config`; the state of a run is in the values that `prunefn.pruning` returns.

>>> config = load({"channel_sparsity_args": {
...     "global_pruning": True, "block_size": 1, "start_epoch": 0, "end_epoch": 4, "epoch_rate": 2,
...     "global_prune_rate": 0.5, "pruning_method": "BNScalePruner", "layers": ["module.conv1"]}})
>>> config.channel_sparsity_args.layers, config.channel_sparsity_args.regularize.alpha_shrinkage_reg
(('conv1',), 4.0)
>>> load({"channel_sparsity_arg": {}})
Traceback (most recent call last):
prunefn.errors.PruneError: the pruning config has a problem:
  channel_sparsity_arg is no option; did you mean 'channel_sparsity_args' or 'slice_sparsity_args'?
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from ..errors import PruneError
from ..settings import Allowed, Field, Settings, field_validator, model_validator, validated
from ..train.schedule import multiples

Method = Literal["BNScalePruner", "GroupNormPruner", "MACAwareImportance", "Magnitude", "LAMP", "FPGM", "Random", "VBP"]
"""Score of a channel: the scale of its norm layer; the norm of all coupled weights, without or with MACs; the criteria of
`prunefn.criteria` of these names; for `VBP`, its variance, which needs batches."""

Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Epoch = Annotated[int, Field(ge=0)]
Shape = Annotated[tuple[Count, ...], Field(min_length=1)]


class Regularize(Settings, strict=True):
    """Strengths of the losses that `channel_regularize` adds."""

    reg: NotNegative = 0.0
    mac_reg: NotNegative = 0.0
    """Strength of the part that grows with a group's MACs, for `MACAwareImportance`."""
    gamma: NotNegative = 1.0
    """Factor of `reg` for group norms."""
    alpha_shrinkage_reg: NotNegative = 4.0
    """The least important unit of a group shrinks up to 2 to this power times as fast as the most important."""


class MacParams(Settings, strict=True):
    """How `MACAwareImportance` weighs MACs against importance."""

    use_macs: bool = True
    type: Literal["Sum", "Mul"] = "Sum"
    alpha: Fraction = 0.9
    beta: Annotated[float, Field(gt=0)] = 2.0


class _Scheduled(Settings, strict=True):
    """Epochs that prune: those in [start_epoch, end_epoch) that epoch_rate divides."""

    is_prune: bool = True
    block_size: Count
    start_epoch: Epoch
    end_epoch: Epoch
    epoch_rate: Count

    def fraction(self, epoch: int) -> float:
        """Return the fraction of the epochs that prune that are done after this one, in [0, 1].

        >>> args = SliceArgs(block_size=2, start_epoch=1, end_epoch=6, epoch_rate=2, prune_rate=0.5)
        >>> [args.fraction(e) for e in range(7)]
        [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0]
        """
        done = multiples(self.start_epoch, min(epoch + 1, self.end_epoch), self.epoch_rate)
        return done / multiples(self.start_epoch, self.end_epoch, self.epoch_rate)

    def _check_epochs(self) -> None:
        if self.start_epoch >= self.end_epoch:
            raise ValueError(
                f"end_epoch is {self.end_epoch}; it must be above start_epoch, {self.start_epoch}: "
                "the last epoch that may prune is the one before it"
            )
        start, end, rate = self.start_epoch, self.end_epoch, self.epoch_rate
        if not multiples(start, end, rate):
            raise ValueError(
                f"epoch_rate is {rate}, and no epoch in [{start}, {end}) is a multiple of it, so that nothing would be "
                "pruned; change one of the three"
            )


class ChannelArgs(_Scheduled):
    """`channel_sparsity_args`."""

    global_pruning: bool
    """Whether all chosen groups are ranked together; otherwise each is ranked separately."""
    block_size: Count
    """The kept number of channels of a group is a multiple of it."""
    global_prune_rate: Fraction
    """Ratio of the chosen channels that is removed after the last epoch that prunes."""
    max_pruning_rate: Fraction = 1.0
    """Largest ratio that a group may lose."""
    mac_target: Fraction = 0.0
    """Fraction of the MACs at which pruning stops; 0: no target."""
    prune_at_target: bool = False
    """Whether to mask by a schedule up to 1 until `mac_target` is met, and then remove the masked channels."""
    reach_mac_target: bool = False
    """No effect: the state of `Pruning` has it."""
    log_str: str | None = None
    """No effect."""
    pruning_method: Method
    prune_channels_at_init: bool = False
    """Whether all channels are pruned before training."""
    infer: bool = False
    """Whether to prune all channels at once, without losses and slices."""
    isomorphic: bool = False
    """Whether global_pruning ranks each set of structurally identical groups separately."""
    regularize: Regularize = Regularize()
    MAC_params: MacParams = MacParams()
    layers: tuple[str, ...] = ()
    """Modules whose outputs may be pruned, with the coupled tensors."""
    input_shape: Annotated[
        Shape | tuple[Shape, ...] | None,
        Field(union_mode="left_to_right"),
        Allowed("[B, C, H, W], whole numbers above 0, or a list of such lists"),
    ] = None
    """Shape of the example input, such as [B, C, H, W]; or one shape for each of several inputs."""
    container: Literal["tuple"] | None = None
    """With "tuple", several inputs are one argument; with null, one argument each."""

    @field_validator("layers")
    @classmethod
    def _strip(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.removeprefix("module.") for name in layers)

    @model_validator(mode="after")
    def _check(self) -> ChannelArgs:
        if not self.is_prune:
            return self
        if not self.layers:
            raise ValueError("layers is []; name the modules whose outputs may be pruned, such as 'layer1.0.conv1'")
        if self.prune_at_target and not self.mac_target:
            raise ValueError(
                "prune_at_target is true, but mac_target is 0; set mac_target to the fraction of MACs to keep, such as 0.5"
            )
        if not self.prune_at_target and self.global_prune_rate == 1:
            raise ValueError(
                "global_prune_rate is 1, which would remove everything; set prune_at_target with a mac_target, or a lower rate"
            )
        if not self.prune_at_target and self.global_prune_rate > self.max_pruning_rate:
            raise ValueError(
                f"global_prune_rate is {self.global_prune_rate}, but no group may lose more than max_pruning_rate, "
                f"{self.max_pruning_rate}; change one of them"
            )
        if not self.at_once:
            self._check_epochs()
        return self

    @property
    def at_once(self) -> bool:
        """Whether all channels are pruned before training."""
        return self.prune_channels_at_init or self.infer

    def ratio(self, epoch: int) -> float:
        """Return the ratio of the chosen channels that is pruned after this epoch's step; up to 1 under prune_at_target.

        >>> args = load({"channel_sparsity_args": {
        ...     "global_pruning": True, "block_size": 1, "start_epoch": 0, "end_epoch": 4, "epoch_rate": 2,
        ...     "global_prune_rate": 0.5, "pruning_method": "LAMP", "layers": ["conv1"]}}).channel_sparsity_args
        >>> [args.ratio(e) for e in range(5)]
        [0.25, 0.25, 0.5, 0.5, 0.5]
        """
        total = 1.0 if self.prune_at_target else self.global_prune_rate
        return total if self.at_once else total * self.fraction(epoch)


class SliceArgs(_Scheduled):
    """`slice_sparsity_args`."""

    block_size: Count
    """Weights in a slice."""
    prune_rate: Annotated[float, Field(ge=0, lt=1)]
    """Ratio of the slices of each layer that is zero after the last epoch that prunes."""
    pruning_gradually: bool = False
    """Whether the ratio grows from epoch to epoch; otherwise the first epoch prunes all."""
    pruning_mode: Literal["Prune", "Unprune"] = "Prune"
    """`Unprune`: no slice is pruned or held, and the loss is 0."""
    disable_first_index: bool = False
    """Whether slices at the first index of each kernel row are kept."""
    pruning_method: Literal["L2_norm"] = "L2_norm"
    reg: NotNegative = 0.0
    """Strength of the loss of `slice_regularize`."""

    @model_validator(mode="after")
    def _check(self) -> SliceArgs:
        if self.is_prune:
            self._check_epochs()
        return self

    @property
    def enabled(self) -> bool:
        """Whether slices are pruned."""
        return self.is_prune and self.pruning_mode == "Prune"

    def ratio(self, epoch: int) -> float:
        """Return the ratio of the slices that is zero after this epoch's step."""
        done = self.fraction(epoch)
        return self.prune_rate * (done if self.pruning_gradually else float(done > 0))


class Config(Settings, strict=True):
    """A whole `pruning_config.json`."""

    channel_sparsity_args: ChannelArgs | None = None
    slice_sparsity_args: SliceArgs | None = None

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.channel_sparsity_args is None and self.slice_sparsity_args is None:
            raise ValueError(
                "channel_sparsity_args is missing, and slice_sparsity_args, too; give at least one of them"
            )
        return self


def load(source: str | os.PathLike[str] | Mapping[str, Any]) -> Config:
    """Read a pruning config, and check all of it.

    Args:
        source: a JSON file, or its content.

    Returns:
        An immutable, hashable `Config`; a leading `module.` of layers is dropped.

    Raises:
        PruneError: the source is no JSON, a key is unknown or missing, a value has the wrong type or range, or nothing would
            ever be pruned. The message has a line for each problem: key, value, and what is allowed.
        OSError: the file cannot be read.
    """
    mapping = isinstance(source, Mapping)
    what = "the pruning config" if mapping else str(source)
    try:
        text = json.dumps(source) if mapping else Path(source).read_text(encoding="utf-8")
        data = json.loads(text, object_pairs_hook=_check_unique)
    except (TypeError, ValueError) as error:
        raise PruneError(f"{what} is not valid JSON: {error}") from error
    return validated(Config, data, what)


def _check_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict; a repeated key is an error."""
    out = dict(pairs)
    if len(out) < len(pairs):
        twice = next(k for i, (k, _) in enumerate(pairs) if k in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return out
