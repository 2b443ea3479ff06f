"""What the stages of a training share, as one immutable value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..doors import check_fields
from ..errors import PruneError
from ..spec.spec import Spec
from ..tracing.api import trace
from ..tracing.arguments import LABELS, is_required, read_dict
from ..types import Batch
from .feed import Source
from .objective import Distill, Loss, Metrics, top1


class Setup(NamedTuple):
    """Data, loss, metrics and device of a training, for all functions that train or measure.

    Where the defaults fit, these functions take plain data instead: `train(model, data, recipe)`.

    >>> import torch
    >>> x = torch.randn(32, 4)
    >>> points = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    >>> setup = Setup(points, held_out=points, device="cpu")
    >>> setup._replace(better="loss").better
    'loss'
    """

    data: Source
    """What to train on: a map-style dataset of (image, label), shuffled every epoch; a DataLoader; or a list of batches."""
    held_out: Source | None = None
    """What to measure on after every epoch; None: nothing is measured."""
    loss: Loss | Distill | None = None
    """(output, *rest of the batch) → mean loss; a `Distill` adds a teacher; None: cross entropy, or the model's own loss."""
    metrics: Metrics = top1
    """(output, *rest of the batch) → dict name → mean over the batch. With a method `finish`, as those of `token_metrics`, the
    means over all samples are passed through it."""
    better: str | None = None
    """Metric that chooses the best epoch: the highest, of "loss" and "perplexity" the lowest; None: top1 if it is measured, else
    the loss."""
    inputs: int = 1
    """How many elements of a batch the model takes; the rest goes to loss and metrics."""
    classes: int | None = None
    """Number of classes, for mixed or smoothed labels; None: read from the dataset."""
    device: str | None = None
    """Device to train on, such as "cpu"; None: a GPU if there is one."""
    progress: bool = False
    """Whether to show a bar, or about twenty lines an epoch where there is no terminal."""

    @classmethod
    def of(cls, data: Source | Setup) -> Setup:
        """Return the setup itself, or the default setup of plain data.

        Raises:
            PruneError: a field has a value that its kind does not allow; names field, value and fix.
        """
        return check_fields(data if isinstance(data, Setup) else cls(data))

    def count_classes(self) -> int:
        """Return the number of classes: `classes`, or what the dataset's `classes` or labels say.

        Raises:
            PruneError: neither says.
        """
        if self.classes is not None:
            return self.classes
        dataset = self.data.dataset if isinstance(self.data, DataLoader) else self.data
        names = getattr(dataset, "classes", None)
        if isinstance(names, Sequence):
            return len(names)
        tensors = getattr(dataset, "tensors", None)
        if tensors:
            return int(tensors[1].max()) + 1
        raise PruneError(
            "mixup, cutmix and label_smoothing need the number of classes; write Setup(data, classes=10) for ten"
        )


def trace_first(model: nn.Module, batches: Sequence[Batch], inputs: int) -> Spec:
    """Trace a model with the first batch; labels of a dict are left out where the model runs without them, as it does later.

    Raises:
        PruneError: there is no batch.
    """
    if not len(batches):
        raise PruneError("there is no calibration batch to trace the model with; give spec=pf.trace(model, args)")
    batch: Any = batches[0]
    if isinstance(batch, Tensor):
        return trace(model, (batch,))
    if isinstance(batch, Mapping):
        args, kwargs, _ = read_dict(model, batch)
        return trace(model, args, {n: x for n, x in kwargs.items() if n not in LABELS or is_required(model, n)})
    return trace(model, tuple(batch[:inputs]))
