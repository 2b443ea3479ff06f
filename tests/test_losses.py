"""Losses and schedules: golden values, gradients by hand, and that they do what they are for."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import prunefn as pf
from prunefn.train import losses, schedule

from .small import Tied, Traced, close, cnn, laws, mlp, randn, traced

# ---- schedules


@given(st.floats(0, 0.99), st.integers(1, 30))
@laws
def test_schedules_rise_from_nothing_to_the_whole(ratio: float, steps: int) -> None:
    for s in (
        schedule.one_shot(ratio),
        schedule.linear(ratio, steps),
        schedule.geometric(ratio, steps),
        schedule.cubic(ratio, steps),
        schedule.epochs(ratio, 0, steps),
    ):
        shares = [s(t) for t in range(s.steps + 2)]
        assert shares == sorted(shares)
        assert s(-1) <= shares[0] <= (ratio / steps if s.name == "epochs" else 0)
        assert shares[-1] == shares[-2] == ratio


def test_golden_geometric() -> None:
    """algorithms of pruning-aware training: keep .65 in five steps."""
    s = schedule.geometric(0.35, 5)
    assert [round(s(t), 4) for t in range(6)] == [0, 0.0825, 0.1583, 0.2278, 0.2915, 0.35]
    left = [1 - s(t) for t in range(6)]
    assert all(b / a == pytest.approx(0.65**0.2) for a, b in pairwise(left))


def test_golden_epochs() -> None:
    """K epochs in [2, 8) that 2 divides; 0 before, everything from 8 on."""
    s = schedule.epochs(0.6, 2, 8, 2)
    assert [round(s(e), 2) for e in range(10)] == [0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: schedule.linear(1.1, 2), "ratio is 1.1"),
        (lambda: schedule.linear(-0.1, 2), "ratio is -0.1"),
        (lambda: schedule.geometric(0.5, 0), "0 steps"),
        (lambda: schedule.cubic(0.5, 2, initial=0.6), "starts at 0.6"),
        (lambda: schedule.epochs(0.5, 3, 5, 7), "no epoch in .3, 5. is a multiple of period 7"),
        (lambda: schedule.epochs(0.5, 5, 5), "no epoch"),
    ],
)
def test_impossible_schedules(call, message: str) -> None:
    with pytest.raises(pf.PruneError, match=message):
        call()


# ---- distillation


def test_distillation_is_hinton_s() -> None:
    student, teacher, labels = randn(6, 4), randn(6, 4, seed=1), torch.arange(6) % 4
    p, q = (torch.softmax(t / 3, 1) for t in (teacher, student))
    kl = (p * (p.log() - q.log())).sum(1).mean()
    got = losses.distillation(student, teacher, labels, alpha=0.3, temperature=3.0)
    close(got, 0.3 * F.cross_entropy(student, labels) + 0.7 * 9 * kl)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = randn(6, 4).requires_grad_(), randn(6, 4, seed=1).requires_grad_()
    losses.distillation(student, teacher, torch.arange(6) % 4).backward()
    assert student.grad is not None and teacher.grad is None


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"alpha": -0.1}, {"temperature": 0.0}])
def test_bad_distillation(options: dict[str, float]) -> None:
    with pytest.raises(pf.PruneError, match="must be in"):
        losses.distillation(randn(2, 3), randn(2, 3), torch.tensor([0, 1]), **options)


# ---- regularisers


def golden() -> Traced:
    """Two hidden units: rows (1), (2), biases 2, 0, columns (2), (4)."""
    t = traced(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1)), randn(2, 1))
    new = {"0.weight": [[1.0], [2.0]], "0.bias": [2.0, 0.0], "1.weight": [[2.0, 4.0]], "1.bias": [7.0]}
    return t._replace(params={n: torch.tensor(v, dtype=torch.float64) for n, v in new.items()})


def test_golden_group_lasso() -> None:
    """√(1 + 4 + 4) + √(4 + 0 + 16)"""
    t = golden()
    close(losses.group_lasso(t.params, spec=t.spec), torch.tensor(3 + 20**0.5, dtype=torch.float64))
    close(losses.l21(t.params, spec=t.spec), torch.tensor(3.0).double())
    assert float(losses.group_lasso(t.params, spec=t.spec, where="nothing")) == 0


def test_the_gradient_of_growing_is_gamma_w() -> None:
    """Scores 16 and 1: g = 4 and 1; the first has γ = 1, the second 2⁴."""
    t = golden()
    scores = {"0": torch.tensor([16.0, 1.0]).double()}
    grads = torch.func.grad(lambda p: losses.growing(p, scores, spec=t.spec))(t.params)
    gamma = torch.tensor([1.0, 16.0]).double()
    close(grads["0.weight"], gamma[:, None] * t.params["0.weight"])
    close(grads["0.bias"], gamma * t.params["0.bias"])
    close(grads["1.weight"], gamma * t.params["1.weight"])
    close(grads["1.bias"], torch.zeros(1).double())
    with pytest.raises(pf.PruneError, match="group '0' has -1"):
        losses.growing(t.params, {"0": torch.tensor([1.0, -1.0])}, spec=t.spec)


def test_bn_l1_is_the_sum_of_scales() -> None:
    t = traced(cnn(), randn(2, 3, 6, 6))
    expected = sum(t.params[n].abs().sum() for n in ("1.weight", "4.weight", "7.weight") if spec_has(t, n))
    close(losses.bn_l1(t.params, spec=t.spec), torch.as_tensor(expected))
    trained = {n: t.params[n] for n in t.spec.parameters}
    signs = torch.func.grad(lambda p: losses.bn_l1({**t.params, **p}, spec=t.spec))(trained)["1.weight"]
    close(signs, t.params["1.weight"].sign())
    plain = golden()
    with pytest.raises(pf.PruneError, match="no norm with a scale"):
        losses.bn_l1(plain.params, spec=plain.spec)


def spec_has(t: Traced, tensor: str) -> bool:
    return any(m.tensor == tensor for g in t.spec.groups.values() for m in g.members)


def test_tied_weights_count_once() -> None:
    model = Tied()
    t = Traced(model, pf.trace(model, (torch.arange(7)[None],)), pf.params(model))
    group = next(g for g in t.spec.groups.values() if any(m.tensor == "embed.weight" for m in g.members))
    squares = t.params["embed.weight"].square().sum(0) + sum(
        t.params[m.tensor].square().reshape(len(t.params[m.tensor]), -1).sum(1)
        if m.dim == 0
        else t.params[m.tensor].square().sum(0)
        for m in group.members
        if m.tensor not in ("embed.weight", "out.weight")
    )
    close(losses.group_lasso(t.params, spec=t.spec, where=group.name), squares.sqrt().sum(), 1e-6)


def test_zero_units_stay_zero() -> None:
    """The norm of a unit that is zero has a gradient of zero, not NaN."""
    t = golden()
    params = {n: torch.zeros_like(v) for n, v in t.params.items()}
    for loss in (losses.group_lasso, losses.l21):
        grads = torch.func.grad(lambda p, loss=loss: loss(p, spec=t.spec))(params)
        assert all(bool((g == 0).all()) for g in grads.values())


@pytest.mark.parametrize("loss", [losses.group_lasso, losses.l21])
def test_descent_takes_the_norms_down(loss) -> None:
    t = traced(mlp(5, 8, 3), randn(2, 5))
    params = dict(t.params)
    for _ in range(20):
        grads = torch.func.grad(lambda p: loss(p, spec=t.spec))(params)
        params = {n: p - 0.05 * grads[n] for n, p in params.items()}
    assert float(loss(params, spec=t.spec)) < 0.7 * float(loss(t.params, spec=t.spec))


# ---- variance concentration


def test_golden_entropy() -> None:
    even = {"a": torch.ones(4, dtype=torch.float64, requires_grad=True)}
    close(losses.variance_concentration(even), torch.tensor(4.0).double().log())
    one = {"a": torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)}
    close(losses.variance_concentration(one), torch.tensor(0.0).double())


def test_it_carries_a_gradient() -> None:
    """A step down gathers the variance of the hidden units; without a gradient it is an error, not a loss that does nothing."""
    w, x = randn(6, 4), randn(50, 4)

    def entropy(w: Tensor) -> Tensor:
        return losses.variance_concentration({"h": F.relu(x @ w.T).var(0)})

    before = entropy(w.clone().requires_grad_())
    after = entropy((w - 0.5 * torch.func.grad(entropy)(w)).requires_grad_())
    assert float(after.detach()) < float(before.detach()) - 1e-3
    with pytest.raises(pf.StatsError, match="have no gradient"):
        entropy(w)


def test_a_unit_that_never_varies_leaves_the_gradient_finite() -> None:
    """Dead units: 0 · log 0 is 0, and nothing pulls at them."""
    v = torch.tensor([1.0, 0.0, 3.0], requires_grad=True)
    losses.variance_concentration({"a": v}).backward()
    assert v.grad is not None and bool(v.grad.isfinite().all()) and v.grad[0] > 0 > v.grad[2]
