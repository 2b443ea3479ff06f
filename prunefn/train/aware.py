"""Pruning-aware training in three phases; each of them is optional.

    sparse training → N × (statistics, prune, measure, train) → fine-tuning

One-shot pruning is a schedule of one step without training between. The model is traced once, and the spec is only shrunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from torch import nn

from ..display.progress import progress_bar
from ..doors import door
from ..errors import PruneError
from ..spec.spec import Spec
from ..types import Batch
from .measure import make_accelerator
from .phases import Phases
from .run import Result, Run
from .setup import Setup, trace_first


@door
def pat(
    model: nn.Module,
    setup: Setup,
    phases: Phases,
    *,
    calibration: Sequence[Batch],
    spec: Spec | None = None,
    folder: Path | str | None = None,
) -> Result:
    """Prune and train in phases: sparse training, rounds of (statistics, prune, measure, train), fine-tuning.

    At equal epochs, one step and more tuning is about as good as rounds with training between them, or better (bench/results/after.md,
    bench/results/pat.md), and costs one pruning; it is the default of `Phases`. Rounds are for a `target`, and for what no
    compensation repairs. With `progress`, a run in rounds says so.

    With a folder, a killed run resumes where it was; on a CPU, the result is bit-identical to that of an uninterrupted run. Under
    torchrun, all processes make the same call: they share batches and calibration, agree on every mask, and the first one writes.

    Args:
        model: the dense network, which is not changed.
        setup: data, held-out data, and options of training.
        phases: what to prune in each round, and how to train.
        calibration: clean batches for statistics, which are collected again in every round.
        spec: of the model; None: traced with the first calibration batch.
        folder: for `config.json`, `metrics.jsonl`, `spec.json`, a mask and a checkpoint for each round, `final.safetensors`
            (for `load`), `summary.json` and plots.

    Raises:
        PruneError: the phases contradict each other, the folder belongs to another run, or processes disagree on a mask.

    >>> import torch, prunefn as pf
    >>> from prunefn.train import Recipe, schedule
    >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> points = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> phases = Phases(pf.recipes.vbp, schedule.geometric(0.5, 2), between=Recipe(epochs=1))
    >>> done = pat(model, Setup(points, held_out=points, device="cpu"), phases, calibration=[x])
    >>> [row["phase"] for row in done.rows], done.model[0].out_features
    (['dense', 'prune 1', 'round_1', 'prune 2', 'round_2'], 4)
    """
    run = _open_run(model, setup, phases, calibration, spec, folder)
    with run.bar:
        state = run.train_sparse(run.start())
        for number in range(1, run.phases.rounds + 1):
            state = run.prune(state, number)  # statistics, prune, measure
            state = run.train_between(state, number)
            if state.done:
                break
        return run.finish(run.fine_tune(run.remove_masked(state)))


def _open_run(
    model: nn.Module,
    setup: Setup,
    phases: Phases,
    calibration: Sequence[Batch],
    spec: Spec | None,
    folder: Path | str | None,
) -> Run:
    """Check the arguments of `pat`, and trace the model."""
    setup, phases = Setup.of(setup), phases.check()
    if setup.held_out is None:
        raise PruneError("pat measures after every phase; give Setup(data, held_out)")
    if setup.loss is not None and phases.distill is not None:
        raise PruneError("setup.loss and phases.distill are two losses; leave one of them out")
    spec = spec or trace_first(model, calibration, setup.inputs)
    at, place = make_accelerator(device=setup.device), None if folder is None else Path(folder)
    show = setup.progress and at.is_main_process and phases.epochs > 0
    bar = progress_bar(total=phases.epochs, text="all phases", unit="epoch", show=show)
    return Run(deepcopy(model).eval(), spec, setup, phases, calibration, place, at, bar)
