"""The command `prunefn sweep`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...by_name.tables import compensation_of, criterion_of, scope_of, where_of
from ...errors import PruneError
from ...report.goal import Goal
from ...report.page import page
from ...tables import Table, terminal
from ..command import Job, Result
from ..resources import calibration, data_of, network_of, selection_images, training_images
from ..sections import Config, Prune

MOST = 10
"""Maximal number of the front's trials in the table."""


def run(job: Job) -> Result:
    """Run the command."""
    from ... import sweep as sweeps
    from ...train import Distill, Setup

    config, s, p = job.config, job.config.sweep, _checked(job.config.prune)
    space = {name: _values(values) for name, values in s.space.items()}
    data = data_of(config)
    network = network_of(config, data)
    alpha, temperature = config.distill.alpha, config.distill.temperature
    setup = Setup(
        training_images(data, config),
        selection_images(data),
        loss=None if alpha is None else Distill(network.model, alpha, temperature),
        classes=len(data.classes),
        device=config.device,
        progress=not job.quiet,
    )
    trial = sweeps.prune_trial(
        network.model,
        setup,
        spec=network.spec(),
        calibration=calibration(config, p.images, p.batch_size),
        recipe=config.finetune.recipe(config.seed),
        criteria={t: criterion_of(t) for t in _texts(space, "criterion")},
        compensations={t: compensation_of(t) for t in _texts(space, "compensation")},
        where=where_of("hidden" if p.where is None else p.where),
        scope=None if p.scope is None else scope_of(p.scope),
    )
    finished_sweep = sweeps.sweep(
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
    left_out = sweeps.write_results(finished_sweep, goal)
    if finished_sweep.finished:
        page(job.folder)
    _show(job, finished_sweep, left_out)
    return _result(finished_sweep, goal)


def _result(finished_sweep: Any, goal: Goal) -> Result:
    """Return the results in numbers."""
    best = finished_sweep.best(goal) if finished_sweep.finished else None
    return {
        "finished": len(finished_sweep.finished),
        "failed": sum(t.state == "failed" for t in finished_sweep.trials),
        "front": [{"trial": t.number, **t.settings, **t.results} for t in finished_sweep.front],
        "best": None if best is None else {"trial": best.number, **best.settings, **best.results},
        "goal_met": best is not None and goal.met(best.results),
    }


def _checked(section: Prune) -> Prune:
    """Return the section; raise a PruneError for a latency, because the trials of a sweep remove MACs."""
    if section.latency is not None or section.runtime is not None:
        raise PruneError(
            "a sweep removes MACs: give macs_ratio in --space, and leave out prune.latency and prune.runtime; "
            "`prunefn prune` and `prunefn pat` take a latency"
        )
    return section


def _values(values: Any) -> Any:
    """Return the values of a setting; numbers that YAML reads as text (1e-3) are converted."""
    if not isinstance(values, list):
        return values
    return [_number(v) for v in values]


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _texts(space: Mapping[str, Any], name: str) -> list[str]:
    values = space.get(name, [])
    if not isinstance(values, list):
        raise PruneError(f"sweep.space.{name} is {values!r}; give a list of choices")
    return [str(v) for v in values]


def _show(job: Job, finished_sweep: Any, left_out: Mapping[str, str]) -> None:
    rows: list[list[str]] = []
    for t in sorted(finished_sweep.front, key=lambda t: t.results["macs"])[:MOST]:
        settings = ", ".join(f"{k} {v}" for k, v in t.settings.items())
        r = t.results
        rows.append(
            [str(t.number), settings, f"{r['macs_removed']:.1%}", f"{r['top1']:.2%}", f"{-r['points_lost']:+.2f}"]
        )
    if rows:
        job.show(terminal(Table("the Pareto front", ["trial", "settings", "MACs removed", "top-1", "points"], rows)))
    for t in finished_sweep.trials:
        if t.state == "failed":
            job.show(f"trial {t.number} failed: {t.error}")
    for what, why in left_out.items():
        job.show(f"no {what}: {why}")
    files = [
        n for n in ("trials.csv", "final_comparison.csv", "pareto.png", "report.html") if (job.folder / n).exists()
    ]
    job.show(f"Written to {job.folder}: {', '.join(files)}")


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    s = config.sweep
    _checked(config.prune)
    size = 1
    for values in s.space.values():
        size *= len(values) if isinstance(values, list) else 0
    yield f"build {config.model.name}, load {config.model.checkpoint or 'no checkpoint: random weights'}"
    yield "trace it, measure it and collect statistics once"
    trials = f"all {size} combinations" if s.sampler == "grid" else f"{s.trials} trials by {s.sampler}"
    yield f"{trials} of " + ", ".join(f"{k} {v}" for k, v in s.space.items())
    yield f"{s.workers} workers; goal: {Goal(s.min_macs_removed, s.max_points_lost)}"
