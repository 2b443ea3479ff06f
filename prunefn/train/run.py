"""A run of several phases: what its phases do, and its folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from ..checkpoints.checkpoint import save
from ..costs.analytic import cost
from ..costs.summary import summarize
from ..display.progress import write_line
from ..display.units import quantity
from ..errors import PruneError
from ..modules.convert import to_module
from ..parameters.transforms import apply, compose, expand, shrink
from ..parameters.transforms import params as params_of
from ..plans import Prune
from ..report.page import page, versions
from ..spec.spec import Spec
from ..types import Batch, Mask, Params, Pruned
from .checkpoint import SETTINGS, load_checkpoint, save_checkpoint, write_json, write_lines
from .loop import train
from .measure import measure
from .objective import Distill
from .optimizer import slice_state, weight_masks
from .phases import Phases
from .picture import pictures
from .recipe import Recipe
from .regularizers import Regularizer
from .setup import Setup
from .state import Trained

PRUNED = "pruned.safetensors"
"""File in the folder of a round: parameters, mask of this round and of all rounds so far, scores, residuals."""


class Result(NamedTuple):
    """Result of pruning-aware training."""

    model: nn.Module
    """The original class at the new sizes, in eval mode."""
    params: Params
    spec: Spec
    """Of the pruned network."""
    mask: Mask
    """Over the dense network's groups."""
    rows: list[dict[str, Any]]
    """A row of metrics for the dense network, each epoch and each pruning."""
    summary: dict[str, int | float]
    """macs, params and metrics, of the pruned and of the dense network; macs_removed, a fraction."""


class RunState(NamedTuple):
    """State of a run between two phases."""

    params: Params
    spec: Spec
    """Of the remaining units; `params` fit it, unless they are masked."""
    mask: Mask
    """Over the dense network's groups."""
    masked: bool = False
    """Whether `params` have the dense shapes, with zeros for removed units."""
    optimizer: Mapping[str, Mapping[str, Any]] = {}
    """Parameter → what the optimizer stores for it."""
    optimizer_name: str = ""
    """The optimizer whose state it is."""
    rows: tuple[dict[str, Any], ...] = ()
    done: bool = False
    """Whether the last round of pruning is done."""


class Run(NamedTuple):
    """What all phases of a run share; each phase is a method from state to state."""

    dense: nn.Module
    spec: Spec
    """Of the dense network."""
    setup: Setup
    phases: Phases
    calibration: Sequence[Batch]
    folder: Path | None
    accelerator: Accelerator
    bar: tqdm
    """Over the epochs of all phases."""

    def start(self) -> RunState:
        """Write the settings, or compare them with those of the folder; measure the dense network.

        Raises:
            PruneError: the folder belongs to a run with other settings.
        """
        if self.folder is not None:
            path, settings = self.folder / "config.json", self.phases.settings()
            if self._exists(path):
                before = json.loads(path.read_text(encoding="utf-8"))
                for key, value in json.loads(json.dumps(settings)).items():
                    if before.get(key) != value:
                        raise PruneError(
                            f"{path} belongs to a run with {key}={before.get(key)!r}, now it is {value!r}; use another folder"
                        )
            elif self.accelerator.is_main_process:
                write_json(self.folder / "spec.json", self.spec.to_dict())
                write_json(path, {**settings, "versions": versions()})
        advice = self.phases.advice()
        if advice is not None and self.setup.progress and self.accelerator.is_main_process:
            write_line(advice, sys.stdout)
        return self._measure(RunState(params_of(self.dense), self.spec, {}), "dense", self.dense)

    def train_sparse(self, state: RunState) -> RunState:
        """Train with the regularizer of the sparse phase, if there is one."""
        regularizer = self.phases.make_regularizer(self.spec)
        if self.phases.sparse is None or regularizer is None:
            return state
        return self._train(state, "sparse", self.phases.sparse[1], regularizer=regularizer)

    def train_between(self, state: RunState, number: int) -> RunState:
        """Train after a round of pruning."""
        return self._train(state, f"round_{number}", self.phases.between, carry=self.phases.carry)

    def fine_tune(self, state: RunState) -> RunState:
        """Train after the last round, and keep the best epoch."""
        return self._train(state, "tuning", self.phases.tuning, carry=False, keep="best")

    def prune(self, state: RunState, number: int) -> RunState:
        """Collect statistics, remove units, and measure; a round whose file is in the folder is read instead."""
        dense_shapes = self.phases.masked
        small = apply(state.params, state.mask, spec=self.spec) if state.masked else state.params
        path = None if self.folder is None else self.folder / f"round_{number}" / PRUNED
        if path is not None and self._exists(path):
            stored = load_checkpoint(path)
            params, mask, last = stored["params"], stored["mask"], stored["last"]
        else:
            pruned, last = self.phases.prune_round(
                number, self.spec, state.spec, state.mask, self._pruner(small, state)
            )
            params = {n: t.to(small[n].device if n in small else "cpu") for n, t in pruned.params.items()}
            mask = {g: m.cpu() for g, m in pruned.mask.items()}
            self._agree(number, mask)
            if path is not None and self.accelerator.is_main_process:
                info: dict[str, Any] = {
                    "scores": {g: s.cpu() for g, s in pruned.info.scores.items()},
                    "residuals": {site: tuple(r) for site, r in pruned.info.residuals.items()},
                }
                whole = compose(state.mask, mask)
                head = {SETTINGS: {}, "params": params, "mask": mask, "whole_mask": whole, "last": last}
                save_checkpoint(path, {**head, **info})
        if not dense_shapes:
            state = state._replace(optimizer=slice_state(state.optimizer, mask, spec=state.spec))
        whole = compose(state.mask, mask)
        if dense_shapes:
            params = expand(params, whole, spec=self.spec)
        state = state._replace(
            params=params, spec=shrink(state.spec, mask), mask=whole, masked=dense_shapes, done=bool(last)
        )
        return self._measure(state, f"prune {number}", self._module(state), round=number)

    def remove_masked(self, state: RunState) -> RunState:
        """Replace masked units by smaller tensors, where the phases mask, and measure."""
        if not self.phases.masked:
            return state
        params = apply(state.params, state.mask, spec=self.spec)
        state = state._replace(params=params, masked=False, optimizer={})
        return self._measure(state, "removed", self._module(state))

    def finish(self, state: RunState) -> Result:
        """Write the pruned network, its summary, pictures and report."""
        model, rows, dense = self._module(state).eval(), state.rows, state.rows[0]
        metrics = {k: v for k, v in rows[-1].items() if k in dense and isinstance(v, float)}
        summary = summarize(cost(self.spec), cost(state.spec), metrics, {k: dense[k] for k in metrics})
        if self.folder is not None and self.accelerator.is_main_process:
            save(model, self.folder / "final.safetensors")
            save_checkpoint(self.folder / "mask.safetensors", {"mask": state.mask})
            write_json(self.folder / "summary.json", summary)
            pictures(rows, self.spec, state.mask, self.folder, params_of(self.dense))
            page(self.folder)
        self.accelerator.wait_for_everyone()
        return Result(model, params_of(model), state.spec, state.mask, list(rows), summary)

    # ---- what the phases share

    def _module(self, state: RunState) -> nn.Module:
        """Return a network with the state's parameters."""
        return to_module(state.params, spec=self.spec if state.masked else state.spec, model=self.dense)

    def _train(
        self,
        state: RunState,
        name: str,
        recipe: Recipe | None,
        *,
        regularizer: Regularizer | None = None,
        carry: bool = True,
        keep: str = "last",
    ) -> RunState:
        """Train by a recipe, with the teacher after the sparse phase; without a recipe, return the state itself."""
        if recipe is None:
            return state
        setup, distill = self.setup, self.phases.distill
        if distill is not None and name != "sparse":
            setup = setup._replace(loss=Distill(self.dense, *distill))
        carried = state.optimizer if carry and recipe.optimizer == state.optimizer_name else {}
        held = weight_masks(state.mask, spec=self.spec) if state.masked else {}
        done = train(
            Trained(self._module(state), optimizer=carried, masks=held),
            setup,
            recipe,
            regularizer=regularizer,
            keep=keep,
            folder=None if self.folder is None else self.folder / name,
            name=name,
        )
        self.bar.update(recipe.epochs)
        rows = [{"phase": name, **r} for r in done.rows]
        if done.best is not None and keep == "best":
            rows.append({"phase": f"{name}, best", **done.metrics})
        state = state._replace(params=params_of(done.model), optimizer=done.optimizer, optimizer_name=recipe.optimizer)
        return self._add_rows(state, rows)

    def _pruner(self, params: Params, state: RunState) -> Callable[[Prune], Pruned]:
        """Return a function that runs a pipeline on this process's calibration batches."""
        at, whole = self.accelerator, self.phases.whole
        batches = self.calibration if whole else self.calibration[at.process_index :: at.num_processes]
        sync = not whole and at.num_processes > 1
        here = {n: t.to(at.device) for n, t in params.items()}

        def run(prune: Prune) -> Pruned:
            return prune(here, batches, spec=state.spec, progress=self.setup.progress, sync=sync)

        return run

    def _measure(self, state: RunState, phase: str, model: nn.Module, **more: Any) -> RunState:
        """Add a row with costs and metrics."""
        metrics = measure(model, self.setup, self.accelerator)
        c = cost(state.spec)
        if self.setup.progress and self.accelerator.is_main_process:
            values = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
            write_line(f"{phase}: {quantity(c.macs, 'MACs')}, {quantity(c.params, 'params')}, {values}", sys.stdout)
        return self._add_rows(state, [{"phase": phase, **more, "macs": c.macs, "params": c.params, **metrics}])

    def _add_rows(self, state: RunState, rows: Sequence[dict[str, Any]]) -> RunState:
        """Add rows, and write all rows."""
        state = state._replace(rows=(*state.rows, *rows))
        if self.folder is not None and self.accelerator.is_main_process:
            write_lines(self.folder / "metrics.jsonl", list(state.rows))
        return state

    def _exists(self, path: Path) -> bool:
        """Return whether the first process sees a file: later processes could see one that it has just written."""
        exists = [path.exists()]
        if self.accelerator.num_processes > 1:
            dist.broadcast_object_list(exists, src=0)
        return exists[0]

    def _agree(self, number: int, mask: Mask) -> None:
        """Check that all processes have the same mask.

        Raises:
            PruneError: in all processes, if they have not.
        """
        if self.accelerator.num_processes == 1:
            return
        digest = sha256(b"".join(g.encode() + m.numpy().tobytes() for g, m in sorted(mask.items()))).hexdigest()
        digests: list[Any] = [None] * self.accelerator.num_processes
        dist.all_gather_object(digests, digest)
        if len(set(digests)) > 1:
            raise PruneError(
                f"round {number}: the processes chose different units; give all of them the same data and kind of device"
            )
