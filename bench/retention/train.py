"""`python -m bench.retention.train`: train the networks from scratch, one after the other; what is cached is left as it is.

A run that is stopped goes on from its last epoch and ends with the same weights.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..timing import versions
from .data import Images, accuracy, augmented, test, training, validation
from .networks import CACHE, NETWORKS, cached

SMOOTHING = 0.1


class Recipe(NamedTuple):
    """AdamW; the rate rises over the first part of the steps and falls along a cosine."""

    epochs: int = 10
    rate: float = 2e-3
    decay: float = 0.05
    batch: int = 128
    rising: float = 0.2
    margin: int = 2
    """Pixels that an image may be shifted by."""
    seed: int = 0


RECIPES = {
    "vit": Recipe(epochs=12, rate=2e-3, rising=0.1, margin=0),
    "mobilenet_v2": Recipe(epochs=12, rate=4e-3),
    "small_resnet": Recipe(epochs=4, rate=3e-3, margin=1),
    "small_vit": Recipe(epochs=6, rate=2e-3, margin=0),
}


class Run(NamedTuple):
    """What changes while a network learns."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    """Of the order of the images and of their augmentation; dropout draws from torch's own."""


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"these networks only: {', '.join(NETWORKS)}")] = None,
    epochs: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None,
    seed: Annotated[int, typer.Option(help="of weights, order and augmentation")] = 0,
) -> None:
    """Write bench/cache/retention/NAME.safetensors, with accuracy and settings in the metadata."""
    if unknown := set(only or ()) - set(NETWORKS):
        raise SystemExit(f"no network {min(unknown)!r}; there are {', '.join(NETWORKS)}")
    for name in only or NETWORKS:
        recipe = RECIPES.get(name, Recipe())._replace(seed=seed)
        if cached(name).exists():
            tqdm.write(f"{name}: cached")
        else:
            train(name, recipe if epochs is None else recipe._replace(epochs=epochs))


def train(name: str, recipe: Recipe) -> None:
    """Train a network and write its weights; prints one line per epoch."""
    data, held_out = training(), validation()
    run = start(name, recipe, len(data.labels))
    done = resume(run, name, recipe)
    for epoch in range(done, recipe.epochs):
        begin = time.perf_counter()
        loss = learn(run, data, recipe, f"{name} {epoch + 1}/{recipe.epochs}")
        top1 = accuracy(run.model.eval(), held_out)
        checkpoint(run, name, recipe, epoch + 1)
        spent = time.perf_counter() - begin
        tqdm.write(f"{name} {epoch + 1}/{recipe.epochs}: loss {loss:.3f}, validation top-1 {top1:.4f}, {spent:.0f} s")
    top1 = accuracy(run.model.eval(), test())
    settings = {k: str(v) for k, v in recipe._asdict().items()}
    write(run.model, cached(name), {"accuracy": str(top1), "versions": versions(), **settings})
    unfinished(name).unlink(missing_ok=True)
    tqdm.write(f"{name}: test top-1 {top1:.4f}")


def start(name: str, recipe: Recipe, images: int) -> Run:
    """Fresh weights, optimizer, schedule and generator."""
    torch.manual_seed(recipe.seed)
    model = NETWORKS[name]().to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]  # norms, biases, layer scales
    groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.rate,
        total_steps=recipe.epochs * (images // recipe.batch),
        pct_start=recipe.rising,
        cycle_momentum=False,
    )
    return Run(model, optimizer, schedule, torch.Generator().manual_seed(recipe.seed))


def learn(run: Run, data: Images, recipe: Recipe, text: str) -> float:
    """One epoch; the last images of the order that do not fill a batch are left out. Gives the mean loss."""
    run.model.train()
    order = torch.randperm(len(data.labels), generator=run.generator)
    steps = len(order) // recipe.batch
    total = 0.0
    for chosen in tqdm(order[: steps * recipe.batch].split(recipe.batch), desc=text, leave=False, disable=None):
        total += step(run, augmented(data.images[chosen], run.generator, recipe.margin), data.labels[chosen])
    return total / steps


def step(run: Run, images: Tensor, labels: Tensor) -> float:
    """One update; gives the loss."""
    loss = F.cross_entropy(run.model(images), labels, label_smoothing=SMOOTHING)
    run.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.schedule.step()
    return loss.item()


# ---- files


def unfinished(name: str) -> Path:
    """Where a run that is under way keeps its last epoch."""
    return CACHE / f"{name}.checkpoint.pt"


def checkpoint(run: Run, name: str, recipe: Recipe, epoch: int) -> None:
    """All that is needed to go on after this epoch."""
    state: dict[str, Any] = {k: v.state_dict() for k, v in run._asdict().items() if hasattr(v, "state_dict")}
    state |= {"generator": run.generator.get_state(), "torch": torch.get_rng_state()}
    state |= {"epoch": epoch, "recipe": tuple(recipe)}
    CACHE.mkdir(parents=True, exist_ok=True)
    part = unfinished(name).with_suffix(".part")
    torch.save(state, part)
    os.replace(part, unfinished(name))


def resume(run: Run, name: str, recipe: Recipe) -> int:
    """Put a run where its checkpoint left it, if there is one of the same recipe. Gives the epochs done."""
    if not unfinished(name).exists():
        return 0
    state = torch.load(unfinished(name), weights_only=True)
    if state["recipe"] != tuple(recipe):
        tqdm.write(f"{name}: the unfinished run has other settings; starting afresh")
        return 0
    for part in ("model", "optimizer", "schedule"):
        getattr(run, part).load_state_dict(state[part])
    run.generator.set_state(state["generator"])
    torch.set_rng_state(state["torch"])
    return state["epoch"]


def write(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """The weights in one step: the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, part, metadata)
    os.replace(part, path)


if __name__ == "__main__":
    typer.run(main)
