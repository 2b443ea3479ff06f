"""The loop: epochs of updates on accelerate, measured, checkpointed, resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from torch.utils.data import DataLoader

from ..doors import door
from ..errors import PruneError
from .feed import Source
from .objective import Distill, Loss, Metrics, Objective, top1
from .recipe import Recipe
from .regularizers import Regularizer
from .seeds import apart
from .stage import BUILD, Stage, State, Trained, WeightMasks


@door
def train(
    model: nn.Module,
    data: Source,
    recipe: Recipe,
    *,
    held_out: Source | None = None,
    loss: Loss | None = None,
    distill: Distill | None = None,
    metrics: Metrics = top1,
    better: str | None = None,
    regularizer: Regularizer | None = None,
    masks: WeightMasks | None = None,
    state: State | None = None,
    inputs: int = 1,
    classes: int | None = None,
    keep: str = "best",
    folder: Path | str | None = None,
    name: str = "train",
    device: str | None = None,
    progress: bool = False,
) -> Trained:
    """Train a copy of a module.

    Under torchrun, every process calls this with the same arguments; batches are cut into shares, and the result is that of one
    process with the same batches, to rounding (dropout and mixing draw per process).

    With a folder, training that was killed goes on from its last checkpoint, and ends with the same bits on a CPU as if it had
    not been; training that is done is only read.

    Args:
        model: is not changed.
        data: a map-style dataset of (image, label) that is shuffled every epoch, a DataLoader, or a list of batches.
        recipe: learning rate, epochs and the like.
        held_out: what is measured after every epoch; None: nothing is.
        loss: (output, rest of the batch …) → mean; default: cross entropy, or the model's own loss.
        distill: a teacher, explicitly; None: there is none.
        metrics: (output, rest of the batch …) → name → mean.
        better: the metric that is to be high, or "loss", which is to be low; default: top1 if it is there, else the loss.
        regularizer: a penalty, or masks that are renewed every epoch: see `regularizers`.
        masks: weights that stay exactly zero, and what the optimizer remembers of them.
        state: of an optimizer before, by parameter: `Trained.state`, sliced where parameters were.
        inputs: how many of a batch's elements the model takes.
        classes: how many there are, where labels are mixed or smoothed; None: the dataset's `classes`, or what its labels say.
        keep: "best" for the weights of the best epoch (where something is measured), "last" for the last.
        folder: for checkpoints, `metrics.jsonl` and TensorBoard's logs; all processes must see it.
        name: of the stage, in logs.
        device: "cpu" for the CPU; None: what there is.
        progress: show a bar, or about twenty lines an epoch where there is no terminal.

    Raises:
        PruneError: the folder is of a run with other settings, or the loss is not finite.
        BatchError: the batches do not fit.

    >>> import torch
    >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    >>> model = nn.Linear(4, 2)
    >>> _ = nn.init.zeros_(model.weight)
    >>> done = train(model, data, Recipe(epochs=5, lr=0.1, batch_size=16), held_out=data, device="cpu")
    >>> done.metrics["top1"] > 0.9, float(model.weight.detach().abs().sum())
    (True, 0.0)
    """
    if keep not in ("best", "last"):
        raise PruneError(f"keep is {keep!r}; it must be 'best' or 'last'")
    with apart(recipe.seed, BUILD):
        objective = Objective(recipe, loss=loss, distill=distill, inputs=inputs)
        stage = Stage(model, objective, regularizer, masks, state, device)
        stage.held_out, stage.metrics, stage.better = held_out, metrics, better
        stage.classes = classes or _classes(data, soft=objective.soft)
        asked = {
            **recipe.model_dump(),
            "stage": name,
            "distill": None if distill is None else [distill.alpha, distill.temperature],
            "regularizer": stage.regularizer.name,
            "processes": stage.accelerator.num_processes,
        }
        with stage.running(data, Path(folder) if folder is not None else None, name, asked, progress):
            while stage.epoch < recipe.epochs and not stage.stale():
                stage.one_epoch()
        return stage.result(model, keep)


def _classes(data: Source, *, soft: bool) -> int:
    """How many classes the labels of a dataset have; 0 where nobody asks.

    Raises:
        PruneError: it does not say.
    """
    if not soft:
        return 0
    dataset = data.dataset if isinstance(data, DataLoader) else data
    known = getattr(dataset, "classes", None)
    if isinstance(known, Sequence):
        return len(known)
    tensors = getattr(dataset, "tensors", None)
    if tensors:
        return int(tensors[1].max()) + 1
    raise PruneError("mixup, cutmix and label_smoothing need the number of classes: give classes=")
