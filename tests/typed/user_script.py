"""A pruning script as a user writes it: every step of the README, and the results' fields."""

from pathlib import Path

import torch
from torch import Tensor, nn

import prunefn as pf


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def steps(model: nn.Module, batches: list[Tensor]) -> tuple[pf.Params, pf.Spec, pf.Mask]:
    spec: pf.Spec = pf.trace(model, (batches[0],))
    params: pf.Params = pf.params(model)
    stats: pf.Stats = pf.collect_stats(params, batches, spec=spec, criterion=pf.criteria.variance(), covariance=True)
    stats = pf.merge_stats(stats, pf.Stats())
    scores = pf.only(pf.score(stats, criterion=pf.criteria.variance()), pf.kind("hidden"), spec=spec)
    mask: pf.Mask = pf.select(scores, pf.budget.macs(0.6), spec=spec, scope=pf.scope.global_(normalize=True))
    units: dict[str, int] = {group: int(kept.sum()) for group, kept in mask.items()}
    lost = pf.residual(stats, mask, spec=spec)
    worst: float = max((r.relative for r in lost.values()), default=0.0)
    compensated = pf.compensate(params, stats, mask, spec=spec, method=pf.compensation.affine(ridge=1e-4))
    small, small_spec = pf.apply(compensated, mask, spec=spec), pf.shrink(spec, mask)
    cost: pf.Cost = pf.cost(spec, mask)
    print(units, worst, cost.macs, cost.params, pf.forward(small, batches[0], spec=small_spec))
    return small, small_spec, mask


def pipelines(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    spec, params = pf.trace(model, (batches[0],)), pf.params(model)
    prune = pf.pipeline(
        criterion=pf.criteria.normalized(pf.criteria.magnitude(p=2)),
        where=pf.kind("hidden") & ~pf.glob("2*"),
        ratio=0.5,
        scope=pf.scope.local(),
        compensation=pf.compensation.mean(),
    )
    pruned = prune(params, batches, spec=spec)
    smaller = pf.recipes.vbp(pf.budget.params(0.5), round_to=2)(params, batches, spec=spec)
    before: int = smaller.info.before.macs
    removed, total = smaller.info.removed["0"]
    both: pf.Mask = pf.compose(pruned.mask, {})
    dense = pf.expand(pruned.params, pruned.mask, spec=spec)
    zeros = pf.zero(params, both, spec=spec)
    print(before, removed, total, dense, zeros, pf.metrics(params, spec=spec))
    return pf.to_module(smaller.params, spec=smaller.spec, model=model)


def files(model: nn.Module, folder: Path) -> nn.Module:
    small, spec, mask = steps(model, [torch.randn(8, 4)])
    pf.save(small, folder / "params.safetensors", spec=spec, masks=mask)
    loaded = pf.load_params(folder / "params.safetensors", spec=pf.trace(model, (torch.randn(2, 4),)))
    print(loaded.params, loaded.spec, loaded.masks)
    pf.save(model, folder / "model.safetensors")
    return pf.load(build(), folder / "model.safetensors")


def training(model: nn.Module, data: torch.utils.data.TensorDataset) -> float:
    recipe = pf.train.Recipe(epochs=2, lr=0.1, batch_size=16)
    setup = pf.train.Setup(data, held_out=data, device="cpu")
    trained = pf.train.train(model, setup, recipe)
    tuned = pf.train.fine_tune(trained.model, setup, recipe)
    return pf.train.evaluate(tuned.model, setup)["top1"]


def opened() -> int:
    data = pf.data.open_data("digits", validation_fraction=0.1)
    network = pf.nets.small_resnet18(in_chans=data.input_shape[0], num_classes=len(data.classes))
    spec = pf.trace(network, (torch.zeros(2, *data.input_shape),))
    profile = pf.profile({"dense": (pf.params(network), spec)}, batch=4, rounds=2)
    print(profile.networks[0].timing.median)
    try:
        pf.select({}, pf.budget.macs(0.5), spec=spec)
    except pf.BudgetError as error:
        print(error)
    return spec.sizes["layer1.0.conv1"]
