"""The command `prunefn eval`."""

from __future__ import annotations

from collections.abc import Iterable

from ...display.units import quantity
from ...parameters.transforms import params as params_of
from ..command import Job, Result, main_process
from ..resources import data_of, device_of, measure_networks, network_of, write_yaml
from ..sections import Config


def run(job: Job) -> Result:
    """Run the command."""
    from ...train import evaluate

    config = job.config
    data = data_of(config)
    network = network_of(config, data)
    metrics = evaluate(network.model, data.held_out, device=config.device)
    result: Result = {"accuracy": round(metrics["top1"], 6), "loss": round(metrics["loss"], 6)}
    if main_process():
        pair = params_of(network.model), network.spec()
        p = config.profile
        result |= measure_networks({network.name: pair}, batch=p.batch_size, rounds=p.rounds, device=device_of(config))[
            network.name
        ]
        job.show(
            f"{network.name}: top-1 {result['accuracy']:.2%} of {len(data.held_out)} images, "  # type: ignore[arg-type]
            f"{quantity(1e9 * result['flops_g'], 'MACs')}, {quantity(1e6 * result['params_m'], 'params')}, "  # type: ignore[operator]
            f"{quantity(result['latency_ms'] / 1e3, 's')}"  # type: ignore[operator]
        )
        if job.out is not None:
            write_yaml(job.out / "eval_metrics.yaml", result)
    return result


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    yield f"open {config.data.name or 'no data: give --data'}"
    yield f"build {config.model.name}, load {config.model.checkpoint or 'no checkpoint: random weights'}"
    yield "measure top-1 and loss on held-out images; MACs, parameters and latency"
