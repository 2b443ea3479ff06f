"""Pruning-aware training: sparse training, rounds of pruning and training, fine-tuning; each of them optional.

    sparse training → N × (statistics, prune, measure, train) → fine-tuning

One-shot pruning is a schedule of one step without training between. The spec is traced once and only shrunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from ..budget import macs
from ..errors import PruneError
from ..io.checkpoint import save
from ..io.module import to_module
from ..params import apply, compose, expand, shrink
from ..params import params as params_of
from ..pipeline import Prune, cost
from ..trace.api import trace
from ..trace.spec import Spec
from ..types import Batch, Budget, Mask, Params
from .checkpoint import load_checkpoint, save_checkpoint, write_json, write_lines
from .feed import Source
from .loop import State, Trained, accelerator_of, evaluate, train
from .objective import Distill, Loss, Metrics, top1
from .optimizer import slice_state, weight_masks
from .picture import pictures
from .recipe import Recipe
from .schedule import Schedule, one_shot
from .sparsity import Sparsity

Make = Callable[[Any], Prune]
"""(ratio or budget) → pipeline, such as `recipes.vbp`."""
PRUNED = "pruned.pt"


class Tuning(NamedTuple):
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


def fine_tune(model: nn.Module, data: Source, recipe: Recipe | None = None, **options: Any) -> Trained:
    """Train what pruning left: `train` with the recipe of variance-based pruning by default, named "fine_tune".

    >>> import torch
    >>> x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    >>> data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    >>> model = nn.Linear(4, 2)
    >>> fine_tune(model, data, Recipe(epochs=2, batch=16), device="cpu").rows[-1]["update"]
    4
    """
    given: dict[str, Any] = {"name": "fine_tune"} | options
    return train(model, data, recipe or Recipe(), **given)


def sparse_train(
    model: nn.Module, data: Source, sparsity: Sparsity, recipe: Recipe | None = None, **options: Any
) -> Trained:
    """Train towards small units before they are pruned; by default, 5 epochs at 1e-4. The weights of the last epoch count.

    Args:
        model, data, recipe, options: as for `train`.
        sparsity: such as `sparsity.l1_group(spec)` or `sparsity.gradual(spec)`, for the spec of the model.
    """
    given: dict[str, Any] = {"name": "sparse", "keep": "last", "sparsity": sparsity} | options
    return train(model, data, recipe or Recipe(epochs=5, rate=1e-4), **given)


def pat(
    model: nn.Module,
    data: Source,
    *,
    held_out: Source,
    calibration: Sequence[Batch],
    prune: Make,
    schedule: Schedule | float = 0.5,
    spec: Spec | None = None,
    budget: Callable[[float], Budget] | None = None,
    sparse: tuple[Sparsity | Callable[[Spec], Sparsity], Recipe] | None = None,
    between: Recipe | None = None,
    tuning: Recipe | None = None,
    distill: tuple[float, float] | None = None,
    masked: bool = False,
    target: float | None = None,
    carry: bool = True,
    whole: bool = False,
    loss: Loss | None = None,
    metrics: Metrics = top1,
    better: str | None = None,
    inputs: int = 1,
    classes: int | None = None,
    folder: Path | str | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Result:
    """Prune and train in up to three phases; stopped at any moment, it goes on from its folder, to the same bits on a CPU.

    Under torchrun, all processes call it with the same arguments; they share batches and calibration, agree on every mask, and
    the first one writes.

    Args:
        model: the dense network; not changed.
        data, held_out, loss, metrics, better, inputs, classes, device, progress: as for `train`.
        calibration: batches for statistics, clean; measured afresh at every step.
        prune: makes a pipeline of what is left to remove, such as `recipes.vbp`.
        schedule: shares removed by each step, such as `schedule.geometric(0.35, 5)`; a number is one step.
        spec: of the model; None: traced with the first calibration batch.
        budget: what the schedule's share is a share of, such as `budget.macs`: 0.35 then leaves 65 % of the MACs. None: of the
            units that are scored.
        sparse: what to train towards before anything is pruned (a value, or a function of the spec), and how.
        between: how to train after each step; None: not at all.
        tuning: how to train at the end; None: not at all. The best epoch counts, which is one of the final architecture.
        distill: (alpha, temperature) to learn from the dense network, as it was before everything, in all training after the
            sparse phase; None: no teacher.
        masked: keep the dense shapes, with removed units held at zero, and remove them after the last step. Norms over a stream
            (LayerNorm) see the zeros until then.
        target: share of the MACs at which pruning stops, whatever the schedule still has; the last step removes only what is
            needed. With `schedule.linear(1.0, n)`, pruning goes as if everything were to go.
        carry: the optimizer goes on with what it remembers of the kept weights; False: it starts anew after each step.
        whole: every process measures all of the calibration batches, which a sequential pipeline needs.
        folder: for `config.json`, `metrics.jsonl`, `spec.json`, a mask and a checkpoint for each round, `final.safetensors`
            (for `load`), `summary.json` and plots.

    Raises:
        PruneError: the settings contradict each other, the folder is of another run, or processes disagree.
    """
    shared = Tuning(data, held_out, loss, metrics, better, inputs, classes, device, progress)
    steps = one_shot(schedule) if isinstance(schedule, int | float) else schedule
    if target is not None and not 0 < target < 1:
        raise PruneError(f"target is {target}; it is the share of the MACs that is left, and must be in (0, 1)")
    if steps.share(steps.steps) >= 1 and target is None:
        raise PruneError("the schedule removes everything; give target=, the share of the MACs at which to stop")
    first = calibration[0] if len(calibration) else None
    spec = spec or _traced(model, first, inputs)
    asked = _asked(prune, steps, budget, sparse, between, tuning, distill, masked, target, carry)
    run = _Run(deepcopy(model).eval(), spec, shared, Path(folder) if folder is not None else None, asked)
    run.begin()
    if sparse is not None:
        how = sparse[0] if isinstance(sparse[0], Sparsity) else sparse[0](spec)
        run.train("sparse", sparse[1], sparsity=how)
    for number in range(1, steps.steps + 1):
        done = run.prune_step(
            number, partial(_wanted, prune, steps, number, budget, target), calibration, masked, whole
        )
        if between is not None:
            run.train(f"round_{number}", between, distill=distill, carry=carry)
        if done:
            break
    if masked:
        run.remove()
    if tuning is not None:
        run.train("tuning", tuning, distill=distill, carry=False, keep="best")
    return run.end()


class _Run:
    """Where a run is: parameters, what is removed, what was measured."""

    def __init__(
        self, dense: nn.Module, spec: Spec, shared: Tuning, folder: Path | None, asked: Mapping[str, Any]
    ) -> None:
        self.dense, self.spec0, self.shared, self.folder, self.asked = dense, spec, shared, folder, asked
        self.params: Params = params_of(dense)
        self.now = spec
        """The spec of what is left; under a mask, of what would be."""
        self.mask: Mask = {}
        self.masked = False
        self.state: State = {}
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
                write_json(path, self.asked)
        self._note("dense", self.dense, self.spec0)

    def train(
        self,
        name: str,
        recipe: Recipe,
        *,
        sparsity: Sparsity | None = None,
        distill: tuple[float, float] | None = None,
        carry: bool = True,
        keep: str = "last",
    ) -> None:
        """A stage of training."""
        s = self.shared
        done = train(
            self.module,
            s.data,
            recipe,
            held_out=s.held_out,
            loss=s.loss,
            distill=None if distill is None else Distill(self.dense, *distill),
            metrics=s.metrics,
            better=s.better,
            sparsity=sparsity,
            masks=weight_masks(self.mask, spec=self.spec0) if self.masked else None,
            state=self.state if carry else None,
            inputs=s.inputs,
            classes=s.classes,
            keep=keep,
            folder=None if self.folder is None else self.folder / name,
            name=name,
            settings={"distill": None if distill is None else list(distill)},
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
        wanted: Callable[[Spec, Spec, Mask, Callable[[Any], Any]], tuple[Any, bool]],
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

            def attempt(make: Prune) -> Any:
                return make(here, batches, spec=self.now, progress=self.shared.progress, sync=sync)

            pruned, last = wanted(self.spec0, self.now, self.mask, attempt)
            params = {n: t.to(small[n].device if n in small else "cpu") for n, t in pruned.params.items()}
            mask = {g: m.cpu() for g, m in pruned.mask.items()}
            self._agree(number, mask)
            if path is not None and self.at.is_main_process:
                whole_mask = compose(self.mask, mask)
                save_checkpoint(
                    path, {"asked": {}, "params": params, "mask": mask, "whole_mask": whole_mask, "last": last}
                )
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
        now, dense = cost(self.now), cost(self.spec0)
        summary: dict[str, int | float] = {"macs": now.macs, "params": now.params, "macs_dense": dense.macs}
        summary |= {"params_dense": dense.params, "macs_removed": 1 - now.macs / dense.macs}
        for name, value in metrics.items():
            summary |= {name: value, f"{name}_dense": self.rows[0][name]}
        if self.folder is not None and self.at.is_main_process:
            save(model, self.folder / "final.safetensors")
            save_checkpoint(self.folder / "mask.pt", {"mask": self.mask})
            write_json(self.folder / "summary.json", summary)
            pictures(self.rows, self.spec0, self.mask, self.folder)
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


def _wanted(
    make: Make,
    steps: Schedule,
    number: int,
    budget: Callable[[float], Budget] | None,
    target: float | None,
    dense: Spec,
    now: Spec,
    mask: Mask,
    attempt: Callable[[Prune], Any],
) -> tuple[Any, bool]:
    """(what a step removes, whether it is the last one)"""
    share, last = min(steps(number), 0.999), number == steps.steps
    if budget is not None:
        quantity = budget(0.5).quantity
        keep = (1 - share) * getattr(cost(dense), quantity) / getattr(cost(now), quantity)
        pruned = attempt(make(budget(min(keep, 1.0))))
    else:
        before = sum(len(m) for m in mask.values())
        left = sum(int(m.sum()) for m in mask.values())
        pruned = attempt(make(max(0.0, 1 - (1 - share) * before / left) if left else share))
    if target is not None:
        floor = target * cost(dense).macs
        if (last and cost(pruned.spec).macs > floor) or cost(pruned.spec).macs < floor:
            return attempt(make(macs(floor / cost(now).macs))), True
    return pruned, last


def _traced(model: nn.Module, batch: Any, inputs: int) -> Spec:
    if isinstance(batch, Tensor):
        return trace(model, (batch,))
    if isinstance(batch, Mapping):
        return trace(model, (), dict(batch))
    if batch is None:
        raise PruneError("there is no calibration batch to trace the model with; give spec=pf.trace(model, args)")
    return trace(model, tuple(batch[:inputs]))


def _asked(
    prune: Make,
    steps: Schedule,
    budget: Callable[[float], Budget] | None,
    sparse: tuple[Any, Recipe] | None,
    between: Recipe | None,
    tuning: Recipe | None,
    distill: tuple[float, float] | None,
    masked: bool,
    target: float | None,
    carry: bool,
) -> dict[str, Any]:
    """What a run is asked to do, as JSON."""
    return {
        "prune": _name(prune),
        "schedule": {"name": steps.name, "shares": [round(steps(t), 6) for t in range(steps.steps + 1)]},
        "of": "units" if budget is None else budget(0.5).quantity,
        "sparse": None if sparse is None else {"sparsity": _name(sparse[0]), **sparse[1].model_dump()},
        "between": None if between is None else between.model_dump(),
        "tuning": None if tuning is None else tuning.model_dump(),
        "distill": None if distill is None else list(distill),
        "masked": masked,
        "target": target,
        "carry": carry,
    }


def _name(value: Any) -> str:
    """Of a function or a value, with the arguments it was given."""
    if isinstance(value, partial):
        given = [repr(a) for a in value.args] + [f"{k}={_name(v)}" for k, v in value.keywords.items()]
        return f"{_name(value.func)}({', '.join(given)})"
    return str(getattr(value, "name", None) or getattr(value, "__name__", None) or value)
