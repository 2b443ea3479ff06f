"""The command `prunefn pat`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from ...by_name.tables import regularizer_of, schedule_of
from ...costs.timing import LatencyTable
from ...parameters.transforms import params as params_of
from ...report.page import page
from ...selection import budget as budgets
from ...types import Budget
from ..command import Job, Result, main_process
from ..networks import Network
from ..pipelines import aligned, budget_of, check_processes, latency_budget, latency_of, maker_of, ratio_of
from ..resources import calibration, data_of, device_of, move, network_of, training_images, write_json, write_yaml
from ..sections import Config, Prune
from .prune import goal_metrics, predicted

FINAL = "final.safetensors"
RECIPE = "best"
"""The recipe of the rounds, unless another one is given."""


def run(job: Job) -> Result:
    """Run the command."""
    from ...train import Phases, Setup, pat

    config = job.config
    data = data_of(config)
    network = network_of(config, data)
    c, p, seed = config, config.pat, config.seed
    ratio, budget, latencies = _goal(job, network)
    setup = Setup(
        training_images(data, config),
        data.held_out,
        classes=len(data.classes),
        device=c.device,
        progress=not job.quiet,
    )
    phases = Phases(
        maker_of(aligned(c.prune), RECIPE),
        schedule_of(p.schedule, ratio, p.steps),
        budget=budget,
        sparse=(regularizer_of(p.regularizer), c.sparse.recipe(seed)) if c.sparse.epochs else None,
        between=c.between.recipe(seed) if c.between.epochs else None,
        tuning=c.finetune.recipe(seed) if c.finetune.epochs else None,
        distill=None if c.distill.alpha is None else (c.distill.alpha, c.distill.temperature),
        masked=p.masked,
        target=p.target,
        carry=p.carry,
        whole=_needs_all_batches(c.prune),
    )
    batches = calibration(config, c.prune.images, c.prune.batch_size)
    result_of_run = pat(network.model, setup, phases, calibration=batches, spec=network.spec(), folder=job.folder)
    times = {} if latencies is None else predicted(latencies, move(result_of_run.mask, "cpu"), job)
    result: Result = {**result_of_run.summary, **goal_metrics(result_of_run.summary), **times}
    if main_process():
        write_yaml(job.folder / "metrics.yaml", goal_metrics(result_of_run.summary))
        if times:
            write_json(job.folder / "summary.json", {**result_of_run.summary, **times})
            page(job.folder)
        s = result_of_run.summary
        job.show(
            f"{s['macs_removed']:.1%} of the MACs removed, top-1 {s['top1_dense']:.2%} → {s['top1']:.2%} "
            f"({100 * (s['top1'] - s['top1_dense']):+.2f} points)"
        )
        job.show(f"Written to {job.folder}: {FINAL}, report.html, …")
    return result


def _goal(job: Job, network: Network) -> tuple[float, Callable[[float], Budget] | None, LatencyTable | None]:
    """Return the fraction that the rounds remove, the budget for it, and the table of latencies if it is of a latency."""
    c = job.config
    if latency_of(c.prune) is None or c.pat.ratio is not None:
        ratio, of = ratio_of(c.pat, c.prune)
        return ratio, budget_of(of), None
    check_processes(c.prune)
    params = move(params_of(network.model), device_of(c, c.prune.runtime or "eager"))
    asked, table = latency_budget(c.prune, params, network.spec(), not job.quiet)
    return 1 - asked.keep, partial(budgets.latency, table=table), table


def _needs_all_batches(section: Prune) -> bool:
    """Return whether the pipeline goes block by block or trains, so that every process must measure all batches."""
    best = (section.recipe or RECIPE) == "best" and section.criterion is None
    return best or section.sequential or section.recover_steps > 0


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    c, p = config, config.pat
    maker_of(c.prune, RECIPE)
    asked = latency_of(c.prune) if p.ratio is None else None
    check_processes(c.prune)
    # milliseconds are a fraction only once the dense network is timed
    ratio, of = ratio_of(p, c.prune) if asked is None else (0.5 if asked[1] else 1 - asked[0], "latency")
    steps = schedule_of(p.schedule, ratio, p.steps)
    yield f"build {c.model.name}, load {c.model.checkpoint or 'no checkpoint: random weights'}, trace it once"
    if c.sparse.epochs:
        regularizer_of(p.regularizer)
        yield f"sparse training: {p.regularizer}, {c.sparse.epochs} epochs at {c.sparse.lr}"
    if asked is not None:
        yield f"time the network at several widths, runtime {c.prune.runtime or 'eager'}"
    ratios = ", ".join(f"{steps(t):.1%}" for t in range(1, p.steps + 1))
    removed = f"down to {c.prune.latency}" if asked is not None and asked[1] else f"{ratios} of the {of} removed"
    target = "" if p.target is None else f", until {p.target:.0%} of the MACs are left"
    yield f"{p.steps} rounds of {c.prune.recipe or RECIPE}: {removed}{target}"
    yield f"after each round: {c.between.epochs} epochs at {c.between.lr}"
    distilled = "" if c.distill.alpha is None else f", the dense network as teacher (alpha {c.distill.alpha})"
    yield f"fine-tuning: {c.finetune.epochs} epochs at {c.finetune.lr}{distilled}"
    yield f"write {FINAL}, masks, summary, pictures, report.html"
