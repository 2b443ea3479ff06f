"""A stage of training: its epochs and updates, what is measured after each epoch, and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from ..errors import PruneError
from .checkpoint import load_checkpoint, load_state, load_weights, save_checkpoint, save_state
from .feed import Feed, Part, group_parts
from .log import Log
from .measure import make_accelerator, measure, to_device
from .objective import BatchLoss, Distill, is_soft
from .optimizer import hold_zero
from .recipe import Recipe
from .regularizers import Regularizer
from .seeds import isolate_rng
from .setup import Setup
from .state import Trained, TrainState
from .variances import watch

READ, UPDATE, MEASURE, BUILD = range(4)
"""Purposes of random numbers, as a part of the key of their seed."""
LAST, BEST = "last.safetensors", "best.safetensors"
PLAIN_COLUMNS = ("epoch", "update", "lr", "train_loss")
"""Columns of a row beside the metrics."""
LOWER_IS_BETTER = ("loss", "perplexity")
"""Metrics of which the best epoch has the lowest."""


class Task(NamedTuple):
    """What a stage trains, and how."""

    start: Trained
    """Model, state of the optimizer and masks to start from."""
    setup: Setup
    recipe: Recipe
    regularizer: Regularizer
    folder: Path | None
    """For checkpoints, metrics and logs."""
    name: str

    def settings(self, processes: int) -> dict[str, Any]:
        """Return the settings that must be equal where a training resumes, as JSON."""
        loss = self.setup.loss
        return {
            **self.recipe.model_dump(),
            "stage": self.name,
            "distill": list(loss[1:]) if isinstance(loss, Distill) else None,
            "regularizer": self.regularizer.name,
            "processes": processes,
        }


class Stage:
    """A training in progress; it resumes from the last checkpoint in the folder, if there is one."""

    def __init__(self, task: Task) -> None:
        recipe, setup, start = task.recipe, task.setup, task.start
        self.task, self.recipe, self.setup = task, recipe, setup
        self.loss = _batch_loss(setup, recipe)
        self.accelerator = at = make_accelerator(recipe.precision, setup.device)
        self.module = deepcopy(start.model).train().to(at.device)
        if recipe.sync_batch_norm and at.num_processes > 1:
            self.module = nn.SyncBatchNorm.convert_sync_batchnorm(self.module)
        self.loss = _copy_teacher(self.loss, at.device)
        self.parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self.named = dict(self.module.named_parameters(remove_duplicate=False))
        self.watched = watch(self.module, task.regularizer.sites)
        self.optimizer = _make_optimizer(self.module, recipe)
        for name, stored in start.optimizer.items():
            if name in self.parameters:
                self.optimizer.state[self.parameters[name]] = to_device(dict(stored), at.device)
        self.feed = _make_feed(setup, recipe, at)
        self.steps = math.ceil(len(self.feed) / recipe.accumulate)
        self.scheduler = _make_scheduler(self.optimizer, recipe, self.steps)
        self.settings = task.settings(at.num_processes)
        self.masks = start.masks
        self.held: Mapping[str, Tensor] = {}
        self.ema: ModelEmaV3 | None = None
        self.epoch = self.step = self.update = 0
        self.epoch_loss = torch.zeros(2, dtype=torch.float64, device=at.device)
        self.rows: list[dict[str, Any]] = []
        self.best_weights: Mapping[str, Tensor] | None = None
        self._resume()
        self._hold(renew=self.step == 0)  # within an epoch, the checkpoint has its masks
        if recipe.ema is not None and self.ema is None:
            self.ema = ModelEmaV3(self.module, decay=recipe.ema)
        self.model, self.prepared = at.prepare(self.module, self.optimizer)
        self.log = Log(task.folder, task.name, progress=setup.progress, active=at.is_main_process, update=self.update)

    # ---- an epoch

    def train_epoch(self) -> None:
        """Train for an epoch, or for the rest of one, and measure."""
        recipe = self.recipe
        if self.step == 0:
            self._hold(renew=True)
        self.model.train()
        self.log.start_epoch(self.epoch + 1, recipe.epochs, self.steps, self.step)
        with isolate_rng(recipe.seed, self.epoch, READ):
            self.feed.begin(recipe.seed, self.epoch)
            for step, parts in enumerate(group_parts(self.feed, recipe.accumulate)):
                if step < self.step:
                    continue  # an earlier process trained on it
                self._train_update(parts)
                every = recipe.save_every
                if every and self.step % every == 0 and self.step < self.steps:
                    self._save()
        self._finish_epoch()

    def _train_update(self, parts: list[Part]) -> None:
        """Make one step of the optimizer with the mean gradient of some parts."""
        recipe, at = self.recipe, self.accelerator
        self.scheduler.step_update(self.update)
        total = sum(p.total for p in parts)
        mine = torch.zeros((), device=at.device, dtype=torch.float64)
        with isolate_rng(recipe.seed, self.epoch, UPDATE, self.step, at.process_index):
            for part in parts[:-1]:
                with at.no_sync(self.model):
                    mine += self._backward(part, total, last=False)
            mine += self._backward(parts[-1], total, last=True)
        norm = at.clip_grad_norm_(self.parameters.values(), recipe.grad_clip) if recipe.grad_clip is not None else None
        self.prepared.step()
        self.prepared.zero_grad()
        self._hold()
        if self.ema is not None:
            self.ema.update(self.module)
        self.step += 1
        self.update += 1
        self.epoch_loss += torch.stack([mine * total, torch.full_like(mine, total)])
        if self.log.shows_step(self.step):
            values = {"loss": float(mine) * total / max(1, sum(p.samples for p in parts))}
            values["lr"] = self.optimizer.param_groups[0]["lr"]
            self.log.show_step(self.step, self.update, values if norm is None else {**values, "gradient": float(norm)})
        self.log.tick()

    def _backward(self, part: Part, total: int, *, last: bool) -> Tensor:
        """Add the gradients of this process's part of the update's mean loss; return that part, float64."""
        at, penalty = self.accelerator, self.task.regularizer.penalty
        batch = to_device(part.batch, at.device)
        self.watched.clear()
        with at.autocast():
            loss = self.loss(self.model, batch) * (part.samples / total)
        whole = loss * at.num_processes  # gradients are averaged over processes
        if last and penalty is not None:
            whole = whole + penalty(self.named, dict(self.watched))
        at.backward(whole)
        return loss.detach().double()

    def _hold(self, *, renew: bool = False) -> None:
        """Set removed weights to zero; at the start of an epoch, ask the regularizer for its new masks first."""
        if renew:
            masks = self.task.regularizer.masks
            new = masks(self.epoch, self.named) if masks else {}
            both = {n: new[n] & self.masks[n].to(new[n].device) for n in new if n in self.masks}
            self.held = {n: m.to(self.accelerator.device) for n, m in {**self.masks, **new, **both}.items()}
            if self.ema is not None:
                hold_zero(dict(self.ema.module.named_parameters()), self.optimizer, self.held)
        hold_zero(self.parameters, self.optimizer, self.held)

    # ---- after an epoch

    @property
    def measured_module(self) -> nn.Module:
        """The module with averaged weights, if the recipe averages them; else the trained one."""
        return self.module if self.ema is None else self.ema.module

    def _finish_epoch(self) -> None:
        """Measure, add the row, keep the best weights, and write."""
        total = self.accelerator.reduce(self.epoch_loss.clone(), "sum")
        assert isinstance(total, Tensor)
        loss = float(total[0] / total[1] * self.accelerator.num_processes)
        self.epoch, self.step = self.epoch + 1, 0
        self.epoch_loss = torch.zeros_like(self.epoch_loss)
        if not math.isfinite(loss):
            raise PruneError(
                f"the training loss of epoch {self.epoch} is {loss}; lower lr ({self.recipe.lr}), or set grad_clip "
                f"({self.recipe.grad_clip}) lower"
            )
        values = (self.epoch, self.update, self.optimizer.param_groups[0]["lr"], loss)
        row: dict[str, Any] = dict(zip(PLAIN_COLUMNS, values, strict=True))
        if self.setup.held_out is not None:
            with isolate_rng(self.recipe.seed, self.epoch, MEASURE):
                row |= measure(self.measured_module, self.setup, self.accelerator, 4 * self.recipe.batch_size)
        self.rows.append(row)
        if self.best == self.epoch:
            self.best_weights = {n: t.detach().cpu().clone() for n, t in self.measured_module.state_dict().items()}
        self._save()
        self.log.show_rows(self.rows)

    @property
    def best(self) -> int | None:
        """First epoch with the best metric; None where nothing is measured."""
        if self.setup.held_out is None or not self.rows:
            return None
        return max(self.rows, key=self._quality)["epoch"]

    def _quality(self, row: Mapping[str, Any]) -> float:
        """Return the metric that chooses the best epoch, so that more is better."""
        name = self.setup.better or ("top1" if "top1" in row else "loss")
        if name not in row:
            metrics = ", ".join(k for k in row if k not in PLAIN_COLUMNS)
            raise PruneError(f"better={name!r} is none of the metrics: {metrics}; write one of them")
        return -row[name] if name in LOWER_IS_BETTER else row[name]

    def is_stale(self) -> bool:
        """Return whether to stop early: `patience` epochs brought no better one."""
        patience, best = self.recipe.patience, self.best
        return patience is not None and best is not None and self.epoch - best >= patience

    def result(self, keep: str) -> Trained:
        """Return what was trained, in a copy of the model of the task.

        Args:
            keep: "best" or "last", as for `train`.
        """
        best = self.best if keep == "best" else None
        weights = self.best_weights if best is not None else self.measured_module.state_dict()
        out = deepcopy(self.task.start.model).eval()
        out.load_state_dict(dict(weights or {}))
        moments = {n: self.optimizer.state[p] for n, p in self.parameters.items() if p in self.optimizer.state}
        return Trained(
            out,
            list(self.rows),
            best,
            {n: to_device(dict(stored), "cpu") for n, stored in moments.items()},
            {n: m.cpu() for n, m in self.held.items()},
        )

    # ---- checkpoints

    def _state(self) -> TrainState:
        """Return the state between two updates; its tensors are shared."""
        scaler = self.accelerator.scaler
        return TrainState(
            weights=self.module.state_dict(),
            optimizer=self.optimizer.state_dict(),
            ema=None if self.ema is None else self.ema.module.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            held=dict(self.held),
            epoch=self.epoch,
            step=self.step,
            update=self.update,
            loss=self.epoch_loss,
            rows=self.rows,
        )

    def _save(self) -> None:
        """Write the checkpoints that are due, in the process that writes."""
        folder = self.task.folder
        if folder is None or not self.accelerator.is_main_process:
            return
        if self.best is not None and self.best == self.epoch and self.step == 0:
            save_checkpoint(folder / BEST, {"epoch": self.epoch, "weights": self.best_weights})
        every = self.recipe.keep_every
        if every and self.step == 0 and self.epoch % every == 0:
            kept = {"epoch": self.epoch, "weights": self.measured_module.state_dict()}
            save_checkpoint(folder / f"epoch_{self.epoch:03d}.safetensors", kept)
        save_state(folder / LAST, self._state(), self.settings)

    def _resume(self) -> None:
        """Restore the state of the last checkpoint, if there is one."""
        folder = self.task.folder
        if folder is None or not (folder / LAST).exists():
            return
        state = load_state(folder / LAST, self.settings)
        load_weights(self.module, state.weights, folder / LAST)
        self.optimizer.load_state_dict(dict(state.optimizer))
        if state.ema is not None:
            self.ema = ModelEmaV3(self.module, decay=self.recipe.ema or 0.0)
            self.ema.module.load_state_dict(dict(state.ema))
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(state.scaler))
        self.held = to_device(state.held, self.accelerator.device)
        self.epoch, self.step, self.update = state.epoch, state.step, state.update
        self.epoch_loss, self.rows = state.loss.to(self.epoch_loss.device), state.rows
        if self.best is not None:
            self.best_weights = load_checkpoint(folder / BEST)["weights"]


# ---- parts of a stage


def _batch_loss(setup: Setup, recipe: Recipe) -> BatchLoss:
    """Return the loss of a batch."""
    return BatchLoss(recipe, setup.loss, setup.inputs, setup.count_classes() if is_soft(recipe) else 0).check()


def _copy_teacher(loss: BatchLoss, device: torch.device) -> BatchLoss:
    """Return the loss with a copy of its teacher, in eval mode on the device."""
    if not isinstance(loss.loss, Distill):
        return loss
    teacher = deepcopy(loss.loss.teacher).eval().requires_grad_(False).to(device)
    return loss._replace(loss=loss.loss._replace(teacher=teacher))


def _make_feed(setup: Setup, recipe: Recipe, at: Accelerator) -> Feed:
    """Return the training data of this process."""
    return Feed(
        setup.data,
        batch=recipe.batch_size,
        shuffle=True,
        drop_last=recipe.drop_last,
        rank=at.process_index,
        world=at.num_processes,
        workers=recipe.workers,
    )


def _make_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return timm's optimizer of the recipe, without weight decay on biases and norms."""
    return create_optimizer_v2(
        module, recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )


def _make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Scheduler:
    """Return timm's learning rate scheduler of the recipe, counted in updates, `steps` of them an epoch."""
    warmup: dict[str, Any] = {
        "warmup_t": round(min(recipe.warmup, recipe.epochs / 2) * steps),  # also where only epochs was lowered
        "warmup_lr_init": 0.01 * recipe.lr,
        "t_in_epochs": False,
    }
    if recipe.schedule == "multistep":
        decay_at = [m * steps + 1 for m in recipe.milestones]  # timm compares with the next update
        options: dict[str, Any] = {"warmup_prefix": False, **warmup}
        return MultiStepLRScheduler(optimizer, decay_t=decay_at, decay_rate=recipe.gamma, **options)
    total = max(1, recipe.epochs * steps)
    return CosineLRScheduler(optimizer, t_initial=total, lr_min=recipe.min_lr, **warmup)
