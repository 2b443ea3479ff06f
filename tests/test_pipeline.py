"""The steps composed; BatchNorm recalibration; costs."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunefn as pf

from .small import Attention, Residual, Traced, bits, close, cnn, mlp, randn, same, traced

# ---- the pipeline is its steps


def by_hand(
    t: Traced, batches: list[Tensor], criterion: pf.Criterion, where: Any, ratio: Any, method: Any, **kwargs: Any
) -> tuple[pf.Params, pf.Spec, pf.Mask]:
    stats = pf.collect_stats(t.params, batches, spec=t.spec, criterion=criterion)
    scores = pf.score(stats, criterion=criterion)
    mask = pf.select(pf.only(scores, where, spec=t.spec), ratio, spec=t.spec, **kwargs)
    filled = pf.compensate(t.params, stats, mask, spec=t.spec, method=method)
    return pf.apply(filled, mask, spec=t.spec), pf.shrink(t.spec, mask), mask


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "magnitude": {"criterion": pf.criteria.magnitude()},
    "random": {"criterion": pf.criteria.random(3), "compensation": pf.compensation.none()},
    "hidden": {"where": pf.kind("hidden"), "ratio": 0.3},
    "a name": {"where": "up", "ratio": 0.7},
    "local": {"scope": pf.scope.local(), "ratio": 0.25},
    "normalised": {"scope": pf.scope.global_(normalize=True), "ratio": 0.4},
    "macs": {"ratio": pf.budget.macs(0.6)},
    "params": {"ratio": pf.budget.params(0.7), "where": pf.kind("hidden")},
    "caps": {"ratio": 0.4, "round_to": 2, "max_ratio": 0.6, "min_units": 2},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_pipeline_is_its_steps(name: str) -> None:
    kwargs = VARIANTS[name]
    x = randn(20, 3)
    t = traced(Residual(3, 6, 8, 2), x)
    batches = list(x.split(7))
    small = pf.pipeline(**{"criterion": pf.criteria.variance()} | kwargs)(t.params, batches, spec=t.spec)
    steps = {k: v for k, v in kwargs.items() if k in ("scope", "round_to", "max_ratio", "min_units")}
    params, spec, mask = by_hand(
        t,
        batches,
        kwargs.get("criterion", pf.criteria.variance()),
        kwargs.get("where", "*"),
        kwargs.get("ratio", 0.5),
        kwargs.get("compensation"),
        **steps,
    )
    same(small.params, params)
    assert small.spec == spec
    assert list(small.mask) == list(mask)
    assert all(torch.equal(small.mask[g], m) for g, m in mask.items())
    assert small.info.before == pf.cost(t.spec)
    assert small.info.after == pf.cost(t.spec, mask) == pf.cost(spec)
    assert small.info.removed == {g: (int((~m).sum()), len(m)) for g, m in mask.items()}
    assert sum(n for n, _ in small.info.removed.values()) > 0


def test_golden_info() -> None:
    """4·8 + 8·2 MACs; (4 + 1)·8 + 8·2 + 2 parameters."""
    x = randn(9, 4)
    t = traced(mlp(4, 8, 2), x)
    info = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.25)(t.params, [x], spec=t.spec).info
    assert (info.before.macs, info.before.params) == (48, 58)
    assert (info.after.macs, info.after.params) == (36, 44)
    assert info.removed == {"0": (2, 8)}


def test_two_rounds_are_two_calls() -> None:
    x = randn(20, 3)
    t = traced(mlp(3, 8, 8, 2), x)
    prune = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.25)
    first = prune(t.params, [x], spec=t.spec)
    second = prune(first.params, [x], spec=first.spec)
    assert second.spec == pf.shrink(t.spec, pf.compose(first.mask, second.mask))
    assert pf.forward(second.params, x, spec=second.spec).shape == (20, 2)
    assert sum(second.spec.sizes.values()) == 9


def test_it_is_reusable_on_another_network() -> None:
    prune = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5)
    for t, x in ((traced(mlp(3, 4, 2), randn(5, 3)), randn(5, 3)), (traced(mlp(2, 6, 2), randn(5, 2)), randn(5, 2))):
        small = prune(t.params, [x], spec=t.spec)
        assert small.info.removed == {"0": (t.spec.sizes["0"] // 2, t.spec.sizes["0"])}


def test_it_measures_only_what_where_chooses() -> None:
    """Sites that are left out could not be measured here at all."""
    x = randn(20, 3)
    t = traced(mlp(3, 4, 5, 2), x)
    broken = {**t.params, "2.weight": t.params["2.weight"] * float("inf")}
    assert pf.pipeline(criterion=pf.criteria.variance(), where="0", ratio=0.25)(
        broken, [x], spec=t.spec
    ).info.removed == {"0": (1, 4)}
    with pytest.raises(pf.StatsError, match="input of site '4' is not finite"):
        pf.pipeline(criterion=pf.criteria.variance(), ratio=0.25)(broken, [x], spec=t.spec)


def test_max_batches_and_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    x = randn(20, 3)
    t = traced(mlp(3, 4, 2), x)
    a = pf.pipeline(max_batches=2)(t.params, x.split(5), spec=t.spec)
    assert capsys.readouterr().err == ""
    b = pf.pipeline()(t.params, x.split(5)[:2], spec=t.spec, progress=True)
    assert "statistics" in capsys.readouterr().err
    same(a.params, b.params)


def test_without_need_of_data_there_need_be_none() -> None:
    t = traced(mlp(3, 4, 2), randn(5, 3))
    small = pf.pipeline(criterion=pf.criteria.magnitude(), compensation=pf.compensation.none())(
        t.params, None, spec=t.spec
    )
    assert small.info.removed == {"0": (2, 4)}
    with pytest.raises(
        pf.BatchError, match=r"compensation 'mean' needs batches; or use compensation=compensation.none\(\)"
    ):
        pf.pipeline(criterion=pf.criteria.magnitude())(t.params, None, spec=t.spec)
    with pytest.raises(pf.BatchError, match="criterion 'variance' needs batches"):
        pf.pipeline(criterion=pf.criteria.variance())(t.params, None, spec=t.spec)


def test_the_default_is_the_best_plan_for_what_there_is() -> None:
    """With batches, greedy OBS per saved MAC, fitted block by block; without, normalised magnitudes."""
    t = traced(mlp(3, 16, 12, 2), x := randn(200, 3))
    best = pf.pipeline(
        criterion=pf.criteria.obs(),
        scope=pf.scope.knapsack(),
        compensation=pf.compensation.affine(fallback=pf.compensation.mean()),
        sequential=True,
        ratio=pf.budget.macs(0.5),
    )
    for prune in (pf.pipeline(ratio=pf.budget.macs(0.5)), pf.recipes.best(pf.budget.macs(0.5))):
        a, b = (p(t.params, x.split(50), spec=t.spec) for p in (best, prune))
        same(a.params, b.params)
    plain = pf.pipeline(
        criterion=pf.criteria.normalized(pf.criteria.magnitude(), pf.normalizer.mean),
        compensation=pf.compensation.none(),
    )
    a, b = (p(t.params, None, spec=t.spec) for p in (plain, pf.pipeline()))
    same(a.params, b.params)
    with pytest.raises(pf.BatchError, match="sequential=True reads the batches several times"):
        pf.pipeline()(t.params, iter([x]), spec=t.spec)


def test_what_nearly_empties_a_group_is_said() -> None:
    t = traced(mlp(3, 64, 64, 2), randn(2, 3))
    scores = {"0": torch.arange(64.0), "2": 1000 + torch.arange(64.0)}
    raw = pf.Criterion("raw", lambda _: scores, needs=())
    prune = partial(pf.pipeline, criterion=raw, compensation=pf.compensation.none(), ratio=0.48)
    with pytest.warns(
        pf.PruneWarning, match=r"raw scores of criterion 'raw' nearly empties groups: '0' keeps 3 of 64 units"
    ):
        prune()(t.params, None, spec=t.spec)
    with pytest.warns(
        pf.PruneWarning, match=r"scope.knapsack\(\) weighs scores against costs, but those of criterion 'raw'"
    ):
        prune(scope=pf.scope.knapsack())(t.params, None, spec=t.spec)
    for scope in (pf.scope.global_(normalize=True), pf.scope.local(), pf.scope.knapsack(normalize=True)):
        prune(scope=scope)(t.params, None, spec=t.spec)


class SplitAttention(nn.Module):
    """Attention with separate projections: query and key widths are one group, value widths another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_groups_that_cannot_be_measured_are_named() -> None:
    x = randn(4, 5, 6)
    t = traced(SplitAttention(), x)
    assert set(t.spec.groups) == {"q.heads", "q.head_dim", "v.head_dim"}
    with pytest.raises(
        pf.StatsError, match=r"'variance' has no score for 1 of the chosen groups: q.head_dim; .* leave them out by"
    ):
        pf.pipeline(criterion=pf.criteria.variance(), where=pf.kind("head_dim"), ratio=0.3)(t.params, [x], spec=t.spec)
    small = pf.pipeline(criterion=pf.criteria.variance(), where=lambda g: g.name != "q.head_dim", ratio=0.3)(
        t.params, [x], spec=t.spec
    )
    assert set(small.mask) == {"q.heads", "v.head_dim"}
    small = pf.pipeline(criterion=pf.criteria.magnitude(), where=pf.kind("head_dim"), ratio=0.3, scope=pf.scope.local())
    assert set(small(t.params, [x], spec=t.spec).mask) == {"q.head_dim", "v.head_dim"}


def test_a_choice_that_matches_nothing() -> None:
    t = traced(mlp(3, 4, 2), randn(5, 3))
    with pytest.raises(pf.PruneError, match=r"no group .*matches 'layers"):
        pf.pipeline(where="layers.*", criterion=pf.criteria.magnitude())(t.params, [randn(5, 3)], spec=t.spec)


# ---- law 1: purity


@pytest.mark.parametrize("model", [cnn(), Residual(3, 5, 6, 2)], ids=["cnn", "residual"])
def test_law_1_nothing_changes_and_the_same_call_gives_the_same_bits(model: nn.Module) -> None:
    x = randn(6, 3, 6, 6) if isinstance(model, nn.Sequential) else randn(6, 3)
    t = traced(model, x)
    inputs = [*t.params.values(), x]
    values, versions = [v.clone() for v in inputs], [v._version for v in inputs]
    flags, before = [m.training for m in t.model.modules()], copy.deepcopy(t.spec)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    prune = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.3, scope=pf.scope.local())

    def everything() -> tuple[pf.Params, ...]:
        small = prune(t.params, x.split(2), spec=t.spec)
        again = pf.recalibrate(small.params, x.split(2), spec=small.spec)
        zeroed = pf.zero(t.params, small.mask, spec=t.spec)
        y = pf.forward(again, x, spec=small.spec)
        return small.params, again, zeroed, small.mask, {"y": y, "z": pf.to_module(again, spec=small.spec)(x).detach()}

    first, second = everything(), everything()
    for a, b in zip(first, second, strict=True):
        same(a, b)
    assert versions == [v._version for v in inputs]
    assert all(torch.equal(a, b) for a, b in zip(inputs, values, strict=True))
    assert flags == [m.training for m in t.model.modules()]
    assert t.spec == before
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()


def test_grad_mode_and_default_dtype_are_left_alone() -> None:
    x = randn(6, 3)
    t = traced(mlp(3, 4, 2), x)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            small = pf.pipeline()(t.params, [x], spec=t.spec)
            assert torch.is_grad_enabled() is enabled
    assert not any(v.requires_grad for v in small.params.values())
    assert torch.get_default_dtype() == torch.float32


# ---- recalibration


def momentum_none(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """What torch does: statistics reset, then cumulative averages in train mode."""
    model = copy.deepcopy(model).train()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.reset_running_stats()
            m.momentum = None
    with torch.no_grad():
        for b in batches:
            model(b)
    return model


class NormTwice(nn.Module):
    """A BatchNorm that is called twice; and a dropout, which stays off."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(self.a(F.relu(self.norm(x))))))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (cnn(), (3, 6, 6)),
        (NormTwice(), (3,)),
        (nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4, affine=False), nn.ReLU()), (3, 5)),
    ],
    ids=["cnn", "called twice", "1d, not affine"],
)
def test_recalibration_is_torchs_cumulative_average(model: nn.Module, shape: tuple[int, ...]) -> None:
    batches = [randn(n, *shape, seed=n) * n for n in (4, 7, 5)]
    t = traced(model, batches[0])
    expected = pf.params(momentum_none(t.model, batches))
    after = pf.recalibrate(t.params, batches, spec=t.spec)
    assert list(after) == list(t.params)
    running = {n for n in after if n.endswith(("running_mean", "running_var"))}
    assert running
    for n in after:
        if n in running:
            assert after[n].dtype == t.params[n].dtype
            close(after[n], expected[n], 1e-10)
            assert not torch.equal(after[n], t.params[n])
        else:
            assert after[n] is t.params[n]
    assert {m.momentum for m in t.model.modules() if hasattr(m, "momentum")} == {0.1}


def test_recalibration_of_pruned_params() -> None:
    batches = [randn(6, 3, 6, 6, seed=s) for s in range(3)]
    t = traced(cnn(), batches[0])
    small = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.3, scope=pf.scope.local())(
        t.params, batches, spec=t.spec
    )
    after = pf.recalibrate(small.params, batches, spec=small.spec)
    assert sum(n for n, _ in small.info.removed.values()) == 2
    seen = [F.conv2d(b, small.params["0.weight"], padding=1) for b in batches]
    close(after["1.running_mean"], torch.stack([s.mean((0, 2, 3)) for s in seen]).mean(0))
    close(after["1.running_var"], torch.stack([s.var((0, 2, 3)) for s in seen]).mean(0))


def test_recalibration_keeps_a_created_bias() -> None:
    net = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)
    )
    x = randn(8, 3)
    t = traced(net, x)
    p = {**t.params, "2.bias": torch.full((4,), 5.0).double()}
    after = pf.recalibrate(p, [x], spec=t.spec)
    assert after["2.bias"] is p["2.bias"]
    with torch.no_grad():
        close(after["4.running_mean"], F.relu(t.model[2](t.model[1](t.model[0](x))) + 5).mean(0))


def test_recalibration_of_a_network_without_batch_norm_reads_nothing() -> None:
    t = traced(mlp(3, 4, 2), randn(2, 3))
    after = pf.recalibrate(t.params, iter([]), spec=t.spec)
    assert after is not t.params
    same(after, t.params)


def test_recalibration_stops_early() -> None:
    batches = [randn(6, 3, 6, 6, seed=s) for s in range(3)]
    t = traced(cnn(), batches[0])
    same(
        pf.recalibrate(t.params, batches, spec=t.spec, max_batches=2),
        pf.recalibrate(t.params, batches[:2], spec=t.spec),
    )


def test_recalibration_that_cannot_be_done() -> None:
    x = randn(6, 3)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    t = traced(net, x)
    with pytest.raises(pf.BatchError, match="there are no batches"):
        pf.recalibrate(t.params, [], spec=t.spec)
    with pytest.raises(pf.BatchError, match=r"'1.running_mean' .* more than one value per channel"):
        pf.recalibrate(t.params, [x, x[:1]], spec=t.spec)
    with pytest.raises(pf.ParamsError, match="recalibrate needs a spec that was traced in eval mode"):
        train = traced(copy.deepcopy(net), x, train=True)
        pf.recalibrate(train.params, [x], spec=train.spec)


# ---- costs


def test_golden_costs() -> None:
    """Attention of 2 heads of 3 over 5 tokens of width 8: projections 5·8·18 + 5·6·8, products 2·2·5·5·3."""
    t = traced(Attention(8, 2, 3), randn(2, 5, 8))
    assert pf.cost(t.spec).macs == 5 * 8 * 18 + 5 * 6 * 8 + 2 * 2 * 5 * 5 * 3
    assert pf.cost(t.spec).params == 8 * 18 + 18 + 6 * 8 + 8
    one_head = {"qkv.heads": bits("10")}
    assert pf.cost(t.spec, one_head).macs == 5 * 8 * 9 + 5 * 3 * 8 + 2 * 5 * 5 * 3
    assert pf.cost(t.spec, one_head) == pf.cost(pf.shrink(t.spec, one_head))


def test_costs_do_not_depend_on_the_batch() -> None:
    assert pf.cost(traced(cnn(), randn(2, 3, 6, 6)).spec) == pf.cost(traced(cnn(), randn(7, 3, 6, 6)).spec)
    assert "12 MACs, 17 params" in str(pf.cost(traced(mlp(2, 3, 2), randn(2, 2)).spec))


def test_the_cost_of_a_mask_that_does_not_fit() -> None:
    with pytest.raises(pf.MaskError, match="group '0' has shape"):
        pf.cost(traced(mlp(2, 3, 2), randn(2, 2)).spec, {"0": bits("1")})


def test_statistics_at_hand_serve_many_pipelines() -> None:
    t = traced(mlp(3, 8, 6, 2), randn(2, 3))
    batches = [randn(16, 3), randn(16, 3)]
    stats = pf.collect_stats(t.params, batches, spec=t.spec, covariance=True)
    for options in ({}, {"freeze": "2.bias"}, {"compensation": pf.compensation.affine(), "where": "0"}):
        prune = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.4, **options)  # type: ignore[arg-type]
        once, again = prune(t.params, batches, spec=t.spec), prune(t.params, None, spec=t.spec, stats=stats)
        assert once.params.keys() == again.params.keys() and once.spec == again.spec
        assert all(torch.equal(x, again.params[n]) for n, x in once.params.items())
    with pytest.raises(pf.StatsError, match=r"the statistics are of other parameters: '0\.weight'"):
        prune({**t.params, "0.weight": t.params["0.weight"] + 1}, None, spec=t.spec, stats=stats)
    with pytest.raises(pf.StatsError, match="compensation 'affine' needs the covariance of site"):
        plain = pf.collect_stats(t.params, batches, spec=t.spec)
        pf.pipeline(criterion=pf.criteria.variance(), compensation=pf.compensation.affine())(
            t.params, None, spec=t.spec, stats=plain
        )
    for options, what in (({"sequential": True}, "sequential"), ({"recalibrate": True}, "recalibrate")):
        with pytest.raises(pf.BatchError, match=f"{what}=True needs batches"):
            pf.pipeline(criterion=pf.criteria.variance(), **options)(t.params, None, spec=t.spec, stats=stats)  # type: ignore[arg-type]
