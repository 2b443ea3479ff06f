"""The positions of a batch that count, and its labels, for losses of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..program.batches import Split
from ..spec.spec import Spec
from ..stats.weights import position_weights
from ..tracing.arguments import LABELS
from ..types import Batch
from .likelihood import labels_in


class Positions(NamedTuple):
    """Which positions of a batch count, and the labels of its tokens."""

    masks: tuple[Tensor, ...] = ()
    """True where a position is no padding, bool [samples, positions]; empty if there is no padding."""
    labels: Tensor | None = None
    """Labels of tokens, int64 [samples, positions], else the tokens themselves; None if the batch has none of these."""

    def mask(self, shape: Sequence[int]) -> Tensor | None:
        """Return which positions of this shape count; None if all do."""
        fitting = [m for m in self.masks if tuple(m.shape) == tuple(shape)]
        return torch.stack(fitting).all(0) if fitting else None

    def counted(self, value: Tensor) -> Tensor:
        """Return the values [positions, …] at the positions that count of a value [samples, positions, …].

        A value whose first dims are not those of the padding stays as it is.
        """
        mask = self.mask(value.shape[:2]) if value.ndim > 2 else None
        return value if mask is None else value[mask]


EVERYWHERE = Positions()
"""All positions count."""


def positions_of(batch: Batch, found: Split, spec: Spec) -> Positions:
    """Return the positions of a batch that count.

    Args:
        batch: as the user gives it.
        found: its inputs and the rest, on the device of the params.
        spec: of the network.

    Raises:
        BatchError: the batch has padding by a mask that the spec was traced without.
    """
    weights = position_weights(spec, found.inputs, batch, True)
    named = dict(zip((i.name for i in spec.program.inputs), found.inputs, strict=True))
    device = next((x.device for x in found.inputs), torch.device("cpu"))
    masks = [w.weights.to(device) > 0 for w in (() if weights is None else weights.weightings) if w.weights.ndim == 2]
    in_dict = {n: x for n, x in zip(found.names, found.rest, strict=False) if n in LABELS}
    labels = labels_in(() if found.names else found.rest, {**named, **in_dict})
    return Positions(tuple(masks), None if labels is None else labels.to(device))
