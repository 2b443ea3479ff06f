"""Scores that need data, reconstruction from covariances, rounds, training with the zeros held, and semi-structured weights."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn import sparse
from prunefn.sparse import criteria, pattern, scope
from prunefn.train import schedule, train
from prunefn.train.regularizers import Regularizer

from .small import Recurrent, Tied, Traced, bits, close, cnn, mlp, randn, same, traced
from .training import PLAIN, SETUP, net

# what stays dense for want of statistics or of a size that divides is said; test_effective.py has the tests of that
pytestmark = [
    pytest.mark.filterwarnings("ignore:sparse.(score|select) leaves some weights dense"),
    pytest.mark.filterwarnings("ignore:sparse.reconstruct only masks"),
]

CLASSES = torch.arange(6) % 3


def layers(seed: int = 0) -> Traced:
    """Two layers, the second without a bias."""
    torch.manual_seed(seed)
    return traced(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3, bias=False)), randn(2, 5))


def collect(t: Traced, x: Tensor, *more: pf.Criterion, covariance: bool = False) -> pf.Stats:
    return pf.collect_stats(
        t.params, [(x, torch.arange(len(x)) % 3)], spec=t.spec, criterion=more, covariance=covariance
    )


# ---- scores


def test_magnitude_and_random() -> None:
    t = layers()
    scores = sparse.score(t.params, spec=t.spec, criterion=criteria.magnitude(1.0))
    close(scores["0.weight"], t.params["0.weight"].abs())
    again = [sparse.score(t.params, spec=t.spec, criterion=criteria.random(s)) for s in (3, 3, 4)]
    same(again[0], again[1])
    assert not torch.equal(again[0]["0.weight"], again[2]["0.weight"])
    assert list(sparse.score(t.params, spec=t.spec, weights="2")) == ["2.weight"]
    with pytest.raises(ValueError, match=r"p is 0\.0"):
        criteria.magnitude(0.0)


def test_gradient_criteria_are_those_of_autograd() -> None:
    """Of the mean loss over all data, however it is cut into batches of different sizes."""
    t, x, y = layers(), randn(6, 5, seed=1), CLASSES
    model = copy.deepcopy(t.model)
    nn.functional.cross_entropy(model(x), y).backward()
    product = {n: p.detach() * p.grad for n, p in model.named_parameters() if p.ndim > 1 and p.grad is not None}
    chosen = [criteria.taylor(), criteria.snip(), criteria.movement()]
    stats = pf.collect_stats(t.params, [(x[:4], y[:4]), (x[4:], y[4:])], spec=t.spec, criterion=chosen)
    taylor, snip, movement = (sparse.score(stats, criterion=c) for c in chosen)
    total = sum(float(v.abs().sum()) for v in product.values())
    for n, v in product.items():
        close(taylor[n], v.abs())
        close(snip[n], v.abs() / total)
        close(movement[n], -v)
    assert len(stats.sums) == 2  # Taylor and SNIP share theirs
    with pytest.raises(pf.StatsError, match="needs 'weight gradients of cross_entropy', which was not collected"):
        sparse.score(collect(t, x), criterion=criteria.taylor())


def test_movement_adds_up_over_steps() -> None:
    t, x, y = layers(), randn(6, 5, seed=1), CLASSES
    moved = {n: p + 0.1 if n in sparse.weights(t.spec) else p for n, p in t.params.items()}
    steps = [pf.collect_stats(p, [(x, y)], spec=t.spec, criterion=criteria.movement()) for p in (t.params, moved)]
    (name,) = steps[0].sums
    both = {n: steps[0].sums[name][n] + steps[1].sums[name][n] for n in sparse.weights(t.spec)}
    found = sparse.score(steps[1]._replace(sums={name: both}), criterion=criteria.movement())
    parts = [sparse.score(s, criterion=criteria.movement()) for s in steps]
    for n in found:
        close(found[n], parts[0][n] + parts[1][n])


def test_movement_since_is_what_movement_adds_up_to() -> None:
    """Over gradient descent in steps that are small."""
    t, x, y = layers(), randn(6, 5, seed=1), CLASSES
    rate, now = 1e-3, dict(t.params)
    total = {n: torch.zeros_like(now[n]) for n in sparse.weights(t.spec)}
    for _ in range(500):
        leaves = {n: now[n].detach().requires_grad_() for n in total}
        loss = nn.functional.cross_entropy(pf.forward({**now, **leaves}, x, spec=t.spec), y)
        slopes = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for n, g in slopes.items():
            total[n] -= now[n] * g
            now[n] = now[n] - rate * g
    found = sparse.score(now, spec=t.spec, criterion=criteria.movement_since(t.params))
    for n, sums in total.items():
        assert float((found[n] - rate * sums).abs().max()) < 2e-3 * float(found[n].abs().max())
    with pytest.raises(pf.ParamsError, match=r"'2.weight', \(3, 6\), is missing in start"):
        sparse.score(now, spec=t.spec, criterion=criteria.movement_since({"0.weight": t.params["0.weight"]}))


def test_wanda_by_hand() -> None:
    t, x = layers(), randn(40, 5, seed=1)
    hidden = t.model[:2](x).detach()
    found = sparse.score(collect(t, x), criterion=criteria.wanda())
    assert list(found) == ["2.weight"]  # nothing measures the network's own inputs
    close(found["2.weight"], t.params["2.weight"].abs() * hidden.square().mean(0).sqrt())


def test_obs_is_the_error_of_each_weight_alone() -> None:
    """As measured: the other weights and the bias fitted anew without it."""
    t, x = layers(), randn(400, 5, seed=1)
    hidden = t.model[:2](x).detach()
    found = sparse.score(collect(t, x, covariance=True), criterion=criteria.obs(1e-12))["2.weight"]
    target = hidden @ t.params["2.weight"].mT
    for j in range(6):
        others = torch.cat([hidden[:, [k for k in range(6) if k != j]], torch.ones(400, 1).double()], 1)
        rest = target - others @ torch.linalg.lstsq(others, target).solution
        close(found[:, j], rest.square().sum(0) / 399, 1e-8)
    with pytest.raises(ValueError, match="ridge is 0"):
        criteria.obs(0.0)


def test_sites_of_convolutions() -> None:
    """Grouped ones read the channels of their group, and all taps share the norm."""
    t = traced(cnn(), randn(2, 3, 6, 6))
    stats = pf.collect_stats(t.params, [randn(8, 3, 6, 6, seed=2)], spec=t.spec, covariance=True)
    found = sparse.score(stats, criterion=criteria.wanda())["3.weight"]
    m = stats.sites["3"]
    norm = (m.m2 / m.count + m.mean.square()).sqrt().reshape(2, 1, 3, 1, 1).expand(2, 4, 3, 3, 3)
    close(found, t.params["3.weight"].abs() * norm.reshape(8, 3, 3, 3))
    assert sparse.score(stats, criterion=criteria.obs())["3.weight"].shape == (8, 3, 3, 3)


def test_a_criterion_of_units_is_refused() -> None:
    t = layers()
    with pytest.raises(pf.PruneError, match="scores units of groups, not weights"):
        sparse.score(t.params, spec=t.spec, criterion=pf.criteria.magnitude())
    with pytest.raises(pf.PruneError, match="give their spec"):
        sparse.score(t.params)


# ---- reconstruction


def fitted(x: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """Least squares of each column of the target on the kept inputs and a constant; some inputs are always zero."""
    out = []
    for row, y in zip(kept, target.mT, strict=True):
        a = torch.cat([x[:, row], torch.ones(len(x), 1).double()], 1)
        out.append(a @ torch.linalg.lstsq(a, y[:, None], driver="gelsd").solution)
    return torch.cat(out, 1)


@pytest.mark.parametrize(
    "chosen", [pattern.unstructured(), pattern.n_m(2, 4), pattern.blocks(3, 2)], ids=lambda p: p.name
)
def test_reconstruction_is_least_squares_on_the_support(chosen: pattern.Pattern) -> None:
    """Golden: the outputs are those of the best weights and bias on the kept inputs; a bias is created."""
    t, x = layers(), randn(300, 5, seed=1)
    stats, hidden = collect(t, x, covariance=True), t.model[:2](x).detach()
    scores = sparse.score(t.params, spec=t.spec, weights="2")
    masks = sparse.select(scores, None if chosen.ratio else 0.5, spec=t.spec, pattern=chosen)
    new = sparse.reconstruct(t.params, stats, masks, spec=t.spec, ridge=1e-12)
    close(pf.forward(new, x, spec=t.spec), fitted(hidden, t.model(x).detach(), masks["2.weight"]), 1e-7)
    assert bool((new["2.weight"][~masks["2.weight"]] == 0).all()) and "2.bias" in new
    assert new["0.weight"] is t.params["0.weight"] and "2.bias" not in t.params


def test_rows_that_keep_the_same_are_solved_alike() -> None:
    """Both ways to solve, and small chunks, agree; what a row keeps alone does not change it."""
    c = torch.cov(randn(7, 50, seed=3))
    weight, kept = randn(6, 7, seed=4), randn(6, 7, seed=5) > 0
    solve = sparse.least_squares().solve
    new = solve(weight, kept, c, 1e-2)
    close(sparse.least_squares(chunk=1).solve(weight, kept, c, 1e-2), new)
    one_by_one = torch.cat([solve(weight[[i, i, i]], kept[[i, i, i]], c, 1e-2)[:1] for i in range(6)])
    close(one_by_one, new)
    assert torch.equal(solve(weight, torch.ones_like(kept), c, 1e-2), weight)
    assert torch.equal(solve(weight, torch.zeros_like(kept), c, 1e-2), torch.zeros_like(weight))


def error(new: Tensor, old: Tensor, c: Tensor) -> float:
    return float(torch.einsum("oi,ij,oj->", new - old, c, new - old))


def test_sweep_lies_between_the_optimum_and_nothing() -> None:
    """With what goes to the left of what stays, nothing is lost by going from left to right; else a little is."""
    d = 200  # two blocks
    c, weight = torch.cov(randn(d, 900, seed=3) + randn(1, 900, seed=6)), randn(4, d, seed=4)
    plain, sweep, best = (lambda w, k, *_: w * k), sparse.sweep().solve, sparse.least_squares().solve
    kept = (randn(4, d, seed=5) > 0) | False
    errors = [error(f(weight, kept, c, 1e-9), weight, c) for f in (best, sweep, plain)]
    assert errors[0] < errors[1] < 0.7 * errors[2]
    left = torch.arange(d).expand(4, d) >= 77
    close(sweep(weight, left, c, 1e-9), best(weight, left, c, 1e-9), 1e-6)


def test_reconstruction_of_convolutions() -> None:
    """A 1 × 1 convolution is exact, also before a BatchNorm, whose mean takes the shift; others come closer than plain zeros."""
    t, x = traced(cnn(), randn(2, 3, 6, 6)), randn(64, 3, 6, 6, seed=2)
    stats = pf.collect_stats(t.params, [x], spec=t.spec, covariance=True)
    masks = sparse.select(sparse.score(t.params, spec=t.spec), 0.5, spec=t.spec)
    only = {"6.weight": masks["6.weight"]}
    new = sparse.reconstruct(t.params, stats, only, spec=t.spec, ridge=1e-12)
    inputs = t.model[:6](x).detach().movedim(1, -1).flatten(0, 2)
    target = inputs @ t.params["6.weight"].flatten(1).mT
    got = inputs @ new["6.weight"].flatten(1).mT - new["7.running_mean"] + t.params["7.running_mean"]
    close(got, fitted(inputs, target, only["6.weight"].flatten(1)), 1e-7)

    some, inputs = {"3.weight": masks["3.weight"]}, t.model[:3](x).detach()

    def outputs(params: pf.Params) -> Tensor:
        return nn.functional.conv2d(inputs, params["3.weight"], params["3.bias"], stride=2, padding=1, groups=2)

    errors = [
        float((outputs(p) - outputs(t.params)).square().mean())
        for p in (sparse.reconstruct(t.params, stats, some, spec=t.spec), sparse.apply_sparse(t.params, some))
    ]
    assert errors[0] < 0.8 * errors[1]


def test_weights_that_cannot_be_rewritten() -> None:
    tied = Tied().double().eval()
    spec, ids = pf.trace(tied, (torch.arange(6).reshape(2, 3),)), [torch.arange(21).reshape(7, 3) % 7]
    params = pf.params(tied)
    stats = pf.collect_stats(params, ids, spec=spec, covariance=True)
    masks = sparse.select(sparse.score(params, spec=spec), 0.5, spec=spec)
    with pytest.raises(pf.ParamsError, match=r"'embed\.weight' cannot be rewritten: .* also serves"):
        sparse.reconstruct(params, stats, masks, spec=spec)
    rest = {n: m for n, m in masks.items() if n != "embed.weight"}
    new = sparse.apply_sparse(sparse.reconstruct(params, stats, rest, spec=spec), masks)
    assert new["out.weight"] is new["embed.weight"]
    with pytest.raises(pf.StatsError, match="needs the covariance of site"):
        sparse.reconstruct(params, pf.collect_stats(params, ids, spec=spec), rest, spec=spec)
    with pytest.raises(ValueError, match="ridge is 0"):
        sparse.reconstruct(params, stats, rest, spec=spec, ridge=0.0)


def test_a_layer_that_is_called_twice() -> None:
    t, x = traced(Recurrent(), randn(2, 4)), randn(50, 4, seed=1)
    stats = pf.collect_stats(t.params, [x], spec=t.spec, covariance=True)
    masks = sparse.select(sparse.score(t.params, spec=t.spec, weights="b"), 0.5, spec=t.spec)
    new = sparse.reconstruct(t.params, stats, masks, spec=t.spec)
    assert int((new["b.weight"] == 0).sum()) == 12 and not torch.equal(new["b.bias"], t.params["b.bias"])


def test_channels_after_reconstruction() -> None:
    """The created bias goes along."""
    t, x = layers(), randn(100, 5, seed=1)
    masks = sparse.select(sparse.score(t.params, spec=t.spec), 0.5, spec=t.spec)
    new = sparse.reconstruct(t.params, collect(t, x, covariance=True), masks, spec=t.spec)
    mask = {"0": bits("101101")}
    small = pf.apply(new, mask, spec=t.spec)
    close(
        pf.forward(small, x, spec=pf.shrink(t.spec, mask)),
        pf.forward(pf.zero(new, mask, spec=t.spec), x, spec=t.spec),
    )


# ---- little by little


@pytest.mark.parametrize(
    "of", [schedule.linear(0.75, 3), schedule.geometric(0.75, 3), schedule.cubic(0.75, 3)], ids=lambda s: s.name
)
def test_rounds_follow_the_schedule(of: schedule.Schedule) -> None:
    """Masks grow; between rounds anything may happen to the weights, zeros stay."""
    t = layers()
    seen: list[dict[str, Tensor]] = []

    def between(step: int, params: pf.Params, masks: sparse.Masks) -> pf.Params:
        assert step == len(seen) + 1
        assert all(bool((params[n][~m] == 0).all()) for n, m in masks.items())
        seen.append(masks)
        return {n: p + 1 for n, p in params.items()}

    before = {n: p.clone() for n, p in t.params.items()}
    options = {"criterion": criteria.random(1), "scope": scope.global_()}
    params, masks = sparse.rounds(t.params, None, of, of.steps, spec=t.spec, between=between, **options)
    assert [sum(int((~m).sum()) for m in s.values()) for s in seen] == [int(of(k) * 48 + 1e-9) for k in (1, 2, 3)]
    for a, b in pairwise(seen):
        assert all(bool((a[n] | ~b[n]).all()) for n in a)
    assert all(bool((params[n][~m] == 0).all()) for n, m in masks.items())
    same(t.params, before)
    with pytest.raises(pf.PruneError, match="0 rounds"):
        sparse.rounds(t.params, None, of, 0, spec=t.spec)


def test_rounds_with_data_and_reconstruction() -> None:
    t, x = layers(), randn(60, 5, seed=1)
    batches = [(x, torch.arange(60) % 3)]
    one = sparse.rounds(
        t.params, batches, schedule.one_shot(0.5), 1, spec=t.spec, criterion=criteria.taylor(), ridge=1e-2
    )
    stats = pf.collect_stats(t.params, batches, spec=t.spec, criterion=criteria.taylor(), covariance=True)
    masks = sparse.select(sparse.score(stats, criterion=criteria.taylor()), 0.5, spec=t.spec)
    same(one[1], masks)
    same(one[0], sparse.reconstruct(t.params, stats, masks, spec=t.spec))
    twice, held = sparse.rounds(t.params, batches, schedule.linear(0.5, 2), 2, spec=t.spec, criterion=criteria.wanda())
    assert list(held) == ["2.weight"] and int((twice["2.weight"] == 0).sum()) == 9


def test_zeros_are_held_in_training() -> None:
    """Kept masks, for a fine-tuning: momentum and weight decay do not bring weights back."""
    model = net(drop=0.0)
    spec = pf.trace(model.eval(), (torch.randn(3, 4),))
    params = pf.params(model)
    masks = sparse.select(sparse.score(params, spec=spec), spec=spec, pattern=pattern.n_m(2, 4))
    zeroed = pf.to_module(sparse.apply_sparse(params, masks), spec=spec, model=model)
    done = train(zeroed, SETUP, PLAIN, masks=masks).model
    after = pf.params(done)
    same(sparse.masks_of(after, spec=spec), masks)
    assert not torch.equal(after["0.weight"], params["0.weight"])


def test_masks_of_an_epoch() -> None:
    """A pattern and a cubic schedule as what makes a training sparse; the last zeros are left in the weights."""
    model = net(drop=0.0)
    spec = pf.trace(model.eval(), (torch.randn(3, 4),))
    masks = sparse.renewed(schedule.cubic(0.5, 2), spec=spec, pattern=pattern.blocks(2, 2), scope=scope.global_())
    done = train(
        model,
        SETUP,
        PLAIN.model_copy(update={"epochs": 3}),
        regularizer=Regularizer("blocks", masks=masks),
    )
    zeros = sparse.masks_of(pf.params(done.model), spec=spec)
    assert sum(int((~m).sum()) for m in zeros.values()) == 4 * (23 // 2)
    with pytest.raises(pf.PruneError, match="'taylor', which needs data"):
        sparse.renewed(schedule.cubic(0.5, 2), spec=spec, criterion=criteria.taylor())


# ---- semi-structured


def test_semi_structured_weights_need_a_gpu() -> None:
    t = traced(mlp(64, 64, 32), randn(2, 64))
    masks = sparse.select(sparse.score(t.params, spec=t.spec), spec=t.spec, pattern=pattern.n_m(2, 4))
    why = sparse.why_dense(t.model, masks)
    assert why.keys() == masks.keys() and all(
        "on cpu; sparse tensor cores need a CUDA device" in w for w in why.values()
    )
    with pytest.raises(pf.PruneError, match=r"no weight can be semi-structured; '0\.weight': it is on cpu"):
        sparse.to_semi_structured(t.model, masks)
    with pytest.raises(pf.ParamsError, match=r"'1\.weight'.* is not there"):
        sparse.to_semi_structured(t.model, {"1.weight": masks["0.weight"]})


def test_why_a_weight_stays_dense() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(8, 8))
    whole = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters() if p.ndim > 1}
    why = sparse.why_dense(model, whole)
    assert why["0.weight"].startswith("it has 4 dims") and "more than 2 are kept" in why["1.weight"]


def test_semi_structured_types_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that has them: what torch's backend does not take is said, all else is converted in a copy."""
    from prunefn.sparse import semi_structured as module

    monkeypatch.setattr(module, "_device_problem", lambda weight: "")
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda w: w * 1)
    t = traced(mlp(64, 64, 10), randn(2, 64))
    masks = sparse.select(sparse.score(t.params, spec=t.spec), spec=t.spec, pattern=pattern.n_m(2, 4))
    assert all("its type is torch.float64" in w for w in sparse.why_dense(t.model, masks).values())
    half = copy.deepcopy(t.model).half()
    assert sparse.why_dense(half, masks) == {"2.weight": "its shape is 10 × 64; torch takes multiples of 16 × 16"}
    new = sparse.to_semi_structured(half, masks)
    zeroed = sparse.apply_sparse(pf.params(half), masks)
    same({n: p.detach() for n, p in new.named_parameters()}, zeroed)
    assert not any(bool((p == 0).any()) for n, p in half.named_parameters() if n in masks)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs sparse tensor cores"
)
def test_semi_structured_weights_compute_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 64)).eval()
    spec = pf.trace(model, (torch.randn(64, 128),))
    params = pf.params(model)
    masks = sparse.select(sparse.score(params, spec=spec), spec=spec, pattern=pattern.n_m(2, 4))
    zeroed = pf.to_module(sparse.apply_sparse(params, masks), spec=spec, model=model).cuda().half()
    fast = sparse.to_semi_structured(zeroed, masks)
    x = torch.randn(64, 128, device="cuda", dtype=torch.half)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), zeroed(x), atol=1e-2, rtol=1e-2)
