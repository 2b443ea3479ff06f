"""The command `prunefn sensitivity`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from ... import criteria
from ...by_name.tables import compensation_of, criterion_of, where_of
from ...parameters.transforms import params as params_of
from ...sensitivities.groups import sensitivity
from ...stats import collect_stats
from ...tables import terminal
from ...types import Batch
from ..command import Job, Result
from ..resources import calibration, data_of, device_of, draw_samples, move, network_of, selection_images, write_json
from ..sections import Config


def run(job: Job) -> Result:
    """Run the command."""
    config, s = job.config, job.config.sensitivity
    data = data_of(config)
    network = network_of(config, data)
    spec, params = network.spec(), move(params_of(network.model), device_of(config))
    criterion = criteria.obs() if s.criterion is None else criterion_of(s.criterion)
    method = None if s.compensation is None else compensation_of(s.compensation)
    covariance = method is None or "covariance" in method.needs
    batches = calibration(config, s.images, s.batch_size)
    show: dict[str, Any] = {"spec": spec, "progress": not job.quiet}
    stats = collect_stats(params, batches, criterion=criterion, covariance=covariance, **show)
    found = sensitivity(
        params,
        stats,
        criterion=criterion,
        compensation=method,
        where=None if s.where is None else where_of(s.where),
        ratios=s.ratios,
        **(_measure(config) if s.held_out else {}),
        **show,
    )
    found.write_csv(job.folder / "sensitivity.csv")
    found.picture(job.folder / "sensitivity.png")
    result: Result = {**found._asdict(), "effects": found.to_rows(), "unscored": list(found.unscored)}
    write_json(job.folder / "sensitivity.json", result)
    job.show(terminal(found.table()))
    job.show(f"Written to {job.folder}: sensitivity.csv, sensitivity.json, sensitivity.png")
    return result


def _measure(config: Config) -> dict[str, Any]:
    """Return the batches to measure on, and the metric."""
    s = config.sensitivity
    images = draw_samples(selection_images(data_of(config)), s.held_out, config.seed)
    batches: list[Batch] = [tuple(b) for b in DataLoader(images, batch_size=s.batch_size)]
    metrics = {"top1": top1, "loss": loss, "distance": None}
    return {"batches": batches, "metric": metrics[s.metric]}


def top1(output: Any, *rest: Any) -> Tensor:
    """Return the fraction of samples whose highest logit is the label."""
    from ...train.objective import top1 as metrics

    return metrics(output, *rest)["top1"]


def loss(output: Any, *rest: Any) -> Tensor:
    """Return the cross entropy."""
    from ...train.objective import cross_entropy

    return cross_entropy(output, *rest)


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    s = config.sensitivity
    yield f"build {config.model.name}, load {config.model.checkpoint or 'no checkpoint: random weights'}, trace it once"
    yield f"collect statistics of {s.images} clean training images of {config.data.name or 'no data: give --data'}"
    yield f"remove {', '.join(f'{r:.0%}' for r in s.ratios)} of each group's units alone, predict the error of the next layers"
    if s.held_out:
        yield f"measure {s.metric} on {s.held_out} images for each group and ratio"
    yield "write sensitivity.csv, sensitivity.json, sensitivity.png"
