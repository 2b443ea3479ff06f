"""Training: the loop over epochs, and the defaults of fine-tuning and sparse training."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..doors import door
from ..errors import PruneError
from .feed import Source
from .recipe import Recipe
from .regularizers import Regularizer
from .seeds import isolate_rng
from .setup import Setup
from .stage import BUILD, Stage, Task
from .state import Trained, WeightMasks


@door
def train(
    model: nn.Module | Trained,
    data: Source | Setup,
    recipe: Recipe,
    *,
    regularizer: Regularizer | None = None,
    masks: WeightMasks | None = None,
    keep: str = "best",
    folder: Path | str | None = None,
    name: str = "train",
) -> Trained:
    """Train a copy of a model.

    Under torchrun, every process makes the same call. Each batch is split between the processes, and the result is that of one
    process to rounding; dropout and mixing draw separately in each process.

    With a folder, a killed training resumes from its last checkpoint. On a CPU, the result is bit-identical to that of an
    uninterrupted training. A finished training is only read from its folder.

    Args:
        model: a module, which is not changed; or the result of another training, whose optimizer state and masks continue.
        data: a map-style dataset of (image, label), a DataLoader or a list of batches; or a `Setup`, for held-out data, a loss, a
            teacher, metrics or a device.
        recipe: epochs, learning rate and the like.
        regularizer: a penalty, or masks that are renewed every epoch; see `regularizers`.
        masks: weights to hold at exactly zero, with their optimizer state; None: those of `model`, if it is a result.
        keep: "best" for the weights of the best epoch, if held-out data are measured; "last" for those of the last one.
        folder: for checkpoints, `metrics.jsonl` and TensorBoard logs; all processes must see it.
        name: of the stage, in logs.

    Raises:
        PruneError: the folder belongs to a training with other settings, or the loss is not finite.
        BatchError: the batches do not fit the loss.

    >>> import torch
    >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> points = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    >>> model = nn.Linear(4, 2)
    >>> _ = nn.init.zeros_(model.weight)
    >>> done = train(model, Setup(points, held_out=points, device="cpu"), Recipe(epochs=5, lr=0.1, batch_size=16))
    >>> done.metrics["top1"] > 0.9, float(model.weight.detach().abs().sum())
    (True, 0.0)
    """
    if keep not in ("best", "last"):
        raise PruneError(f"keep is {keep!r}; it must be 'best' or 'last'")
    start = model if isinstance(model, Trained) else Trained(model)
    if masks is not None:
        start = start._replace(masks=masks)
    place = None if folder is None else Path(folder)
    task = Task(start, Setup.of(data), recipe, regularizer or Regularizer("none"), place, name)
    with isolate_rng(recipe.seed, BUILD):
        stage = Stage(task)
        with stage.log:
            while stage.epoch < recipe.epochs and not stage.is_stale():
                stage.train_epoch()
        return stage.result(keep)


@door
def fine_tune(
    model: nn.Module | Trained,
    data: Source | Setup,
    recipe: Recipe | None = None,
    *,
    masks: WeightMasks | None = None,
    keep: str = "best",
    folder: Path | str | None = None,
    name: str = "fine_tune",
) -> Trained:
    """Train a pruned model: `train` with the recipe of variance-based pruning by default.

    Args:
        model, data, masks, keep, folder, name: as for `train`.
        recipe: None: `Recipe()`, ten epochs at 1.5e-5.

    >>> import torch
    >>> x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    >>> points = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    >>> fine_tune(nn.Linear(4, 2), points, Recipe(epochs=2, batch_size=16)).rows[-1]["update"]
    4
    """
    return train(model, data, recipe or Recipe(), masks=masks, keep=keep, folder=folder, name=name)


@door
def sparse_train(
    model: nn.Module | Trained,
    data: Source | Setup,
    regularizer: Regularizer,
    recipe: Recipe | None = None,
    *,
    masks: WeightMasks | None = None,
    keep: str = "last",
    folder: Path | str | None = None,
    name: str = "sparse",
) -> Trained:
    """Train units towards zero before they are pruned: `train` with a regularizer.

    Args:
        model, data, masks, folder, name: as for `train`.
        regularizer: for the spec of the model, such as `regularizers.l1_group(spec)` or `regularizers.gradual(spec)`.
        recipe: None: 5 epochs at 1e-4.
        keep: as for `train`; by default the last epoch, which is the sparsest.

    >>> import torch, prunefn as pf
    >>> x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    >>> points = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> penalty = pf.train.regularizers.lasso(pf.trace(model, (x,)), weight=0.1)
    >>> small = sparse_train(model, points, penalty, Recipe(epochs=2, batch_size=16, lr=0.01)).model
    >>> bool(small[0].weight.norm() < model[0].weight.norm())
    True
    """
    return train(
        model,
        data,
        recipe or Recipe(epochs=5, lr=1e-4),
        regularizer=regularizer,
        masks=masks,
        keep=keep,
        folder=folder,
        name=name,
    )
