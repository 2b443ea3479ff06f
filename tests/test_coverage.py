"""A sample of bench/coverage: a model of each suite through everything; the whole of it is a bench."""

from __future__ import annotations

from pytest import mark

import prunefn as pf
from bench.coverage import packages
from bench.coverage.cases import absent, cases
from bench.coverage.check import check, without_rule
from bench.coverage.table import markdown
from bench.coverage.table import without_rule as share_without_rule
from tests.toys import CASES as TOYS

SAMPLE = (
    ("timm", "mobilenetv3_small_050"), ("timm", "resnet10t"), ("timm", "cs3darknet_focus_s"), ("timm", "gmlp_ti16_224"),
    ("torchvision", "squeezenet1_1"), ("torchvision", "mnasnet0_5"), ("transformers", "bert"), ("transformers", "llama"),
)  # fmt: skip


@mark.parametrize(("suite", "name"), SAMPLE)
def test_a_model_through_everything(suite: str, name: str) -> None:
    row = check(next(c for c in cases(suite) if c.name == name))
    assert not row["wrong"]
    assert not row["unknown"]
    assert row["prunable"] > 0.8
    assert row["removed"] > 0.5
    assert row["class"]
    assert row["capture"] == "exported"
    text = markdown([row], "setting", 1e6)
    assert f"| `{name}` | exported |" in text and "Frozen for want of a rule: 0 of 1 models (0.0%), 0 of " in text


def test_the_share_that_is_frozen_for_want_of_a_rule() -> None:
    """Both dims of three weights and the dims of their biases are nine axes, of which the op without a rule freezes three."""
    case = TOYS["no_rule"]
    row = without_rule(pf.trace(case.model(), *case.inputs()))
    assert row == {"axes": 9, "axes_without_rule": 3, "ops": 5, "ops_without_rule": 1}
    (line, _) = share_without_rule([row, {**row, "axes_without_rule": 0, "ops_without_rule": 0}])
    assert line == (
        "Frozen for want of a rule: 1 of 2 models (50.0%), 3 of 18 axes of parameters (16.7%), 1 of 10 ops (10.0%)."
    )


def test_every_family_and_series_is_among_the_cases() -> None:
    assert len(cases("timm")) >= 98
    assert len(cases("timm-2")) >= 90
    assert {"raft_small", "mvit_v2_s", "maskrcnn_resnet50_fpn", "fcn_resnet50"} <= {
        c.name for c in cases("torchvision")
    }
    assert not [c for c in cases("timm") if c.name in {d.name for d in cases("timm-2")}]


def test_models_of_other_packages_are_listed_and_absent_packages_named() -> None:
    models = packages.models()
    assert len(models) >= 80 and len({m.package for m in models.values()}) >= 8
    assert {c.name for c in cases("packages")} == {n for n, m in models.items() if m.package not in absent("packages")}
    for model in models.values():
        args, kwargs = model.inputs(2)
        assert args or kwargs
