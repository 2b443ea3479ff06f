"""The command `prunefn sweep`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...by_name.tables import compensation_of, criterion_of, scope_of, where_of
from ...errors import PruneError
from ...report.goal import Goal
from ...report.page import page
from ...tables import Table, terminal
from ..command import Command, Job, Result
from ..opened import calibration, chooser, data_of, learnt, network_of
from ..sections import Config

MOST = 10
"""Trials of the front that are shown."""


def run(job: Job) -> Result:
    """Try many settings: prune, fine-tune, measure; accuracy against MACs, and which settings matter.

    Statistics are collected once. Stopped at any moment, the same command goes on; on many machines, give the same --storage.
    The folder gets trials.csv, final_comparison.csv, pareto.png, importance.png, report.html, and each trial's pruned model.
    """
    from ... import sweep as sweeps
    from ...train import Distill, Setup

    config, s = job.config, job.config.sweep
    space = {name: _values(within) for name, within in s.space.items()}
    data = data_of(config)
    network = network_of(config, data)
    p = config.prune
    alpha, temperature = config.distill.alpha, config.distill.temperature
    setup = Setup(
        learnt(data, config),
        chooser(data),
        loss=None if alpha is None else Distill(network.model, alpha, temperature),
        classes=len(data.classes),
        device=config.device,
        progress=not job.quiet,
    )
    trial = sweeps.prune_trial(
        network.model,
        setup,
        calibration=calibration(config, p.images, p.batch_size),
        recipe=config.finetune.recipe(config.seed),
        criteria={t: criterion_of(t) for t in _texts(space, "criterion")},
        compensations={t: compensation_of(t) for t in _texts(space, "compensation")},
        where=where_of("hidden" if p.where is None else p.where),
        scope=None if p.scope is None else scope_of(p.scope),
    )
    done = sweeps.sweep(
        trial,
        space,
        folder=job.folder,
        sampler=s.sampler,
        trials=None if s.sampler == "grid" else s.trials,
        storage=s.storage,
        workers=s.workers,
        seed=config.seed,
        progress=not job.quiet,
    )
    goal = Goal(s.min_macs_removed, s.max_points_lost)
    left_out = sweeps.write_results(done, goal)
    if done.finished:
        page(job.folder)
    _show(job, done, left_out)
    best = done.best(goal) if done.finished else None
    return {
        "finished": len(done.finished),
        "failed": sum(t.state == "failed" for t in done.trials),
        "front": [{"trial": t.number, **t.settings, **t.results} for t in done.front],
        "best": None if best is None else {"trial": best.number, **best.settings, **best.results},
    }


def _values(within: Any) -> Any:
    """Choices as they are; numbers of YAML that came as text (1e-3) are numbers."""
    if not isinstance(within, list):
        return within
    return [_number(v) for v in within]


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _texts(space: Mapping[str, Any], name: str) -> list[str]:
    within = space.get(name, [])
    if not isinstance(within, list):
        raise PruneError(f"sweep.space.{name} is {within!r}; give a list of choices")
    return [str(v) for v in within]


def _show(job: Job, done: Any, left_out: Mapping[str, str]) -> None:
    rows: list[list[str]] = []
    for t in sorted(done.front, key=lambda t: t.results["macs"])[:MOST]:
        settings = ", ".join(f"{k} {v}" for k, v in t.settings.items())
        r = t.results
        rows.append(
            [str(t.number), settings, f"{r['macs_removed']:.1%}", f"{r['top1']:.2%}", f"{-r['points_lost']:+.2f}"]
        )
    if rows:
        job.show(terminal(Table("the Pareto front", ["trial", "settings", "MACs removed", "top-1", "points"], rows)))
    for t in done.trials:
        if t.state == "failed":
            job.show(f"trial {t.number} failed: {t.error}")
    for what, why in left_out.items():
        job.show(f"no {what}: {why}")
    written = [
        n for n in ("trials.csv", "final_comparison.csv", "pareto.png", "report.html") if (job.folder / n).exists()
    ]
    job.show(f"Written to {job.folder}: {', '.join(written)}")


def plan(config: Config) -> Iterable[str]:
    """Lines."""
    s = config.sweep
    size = 1
    for within in s.space.values():
        size *= len(within) if isinstance(within, list) else 0
    yield f"build {config.model.name}, load {config.model.checkpoint or 'no checkpoint: random weights'}"
    yield "trace it, measure it and collect statistics once"
    trials = f"all {size} combinations" if s.sampler == "grid" else f"{s.trials} trials by {s.sampler}"
    yield f"{trials} of " + ", ".join(f"{k} {v}" for k, v in s.space.items())
    yield f"{s.workers} workers; goal: {Goal(s.min_macs_removed, s.max_points_lost)}"


COMMAND = Command(
    "sweep", run, plan, ("model", "data", "sweep", "prune", "finetune", "distill"), own=("sweep",), out="runs/sweep"
)
