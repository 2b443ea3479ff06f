"""The command `prunefn prune`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ...checkpoints.checkpoint import save
from ...costs.analytic import cost
from ...costs.summary import points_lost, summarize
from ...costs.timing import LatencyTable
from ...display.units import quantity
from ...errors import BatchError, TraceError
from ...modules.convert import to_module
from ...parameters.transforms import params as params_of
from ...plans import Prune
from ...report import plots
from ...report.goal import Goal
from ...report.page import page
from ...spec.spec import Spec
from ...tables import Table, terminal
from ...types import Batch, Budget, Mask, Params, Pruned
from ..command import Job, Result
from ..pipelines import COUNTED, aligned, amount_of, latency_budget, latency_of, maker_of
from ..resources import calibration, device_of, move, network_of, optional_data, write_json, write_yaml
from ..sections import Config
from ..sections import Prune as Section
from ..stages import has_counts, in_stages, rest_of

PRUNED = "pruned.safetensors"

Call = Callable[[Params, list[Batch] | None], Pruned]
"""Prunes params with batches."""
RECIPE = "best"
"""The recipe, unless another one is given."""


def run(job: Job) -> Result:
    """Run the command."""
    from ...train.checkpoint import save_checkpoint, write_lines

    config, out = job.config, job.folder
    data = optional_data(config)
    network = network_of(config, data)
    spec, params = network.spec(), params_of(network.model)
    prune, latencies = _prune_of(config, params, spec, job)
    batches = None if data is None else calibration(config, config.prune.images, config.prune.batch_size)
    pruned = prune(move(params, device_of(config)), batches)
    mask = move(pruned.mask, "cpu")
    module = to_module(move(pruned.params, "cpu"), spec=pruned.spec, model=network.model)
    save(module, out / PRUNED, spec=pruned.spec, masks=mask)
    save_checkpoint(out / "mask.safetensors", {"mask": mask})
    write_json(out / "spec.json", pruned.spec.to_dict())
    before, after = cost(spec), cost(pruned.spec)
    rows = [{"phase": "dense", "macs": before.macs, "params": before.params}]
    rows += [{"phase": "prune", "macs": after.macs, "params": after.params}]
    if data is not None:
        from ...train import evaluate

        for row, model in zip(rows, (network.model, module), strict=True):
            row |= evaluate(model, data.held_out, device=config.device)
    measured = ({n: row[n] for n in ("top1", "loss") if n in row} for row in reversed(rows))
    summary: Result = summarize(before, after, *measured)
    if latencies is not None:
        summary |= predicted(latencies, mask, job)
    write_lines(out / "metrics.jsonl", rows)
    write_json(out / "config.json", options_for_page(config))
    write_json(out / "summary.json", summary)
    write_yaml(out / "metrics.yaml", goal_metrics(summary))
    _pictures(pruned, rows, spec, mask, config, out)
    page(out)
    job.show(terminal(table(rows)))
    for note in pruned.info.notes:
        job.note(note)
    groups = sum(1 for gone, _ in pruned.info.removed.values() if gone)
    job.show(f"{groups} of {len(pruned.info.removed)} groups are narrower. Written to {out}: {PRUNED}, report.html, …")
    job.show(f"Next: finetune, eval, export or profile with --checkpoint {out / PRUNED}")
    return {**summary, "goal_met": goal_metrics(summary)["goal_met"]}


def _prune_of(config: Config, params: Params, spec: Spec, job: Job) -> tuple[Call, LatencyTable | None]:
    """Return what prunes with params and batches, and the table of latencies that was measured for it."""
    section, progress = config.prune, not job.quiet
    if latency_of(section) is not None:
        section = aligned(section)
        on_device = move(params, device_of(config, section.runtime or "eager"))
        amount, latencies = latency_budget(section, on_device, spec, progress)
        return partial(_pruned, maker_of(section, RECIPE)(amount), spec=spec, progress=progress), latencies
    make = maker_of(section, RECIPE)
    if not has_counts(section):
        return partial(_pruned, make(amount_of(section)), spec=spec, progress=progress), None
    rest = rest_of(section, make)

    def in_order(params: Params, batches: list[Batch] | None) -> Pruned:
        def run(prune: Prune, params: Params, spec: Spec) -> Pruned:
            return _pruned(prune, params, batches, spec=spec, progress=progress)

        return in_stages(params, spec, section, rest, run, data=batches is not None)

    return in_order, None


def predicted(latencies: LatencyTable, mask: Mask, job: Job) -> Result:
    """Return the predicted latencies, and show them."""
    dense, small = 1e3 * latencies.of(), 1e3 * latencies.of(mask)
    job.show(f"predicted in {latencies.version}: {small:.3g} ms; dense {dense:.3g} ms")
    return {"latency_ms_dense": dense, "latency_ms": small, "runtime": latencies.version}


def _pictures(pruned: Pruned, rows: list[Result], spec: Spec, mask: Mask, config: Config, out: Path) -> None:
    """Write the pictures of a run."""
    from ...train.picture import pictures

    pictures(rows, spec, mask, out)
    plots.scores(move(pruned.info.scores, "cpu"), mask, out / "scores.png")
    if pruned.info.residuals:
        plots.residuals({config.prune.recipe or RECIPE: pruned.info.residuals}, out / "residuals.png")


def _pruned(prune: Prune, params: Params, batches: list[Batch] | None, **options: Any) -> Pruned:
    """Call a pipeline; its errors name options of the command."""
    try:
        return prune(params, batches, **options)
    except BatchError as error:
        if batches is not None:
            raise
        raise BatchError(f"{error}: give --data, or --criterion magnitude --compensation none") from None
    except TraceError as error:
        raise TraceError(f"{error}: --criterion magnitude --compensation none") from None


def options_for_page(config: Config) -> Result:
    """Return the options that the page shows."""
    dump = config.model_dump(mode="json")
    options = {k: v for k, v in dump["prune"].items() if v not in (None, []) and k != "recipe"}
    return {
        "prune": config.prune.recipe or RECIPE,
        "options": options,
        "model": dump["model"],
        "data": dump["data"],
        "seed": config.seed,
    }


def goal_metrics(summary: Result) -> Result:
    """Return the metrics of a course: accuracy, MACs, and whether the goal is met."""
    out: Result = {"flops_g": summary["macs"] / 1e9, "params_m": summary["params"] / 1e6}
    out["flops_reduction_pct"] = round(100 * summary["macs_removed"], 3)
    out["goal_met"] = (
        None if summary["macs_removed"] >= Goal().macs_removed else False
    )  # without an accuracy, not known
    if "top1" in summary:
        lost = points_lost(summary, {"top1": summary["top1_dense"]})
        out = {"accuracy": summary["top1"], **out, "accuracy_drop": round(lost, 3)}
        out["goal_met"] = Goal().met({"macs_removed": summary["macs_removed"], "points_lost": lost})
    return out


def table(rows: list[Result]) -> Table:
    """Return the table of the dense and the pruned network."""
    first = rows[0]
    columns = ["", "MACs", "of dense", "params", "of dense"] + (["top-1", "points"] if "top1" in first else [])
    cells = []
    for row in rows:
        line = [row["phase"], quantity(row["macs"], ""), f"{row['macs'] / first['macs']:.1%}"]
        line += [quantity(row["params"], ""), f"{row['params'] / first['params']:.1%}"]
        if "top1" in first:
            line += [f"{row['top1']:.2%}", f"{100 * (row['top1'] - first['top1']):+.2f}"]
        cells.append(line)
    return Table("", columns, cells)


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    p = config.prune
    make, timed, counts = maker_of(p, RECIPE), latency_of(p) is not None, has_counts(p)
    rest = rest_of(p, make) if counts else None
    amount: Any = None if timed else rest.amount if rest is not None else None if counts else amount_of(p)
    yield f"build {config.model.name}, load {config.model.checkpoint or 'no checkpoint: random weights'}, trace it once"
    if config.data.name:
        yield f"collect statistics of {p.images} clean training images of {config.data.name}"
    if timed:
        yield f"time the network at several widths, runtime {p.runtime or 'eager'}"
    yield from (f"keep {n} {name}" for name in COUNTED if (n := getattr(p, name)) is not None)
    if timed or amount is not None:
        yield f"{p.recipe or RECIPE}: remove {_amount_text(p, amount)}"
    yield "measure dense and pruned" if config.data.name else "count MACs and parameters"
    yield f"write {PRUNED}, mask, summary, pictures, report.html"


def _amount_text(section: Section, amount: Any) -> str:
    if section.latency is not None:
        return f"down to a latency of {section.latency}"
    if isinstance(amount, float | dict):
        return f"a ratio of {amount} of the units"
    budgets: list[Budget] = amount if isinstance(amount, list) else [amount]
    return "down to " + " and ".join(f"{b.keep:.0%} of the {b.quantity}" for b in budgets)
