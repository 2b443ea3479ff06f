"""Gates: means replace what is closed, every budget is met, and the same seed gives the same bits, interrupted or not."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.criteria.unit_mask import mask_params, masked
from prunefn.gates.concrete import open_probability
from prunefn.gates.multipliers import target
from prunefn.types import Budget

from .small import Attention, Residual, Traced, Twice, close, cnn, mlp, randn, same, traced
from .test_soft_cost import latency_table

NETS = {
    "mlp": (lambda: mlp(3, 6, 5, 4), (8, 3)),
    "cnn": (cnn, (4, 3, 6, 6)),
    "residual": (lambda: Residual(3, 6, 5, 4), (8, 3)),
    "attention": (lambda: Attention(6, 2, 4), (4, 5, 6)),
    "concatenated": (Twice, (8, 4)),
}


@cache
def net(name: str) -> tuple[Traced, list[Tensor]]:
    make, shape = NETS[name]
    torch.manual_seed(1)
    return traced(make(), randn(*shape)), [randn(*shape, seed=s) for s in (2, 3, 4)]


# ---- mean replacement


@pytest.mark.parametrize("name", NETS)
def test_open_gates_change_nothing_and_closed_ones_leave_the_mean(name: str) -> None:
    t, batches = net(name)
    stats = pf.collect_stats(t.params, batches, spec=t.spec)
    means, program = {n: m.mean for n, m in stats.sites.items()}, masked(t.spec, replaced=True)
    # a fused query, key and value has one width, of which a gate acts on the values
    sited = [g for g in t.spec.groups.values() if g.sites and g.kind != "head_dim"]

    def output(gates: dict[str, Tensor]) -> Tensor:
        return pf.forward(mask_params(t.params, gates, t.spec, means), batches[0], spec=program)

    ones = {g.name: torch.ones(g.size).double() for g in t.spec.groups.values()}
    close(output(ones), pf.forward(t.params, batches[0], spec=t.spec), 1e-12)
    for g in sited:
        if g.exact and not any(t.spec.sites[s].taps for s in g.sites):  # padding has no mean
            keep = torch.arange(g.size) != 0
            compensated = pf.compensate(t.params, stats, {g.name: keep}, spec=t.spec)
            small = pf.apply(compensated, {g.name: keep}, spec=t.spec)
            removed = pf.forward(small, batches[0], spec=pf.shrink(t.spec, {g.name: keep}))
            close(output({**ones, g.name: keep.double()}), removed, 1e-10)


def test_hard_concrete_gates_follow_their_distribution() -> None:
    """P(m > 0) = σ(logit − β log(0.1 / 1.1)), and P(m = 1) mirrors it."""
    logits = {"a": torch.full((200_000,), 0.3, dtype=torch.float64)}
    gates = pf.gates.sample(logits, torch.Generator().manual_seed(0))["a"]
    assert (float(gates.min()), float(gates.max())) == (0, 1)
    opened, full = float((gates > 0).double().mean()), float((gates == 1).double().mean())
    assert opened == pytest.approx(float(torch.sigmoid(torch.tensor(0.3 - 2 / 3 * log(0.1 / 1.1)))), abs=4e-3)
    assert full == pytest.approx(float(torch.sigmoid(torch.tensor(0.3 + 2 / 3 * log(0.1 / 1.1)))), abs=4e-3)
    assert float(open_probability(logits["a"][:1])) == pytest.approx(opened, abs=4e-3)
    assert float(pf.gates.expected_units(logits)["a"]) == pytest.approx(200_000 * opened, rel=1e-2)


# ---- budgets


BUDGETS: dict[str, Budget | list[Budget]] = {
    "macs": pf.budget.macs(0.35),
    "params": pf.budget.params(0.5),
    "both": [pf.budget.macs(0.6), pf.budget.params(0.4)],
    "custom": pf.budget.custom(0.5, lambda s, _: s["0"] ** 2, soft=lambda s, _: s["0"] ** 2, falls=True),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_expected_costs_end_at_the_budget(name: str) -> None:
    (t, batches), budget = net("mlp"), BUDGETS[name]
    learned = pf.gates.learn(t.params, batches, budget, spec=t.spec, steps=60)
    budgets = [budget] if isinstance(budget, Budget) else budget
    ratios = [share / b.keep for share, b in zip(learned.shares, budgets, strict=True)]
    assert max(ratios) <= 1 + 1e-9
    assert max(ratios) >= 0.98  # the tightest one is met with equality
    mask = pf.select(learned.scores, budget, spec=t.spec)
    for b in budgets:
        assert b.cost({g: int(m.sum()) for g, m in mask.items()}, t.spec) <= b.keep * b.cost(t.spec.sizes, t.spec)
    assert {g: s.shape for g, s in learned.scores.items()} == {g: (n,) for g, n in t.spec.sizes.items()}


def test_a_table_of_latencies_is_a_budget() -> None:
    table = latency_table()
    torch.manual_seed(0)
    t = traced(mlp(3, 64, 48, 2), randn(2, 3))
    budget = pf.budget.latency(0.6, table._replace(spec=t.spec))
    learned = pf.gates.learn(t.params, [randn(16, 3)], budget, spec=t.spec, steps=60)
    assert 0.98 * 0.6 <= learned.shares[0] <= 0.6 + 1e-9


def test_targets_fall_to_the_budget_and_stay() -> None:
    targets = [target(0.35, step, 100) for step in range(101)]
    assert targets[0] == 1 and targets[70:] == [0.35] * 31
    assert all(a > b for a, b in pairwise(targets[:71]))


# ---- what is learned


def useful() -> tuple[Traced, Tensor, Tensor]:
    """Of eight hidden units, three make the output, three are constant (their means make up for them), two are not read."""
    torch.manual_seed(0)
    model = mlp(4, 8, 3).double()
    with torch.no_grad():
        model[0].weight[3:6] = 0  # type: ignore[index]
        model[0].bias[:] = 1.0  # type: ignore[assignment]
        model[2].weight[:, 3:6] *= 20  # type: ignore[operator]
        model[2].weight[:, 6:] = 0  # type: ignore[index]
    x = randn(256, 4)
    return traced(model, x), x, torch.arange(8) < 3


def test_it_keeps_what_the_outputs_need() -> None:
    t, x, needed = useful()
    budget = pf.budget.params(0.45)
    for options in (
        {},
        {"distance": pf.distances.relative_mse()},
        {"loss": lambda out: (out - t.model(x).detach()).square().mean()},
    ):
        learned = pf.gates.learn(t.params, [x], budget, spec=t.spec, steps=150, **options)  # type: ignore[arg-type]
        mask = pf.select(learned.scores, budget, spec=t.spec)
        assert torch.equal(mask["0"], needed)


def test_it_starts_from_scores() -> None:
    t, x, _ = useful()
    gates = pf.gates.learner(
        t.params, pf.budget.macs(0.5), spec=t.spec, means=pf.collect_stats(t.params, [x], spec=t.spec)
    )
    scores = {"0": torch.tensor([5.0, 1.0, 1.0, 7.0, 2.0, 6.0, 3.0, 0.0])}
    assert (
        gates.start(init=scores).logits["0"].argsort(stable=True).tolist() == scores["0"].argsort(stable=True).tolist()
    )
    assert float(gates.start(init=scores).logits["0"].mean()) == pytest.approx(
        float(gates.start().logits["0"].mean()), abs=0.5
    )
    assert gates.start(init=scores).logits["0"][1] == gates.start(init=scores).logits["0"][2]


def test_where_leaves_other_groups_out() -> None:
    t, batches = net("mlp")
    learned = pf.gates.learn(t.params, batches, pf.budget.macs(0.7), spec=t.spec, where="2", steps=20, lr=0.5)
    assert list(learned.scores) == ["2"]


def test_given_scores_are_a_criterion() -> None:
    t, batches = net("mlp")
    learned = pf.gates.learn(t.params, batches, pf.budget.macs(0.5), spec=t.spec, steps=20, lr=0.5)
    prune = pf.pipeline(criterion=pf.criteria.given(learned.scores), ratio=pf.budget.macs(0.5))
    mask = prune(t.params, batches, spec=t.spec).mask
    same(mask, pf.select(learned.scores, pf.budget.macs(0.5), spec=t.spec))
    for scores, words in (
        ({"9": torch.ones(6)}, "no group '9'"),
        ({"0": torch.ones(2)}, r"scores\['0'\] has shape \(2,\)"),
    ):
        with pytest.raises(pf.MaskError, match=words):
            pf.pipeline(criterion=pf.criteria.given(scores), compensation="none")(t.params, None, spec=t.spec)  # type: ignore[arg-type]


# ---- purity


def bits(state: pf.gates.GateState) -> list[Any]:
    return [*state.logits.values(), *state.first.values(), *state.second.values(), state.multipliers, state.generator]


@pytest.mark.parametrize("name", ["cnn", "attention"])
def test_ten_steps_and_ten_steps_are_twenty(name: str, tmp_path: Path) -> None:
    t, batches = net(name)
    before, rng = {n: v.clone() for n, v in t.params.items()}, torch.get_rng_state()
    options: dict[str, Any] = {"spec": t.spec, "steps": 20, "lr": 0.5}
    budget, file = pf.budget.macs(0.5), tmp_path / "gates.safetensors"
    whole = pf.gates.learn(t.params, batches, budget, seed=3, **options)

    class Killed(Exception):
        pass

    def dying() -> Any:
        yield from [*batches, *batches, *batches, batches[0], batches[1]]
        raise Killed

    stats = pf.collect_stats(t.params, batches, spec=t.spec)
    with pytest.raises(Killed):
        pf.gates.learn(t.params, dying(), budget, seed=3, means=stats, resume=file, save_every=10, **options)
    resumed = pf.gates.learn(t.params, batches, budget, seed=3, means=stats, resume=file, **options)
    gates = pf.gates.learner(t.params, budget, means=stats, **options)
    state = gates.start(seed=3)
    for i in range(20):
        kept = gates.step(state, batches[i % 3])
        state = gates.step(state, batches[i % 3])  # a step has no side effects
        assert all(torch.equal(a, b) for a, b in zip(bits(kept), bits(state), strict=True))
    for other in (resumed.state, state):
        assert all(torch.equal(a, b) for a, b in zip(bits(whole.state), bits(other), strict=True))
    assert not torch.equal(
        bits(whole.state)[0], bits(pf.gates.learn(t.params, batches, budget, seed=4, **options).state)[0]
    )
    same(t.params, before)
    assert torch.equal(rng, torch.get_rng_state())
    with pytest.raises(pf.PruneError, match="belongs to other gates: seed differs"):
        pf.gates.learn(t.params, batches, budget, seed=4, means=stats, resume=file, **options)


# ---- refusals


def refused(error: type[pf.PruneError], words: str, **options: Any) -> None:
    t, batches = net("mlp")
    arguments: dict[str, Any] = {"budget": pf.budget.macs(0.5), "spec": t.spec, "steps": 3} | options
    with pytest.raises(error, match=words):
        pf.gates.learn(t.params, batches, **arguments)


def test_refusals() -> None:
    class Plain:
        def predict(self, sizes: object) -> float:
            return 1.0

    refused(pf.BudgetError, "has no cost at sizes that are not whole", budget=pf.budget.latency(0.5, Plain()))
    refused(pf.BudgetError, r"budget.macs\(0.01\) cannot be met: with the fewest units", budget=pf.budget.macs(0.01))
    refused(pf.BudgetError, "budget is 0.5; write a budget", budget=0.5)
    refused(pf.PruneError, "loss= is of labels, and distance=", loss=lambda out: out.mean(), distance=pf.distances.kl())
    refused(pf.PruneError, "no group matches where='nothing'", where="nothing")
    refused(pf.BatchError, "the loss of a batch is nan", loss=lambda out: out.mean() * torch.nan)
    refused(pf.BatchError, r"the loss has shape \(8, 4\)", loss=lambda out: out)
    refused(pf.MaskError, r"init\['0'\] has shape \(2,\)", init={"0": torch.ones(2)})
    refused(pf.PruneError, "steps is 0", steps=0)
    refused(pf.StatsError, "means has no mean of site", means={})


def test_too_few_steps_are_noticed() -> None:
    t, batches = net("mlp")
    with pytest.warns(
        pf.PruneWarning, match=r"after 3 steps, the gates are expected to leave 0\.\d+ of the macs, not 0.3"
    ):
        pf.gates.learn(t.params, batches, pf.budget.macs(0.3), spec=t.spec, steps=3)


# ---- distances


def test_distances() -> None:
    a, b = randn(5, 3), randn(5, 3, seed=1)
    p, q = b.softmax(-1), a.softmax(-1)
    kl = (p * (p / q).log()).sum(-1).mean()
    close(pf.distances.kl()(a, b), kl)
    close(pf.distances.auto()(a, b), kl)
    close(pf.distances.kl(class_dim=0)(a.T, b.T), kl)
    mse = (a - b).square().mean() / b.var(correction=0)
    close(pf.distances.relative_mse()({"x": a, "n": torch.ones(2).int()}, {"x": b, "n": torch.ones(2).int()}), mse)
    for shape in ((5, 1), (5, 3, 2)):  # a single output, and maps: no class scores
        x, y = randn(*shape), randn(*shape, seed=1)
        close(pf.distances.auto()(x, y), pf.distances.relative_mse()(x, y))
    constant = torch.full((4,), 2.0)
    assert float(pf.distances.relative_mse()(constant + 1, constant)) == 0.25
    with pytest.raises(pf.BatchError, match="must have the same shapes"):
        pf.distances.relative_mse()(a, b[:2])
    with pytest.raises(pf.BatchError, match="takes one tensor of scores"):
        pf.distances.kl()((a, a), (b, b))
    assert isinstance(nn.Identity()(pf.distances.kl(2.0)(a, b)), Tensor)
