"""The command `prunefn sparsify`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ... import sparse
from ...by_name.tables import pattern_of, schedule_of, weight_criterion_of, weight_scope_of
from ...checkpoints.checkpoint import save
from ...costs.analytic import cost
from ...data.value import Data
from ...modules.convert import to_module
from ...parameters.transforms import params as params_of
from ...spec.parts import Cost
from ...tables import Table, terminal
from ...types import Batch, Criterion, Params
from ..command import Job, Result
from ..networks import Network
from ..resources import calibration, device_of, move, network_of, optional_data, training_images, write_json, write_yaml
from ..sections import Config

SPARSE = "sparse.safetensors"


def run(job: Job) -> Result:
    """Run the command."""
    config, out, s = job.config, job.folder, job.config.sparsify
    data = optional_data(config)
    network = network_of(config, data)
    spec, params = network.spec(), params_of(network.model)
    criterion = _criterion(config, data)
    batches: list[Batch] | None = None
    if criterion.data or s.ridge is not None:
        batches = calibration(config, s.images, s.batch_size)

    params, masks = sparse.rounds(
        move(params, device_of(config)),
        batches,
        schedule_of(s.schedule, s.ratio, s.rounds),
        s.rounds,
        spec=spec,
        criterion=criterion,
        pattern=pattern_of(s.pattern),
        scope=weight_scope_of(s.scope),
        weights=s.weights or None,
        ridge=s.ridge,
        between=_training_between(job, data, network) if s.rounds > 1 else None,
    )
    params, masks = move(params, "cpu"), move(masks, "cpu")
    module = to_module(params, spec=spec, model=network.model)
    save(module, out / SPARSE, spec=spec)
    kept = sparse.counts(masks)
    sparsity = 1 - sum(k.kept for k in kept.values()) / sum(k.weights for k in kept.values())
    result: Result = {"sparsity": round(sparsity, 6), **_measured(config, data, (network.model, module), cost(spec))}
    _write(job, result, masks, spec)
    job.show(f"{sparsity:.2%} of {sum(k.weights for k in kept.values()):,} weights are zero, in {len(kept)} tensors")
    if "accuracy" in result:
        row = [
            [
                network.name,
                f"{result['accuracy_dense']:.2%}",
                f"{result['accuracy']:.2%}",
                f"{0 - result['accuracy_drop']:+.2f}",
            ]
        ]
        job.show(terminal(Table("", ["", "dense top-1", "sparse top-1", "points"], row)))
    job.show("MACs are those of the dense network: zeros alone save none without a device that has kernels for them.")
    job.show(f"Written to {out}: {SPARSE}, sparsity.md, sparsity.png, …")
    return result


def _criterion(config: Config, data: Data | None) -> Criterion:
    """Return the criterion of the config; `movement_since` starts from the seed's initial weights, as `prunefn train` does."""
    return weight_criterion_of(config.sparsify.criterion, lambda: params_of(network_of(config, data, dense=True).model))


def _training_between(job: Job, data: Data | None, network: Network) -> Callable[[int, Params, sparse.Masks], Params]:
    """Return the function that trains between two rounds, with the zeros held."""
    config = job.config

    def between(step: int, now: Params, masks: sparse.Masks) -> Params:
        from ...train import Setup, train

        if data is None or not config.between.epochs:
            return now
        setup = Setup(
            training_images(data, config), classes=len(data.classes), device=config.device, progress=not job.quiet
        )
        trained = train(
            to_module(move(now, "cpu"), spec=network.spec(), model=network.model),
            setup,
            config.between.recipe(config.seed + step),
            masks=masks,
            folder=job.folder / f"round_{step}",
            name=f"round_{step}",
        )
        return move(params_of(trained.model), device_of(config))

    return between


def _measured(config: Config, data: Data | None, models: tuple[nn.Module, nn.Module], c: Cost) -> Result:
    """Return the costs and, with data, the accuracies of the dense and the sparse model."""
    result: Result = {
        "flops_g": c.macs / 1e9,
        "params_m": c.params / 1e6,
        "flops_reduction_pct": 0.0,
        "goal_met": False,
    }
    if data is not None:
        from ...train import evaluate

        before, after = (evaluate(model, data.held_out, device=config.device)["top1"] for model in models)
        result |= {"accuracy": after, "accuracy_dense": before, "accuracy_drop": round(100 * (before - after), 3)}
    return result


def _write(job: Job, result: Result, masks: sparse.Masks, spec: Any) -> None:
    from ...files.atomic import write_text

    write_text(job.folder / "sparsity.md", sparse.table(masks, spec=spec) + "\n")
    sparse.picture(masks, job.folder / "sparsity.png", spec=spec)
    write_json(job.folder / "summary.json", result)
    write_yaml(job.folder / "metrics.yaml", result)


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    s = config.sparsify
    name = weight_criterion_of(s.criterion).name
    pattern, among = pattern_of(s.pattern), weight_scope_of(s.scope)
    yield f"build {config.model.name}, load {config.model.checkpoint or 'no checkpoint: random weights'}, trace it once"
    how = f"{pattern.name} by {name}, {among.name}"
    yield f"set {s.ratio if pattern.ratio is None else pattern.ratio:.0%} of the weights to zero: {how}"
    if s.rounds > 1:
        yield f"in {s.rounds} rounds ({s.schedule}), {config.between.epochs} epochs of training after each"
    yield f"write {SPARSE}, sparsity.md, sparsity.png"
