"""Pruning-aware training: sparse training, rounds of pruning and training, fine-tuning; each of them optional.

    sparse training → N × (statistics, prune, measure, train) → fine-tuning

One-shot pruning is a schedule of one step without training between. The spec is traced once and only shrunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..costs.analytic import cost
from ..doors import door
from ..errors import PruneError
from ..pipelines import Prune
from ..selection.budget import macs
from ..spec.spec import Spec
from ..tracing.api import trace
from ..tracing.arguments import read_dict
from ..types import Batch, Budget, Mask, Pruned
from .feed import Source
from .loop import train
from .objective import Loss, Metrics, top1
from .recipe import Recipe
from .regularizers import Regularizer
from .run import Attempt, Result, Run, Shared
from .schedule import MOST_ROUNDS, Schedule, one_shot
from .stage import Trained

Make = Callable[[Any], Prune]
"""(ratio or budget) → pipeline, such as `recipes.vbp`."""


@door
def fine_tune(model: nn.Module, data: Source, recipe: Recipe | None = None, **options: Any) -> Trained:
    """Train what pruning left: `train` with the recipe of variance-based pruning by default, named "fine_tune".

    Args:
        model, data, options: as for `train`.
        recipe: default `Recipe()`.

    >>> import torch
    >>> x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    >>> data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    >>> model = nn.Linear(4, 2)
    >>> fine_tune(model, data, Recipe(epochs=2, batch_size=16), device="cpu").rows[-1]["update"]
    4
    """
    given: dict[str, Any] = {"name": "fine_tune"} | options
    return train(model, data, recipe or Recipe(), **given)


@door
def sparse_train(
    model: nn.Module, data: Source, regularizer: Regularizer, recipe: Recipe | None = None, **options: Any
) -> Trained:
    """Train towards small units before they are pruned; by default, 5 epochs at 1e-4. The weights of the last epoch count.

    Args:
        model, data, recipe, options: as for `train`.
        regularizer: such as `regularizers.l1_group(spec)` or `regularizers.gradual(spec)`, for the spec of the model.
    """
    given: dict[str, Any] = {"name": "sparse", "keep": "last", "regularizer": regularizer} | options
    return train(model, data, recipe or Recipe(epochs=5, lr=1e-4), **given)


@door
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
    sparse: tuple[Regularizer | Callable[[Spec], Regularizer], Recipe] | None = None,
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
        carry: the optimizer goes on with what it remembers of the kept weights, unless a phase has one of another kind; False: it
            starts anew after each step.
        whole: every process measures all of the calibration batches, which a sequential pipeline needs.
        folder: for `config.json`, `metrics.jsonl`, `spec.json`, a mask and a checkpoint for each round, `final.safetensors`
            (for `load`), `summary.json` and plots.

    Raises:
        PruneError: the settings contradict each other, the folder is of another run, or processes disagree.
    """
    shared = Shared(data, held_out, loss, metrics, better, inputs, classes, device, progress)
    steps = one_shot(schedule) if isinstance(schedule, int | float) else schedule
    if target is not None and not 0 < target < 1:
        raise PruneError(f"target is {target}; it is the share of the MACs that is left, and must be in (0, 1)")
    if steps.steps > MOST_ROUNDS:
        raise PruneError(
            f"the schedule has {steps.steps} steps; each is a round of pruning, and {MOST_ROUNDS} are the most"
        )
    if steps.share(steps.steps) >= 1 and target is None:
        raise PruneError("the schedule removes everything; give target=, the share of the MACs at which to stop")
    first = calibration[0] if len(calibration) else None
    spec = spec or traced(model, first, inputs)
    asked = _asked(prune, steps, budget, sparse, between, tuning, distill, masked, target, carry)
    run = Run(deepcopy(model).eval(), spec, shared, Path(folder) if folder is not None else None, asked)
    run.begin()
    if sparse is not None:
        how = sparse[0] if isinstance(sparse[0], Regularizer) else sparse[0](spec)
        run.train("sparse", sparse[1], regularizer=how)
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


def _wanted(
    make: Make,
    steps: Schedule,
    number: int,
    budget: Callable[[float], Budget] | None,
    target: float | None,
    dense: Spec,
    now: Spec,
    mask: Mask,
    attempt: Attempt,
) -> tuple[Pruned, bool]:
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


def traced(model: nn.Module, batch: Any, inputs: int) -> Spec:
    """The spec of a model, traced with a batch of data."""
    if isinstance(batch, Tensor):
        return trace(model, (batch,))
    if isinstance(batch, Mapping):
        args, kwargs, _ = read_dict(model, batch)
        return trace(model, args, kwargs)
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
        "sparse": None if sparse is None else {"regularizer": _name(sparse[0]), **sparse[1].model_dump()},
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
    name = str(getattr(value, "name", None) or getattr(value, "__name__", None) or value)
    return "a function" if name == "<lambda>" else name
