"""Training of the demo's networks: a plain loop with a seed of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ...data import Split


class Recipe(NamedTuple):
    """How a network is trained."""

    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    epochs: int
    batch: int
    warmup: float = 0.2
    """Share of the steps in which the learning rate rises; then it falls along a cosine."""
    noise: float = 0.2
    """Standard deviation of the noise on every pixel, in units of the normalised images."""
    shifted: float = 0.5
    """Share of the images that are moved by up to one pixel."""


def train(build: Callable[[], nn.Module], split: Split, recipe: Recipe, *, seed: int, name: str) -> nn.Module:
    """Build and train a network; it comes back in eval mode.

    Args:
        build: makes the network.
        split: on the device where the network shall be.
        recipe: how.
        seed: of the first weights, of the order and of the augmentation; torch's generators are left as they were.
        name: stands before the progress bar.
    """
    device = split.images.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().to(device).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = recipe.optimizer(model.parameters())
    steps = recipe.epochs * math.ceil(len(split.labels) / recipe.batch)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_cosine(step / steps, recipe.warmup))
    for _ in tqdm(range(recipe.epochs), desc=f"training the {name}", unit="epoch", disable=None):
        order = torch.randperm(len(split.labels), generator=generator)
        for chosen in order.split(recipe.batch):
            images = augment(split.images[chosen.to(device)], recipe, split.background, generator)
            loss = F.cross_entropy(model(images), split.labels[chosen.to(device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return model.eval()


def _warmup_cosine(progress: float, warmup: float) -> float:
    """Share of the highest learning rate, after this share of the steps."""
    if progress < warmup:
        return 0.04 + 0.96 * progress / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))


def augment(images: Tensor, recipe: Recipe, background: float, generator: torch.Generator) -> Tensor:
    """Move some of the images by up to a pixel in both directions, and add noise to all.

    Args:
        images: [n, 1, height, width].
        recipe: how much.
        background: fills what comes in at the border.
        generator: on the CPU, so that all devices see the same.
    """
    n, _, height, width = images.shape
    moved = torch.rand(n, generator=generator) < recipe.shifted
    offset = torch.where(moved[:, None], torch.randint(0, 3, (n, 2), generator=generator), 1).to(images.device)
    noise = recipe.noise * torch.randn(images.shape, generator=generator).to(images.device)
    rows = offset[:, 0, None] + torch.arange(height, device=images.device)
    columns = offset[:, 1, None] + torch.arange(width, device=images.device)
    padded = F.pad(images, (1, 1, 1, 1), value=background)
    which = torch.arange(n, device=images.device)[:, None, None]
    return padded[which, 0, rows[:, :, None], columns[:, None, :]][:, None] + noise
