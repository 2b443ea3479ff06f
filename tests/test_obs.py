"""The greedy optimal brain surgeon: exact costs, the order by brute force, and the Fisher information of outputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunefn as pf
from prunefn import compensation, criteria
from prunefn.criteria import elimination
from prunefn.criteria.elimination import Term, eliminate

from .small import Attention, close, cnn, mlp, randn, traced


def term(n: int, units: int, seed: int) -> Term:
    """A random covariance and weight; each unit has n / units positions, apart from each other."""
    x, w = randn(5 * n, n, seed=seed), randn(3, n, seed=seed + 1)
    mixed = x @ randn(n, n, seed=seed + 2)
    return Term(torch.linalg.inv(torch.cov(mixed.T)), w.T @ w, torch.arange(n).reshape(-1, units).T)


def cost(t: Term, removed: list[int]) -> float:
    """tr(W_P [K_PP]⁻¹ W_Pᵀ), by the definition."""
    p = t.positions[removed].flatten()
    return float((torch.linalg.inv(t.precision[p][:, p]) @ t.importance[p][:, p]).trace())


@pytest.mark.parametrize("n, units", [(9, 9), (12, 4), (150, 150)])
def test_costs_are_exact_increments_of_the_greedy_order(n: int, units: int) -> None:
    terms = [term(n, units, 0), term(n, units, 10)]
    order, costs = eliminate(terms)
    total = 0.0
    for m, (unit, increment) in enumerate(zip(order.tolist(), costs.tolist(), strict=True)):
        gone = order[:m].tolist()
        if n < 100:  # no other unit would cost less
            every = {u: sum(cost(t, [*gone, u]) for t in terms) - total for u in range(units) if u not in gone}
            assert every[unit] == pytest.approx(min(every.values()), rel=1e-9)
            assert increment == pytest.approx(every[unit], rel=1e-6)
        total = sum(cost(t, [*gone, unit]) for t in terms) if n < 100 or m % 40 == 0 else total + increment
    assert costs.sum() == pytest.approx(sum(cost(t, list(range(units))) for t in terms), rel=1e-6)


def test_blocks_of_updates_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    t = term(60, 30, 3)
    order, costs = eliminate([t])
    monkeypatch.setattr(elimination, "BLOCK", 1)
    one, ones = eliminate([t])
    assert torch.equal(one, order)
    close(ones, costs, 1e-9)


def test_the_sum_is_the_residual_of_affine() -> None:
    """Of one site, for every number of removed units."""
    t = traced(mlp(5, 8, 3), x := randn(300, 5))
    stats = pf.collect_stats(t.params, [x], spec=t.spec, criterion=criteria.obs(None, ridge=1e-12))
    (scores,) = pf.score(stats, criterion=criteria.obs(None, ridge=1e-12)).values()
    order = scores.argsort()
    for n in range(1, 8):
        mask = {"0": torch.ones(8, dtype=torch.bool).index_fill(0, order[:n], False)}
        lost = pf.residual(stats, mask, spec=t.spec, method=compensation.affine(0.0))["2"]
        assert float(scores[order[:n]].sum()) == pytest.approx(lost.error / lost.signal, rel=1e-5)


def test_heads_go_with_all_their_positions() -> None:
    torch.manual_seed(0)
    t = traced(Attention(6, 4, 3), x := randn(40, 5, 6))
    stats = pf.collect_stats(t.params, [x], spec=t.spec, criterion=criteria.obs(None, ridge=1e-12))
    scores = pf.score(stats, criterion=criteria.obs(None, ridge=1e-12))
    heads = next(g for g in t.spec.groups.values() if g.kind == "heads")
    first = int(scores[heads.name].argmin())
    mask = {heads.name: torch.arange(heads.size) != first}
    lost = pf.residual(stats, mask, spec=t.spec, method=compensation.affine(0.0))
    assert float(scores[heads.name][first]) == pytest.approx(sum(r.error / r.signal for r in lost.values()), rel=1e-5)
    for other in range(heads.size):
        lost = pf.residual(
            stats, {heads.name: torch.arange(heads.size) != other}, spec=t.spec, method=compensation.affine(0.0)
        )
        assert sum(r.error / r.signal for r in lost.values()) >= float(scores[heads.name][first]) * (1 - 1e-6)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_the_fisher_information_of_outputs(likelihood: str) -> None:
    """At the last layer: E[p − onehot(y)] over y drawn from p is 0, and its second moment diag(p) − p pᵀ; that of noise is I."""
    t = traced(mlp(5, 8, 3), x := randn(4000, 5))
    ((sums,),) = [
        list(pf.collect_stats(t.params, [x], spec=t.spec, criterion=criteria.obs(likelihood)).sums.values()),
    ]
    p = pf.forward(t.params, x, spec=t.spec).softmax(1)
    expected = torch.diag(p.mean(0)) - p.T @ p / 4000 if likelihood == "categorical" else torch.eye(3).double()
    close(sums["2"] / 4000, expected, 0.05)


def test_the_information_of_an_inner_site_is_that_of_its_gradients() -> None:
    t = traced(mlp(4, 6, 5, 3), x := randn(50, 4))
    stats = pf.collect_stats(t.params, [x[:30], x[30:]], spec=t.spec, criterion=criteria.obs("gaussian", seed=3))
    (sums,) = stats.sums.values()
    total = torch.zeros(5, 5).double()
    for part in (x[:30], x[30:]):
        noise = torch.empty(len(part), 3).double().normal_(generator=torch.Generator().manual_seed(3))
        hidden = t.model[:3](part).detach().requires_grad_()
        out = t.model[3:](hidden)
        (g,) = torch.autograd.grad(-(out * noise).sum(), hidden)
        total += g.T @ g
    close(sums["2"], total, 1e-9)


def test_auto_takes_relative_errors_where_there_are_no_classes() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(F.relu(self.a(x)))

    t = traced(Maps(), x := randn(8, 2, 9, 9))
    auto, relative = criteria.obs(), criteria.obs(None)
    stats = pf.collect_stats(t.params, [x], spec=t.spec, criterion=[auto, relative])
    close(*(pf.score(stats, criterion=c)["a"] for c in (auto, relative)))
    classes = traced(cnn(), randn(2, 3, 6, 6))
    stats = pf.collect_stats(classes.params, [randn(40, 3, 6, 6)], spec=classes.spec, criterion=[auto, relative])
    a, b = (pf.score(stats, criterion=c) for c in (auto, relative))
    assert a.keys() == b.keys() and not all(torch.allclose(a[g], b[g]) for g in a)


def test_bad_arguments() -> None:
    with pytest.raises(pf.PruneError, match="obs's ridge is 0"):
        criteria.obs(ridge=0.0)
    with pytest.raises(pf.PruneError, match=r"no likelihood 'categoric'.*did you mean 'categorical'"):
        criteria.obs("categoric")


@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_many_outputs_are_weighed_at_the_inputs(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Fisher information of a vocabulary would not fit into memory; what it weighs at the inputs is the same."""
    from prunefn.criteria import output_fisher

    t, x = (
        (traced(mlp(5, 8, 3), randn(40, 5)), randn(40, 5))
        if net == "mlp"
        else (traced(cnn(), randn(2, 3, 6, 6)), randn(20, 3, 6, 6))
    )
    stats, kinds = [], []
    for widest in (8192, 2):
        monkeypatch.setattr(output_fisher, "WIDEST", widest)
        stats.append(pf.collect_stats(t.params, [x[:12], x[12:]], spec=t.spec, criterion=criteria.obs()))
        kinds.append(set(next(iter(stats[-1].sums.values()))))
    assert not kinds[0] & kinds[1]
    one, two = (pf.score(s, criterion=criteria.obs()) for s in stats)
    assert one.keys() == two.keys()
    for g in one:
        close(one[g], two[g], 1e-8)
