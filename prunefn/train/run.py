"""A run of several phases: its parameters, masks and rows, and its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import nn

from ..checkpoints.checkpoint import save
from ..costs.analytic import cost
from ..costs.summary import summarize
from ..errors import PruneError
from ..modules.convert import to_module
from ..parameters.transforms import apply, compose, expand, shrink
from ..parameters.transforms import params as params_of
from ..pipelines import Prune
from ..report.page import page, versions
from ..spec.spec import Spec
from ..types import Batch, Mask, Params, Pruned
from .checkpoint import load_checkpoint, save_checkpoint, write_json, write_lines
from .feed import Source
from .loop import train
from .measure import accelerator_of, evaluate
from .objective import Distill, Loss, Metrics, top1
from .optimizer import slice_state, weight_masks
from .picture import pictures
from .recipe import Recipe
from .regularizers import Regularizer
from .stage import State

PRUNED = "pruned.safetensors"
"""In the folder of a round: the parameters, the mask of this round and that of all so far, scores and residuals."""
Attempt = Callable[[Prune], Pruned]
Wanted = Callable[[Spec, Spec, Mask, Attempt], tuple[Pruned, bool]]
"""(dense spec, spec now, mask so far, how to try a pipeline) → (what the step gives, whether it is the last one)"""


class Shared(NamedTuple):
    """What all stages share."""

    data: Source
    held_out: Source
    loss: Loss | None = None
    metrics: Metrics = top1
    better: str | None = None
    inputs: int = 1
    classes: int | None = None
    device: str | None = None
    progress: bool = False


class Result(NamedTuple):
    """What a run gives."""

    model: nn.Module
    """The original class at the new sizes, in eval mode."""
    params: Params
    spec: Spec
    """Of the pruned network."""
    mask: Mask
    """Over the dense network's groups."""
    rows: list[dict[str, Any]]
    """What was measured: a row for the dense network, each epoch, each pruning."""
    summary: dict[str, int | float]
    """macs, params, and the dense network's; the metrics, and the dense network's; macs_removed, a share."""


class Run:
    """Where a run is: parameters, what is removed, what was measured."""

    def __init__(
        self, dense: nn.Module, spec: Spec, shared: Shared, folder: Path | None, asked: Mapping[str, Any]
    ) -> None:
        self.dense, self.spec0, self.shared, self.folder, self.asked = dense, spec, shared, folder, asked
        self.params: Params = params_of(dense)
        self.now = spec
        """The spec of what is left; under a mask, of what would be."""
        self.mask: Mask = {}
        self.masked = False
        self.state: State = {}
        self.optimizer = ""
        """Whose state it is; one of another kind starts anew."""
        self.rows: list[dict[str, Any]] = []
        self.at = accelerator_of(device=shared.device)

    @property
    def module(self) -> nn.Module:
        """A network with the parameters as they are."""
        return to_module(self.params, spec=self.spec0 if self.masked else self.now, model=self.dense)

    def begin(self) -> None:
        """Write what is asked, or check that it was; measure the dense network."""
        if self.folder is not None:
            path = self.folder / "config.json"
            if self._there(path):
                before = json.loads(path.read_text(encoding="utf-8"))
                for key, value in json.loads(json.dumps(self.asked)).items():
                    if before.get(key) != value:
                        raise PruneError(
                            f"{path} belongs to a run with {key}={before.get(key)!r}, now it is {value!r}; use another folder"
                        )
            elif self.at.is_main_process:
                write_json(self.folder / "spec.json", self.spec0.to_dict())
                write_json(path, {**self.asked, "versions": versions()})
        self._note("dense", self.dense, self.spec0)

    def train(
        self,
        name: str,
        recipe: Recipe,
        *,
        regularizer: Regularizer | None = None,
        distill: tuple[float, float] | None = None,
        carry: bool = True,
        keep: str = "last",
    ) -> None:
        """A stage of training."""
        s = self.shared
        state = self.state if carry and recipe.optimizer == self.optimizer else None
        self.optimizer = recipe.optimizer
        done = train(
            self.module,
            s.data,
            recipe,
            held_out=s.held_out,
            loss=s.loss,
            distill=None if distill is None else Distill(self.dense, *distill),
            metrics=s.metrics,
            better=s.better,
            regularizer=regularizer,
            masks=weight_masks(self.mask, spec=self.spec0) if self.masked else None,
            state=state,
            inputs=s.inputs,
            classes=s.classes,
            keep=keep,
            folder=None if self.folder is None else self.folder / name,
            name=name,
            device=s.device,
            progress=s.progress,
        )
        self.params, self.state = params_of(done.model), done.state
        self.rows += [{"phase": name, **r} for r in done.rows]
        if done.best is not None and keep == "best":
            self.rows.append({"phase": f"{name}, best", **done.metrics})
        self._write()

    def prune_step(
        self,
        number: int,
        wanted: Wanted,
        calibration: Sequence[Batch],
        masked: bool,
        whole: bool,
    ) -> bool:
        """Prune once; whether that was the last time."""
        small = apply(self.params, self.mask, spec=self.spec0) if self.masked else self.params
        path = None if self.folder is None else self.folder / f"round_{number}" / PRUNED
        if path is not None and self._there(path):
            state = load_checkpoint(path)
            params, mask, last = state["params"], state["mask"], state["last"]
        else:
            batches = calibration if whole else calibration[self.at.process_index :: self.at.num_processes]
            sync = not whole and self.at.num_processes > 1
            device = self.at.device
            here = {n: t.to(device) for n, t in small.items()}

            def attempt(make: Prune) -> Pruned:
                return make(here, batches, spec=self.now, progress=self.shared.progress, sync=sync)

            pruned, last = wanted(self.spec0, self.now, self.mask, attempt)
            params = {n: t.to(small[n].device if n in small else "cpu") for n, t in pruned.params.items()}
            mask = {g: m.cpu() for g, m in pruned.mask.items()}
            self._agree(number, mask)
            if path is not None and self.at.is_main_process:
                whole_mask, info = compose(self.mask, mask), pruned.info
                state = {"asked": {}, "params": params, "mask": mask, "whole_mask": whole_mask, "last": last}
                state["scores"] = {g: s.cpu() for g, s in info.scores.items()}
                state["residuals"] = {site: tuple(r) for site, r in info.residuals.items()}
                save_checkpoint(path, state)
        if not masked:
            self.state = slice_state(self.state, mask, spec=self.now)
        self.mask, self.now = compose(self.mask, mask), shrink(self.now, mask)
        self.masked, self.params = masked, params
        if masked:
            self.params = expand(params, self.mask, spec=self.spec0)
        self._note(f"prune {number}", self.module, self.now, round=number)
        return last

    def remove(self) -> None:
        """From zeros to smaller tensors."""
        self.params = apply(self.params, self.mask, spec=self.spec0)
        self.masked, self.state = False, {}
        self._note("removed", self.module, self.now)

    def end(self) -> Result:
        """Write what came out."""
        model = self.module.eval()
        metrics = {k: v for k, v in self.rows[-1].items() if k in self.rows[0] and isinstance(v, float)}
        summary = summarize(cost(self.spec0), cost(self.now), metrics, self.rows[0])
        if self.folder is not None and self.at.is_main_process:
            save(model, self.folder / "final.safetensors")
            save_checkpoint(self.folder / "mask.safetensors", {"mask": self.mask})
            write_json(self.folder / "summary.json", summary)
            pictures(self.rows, self.spec0, self.mask, self.folder, params_of(self.dense))
            page(self.folder)
        self.at.wait_for_everyone()
        return Result(model, params_of(model), self.now, self.mask, self.rows, summary)

    # ---- what all stages do

    def _note(self, phase: str, model: nn.Module, spec: Spec, **more: Any) -> None:
        """Measure a network and add the row."""
        s = self.shared
        found = evaluate(model, s.held_out, metrics=s.metrics, inputs=s.inputs, accelerator=self.at)
        c = cost(spec)
        self.rows.append({"phase": phase, **more, "macs": c.macs, "params": c.params, **found})
        self._write()
        if s.progress and self.at.is_main_process:
            values = ", ".join(f"{k} {v:.4g}" for k, v in found.items())
            print(f"{phase}: {c.macs / 1e6:.4g} M MACs, {c.params / 1e6:.4g} M params, {values}", flush=True)

    def _write(self) -> None:
        if self.folder is not None and self.at.is_main_process:
            write_lines(self.folder / "metrics.jsonl", self.rows)

    def _there(self, path: Path) -> bool:
        """Whether a file was there when the first process looked: the others may be later."""
        there = [path.exists()]
        if self.at.num_processes > 1:
            dist.broadcast_object_list(there, src=0)
        return there[0]

    def _agree(self, number: int, mask: Mask) -> None:
        """All processes have the same mask.

        Raises:
            PruneError: on all of them, if not.
        """
        if self.at.num_processes == 1:
            return
        mine = sha256(b"".join(g.encode() + m.numpy().tobytes() for g, m in sorted(mask.items()))).hexdigest()
        all_of_them: list[Any] = [None] * self.at.num_processes
        dist.all_gather_object(all_of_them, mine)
        if len(set(all_of_them)) > 1:
            raise PruneError(
                f"round {number}: the processes chose different units; are their devices and data the same?"
            )
