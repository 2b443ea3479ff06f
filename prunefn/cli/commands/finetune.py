"""The command `prunefn finetune`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ... import sparse
from ...checkpoints.checkpoint import load, save
from ...costs.analytic import cost
from ...costs.summary import summarize
from ...data.value import Data
from ...errors import PruneError
from ...parameters.transforms import params as params_of
from ..classes import check_loaded
from ..command import Job, Result, main_process
from ..networks import Network
from ..resources import data_of, network_of, selection_images, training_images, write_yaml, zero_fraction
from ..sections import Config
from .prune import goal_metrics

TUNED = "finetuned.safetensors"
ALPHA = 0.7
"""As published for variance-based pruning."""
MANY = 0.05
"""Fraction of zeros above which they look intended."""


def run(job: Job) -> Result:
    """Run the command."""
    from ...train import Distill, Setup, evaluate, train

    config, out = job.config, job.folder
    data = data_of(config)
    if config.model.checkpoint is None:
        raise PruneError("finetune needs a checkpoint; give --checkpoint, such as runs/prune/pruned.safetensors")
    network = network_of(config, data)
    spec = network.spec()
    zeros = zero_fraction(network.model)
    masks = sparse.masks_of(params_of(network.model), spec=spec) if config.finetune.hold_zeros else None
    if masks is None and zeros > MANY:
        job.note(f"{zeros:.1%} of the weights are zero; they are trained like all others without --hold-zeros")
    alpha = alpha_of(config)
    dense = None if alpha is None else _teacher(config, data)
    teacher = None if dense is None or alpha is None else Distill(dense.model, alpha, config.distill.temperature)
    before = evaluate(network.model, data.held_out, device=config.device)
    setup = Setup(
        training_images(data, config),
        selection_images(data),
        loss=teacher,
        classes=len(data.classes),
        device=config.device,
        progress=not job.quiet,
    )
    recipe = config.finetune.recipe(config.seed)
    trained = train(network.model, setup, recipe, masks=masks, folder=out / "train", name="finetune")
    after = evaluate(trained.model, data.held_out, device=config.device)["top1"]
    result: Result = {
        "accuracy": after,
        "accuracy_before": before["top1"],
        "best_epoch": trained.best,
        "goal_met": None,
    }
    result |= {
        "flops_g": cost(spec).macs / 1e9,
        "params_m": cost(spec).params / 1e6,
        "sparsity": zero_fraction(trained.model),
    }
    if dense is not None:
        top1 = evaluate(dense.model, data.held_out, device=config.device)["top1"]
        summary = summarize(cost(dense.spec()), cost(spec), {"top1": after}, {"top1": top1})
        result |= goal_metrics(summary)
    if main_process():
        save(trained.model, out / TUNED)
        write_yaml(out / "metrics.yaml", result)
        job.show(f"{network.name}: top-1 {before['top1']:.2%} → {after:.2%} on held-out images (epoch {trained.best})")
        if after < before["top1"]:
            job.note("no epoch is better than the start; try another --lr, --epochs or a teacher")
        job.show(f"Written to {out}: {TUNED}, metrics.yaml, train/")
    return result


def _teacher(config: Config, data: Data) -> Network:
    """Return the dense network with the weights of the teacher.

    Raises:
        PruneError: the config names no teacher.
    """
    if config.distill.teacher is None:
        raise PruneError("distill.alpha needs a teacher: give --distill.teacher, a checkpoint of the dense network")
    dense = network_of(config, data, dense=True)
    teacher = load(dense.model, config.distill.teacher)
    check_loaded(dense.model, teacher, config.distill.teacher, data, (dense.example, dict(dense.keywords)))
    return dense._replace(model=teacher)


def alpha_of(config: Config) -> float | None:
    """Return the weight of the labels; with a teacher, it has a default, unless alpha is set to none."""
    d = config.distill
    return ALPHA if d.alpha is None and d.teacher is not None and "alpha" not in d.model_fields_set else d.alpha


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    t, d = config.finetune, config.distill
    yield f"build {config.model.name}, load {config.model.checkpoint or 'nothing: give --checkpoint'}"
    if (alpha := alpha_of(config)) is not None:
        yield f"teacher: {Path(d.teacher).name if d.teacher else 'none: give --distill.teacher'}, alpha {alpha}"
    yield f"train {t.epochs} epochs, batch {t.batch_size}, {t.optimizer}, lr {t.lr}" + (
        ", zeros held" if t.hold_zeros else ""
    )
    yield f"keep the epoch that is best on held-out images as {TUNED}"
