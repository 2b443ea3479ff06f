"""The command `prunefn train`."""

from __future__ import annotations

from collections.abc import Iterable

from ...checkpoints.checkpoint import save
from ...parameters.transforms import params as params_of
from ..command import Command, Job, Result, main_process
from ..opened import chooser, data_of, device_of, learnt, measures, network_of, write_yaml
from ..sections import Config

BEST = "best_model.safetensors"


def run(job: Job) -> Result:
    """Train a model from its start, or from --checkpoint.

    The folder gets best_model.safetensors (the best epoch on held-out images), metrics.yaml, and in train/ checkpoints,
    metrics.jsonl and TensorBoard's logs. Stopped at any moment, the same command goes on from there.
    """
    from ...train import Setup, evaluate, train

    config = job.config
    data = data_of(config)
    network = network_of(config, data)
    setup = Setup(
        learnt(data, config),
        chooser(data),
        classes=len(data.classes),
        device=config.device,
        progress=not job.quiet,
    )
    done = train(network.model, setup, config.train.recipe(config.seed), folder=job.folder / "train")
    found = done.metrics if data.validation is None else evaluate(done.model, data.held_out, device=config.device)
    result: Result = {"accuracy": found.get("top1"), "epochs": len(done.rows), "best_epoch": done.best}
    if main_process():
        save(done.model, job.folder / BEST)
        spec = network.spec()
        result |= measures(
            {"dense": (params_of(done.model), spec)}, batch=1, rounds=config.profile.rounds, device=device_of(config)
        )["dense"]
        write_yaml(job.folder / "metrics.yaml", result)
        shown = "not measured" if result["accuracy"] is None else f"top-1 {result['accuracy']:.2%}"
        job.show(f"{network.name}: {shown} on held-out images; {result['flops_g']:.4g} GMACs")
        job.show(f"Written to {job.folder}: {BEST}, metrics.yaml, train/")
    return result


def plan(config: Config) -> Iterable[str]:
    """Lines."""
    t = config.train
    yield f"open {config.data.name or 'no data: give --data'}, build {config.model.name}"
    if config.model.checkpoint:
        yield f"start from {config.model.checkpoint}"
    yield f"train {t.epochs} epochs, batch {t.batch_size}, {t.optimizer}, lr {t.lr}, {t.schedule}"
    yield f"keep the epoch that is best on held-out images as {BEST}"


COMMAND = Command(
    "train", run, plan, ("model", "data", "train", "profile"), own=("train",), out="runs/train", fresh=True
)
