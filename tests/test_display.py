"""How values show themselves: units, calls, tables, pictures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunefn as pf
from prunefn.display.units import quantity, scale_of
from prunefn.tables import Table

MODEL = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def traced() -> tuple[pf.Spec, pf.Params]:
    return pf.trace(MODEL, (torch.randn(2, 4),)), pf.params(MODEL)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (999, "MACs", "999 MACs"),
        (1000, "MACs", "1 kMACs"),
        (999_949, "MACs", "999.9 kMACs"),
        (999_951, "params", "1 M params"),
        (70_553_706_496, "params", "70.55 G params"),
        (0.5, "s", "500 ms"),
        (2.5e-7, "s", "250 ns"),
        (0, "s", "0 s"),
        (1536, "", "1.536 k"),
        (4_150_000_000, "B", "4.15 GB"),
    ],
)
def test_numbers_have_the_unit_that_fits(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_a_column_has_one_scale() -> None:
    assert scale_of(5e8) == (1e6, "M") and scale_of(0) == (1.0, "") and scale_of(3e-4, small=True) == (1e-6, "µ")


def test_costs_of_small_networks_are_not_zero() -> None:
    spec, _ = traced()
    assert str(pf.cost(spec)) == "48 MACs, 58 params, 18 activations"
    assert repr(spec) == "Spec(1 groups: 1 hidden; 48 MACs, 58 params, 18 activations)"
    assert str(pf.Cost(1_254_000_000, 5_717_416, 8_322_000)) == "1.254 GMACs, 5.717 M params, 8.322 M activations"


def test_choices_show_how_they_are_composed() -> None:
    c, s = pf.criteria, pf.scope
    assert repr(c.magnitude(1)) == "magnitude(p=1.0, bias=False, reduction=mean)"
    assert repr(c.rank_fusion(c.variance(), c.normalized(c.taylor()), 0.7)) == (
        "rank_fusion(variance(), normalized(taylor(), by=mean), alpha=0.7)"
    )
    assert [repr(x) for x in (s.global_(), s.knapsack("params"), s.local())] == [
        *("global_()", "knapsack(quantity='params')", "local()")
    ]
    assert repr(pf.budget.macs(0.65)) == "macs(0.65)"
    assert repr(pf.compensation.affine(fallback=pf.compensation.mean())) == "affine(fallback=mean())"


def test_a_pipeline_shows_the_call_that_makes_it_again() -> None:
    prune = pf.pipeline(
        criterion=pf.criteria.variance(), where=pf.kind("hidden"), ratio=[pf.budget.macs(0.5)], round_to=8
    )
    assert repr(prune) == "pipeline(criterion=variance(), where=kind('hidden'), ratio=[macs(0.5)], round_to=8)"
    assert str(pf.pipeline(recover_steps=20)).splitlines()[1:] == [
        "  score       obs(ridge=0.0001), of all groups",
        "  select      0.5 by knapsack(quantity='macs')",
        "  compensate  affine(fallback=mean()), block by block, towards the dense outputs",
        "  recover     20 steps towards the dense outputs",
        "  or          normalized(magnitude(p=2.0, bias=False, reduction=mean), by=mean), where there are no batches",
    ]


def test_what_was_measured_is_short() -> None:
    spec, params = traced()
    x = torch.randn(16, 4)
    stats = pf.collect_stats(params, [x], spec=spec, covariance=True)
    assert repr(stats) == "Stats(1 sites, 16 samples, 1 batches, covariances of 1)"
    assert repr(stats.sites["2"]) == "Moments(8 inputs over 16 positions, covariance)"
    assert stats._repr_html_().count("<tr>") == 2 and ">16<" in stats._repr_html_()
    pruned = pf.pipeline(criterion=pf.criteria.variance())(params, [x], spec=spec)
    assert repr(pruned.info).endswith("4 of 8 units removed from 1 groups)")
    assert "50.0%" in pruned._repr_html_() and len(pruned._repr_html_()) < 4000


def test_a_table_prints_as_a_table() -> None:
    table = Table("costs", ("method", "MACs"), (("dense", "48"), ("<b>", "24")))
    assert str(table).splitlines() == ["costs", "", "method  MACs", "──────  ────", "dense     48", "<b>       24"]
    assert "&lt;b&gt;" in table._repr_html_() and "<b>" not in table._repr_html_()


def test_a_spec_shows_its_picture_and_a_large_one_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    spec, _ = traced()
    shown = spec._repr_html_()
    assert "<svg" in shown and "var(--ink)" in shown and "8 units" in shown and shown == spec._repr_html_()
    monkeypatch.setattr("prunefn.spec.notebook.MOST_DRAWN", 0)
    assert "<svg" not in spec._repr_html_() and "<pre" in spec._repr_html_()


def test_a_profile_takes_the_unit_of_its_networks() -> None:
    spec, params = traced()
    profile = pf.profile({"dense": (params, spec)}, rounds=2)
    assert profile.table().columns[1] == "MACs" and profile.table().rows[0][1] == "48"
    assert str(profile) == str(profile.table()) and repr(profile).startswith("Profile(dense ")
