"""Sensitivity of groups: predictions are those of the residual, measurements those of pruning by hand."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import prunefn as pf
from prunefn.report import heat_maps
from prunefn.sensitivities.effects import Effect, most_sensitive_first

from .small import Traced, cnn, mlp, randn, same, traced

RATIOS = (0.25, 0.5)


@cache
def case(name: str) -> tuple[Traced, pf.Stats, list[tuple[Tensor, Tensor]]]:
    """A network, statistics with all that the defaults use, and other batches of unequal sizes."""
    torch.manual_seed(0)
    model, shape = {"mlp": (mlp(5, 12, 8, 4), (5,)), "cnn": (cnn(), (3, 6, 6))}[name]
    with torch.no_grad():
        model[-1].weight.mul_(10)  # so that classes differ from sample to sample
    t = traced(model, randn(2, *shape))
    stats = pf.collect_stats(t.params, [randn(400, *shape)], spec=t.spec, criterion=pf.criteria.obs())
    batches = [(x := randn(n, *shape, seed=n), t.model(x).detach().argmax(1)) for n in (30, 10)]
    return t, stats, batches


def loss(output: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(output, labels)


def mask_of(stats: pf.Stats, e: Effect, criterion: pf.Criterion) -> pf.Mask:
    """The units of least score of the group are gone."""
    order = pf.score(stats, criterion=criterion)[e.group].argsort()
    return {e.group: torch.ones(e.units, dtype=torch.bool).index_fill(0, order[: e.removed], False)}


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("method", [None, pf.compensation.mean()])
def test_predictions_are_those_of_the_residual(name: str, method: Any) -> None:
    t, stats, _ = case(name)
    found = pf.sensitivity(t.params, stats, spec=t.spec, ratios=RATIOS, compensation=method)
    expected = pf.compensation.affine(fallback=pf.compensation.mean()) if method is None else method
    assert {e.group for e in found.effects} == set(t.spec.groups) and found.criterion == "obs"
    assert (found.compensation, found.metric, found.unscored) == (expected.name, "", ())
    for e in found.effects:
        mask = mask_of(stats, e, pf.criteria.obs())
        lost = pf.residual(stats, mask, spec=t.spec, method=expected)
        assert e.predicted == pytest.approx(sum(r.relative for r in lost.values()), rel=1e-9)
        scores = pf.score(stats, criterion=pf.criteria.obs())[e.group]
        assert e.estimated == pytest.approx(float(scores[~mask[e.group]].sum()), rel=1e-12) and e.measured is None
        assert e.removed == int(e.ratio * e.units) and e.kind == t.spec.groups[e.group].kind
        assert e.macs_saved == pf.cost(t.spec).macs - pf.cost(pf.shrink(t.spec, mask)).macs
    pairs = zip(found.effects[::2], found.effects[1::2], strict=True)
    assert all((a.predicted or 0) < (b.predicted or 0) and a.ratio < b.ratio for a, b in pairs)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_measurements_are_those_of_pruning_by_hand(name: str) -> None:
    t, stats, batches = case(name)
    before = {n: p.clone() for n, p in t.params.items()}
    method, criterion = pf.compensation.mean(), pf.criteria.weighted_variance()
    options: dict[str, Any] = {"batches": batches, "compensation": method, "criterion": criterion, "ratios": RATIOS}
    found = pf.sensitivity(t.params, stats, spec=t.spec, metric=loss, **options)
    x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    dense = pf.forward(t.params, x, spec=t.spec)
    assert found.metric == "loss" and found.dense == pytest.approx(float(loss(dense, labels)), rel=1e-9)
    distances = pf.sensitivity(t.params, stats, spec=t.spec, **options)
    assert distances.dense is None and {e.group for e in distances.effects} == {e.group for e in found.effects}
    for e in found.effects:
        prune = pf.pipeline(
            criterion=criterion, where=e.group, ratio=e.ratio, compensation=method, scope=pf.scope.local()
        )
        small = prune(t.params, None, spec=t.spec, stats=stats)
        y = pf.forward(small.params, x, spec=small.spec)
        assert (
            e.measured == pytest.approx(float(loss(y, labels) - loss(dense, labels)), rel=1e-7) and e.estimated is None
        )
        (same_effect,) = (d for d in distances.effects if d[:7] == e[:7])
        assert same_effect.measured == pytest.approx(float(pf.distances.kl()(y, dense)), rel=1e-7)
    same(t.params, before)
    assert pf.sensitivity(t.params, stats, spec=t.spec, metric=loss, **options) == found
    one = pf.sensitivity(t.params, stats, spec=t.spec, metric=loss, max_batches=1, **options)
    assert one.dense == pytest.approx(float(loss(dense[:30], labels[:30])), rel=1e-9)


def test_the_most_sensitive_group_comes_first() -> None:
    def effect(group: str, ratio: float, predicted: float | None, measured: float | None) -> Effect:
        return Effect(group, "hidden", 8, ratio, 2, 1, predicted, None, measured)

    by_prediction = [[effect("a", 0.5, 0.1, None)], [effect("b", 0.5, 0.3, None)], [effect("c", 0.5, None, None)]]
    assert [e.group for e in most_sensitive_first(by_prediction)] == ["b", "a", "c"]
    estimates = [
        [effect("a", 0.5, 0.9, None)._replace(estimated=0.1)],
        [effect("b", 0.5, 0.3, None)._replace(estimated=0.2)],
    ]
    assert [e.group for e in most_sensitive_first(estimates)] == ["b", "a"]
    drops = [[effect("a", 0.5, 0.9, -0.1)], [effect("b", 0.5, 0.3, -0.4)], [effect("c", 0.5, 0.1, float("nan"))]]
    assert [e.group for e in most_sensitive_first(drops)] == ["c", "b", "a"]
    t, stats, batches = case("mlp")
    found = pf.sensitivity(t.params, stats, spec=t.spec, batches=batches).effects
    sizes = [sum(e.measured or 0 for e in found if e.group == g) for g in dict.fromkeys(e.group for e in found)]
    assert sizes == sorted(sizes, reverse=True) and len({e.group for e in found[:3]}) == 1


def test_what_the_statistics_suffice_for() -> None:
    t, full, _ = case("mlp")
    x = [randn(400, 5)]
    for options, criterion, method in (
        ({"covariance": True}, "obs", "affine"),
        ({}, "weighted_variance", "mean"),
    ):
        stats = pf.collect_stats(t.params, x, spec=t.spec, **options)
        found = pf.sensitivity(t.params, stats, spec=t.spec, ratios=[0.5])
        assert (found.criterion, found.compensation) == (criterion, method)
        assert all((e.estimated is None) == (criterion != "obs") for e in found.effects)
    stats = pf.collect_stats(t.params, x, spec=t.spec, covariance=True)
    fisher, relative = (pf.sensitivity(t.params, s, spec=t.spec, where="0").effects for s in (full, stats))
    assert all((a.estimated or 0) != (b.estimated or 0) for a, b in zip(fisher, relative, strict=True))


class Dot(nn.Module):
    """Attention with projections of its own for q, k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x))


def test_groups_without_a_site() -> None:
    """Widths of queries and keys have no score of activations; with one of weights, nothing is predicted for them."""
    torch.manual_seed(0)
    t = traced(Dot(), x := randn(40, 5, 6))
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    found = pf.sensitivity(t.params, stats, spec=t.spec, ratios=[0.5])
    assert found.unscored and set(found.unscored) | {e.group for e in found.effects} == set(t.spec.groups)
    assert f"without a score: {found.unscored[0]}" in str(found)
    by_weights = pf.sensitivity(
        t.params, stats, spec=t.spec, ratios=[0.5], criterion=pf.criteria.magnitude(), batches=[x]
    )
    assert by_weights.unscored == () and all((e.measured or 0) > 0 for e in by_weights.effects)
    assert {e.group for e in by_weights.effects if e.predicted is None} == set(found.unscored)
    with pytest.raises(pf.StatsError, match=f"no score for 1 of the chosen groups: {found.unscored[0]}"):
        pf.sensitivity(t.params, stats, spec=t.spec, where=lambda group: group.name == found.unscored[0])


def test_a_ratio_that_removes_nothing() -> None:
    t, stats, batches = case("mlp")
    found = pf.sensitivity(
        t.params, stats, spec=t.spec, batches=batches, metric=loss, where="2", ratios=[0.5, 0.05, 0.5]
    )
    assert [(e.group, e.ratio, e.removed) for e in found.effects] == [("2", 0.05, 0), ("2", 0.5, 4)]
    assert (found.effects[0].predicted, found.effects[0].measured, found.effects[0].macs_saved) == (0.0, 0.0, 0)


def test_few_samples_are_named_once() -> None:
    t, _, _ = case("mlp")
    stats = pf.collect_stats(t.params, [randn(8, 5)], spec=t.spec, covariance=True)
    with pytest.warns(pf.PruneWarning) as warned:
        pf.sensitivity(t.params, stats, spec=t.spec)
    assert len(warned) == 1 and "site '2' has 8 samples" in str(warned[0].message)


def test_table_rows_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t, stats, batches = case("cnn")
    found = pf.sensitivity(t.params, stats, spec=t.spec, batches=batches, metric=loss, ratios=RATIOS)
    table = found.table()
    assert table.columns == ["group", "kind", "ratio", "removed", "MACs saved", "predicted", "estimated", "measured"]
    assert [row[0] for row in table.rows] == [e.group for e in found.effects] and str(found).count("\n") == len(
        table.rows
    ) + 1
    assert all(row[-1][0] in "+-" for row in table.rows)
    alone = pf.sensitivity(t.params, stats, spec=t.spec, criterion=pf.criteria.variance())
    assert alone.table().columns == table.columns[:6]
    found.write_csv(tmp_path / "a.csv")
    read = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [r["group"] for r in read] == [r["group"] for r in found.to_rows()]
    assert [float(r["measured"]) for r in read] == [e.measured for e in found.effects]
    figures: list[Figure] = []
    save = heat_maps.save
    monkeypatch.setattr(heat_maps, "save", lambda figure, path: (figures.append(figure), save(figure, path)))
    found.picture(tmp_path / "a.png")
    found.picture(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    saved, predicted, estimated, measured = figures[0].axes
    assert [float(text.get_text()) for text in estimated.texts] == [
        pytest.approx(e.estimated, rel=0.06) for e in found.effects
    ]
    names = [label.get_text().split()[0] for label in saved.get_yticklabels()]
    assert names == list(dict.fromkeys(e.group for e in found.effects))
    assert [label.get_text() for label in predicted.get_xticklabels()] == ["25%", "50%"]
    assert [float(text.get_text()) for text in measured.texts] == [
        pytest.approx(e.measured, rel=0.06) for e in found.effects
    ]


def test_errors() -> None:
    t, stats, batches = case("mlp")

    def run(**options: Any) -> Any:
        return pf.sensitivity(**{"params": t.params, "stats": stats, "spec": t.spec} | options)

    for ratios, message in (
        ((), "ratios is empty"),
        ((0.5, 1.0), "ratios has 1.0; each is"),
        ((0.0,), "ratios has 0.0"),
    ):
        with pytest.raises(pf.PruneError, match=message):
            run(ratios=ratios)
    with pytest.raises(pf.PruneError, match="metric= needs batches="):
        run(metric=loss)
    with pytest.raises(pf.PruneError, match="give one of the two"):
        run(batches=batches, metric=loss, distance=pf.distances.kl())
    with pytest.raises(pf.PruneError, match=r"what metric= returns has shape \(30,\); it must be one number"):
        run(batches=batches, metric=lambda output, labels: labels)
    with pytest.raises(pf.PruneError, match=r"type dict.*lambda \*given: metric\(\*given\)\['top1'\]"):
        run(batches=batches, metric=lambda output, labels: {"top1": torch.tensor(1.0)})
    with pytest.raises(pf.BatchError, match="no batches"):
        run(batches=[])
    with pytest.raises(pf.PruneError, match="no group matches 'fc'"):
        run(where="fc")
    with pytest.raises(pf.StatsError, match="sensitivity needs statistics of sites"):
        run(stats=pf.collect_stats(t.params, None, spec=t.spec))
    with pytest.raises(pf.StatsError, match="of other parameters"):
        run(params={n: p + 1 for n, p in t.params.items()})
    trained = traced(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), randn(8, 5), train=True)
    with pytest.raises(pf.ParamsError, match="sensitivity needs a spec that was traced in eval mode"):
        own = pf.collect_stats(trained.params, [randn(64, 5)], spec=trained.spec)
        pf.sensitivity(trained.params, own, spec=trained.spec, batches=batches)
    with pytest.raises(pf.PruneError, match="nothing to draw"):
        heat_maps.heat_maps([], ["1"], [], "x.png", label="")
