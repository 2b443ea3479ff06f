"""Recovery: closer to the dense network without labels, never worse on held-out batches, the same bits when interrupted."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.distillation.adam import Adam, one_cycle
from prunefn.distillation.recovery import _divide
from prunefn.types import Pruned

from .small import Tied, close, cnn, mlp, randn, same, traced


class Case(NamedTuple):
    dense: tuple[pf.Params, pf.Spec]
    small: Pruned
    batches: list[Tensor]


@cache
def case(convolutions: bool = True) -> Case:
    torch.manual_seed(0)
    shape = (16, 3, 6, 6) if convolutions else (16, 5)
    model = cnn() if convolutions else mlp(5, 12, 10, 4)
    with torch.no_grad():
        model[-1].weight.mul_(20)  # so that classes differ from sample to sample
    t = traced(model, randn(*shape))
    batches = [randn(*shape, seed=s) for s in range(8)]
    return Case(
        (t.params, t.spec),
        pf.pipeline(criterion=pf.criteria.variance(), ratio=0.3)(t.params, batches, spec=t.spec),
        batches,
    )


def recovered(c: Case, **options: Any) -> pf.Params:
    arguments: dict[str, Any] = {"spec": c.small.spec, "dense": c.dense, "steps": 40, "lr": 3e-3} | options
    return pf.recover(c.small.params, c.batches, **arguments)


def kl(c: Case, params: pf.Params, batches: list[Tensor]) -> float:
    pairs = [(pf.forward(params, x, spec=c.small.spec), pf.forward(c.dense[0], x, spec=c.dense[1])) for x in batches]
    return sum(float(pf.distances.kl()(a, b).detach()) for a, b in pairs) / len(pairs)


def held_out(c: Case, seed: int = 0) -> list[Tensor]:
    return _divide(list(c.batches), 0.125, seed)[1]


@pytest.mark.parametrize("convolutions", [True, False])
def test_it_comes_closer_on_new_samples_too(convolutions: bool) -> None:
    c = case(convolutions)
    new = [randn(*c.batches[0].shape, seed=s) for s in (100, 101)]
    params = recovered(c)
    assert kl(c, params, new) < 0.9 * kl(c, c.small.params, new)
    assert all(params[n].shape == t.shape and params[n].dtype == t.dtype for n, t in c.small.params.items())


def test_buffers_stay_and_biases_of_a_compensation_are_trained() -> None:
    c = case()
    params = recovered(c)
    new = set(params) - set(c.dense[0])
    assert set(params) == set(c.small.params)
    running = [n for n in params if "running" in n or "num_batches" in n]
    assert running and all(torch.equal(params[n], c.small.params[n]) for n in running)
    assert all(not torch.equal(params[n], c.small.params[n]) for n in {*new, "0.weight", "4.weight", "10.bias"})


def test_biases_that_a_compensation_created() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    t, batches = traced(model, randn(8, 4)), [randn(8, 4, seed=s) for s in range(4)]
    small = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5)(t.params, batches, spec=t.spec)
    (created,) = set(small.params) - set(t.params)
    params = pf.recover(small.params, batches, spec=small.spec, dense=(t.params, t.spec), steps=20, lr=1e-2)
    assert not torch.equal(params[created], small.params[created])


def test_never_worse_on_the_held_out_part() -> None:
    """A rate that ruins the network changes nothing, and says so."""
    c = case()
    with pytest.warns(pf.PruneWarning, match=r"no step lowered the held-out distance of .*; lower lr=3.0"):
        same(recovered(c, lr=3.0, steps=10), dict(c.small.params))
    for seed in (0, 1):
        assert kl(c, recovered(c, seed=seed), held_out(c, seed)) < kl(c, c.small.params, held_out(c, seed))


def test_by_layers() -> None:
    """Layers that lost no outputs are compared without a mask; with it, all are, at the positions that are left."""
    c = case(False)
    for mask in (None, c.small.mask):
        params = recovered(c, by_layers=True, mask=mask)
        assert kl(c, params, held_out(c)) < kl(c, c.small.params, held_out(c))
    with pytest.raises(pf.MaskError, match="the mask leaves 10 units of group '2'"):
        recovered(c, by_layers=True, mask={})
    with pytest.raises(pf.PruneError, match="compares layers; leave one out"):
        recovered(c, by_layers=True, distance=pf.distances.kl())


def test_layers_are_compared_at_the_kept_positions() -> None:
    """Removing without compensation what nothing reads leaves every layer as it was: the distance is zero."""
    from prunefn.distillation.layers import layers

    t = traced(mlp(3, 4, 4, 2), randn(6, 3))
    with torch.no_grad():
        t.params["2.weight"][:, 1] = 0
        t.params["4.weight"][:, 2] = 0
    mask = {"0": torch.tensor([True, False, True, True]), "2": torch.tensor([True, True, False, True])}
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    distance = layers((t.params, t.spec), spec, mask)
    assert len(distance.kept) == 2
    assert float(distance(small, spec, randn(6, 3)).detach()) < 1e-24


def test_seeded_pure_and_resumable(tmp_path: Path) -> None:
    c, file = case(), tmp_path / "recovery.safetensors"
    before, rng = {n: v.clone() for n, v in c.small.params.items()}, torch.get_rng_state()
    whole = recovered(c)
    same(whole, recovered(c))
    assert not torch.equal(whole["0.weight"], recovered(c, seed=1)["0.weight"])
    calls = []

    def dying(output: Tensor, dense: Tensor) -> Tensor:
        calls.append(output)
        if len(calls) > 45:
            raise KeyboardInterrupt
        return pf.distances.kl()(output, dense)

    with pytest.raises(KeyboardInterrupt):
        recovered(c, distance=dying, resume=file, save_every=10)
    assert file.exists()
    same(recovered(c, resume=file), whole)
    same(recovered(c, resume=file), whole)  # it is finished
    same(dict(c.small.params), before)
    assert torch.equal(rng, torch.get_rng_state())
    with pytest.raises(pf.PruneError, match="belongs to other recovery: seed differs"):
        recovered(c, resume=file, seed=1)


def test_frozen_tensors_stay_and_tied_ones_stay_tied() -> None:
    c = case()
    params = recovered(c, freeze=["0", "10.bias"])
    for n in params:
        assert torch.equal(params[n], c.small.params[n]) == (
            n in ("0.weight", "10.bias") or "running" in n or "num_b" in n
        )
    torch.manual_seed(0)
    model = Tied().double()
    spec, params = pf.trace(model, (torch.arange(4),)), pf.params(model)
    batches = [torch.randint(7, (16,), generator=torch.Generator().manual_seed(s)) for s in range(4)]
    small = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5)(params, batches, spec=spec)
    better = pf.recover(small.params, batches, spec=small.spec, dense=(params, spec), steps=20, lr=1e-2)
    assert better["out.weight"] is better["embed.weight"] and not torch.equal(
        better["out.weight"], small.params["out.weight"]
    )


def test_the_pipeline_ends_with_it() -> None:
    c = case()
    prune = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.3, recover_steps=40)
    params = prune(c.dense[0], c.batches, spec=c.dense[1]).params
    same(params, recovered(c, lr=3e-4))
    with pytest.raises(pf.BatchError, match="recover_steps=40 needs batches"):
        pf.pipeline(criterion="magnitude", compensation="none", recover_steps=40)(c.dense[0], None, spec=c.dense[1])  # type: ignore
    with pytest.raises(pf.PruneError, match="recover_steps=40 trains on one process"):
        prune(c.dense[0], c.batches, spec=c.dense[1], sync=True)


def test_the_command_line_has_it() -> None:
    from prunefn.cli.pipelines import options_of
    from prunefn.cli.sections import Prune

    assert options_of(Prune(recover_steps=40)) == {"recover_steps": 40}
    assert options_of(Prune()) == {}


def test_refusals() -> None:
    c = case()
    for error, words, options in (
        (pf.PruneError, "held_out is 1.0", {"held_out": 1.0}),
        (pf.PruneError, "lr is 0.0", {"lr": 0.0}),
        (pf.ParamsError, "leaves no parameter to train", {"freeze": "*"}),
        (pf.PruneError, "dense is", {"dense": c.dense[0]}),
        (pf.BatchError, "there is only one", {"max_batches": 1}),
    ):
        with pytest.raises(error, match=words):
            recovered(c, **options)


def test_adam_and_its_rates_are_torchs() -> None:
    w = randn(3, 2)
    leaf = w.clone().requires_grad_()
    optimizer = torch.optim.AdamW([leaf], lr=0.1, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12, cycle_momentum=False)
    adam = Adam.start({"w": w})
    for step in range(12):
        lr = one_cycle(step, 12, 0.1)
        assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        leaf.grad = (leaf.detach() - 1) ** 3
        adam = adam.add({"w": (w - 1) ** 3})
        w = w * (1 - lr * 0.01) - lr * adam.direction("w")
        optimizer.step()
        rates.step()
        close(w, leaf, 1e-12)
