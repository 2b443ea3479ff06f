"""Training after pruning: a number of steps, the same for every method."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunefn.train.losses import distillation

from ..retention.data import Images, augmented, training
from ..retention.networks import CLASSES
from ..retention.train import RECIPES, SMOOTHING, Recipe

BATCH = 64
ALPHA, TEMPERATURE = 0.7, 2.0
"""Of distillation, as `train.Distill` has them by default."""
WEIGHT_DECAY, GRAD_CLIP, RISING = 0.05, 1.0, 0.2


def train(name: str, model: nn.Module, steps: int, *, lr: float, teacher: nn.Module | None, seed: int) -> nn.Module:
    """Return a copy of a network, trained for some steps by AdamW at the learning rate of one cycle, in eval mode.

    Args:
        name: of the network; its images are augmented as for the dense one.
        model: is left as it is.
        steps: of a batch of 64 training images each; 0: nothing is trained.
        lr: highest learning rate.
        teacher: the dense network; None: no distillation.
        seed: of the order of the images and of their augmentation.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    if not steps:
        return model.eval()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=steps, pct_start=RISING, cycle_momentum=False
    )
    model.train()
    for images, labels in batches(name, steps, seed):
        optimizer.zero_grad()
        loss_of(model, images, labels, teacher).backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        schedule.step()
    return model.eval()


def loss_of(model: nn.Module, images: Tensor, labels: Tensor, teacher: nn.Module | None) -> Tensor:
    """Return the loss of a batch, with smoothed labels as for the dense network."""
    output = model(images)
    if teacher is None:
        return F.cross_entropy(output, labels, label_smoothing=SMOOTHING)
    with torch.no_grad():
        wanted = teacher(images)
    smoothed = F.one_hot(labels, CLASSES) * (1 - SMOOTHING) + SMOOTHING / CLASSES
    return distillation(output, wanted, smoothed, alpha=ALPHA, temperature=TEMPERATURE)


def batches(name: str, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a batch of augmented training images for each step; each pass over the images has an order of its own."""
    data, margin = images_to_train(), RECIPES.get(name, Recipe()).margin
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < steps:
        order = torch.randperm(len(data.labels), generator=generator)
        for chosen in order.split(BATCH)[: min(len(order) // BATCH, steps - done)]:
            yield augmented(data.images[chosen], generator, margin), data.labels[chosen]
            done += 1


@cache
def images_to_train() -> Images:
    """Return the training images, normalised once."""
    return training()
