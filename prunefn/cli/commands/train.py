"""The command `prunefn train`."""

from __future__ import annotations

from collections.abc import Iterable

from ...checkpoints.checkpoint import save
from ...display.units import quantity
from ...parameters.transforms import params as params_of
from ..command import Job, Result, main_process
from ..resources import data_of, device_of, measure_networks, network_of, selection_images, training_images, write_yaml
from ..sections import Config

BEST = "best_model.safetensors"


def run(job: Job) -> Result:
    """Run the command."""
    from ...train import Setup, evaluate, train

    config = job.config
    data = data_of(config)
    network = network_of(config, data)
    setup = Setup(
        training_images(data, config),
        selection_images(data),
        classes=len(data.classes),
        device=config.device,
        progress=not job.quiet,
    )
    trained = train(network.model, setup, config.train.recipe(config.seed), folder=job.folder / "train")
    metrics = (
        trained.metrics if data.validation is None else evaluate(trained.model, data.held_out, device=config.device)
    )
    result: Result = {"accuracy": metrics.get("top1"), "epochs": len(trained.rows), "best_epoch": trained.best}
    if main_process():
        save(trained.model, job.folder / BEST)
        spec = network.spec()
        result |= measure_networks(
            {"dense": (params_of(trained.model), spec)}, batch=1, rounds=config.profile.rounds, device=device_of(config)
        )["dense"]
        write_yaml(job.folder / "metrics.yaml", result)
        shown = "not measured" if result["accuracy"] is None else f"top-1 {result['accuracy']:.2%}"
        job.show(f"{network.name}: {shown} on held-out images; {quantity(1e9 * result['flops_g'], 'MACs')}")
        job.show(f"Written to {job.folder}: {BEST}, metrics.yaml, train/")
    return result


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    t = config.train
    yield f"open {config.data.name or 'no data: give --data'}, build {config.model.name}"
    if config.model.checkpoint:
        yield f"start from {config.model.checkpoint}"
    yield f"train {t.epochs} epochs, batch {t.batch_size}, {t.optimizer}, lr {t.lr}, {t.schedule}"
    yield f"keep the epoch that is best on held-out images as {BEST}"
