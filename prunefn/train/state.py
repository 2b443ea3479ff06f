"""Values of a training: what a checkpoint holds, and what training returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

WeightMasks = Mapping[str, Tensor]
"""Parameter → bool of its shape, True = kept."""


class TrainState(NamedTuple):
    """State of a training between two updates: what a checkpoint holds."""

    weights: Mapping[str, Tensor]
    """State dict of the module."""
    optimizer: Mapping[str, Any]
    """State dict of the optimizer, with the learning rate of the last update."""
    ema: Mapping[str, Tensor] | None
    """State dict of the averaged weights."""
    scaler: Mapping[str, Any] | None
    """State dict of fp16's loss scaler."""
    held: WeightMasks
    """Masks of this epoch."""
    epoch: int
    """Number of finished epochs."""
    step: int
    """Number of updates in the current epoch."""
    update: int
    """Number of updates in all."""
    loss: Tensor
    """[2], float64: sum of the losses of this epoch's samples, and their number."""
    rows: list[dict[str, Any]]
    """One row of metrics for each finished epoch."""


class Trained(NamedTuple):
    """Result of a training. `train` takes it in place of a model, to train on with the same optimizer state and masks."""

    model: nn.Module
    """In eval mode, on the device of the model before training, which is not changed."""
    rows: Sequence[dict[str, Any]] = ()
    """One for each epoch: epoch, update, lr, train_loss, and the metrics."""
    best: int | None = None
    """Epoch whose weights the model has; None: the last one."""
    optimizer: Mapping[str, Mapping[str, Any]] = {}
    """Parameter → what the optimizer stores for it after the last update, such as moments of its shape.

    Where the model is pruned, slice it by `train.optimizer.slice_state`."""
    masks: Mapping[str, Tensor] = {}
    """Masks after the last update: what is False is zero."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The row of the epoch whose weights the model has; empty if there was no epoch."""
        if not self.rows:
            return {}
        return self.rows[-1] if self.best is None else next(r for r in self.rows if r["epoch"] == self.best)
