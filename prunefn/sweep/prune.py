"""The trial for networks: prune, train, measure. Statistics and the dense accuracy are shared by all trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from torch import nn

from ..by_name.tables import compensation_of, criterion_of
from ..checkpoints.checkpoint import save
from ..checkpoints.stats_file import load_stats
from ..costs.summary import points_lost, summarize
from ..doors import door
from ..errors import PruneError
from ..files import atomic
from ..modules.convert import to_module
from ..parameters.transforms import params as params_of
from ..pipelines import pipeline
from ..selection import budget
from ..spec.spec import Spec
from ..stats import collect_stats
from ..stats.fingerprint import Origin, difference, origin
from ..train.checkpoint import save_checkpoint
from ..train.loop import fine_tune
from ..train.measure import evaluate, make_accelerator
from ..train.recipe import Recipe
from ..train.setup import Setup, trace_first
from ..types import Batch, Compensation, Criterion, Params, Scope, Stats, Where
from .settings import check_space, choices_of, number_of, recipe_of
from .space import Space, Value

STATS = "stats.safetensors"
DENSE = "dense.json"
TUNING = "fine_tune"
CRITERION, COMPENSATION = "variance", "mean"
"""Defaults of the settings."""


class PruneTrial(NamedTuple):
    """A trial for `sweep`; see `prune_trial`."""

    model: nn.Module
    spec: Spec
    setup: Setup
    calibration: Sequence[Batch]
    recipe: Recipe
    criteria: Mapping[str, Criterion]
    compensations: Mapping[str, Compensation]
    where: Where | str | None
    scope: Scope | None

    @property
    def params(self) -> Params:
        """Return the params of the model, on the device of the measurement."""
        device = make_accelerator(device=self.setup.device).device
        return {n: t.to(device) for n, t in params_of(self.model).items()}

    def prepare(self, space: Space, folder: Path) -> Ready:
        """Check the space, and measure into the folder: statistics for all criteria and compensations of the space at once, and
        the dense network's metrics. Files of another run or machine are read instead.

        Raises:
            PruneError: a setting is unknown, or the folder is of another network.
        """
        check_space(space, self.recipe)
        criteria = {n: self._criterion(n) for n in choices_of(space, "criterion", CRITERION)}
        methods = {n: self._compensation(n) for n in choices_of(space, "compensation", COMPENSATION)}
        path = (folder / STATS).absolute()
        needed = any(c.data for c in criteria.values()) or any(m.needs for m in methods.values())
        with FileLock(folder / "prepare.lock"):
            dense = self._dense(folder / DENSE)
            if needed:
                collect_stats(
                    self.params,
                    self.calibration,
                    spec=self.spec,
                    criterion=list(criteria.values()),
                    covariance=any("covariance" in m.needs for m in methods.values()),
                    where=self.where,
                    progress=self.setup.progress,
                    resume=path,
                )
        return Ready(self._replace(calibration=()), criteria, methods, dense, path if needed else None)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of a network."""
        return evaluate(model, self.setup)

    def _criterion(self, name: str) -> Criterion:
        return self.criteria[name] if name in self.criteria else criterion_of(name)

    def _compensation(self, name: str) -> Compensation:
        return self.compensations[name] if name in self.compensations else compensation_of(name)

    def _dense(self, path: Path) -> dict[str, float]:
        """Return the dense network's metrics, from the file if it exists."""
        own_origin = origin(self.spec, params_of(self.model))
        if path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if other := difference(Origin(saved["spec"], saved["params"]), own_origin):
                raise PruneError(f"{path} was measured on {other}; use another folder for another network")
            return saved["metrics"]
        metrics = self.measure(self.model)
        atomic.write_text(path, json.dumps({**own_origin._asdict(), "metrics": metrics}, indent=1) + "\n")
        return metrics


class Ready:
    """A trial with the shared measurements; it can be pickled, and each process reads the statistics once."""

    def __init__(
        self,
        trial: PruneTrial,
        criteria: Mapping[str, Criterion],
        compensations: Mapping[str, Compensation],
        dense: Mapping[str, float],
        path: Path | None,
    ) -> None:
        self.trial, self.criteria, self.compensations, self.dense = trial, criteria, compensations, dense
        self.path = path
        """Path of the statistics; None: nothing in the space needs any."""

    @cached_property
    def stats(self) -> Stats:
        """Return the statistics that all trials share."""
        if self.path is None:
            return collect_stats(self.trial.params, None, spec=self.trial.spec)
        return load_stats(self.path, spec=self.trial.spec, params=self.trial.params)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "stats"}

    def __call__(self, settings: Mapping[str, Value], folder: Path) -> dict[str, float]:
        """Prune, train and measure; write `pruned.safetensors` (for `pf.load`) and `mask.safetensors` into the folder.

        Training that was stopped in this folder resumes from its last checkpoint.
        """
        trial, stats = self.trial, self.stats
        recipe = recipe_of(trial.recipe, settings)
        prune = pipeline(
            criterion=self.criteria[str(settings.get("criterion", CRITERION))],
            where=trial.where,
            ratio=budget.macs(1 - number_of(settings, "macs_ratio")),
            scope=trial.scope,
            compensation=self.compensations[str(settings.get("compensation", COMPENSATION))],
        )
        small = prune(dict(stats.params), None, spec=trial.spec, stats=stats)
        home = next(iter(params_of(trial.model).values())).device
        model = to_module({n: t.to(home) for n, t in small.params.items()}, spec=small.spec, model=trial.model)
        if recipe.epochs:
            model = self._tune(model, recipe, folder / TUNING)
        metrics = trial.measure(model)
        save(model, folder / "pruned.safetensors")
        for done in (folder / TUNING).glob("*.safetensors"):
            done.unlink()  # a sweep of large networks would fill the disk with states of optimizers
        save_checkpoint(folder / "mask.safetensors", {"mask": {n: m.cpu() for n, m in small.mask.items()}})
        costs = summarize(small.info.before, small.info.after)
        out = {**metrics, **{n: costs[n] for n in ("macs", "params", "macs_removed")}}
        out["params_removed"] = 1 - costs["params"] / costs["params_dense"]
        return out | ({"points_lost": points_lost(metrics, self.dense)} if "top1" in metrics else {})

    def _tune(self, model: nn.Module, recipe: Recipe, folder: Path) -> nn.Module:
        setup = self.trial.setup._replace(progress=False)  # the sweep shows its own bar
        return fine_tune(model, setup, recipe, folder=folder).model


@door
def prune_trial(
    model: nn.Module,
    setup: Setup,
    *,
    calibration: Sequence[Batch],
    spec: Spec | None = None,
    recipe: Recipe | None = None,
    criteria: Mapping[str, Criterion] | None = None,
    compensations: Mapping[str, Compensation] | None = None,
    where: Where | str | None = None,
    scope: Scope | None = None,
) -> PruneTrial:
    """Return a trial that prunes a network in one shot, trains it, and measures it.

    The network is traced once. The dense accuracy and the statistics are measured once for all trials of a sweep, and kept in
    its folder. Settings: `macs_ratio`, the fraction of the MACs to remove; `criterion` and `compensation`, by name (default "variance"
    and "mean"); `lr` and `epochs`, and any other field of `Recipe`. Results: the metrics, `macs`, `params`, `macs_removed` and
    `params_removed` (fractions) and `points_lost` (percentage points of top-1). The same settings give the same bits on a CPU.

    Args:
        model: the dense network; not changed.
        setup: data and options of training. A sweep chooses by the held-out data: take a part of the training data
            (`validation_fraction` of `open_data`), and measure the chosen network on data that nothing was chosen by. To learn from
            the dense network, give `loss=Distill(model)`. `progress` shows a bar while statistics are collected.
        calibration: batches for statistics, clean.
        spec: of the model; None: traced with the first calibration batch.
        recipe: values of the settings that the space lacks.
        criteria, compensations: your own by name, in addition to those of the command line, such as "magnitude(1.0)".
        where, scope: as for `pipeline`.

    Raises:
        PruneError: the setup has no held-out data.

    >>> import tempfile, torch, prunefn as pf
    >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> points = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> setup = pf.train.Setup(points, held_out=points, device="cpu")
    >>> trial = prune_trial(model, setup, calibration=[x])
    >>> space = {"macs_ratio": [0.25, 0.5], "criterion": ["variance", "magnitude"], "epochs": [0]}
    >>> done = pf.sweep.sweep(trial, space, folder=tempfile.mkdtemp(), sampler="grid")
    >>> sorted((t.settings["criterion"], t.results["macs_removed"]) for t in done.finished)
    [('magnitude', 0.25), ('magnitude', 0.5), ('variance', 0.25), ('variance', 0.5)]
    """
    model, setup = deepcopy(model).eval(), Setup.of(setup)
    if setup.held_out is None:
        raise PruneError("a trial is measured on held-out data; give Setup(data, held_out)")
    return PruneTrial(
        model,
        trace_first(model, calibration, setup.inputs) if spec is None else spec,
        setup,
        calibration,
        recipe or Recipe(),
        dict(criteria or {}),
        dict(compensations or {}),
        where,
        scope,
    )
