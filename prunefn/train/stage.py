"""A training that is under way: an epoch, an update, what is measured after it, and where it is on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from ..errors import PruneError
from .checkpoint import load_checkpoint, load_weights, save_checkpoint
from .feed import Feed, Part, Source, grouped
from .log import Log
from .measure import accelerator_of, evaluate, moved
from .objective import Metrics, Objective, top1
from .optimizer import hold_zero
from .regularizers import Regularizer
from .seeds import apart
from .variances import watch

WeightMasks = Mapping[str, Tensor]
"""Parameter → bool of its shape, True = kept."""
State = Mapping[str, Mapping[str, Any]]
"""Parameter → what the optimizer remembers of it."""
READ, UPDATE, MEASURE, BUILD = range(4)
"""What randomness is for."""
LAST, BEST = "last.safetensors", "best.safetensors"
NOTED = ("epoch", "update", "lr", "train_loss")
"""What a row says beside the metrics."""


class Trained(NamedTuple):
    """What training gives."""

    model: nn.Module
    """In eval mode, on the CPU or where the given one was; the given one is as it was."""
    rows: list[dict[str, Any]]
    """One an epoch: epoch, update, lr, train_loss, and the metrics."""
    best: int | None
    """The epoch whose weights these are; None: the last one."""
    state: State
    """Of the optimizer, after the last update."""
    masks: WeightMasks
    """Those that were held at the end."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The row of the epoch whose weights these are; empty if nothing was trained."""
        if not self.rows:
            return {}
        return self.rows[-1] if self.best is None else next(r for r in self.rows if r["epoch"] == self.best)


class Stage:
    """The state of a training."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        regularizer: Regularizer | None,
        masks: WeightMasks | None,
        state: State | None,
        device: str | None,
    ) -> None:
        self.recipe, self.objective = objective.recipe, objective
        self.regularizer, self.masks = regularizer or Regularizer("none"), masks or {}
        self.accelerator = at = accelerator_of(self.recipe.precision, device)
        self.module = deepcopy(model).train().to(at.device)
        if self.recipe.sync_batch_norm and at.num_processes > 1:
            self.module = nn.SyncBatchNorm.convert_sync_batchnorm(self.module)
        if objective.distill is not None:
            teacher = deepcopy(objective.distill.teacher).eval().requires_grad_(False).to(at.device)
            objective.distill = objective.distill._replace(teacher=teacher)
        self.parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self.named = dict(self.module.named_parameters(remove_duplicate=False))
        self.watched = watch(self.module, self.regularizer.sites)
        self.optimizer = create_optimizer_v2(
            self.module,
            self.recipe.optimizer,
            lr=self.recipe.lr,
            weight_decay=self.recipe.weight_decay,
            momentum=self.recipe.momentum,
        )
        for name, of in (state or {}).items():
            if name in self.parameters:
                self.optimizer.state[self.parameters[name]] = moved(dict(of), at.device)
        self.held: WeightMasks = {}
        self.classes = 0
        self.ema: ModelEmaV3 | None = None
        self.epoch = self.step = self.update = 0
        self.rows: list[dict[str, Any]] = []
        self.held_out: Source | None = None
        self.metrics: Metrics = top1
        self.better: str | None = None
        self.best_weights: dict[str, Tensor] | None = None

    def running(self, data: Source, folder: Path | None, name: str, asked: dict[str, Any], progress: bool) -> Log:
        """Everything in place, at the last checkpoint if there is one."""
        at = self.accelerator
        self.folder, self.asked = folder, asked
        self.feed = Feed(
            data,
            batch=self.recipe.batch_size,
            shuffle=True,
            drop_last=self.recipe.drop_last,
            rank=at.process_index,
            world=at.num_processes,
            workers=self.recipe.workers,
        )
        self.steps = math.ceil(len(self.feed) / self.recipe.accumulate)
        self.schedule = self._schedule()
        self._resume()
        self._hold(renew=self.step == 0)  # within an epoch, its masks are in the checkpoint
        if self.recipe.ema is not None and self.ema is None:
            self.ema = ModelEmaV3(self.module, decay=self.recipe.ema)
        self.model, self.prepared = at.prepare(self.module, self.optimizer)
        self.log = Log(folder, name, progress=progress, active=at.is_main_process, done=self.update)
        return self.log

    def _schedule(self) -> Scheduler:
        """Of the rate, update by update."""
        recipe, steps = self.recipe, self.steps
        warmup: dict[str, Any] = {
            "warmup_t": round(recipe.warmup * steps),
            "warmup_lr_init": 0.01 * recipe.lr,
            "t_in_epochs": False,
        }
        if recipe.schedule == "multistep":
            falls = [m * steps + 1 for m in recipe.milestones]  # timm compares with the next update
            options: dict[str, Any] = {"warmup_prefix": False, **warmup}
            return MultiStepLRScheduler(self.optimizer, decay_t=falls, decay_rate=recipe.gamma, **options)
        total = max(1, recipe.epochs * steps)
        return CosineLRScheduler(self.optimizer, t_initial=total, lr_min=recipe.min_lr, **warmup)

    # ---- an epoch

    def one_epoch(self) -> None:
        recipe = self.recipe
        if self.step == 0:
            self._hold(renew=True)
        self.model.train()
        self.log.epoch(self.epoch + 1, recipe.epochs, self.steps, self.step)
        with apart(recipe.seed, self.epoch, READ):
            self.feed.begin(recipe.seed, self.epoch)
            for step, parts in enumerate(grouped(self.feed, recipe.accumulate)):
                if step < self.step:
                    continue  # done before this process began
                self._update(parts)
                every = recipe.save_every
                if every and self.step % every == 0 and self.step < self.steps:
                    self._save()
        self._finish()

    def _update(self, parts: list[Part]) -> None:
        recipe, at = self.recipe, self.accelerator
        self.schedule.step_update(self.update)
        total = sum(p.total for p in parts)
        mine = torch.zeros((), device=at.device, dtype=torch.float64)
        with apart(recipe.seed, self.epoch, UPDATE, self.step, at.process_index):
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
        self.loss += torch.stack([mine * total, torch.full_like(mine, total)])
        if self.log.wanted(self.step):
            values = {"loss": float(mine) * total / max(1, sum(p.samples for p in parts))}
            values["lr"] = self.optimizer.param_groups[0]["lr"]
            self.log.step(self.step, self.update, values if norm is None else {**values, "gradient": float(norm)})
        self.log.tick()

    def _backward(self, part: Part, total: int, *, last: bool) -> Tensor:
        """Gradients of this process's share of the update's mean; the loss's share, float64."""
        at = self.accelerator
        batch = moved(part.batch, at.device)
        self.watched.clear()
        with at.autocast():
            loss = self.objective(self.model, batch, self.classes) * (part.samples / total)
        whole = loss * at.num_processes  # gradients are averaged over processes
        if last and self.regularizer.penalty is not None:
            whole = whole + self.regularizer.penalty(self.named, dict(self.watched))
        at.backward(whole)
        return loss.detach().double()

    def _hold(self, *, renew: bool = False) -> None:
        """Removed weights stay zero; masks that change do so at the beginning of an epoch."""
        if renew:
            new = self.regularizer.masks(self.epoch, self.named) if self.regularizer.masks else {}
            both = {n: new[n] & self.masks[n].to(new[n].device) for n in new if n in self.masks}
            self.held = {n: m.to(self.accelerator.device) for n, m in {**self.masks, **new, **both}.items()}
            if self.ema is not None:
                hold_zero(dict(self.ema.module.named_parameters()), self.optimizer, self.held)
        hold_zero(self.parameters, self.optimizer, self.held)

    # ---- after it

    @property
    def measured(self) -> nn.Module:
        """What is evaluated: the average of the weights, if there is one."""
        return self.module if self.ema is None else self.ema.module

    def _finish(self) -> None:
        """Measure, note, keep what is best, write."""
        total = self.accelerator.reduce(self.loss.clone(), "sum")
        assert isinstance(total, Tensor)
        loss = float(total[0] / total[1] * self.accelerator.num_processes)
        self.epoch, self.step = self.epoch + 1, 0
        self.loss = torch.zeros_like(self.loss)
        if not math.isfinite(loss):
            raise PruneError(
                f"the training loss of epoch {self.epoch} is {loss}; lower lr ({self.recipe.lr}), or clip the gradient"
            )
        row = {
            "epoch": self.epoch,
            "update": self.update,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss,
        }
        if self.held_out is not None:
            with apart(self.recipe.seed, self.epoch, MEASURE):
                row |= evaluate(
                    self.measured,
                    self.held_out,
                    metrics=self.metrics,
                    batch=4 * self.recipe.batch_size,
                    inputs=self.objective.inputs,
                    accelerator=self.accelerator,
                )
        self.rows.append(row)
        if self.best == self.epoch:
            self.best_weights = {n: t.detach().cpu().clone() for n, t in self.measured.state_dict().items()}
        self._save()
        self.log.row(self.rows)

    @property
    def best(self) -> int | None:
        """The first epoch with the best metric."""
        if self.held_out is None or not self.rows:
            return None
        return max(self.rows, key=self._quality)["epoch"]

    def _quality(self, row: Mapping[str, Any]) -> float:
        name = self.better or ("top1" if "top1" in row else "loss")
        if name not in row:
            raise PruneError(f"better={name!r} is none of the metrics: {', '.join(k for k in row if k not in NOTED)}")
        return -row[name] if name == "loss" else row[name]

    def stale(self) -> bool:
        """Whether it is time to stop early."""
        patience, best = self.recipe.patience, self.best
        return patience is not None and best is not None and self.epoch - best >= patience

    # ---- on disk

    def _save(self) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        if self.best is not None and self.best == self.epoch and self.step == 0:
            save_checkpoint(self.folder / BEST, {"epoch": self.epoch, "weights": self.best_weights})
        every = self.recipe.keep_every
        if every and self.step == 0 and self.epoch % every == 0:
            kept = {"epoch": self.epoch, "weights": self.measured.state_dict()}
            save_checkpoint(self.folder / f"epoch_{self.epoch:03d}.safetensors", kept)
        save_checkpoint(
            self.folder / LAST,
            {
                "asked": self.asked,
                "weights": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": None if self.ema is None else self.ema.module.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "held": dict(self.held),
                "epoch": self.epoch,
                "step": self.step,
                "update": self.update,
                "loss": self.loss,
                "rows": self.rows,
            },
        )

    def _resume(self) -> None:
        self.loss = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        if self.folder is None or not (self.folder / LAST).exists():
            return
        state = load_checkpoint(self.folder / LAST, self.asked)
        load_weights(self.module, state["weights"], self.folder / LAST)
        self.optimizer.load_state_dict(state["optimizer"])
        if state["ema"] is not None:
            self.ema = ModelEmaV3(self.module, decay=self.recipe.ema or 0.0)
            self.ema.module.load_state_dict(state["ema"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.held = moved(state["held"], self.accelerator.device)
        self.epoch, self.step, self.update = state["epoch"], state["step"], state["update"]
        self.loss, self.rows = state["loss"].to(self.loss.device), state["rows"]
        if self.best is not None:
            self.best_weights = load_checkpoint(self.folder / BEST)["weights"]

    def result(self, model: nn.Module, keep: str) -> Trained:
        """What was learnt, in a module like the given one."""
        best = self.best if keep == "best" else None
        weights = self.best_weights if best is not None else self.measured.state_dict()
        out = deepcopy(model).eval()
        out.load_state_dict(weights or {})
        state = {
            n: moved(dict(self.optimizer.state[p]), "cpu")
            for n, p in self.parameters.items()
            if p in self.optimizer.state
        }
        return Trained(out, list(self.rows), best, state, {n: m.cpu() for n, m in self.held.items()})
