"""The loss of a batch: the distance from the dense network's outputs, or a loss of labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import distances, trees
from ..distances import Distance
from ..errors import BatchError, PruneError
from ..program.batches import device_of, split
from ..program.run import forward_flat
from ..spec.spec import Spec, check_eval_mode, check_runnable
from ..tokens.positions import positions_of
from ..types import Batch, Params

Loss = Callable[..., Tensor]
"""(output, *rest of the batch) → scalar, a mean over samples."""


class Objective(NamedTuple):
    """The loss of a batch, given the function that runs the network in training."""

    params: Params
    """Of the dense network."""
    spec: Spec
    """Of the dense network."""
    loss: Loss | None
    distance: Distance

    def __call__(self, run: Callable[[list[Tensor]], Any], batch: Batch) -> Tensor:
        """Return the loss of the output `run(inputs)`.

        Raises:
            BatchError: the batch does not fit, or the loss is no finite scalar.
        """
        device = device_of(self.params)
        data = split(batch, spec=self.spec, device=device)
        if self.loss is None:
            with torch.no_grad():
                dense = forward_flat(self.params, data.inputs, self.spec)
            value = distances.compare(self.distance, run(data.inputs), dense, positions_of(batch, data, self.spec))
        else:
            value = self.loss(run(data.inputs), *trees.map_tensors(lambda x: x.to(device), data.rest))
        return check_scalar(value)


def objective(
    dense: tuple[Params, Spec], purpose: str, *, loss: Loss | None = None, distance: Distance | None = None
) -> Objective:
    """Return the objective of a training.

    Args:
        dense: params and spec of the dense network.
        purpose: name of the training, for messages.
        loss: of labels; None: the distance from the dense outputs.
        distance: default: `distances.auto()`.

    Raises:
        PruneError: there are both a loss and a distance.
        ParamsError, TraceError: the spec was traced in train mode, or recorded.
    """
    params, spec = dense
    if loss is not None and distance is not None:
        raise PruneError(f"{purpose}: loss= is of labels, and distance= of the dense outputs; give one of the two")
    if distance is not None and any(isinstance(d, distances.Inner) for _, d in distances.terms(distance)):
        raise PruneError(f"{purpose}: distances.inner compares values inside of networks, {distances.ONLY_RECOVER}")
    check_eval_mode(spec, purpose)
    check_runnable(spec)
    return Objective({n: t.detach() for n, t in params.items()}, spec, loss, distance or distances.auto())


def check_scalar(value: Any) -> Tensor:
    """Return a loss.

    Raises:
        BatchError: it is no finite scalar.
    """
    if not isinstance(value, Tensor) or value.ndim:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise BatchError(f"the loss has {what}; it must be a scalar tensor, such as a mean")
    if not bool(torch.isfinite(value)):
        raise BatchError(
            f"the loss of a batch is {value.item()}; look for NaN in the batches or parameters, or lower lr="
        )
    return value
