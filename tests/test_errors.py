"""Every mistake is an error that names the group or tensor, the value and the fix."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.errors import nearest
from prunefn.frozen_dict import FrozenDict
from prunefn.types import Moments

from .small import Traced, bits, cnn, mlp, randn, traced


class Two(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, image: Tensor, weight: Tensor) -> Tensor:
        return self.decoder(self.encoder(image).relu() * weight)


@lru_cache
def net() -> Traced:
    return traced(mlp(3, 4, 5, 2), randn(2, 3))


@lru_cache
def two() -> Traced:
    return traced(Two(), randn(2, 3), randn(2, 1))


def stats() -> pf.Stats:
    return pf.collect_stats(net().params, [randn(6, 3)], spec=net().spec)


def raises(error: type[Exception], *words: str) -> Any:
    """All words are in the message, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words)))


def test_all_are_value_errors_of_one_family() -> None:
    family = [pf.TraceError, pf.MaskError, pf.ParamsError, pf.StatsError, pf.BatchError, pf.BudgetError]
    assert all(issubclass(e, pf.PruneError) and issubclass(e, ValueError) for e in family)


# ---- ratios and budgets


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.2])
@pytest.mark.parametrize("call", ["select", "pipeline"])
def test_a_ratio_outside_zero_to_one(ratio: float, call: str) -> None:
    with raises(pf.PruneError, f"the ratio is {ratio}", "fraction of units removed", "[0, 1)"):
        if call == "select":
            pf.select(pf.score(stats()), ratio, spec=net().spec)
        else:
            pf.pipeline(criterion=pf.criteria.variance(), ratio=ratio)(net().params, [randn(6, 3)], spec=net().spec)


def test_a_budget_below_what_can_be_reached() -> None:
    with raises(pf.BudgetError, "budget.macs(0.01) cannot be met", "0.1429 of the macs stay", "at least 0.1429"):
        pf.pipeline(criterion=pf.criteria.variance(), ratio=pf.budget.macs(0.01))(
            net().params, [randn(6, 3)], spec=net().spec
        )


def test_a_ratio_that_would_empty_a_group() -> None:
    """Nine units, two of which must stay."""
    with raises(pf.BudgetError, "a ratio of 0.9 removes 8 of 9", "let only 7 go", "a ratio up to", "works"):
        pf.select(pf.score(stats()), 0.9, spec=net().spec)


# ---- masks

MASKS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "wrong length": ({"0": bits("101")}, ("the mask of group '0' has shape (3,)", "the group has 4 units", "(4,)")),
    "two dims": ({"0": torch.ones(1, 4, dtype=torch.bool)}, ("the mask of group '0' has shape (1, 4)", "(4,)")),
    "float": ({"2": torch.ones(5)}, ("the mask of group '2' has dtype torch.float32", "bool, True = kept")),
    "int": ({"2": torch.ones(5, dtype=torch.int64)}, ("the mask of group '2' has dtype torch.int64", "bool")),
    "empties": ({"2": bits("00000")}, ("the mask of group '2' removes all 5 units", "at least one must stay")),
    "unknown": ({"1": bits("1111")}, ("the mask has a group '1', but the spec has no such group", "known are 0, 2")),
}
USES: dict[str, Callable[[pf.Mask], Any]] = {
    "apply": lambda m: pf.apply(net().params, m, spec=net().spec),
    "zero": lambda m: pf.zero(net().params, m, spec=net().spec),
    "shrink": lambda m: pf.shrink(net().spec, m),
    "cost": lambda m: pf.cost(net().spec, m),
    "compensate": lambda m: pf.compensate(net().params, stats(), m, spec=net().spec),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", MASKS)
def test_masks_that_do_not_fit(name: str, use: str) -> None:
    mask, words = MASKS[name]
    with raises(pf.MaskError, *words):
        USES[use](mask)


def test_a_misspelt_group_is_suggested() -> None:
    with raises(pf.MaskError, "'encodr'", "did you mean 'encoder'?"):
        pf.apply(two().params, {"encodr": bits("1010")}, spec=two().spec)


def test_masks_that_are_composed() -> None:
    with raises(pf.MaskError, "second mask of group 'a' has shape (3,)", "leaves 2 units"):
        pf.compose({"a": bits("101")}, {"a": bits("110")})
    with raises(pf.MaskError, "second mask of group 'a' has dtype torch.float32", "bool"):
        pf.compose({"a": bits("101")}, {"a": torch.ones(2)})


# ---- params

PARAMS: dict[str, tuple[Callable[[pf.Params], pf.Params], tuple[str, ...]]] = {
    "missing": (
        lambda p: {n: v for n, v in p.items() if n != "2.bias"},
        ("the parameters lack '2.bias'", "did you mean", "bias'"),
    ),
    "foreign": (
        lambda p: {**p, "2.weigth": torch.ones(1)},
        ("the spec has no tensor '2.weigth'", "did you mean '2.weight'"),
    ),
    "wrong shape": (
        lambda p: {**p, "2.weight": torch.ones(5, 3)},
        ("'2.weight' has shape (5, 3)", "the spec says (5, 4) = hidden_1 hidden_0", "pf.shrink(spec, mask)"),
    ),
    "pruned": (
        lambda p: pf.apply(p, {"0": bits("1011")}, spec=net().spec),
        ("'0.weight' has shape (3, 3)", "the spec says (4, 3)", "pf.shrink(spec, mask)"),
    ),
    "empty": (lambda p: {}, ("the parameters lack '0.weight'", "there are none")),
}
CALLS: dict[str, Callable[[pf.Params], Any]] = {
    "forward": lambda p: pf.forward(p, randn(2, 3), spec=net().spec),
    "apply": lambda p: pf.apply(p, {}, spec=net().spec),
    "zero": lambda p: pf.zero(p, {}, spec=net().spec),
    "collect_stats": lambda p: pf.collect_stats(p, [randn(2, 3)], spec=net().spec),
    "compensate": lambda p: pf.compensate(p, stats(), {"0": bits("1011")}, spec=net().spec),
    "recalibrate": lambda p: pf.recalibrate(p, [randn(2, 3)], spec=net().spec),
    "to_module": lambda p: pf.to_module(p, spec=net().spec),
    "pipeline": lambda p: pf.pipeline()(p, [randn(2, 3)], spec=net().spec),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", PARAMS)
def test_params_that_do_not_fit(name: str, call: str) -> None:
    change, words = PARAMS[name]
    if (name, call) == ("foreign", "forward"):
        return  # forward takes what it needs
    with raises(pf.ParamsError, *words):
        CALLS[call](change(dict(net().params)))


def test_a_spec_of_eval_mode_does_not_train() -> None:
    with raises(pf.ParamsError, "eval mode", "trace(model, args, train=True)"):
        pf.forward_train(net().params, randn(2, 3), spec=net().spec)


# ---- batches

BATCHES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "none": ([], ("there are no batches", "the iterable is empty")),
    "used up": (iter([]), ("there are no batches", "a generator can be read only once")),
    "no samples": ([randn(0, 3)], ("the batch has no samples",)),
    "a tensor for a list": (randn(2, 3), ("batches must be an iterable of batches", "wrap a single batch in a list")),
    "wrong width": ([randn(2, 4)], ("input 'input' has shape (2, 4)", "(batch, 3)")),
    "wrong rank": ([randn(2, 3, 3)], ("input 'input' has shape (2, 3, 3)", "(batch, 3)")),
    "second batch wrong": ([randn(2, 3), randn(2, 4)], ("input 'input' has shape (2, 4)",)),
    "no input": ([{"inputs": randn(2, 3)}], ("the batch has no input 'input'", "did you mean 'inputs'?")),
    "empty tuple": ([()], ("the model has 1 tensor inputs (input), but 0 were given",)),
}
READERS: dict[str, Callable[[Any], Any]] = {
    "collect_stats": lambda b: pf.collect_stats(net().params, b, spec=net().spec),
    "pipeline": lambda b: pf.pipeline(criterion=pf.criteria.variance())(net().params, b, spec=net().spec),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", BATCHES)
def test_batches_that_do_not_fit(name: str, reader: str) -> None:
    batches, words = BATCHES[name]
    with raises(pf.BatchError, *words):
        READERS[reader](batches)


def test_a_dict_for_a_list_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the type checker of the tests would say so first
    for read in READERS.values():
        with raises(pf.BatchError, "batches must be an iterable of batches", "wrap a single batch in a list"):
            read({"input": randn(2, 3)})


def test_batches_of_two_inputs_that_do_not_fit() -> None:
    def collect(batch: Any) -> Any:
        return pf.collect_stats(two().params, [batch], spec=two().spec)

    with raises(pf.BatchError, "the model has 2 tensor inputs (image, weight), but 1 were given"):
        collect(randn(2, 3))
    with raises(pf.BatchError, "the model has 2 tensor inputs (image, weight), but 1 were given"):
        collect((randn(2, 3), "a label"))
    with raises(pf.BatchError, "the batch has no input 'weight'", "did you mean 'weights'?"):
        collect({"image": randn(2, 3), "weights": randn(2, 1)})
    with raises(pf.BatchError, "input 'weight' has shape (2, 3)", "(batch, 1)"):
        collect((randn(2, 3), randn(2, 3)))
    with raises(pf.BatchError, "no input 'imgae'", "did you mean 'image'"):
        pf.forward(two().params, randn(2, 1), spec=two().spec, imgae=randn(2, 3))


def test_recalibration_reads_the_same_batches() -> None:
    t = traced(cnn(), randn(2, 3, 6, 6))
    with raises(pf.BatchError, "input 'input' has shape (2, 1, 6, 6)", "(batch, 3, 6, 6)"):
        pf.recalibrate(t.params, [randn(2, 1, 6, 6)], spec=t.spec)


# ---- NaN


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("reader", READERS)
def test_batches_that_are_not_finite_name_the_site(reader: str, value: float) -> None:
    bad = randn(6, 3)
    bad[3, 1] = value
    with raises(
        pf.StatsError, "the input of site '2' is not finite in", "of 4 channels", "look for NaN in the batches"
    ):
        READERS[reader]([randn(6, 3), bad])


def test_params_that_are_not_finite_name_the_first_site_that_sees_them() -> None:
    weight = net().params["2.weight"].clone()
    weight[1] = float("nan")
    with raises(pf.StatsError, "the input of site '4' is not finite in 1 of 5 channels"):
        pf.collect_stats({**net().params, "2.weight": weight}, [randn(6, 3)], spec=net().spec)


@pytest.mark.parametrize("field", ["mean", "m2"])
def test_statistics_that_are_not_finite(field: str) -> None:
    good = stats()
    nan = good.sites["2"]._replace(**{field: torch.full((4,), float("nan"), dtype=torch.float64)})
    bad = good._replace(sites=FrozenDict({**good.sites, "2": nan}))
    if field == "m2":
        with raises(pf.StatsError, "site '2'", "NaN"):
            pf.score(bad)
    else:
        with raises(pf.StatsError, "the mean of site '2' is not finite"):
            pf.compensate(net().params, bad, {"0": bits("1011")}, spec=net().spec)


# ---- statistics


def test_statistics_of_another_spec() -> None:
    other = pf.shrink(net().spec, {"0": bits("1011")})
    with raises(pf.StatsError, "of another spec", "collect them with the spec that they are used with"):
        pf.compensate(
            pf.apply(net().params, {"0": bits("1011")}, spec=net().spec), stats(), {"2": bits("10111")}, spec=other
        )
    with raises(pf.StatsError, "are empty", "collect_stats(params, batches, spec=spec)"):
        pf.compensate(net().params, pf.Stats(), {"0": bits("1011")}, spec=net().spec)


def test_statistics_that_lack_a_site() -> None:
    part = pf.collect_stats(net().params, [randn(6, 3)], spec=net().spec, where="0")
    with raises(pf.StatsError, "site '4' loses inputs", "no mean for it", "collect statistics"):
        pf.compensate(net().params, part, {"2": bits("10111")}, spec=net().spec)
    with raises(pf.StatsError, "site 'decoder' loses inputs", "did you mean 'decodr'?"):
        pf.compensate(two().params, {"decodr": torch.ones(4)}, {"encoder": bits("1010")}, spec=two().spec)


def test_moments_by_hand_of_the_wrong_size() -> None:
    wrong = {"2": Moments(1, torch.ones(3), torch.ones(3))}
    with raises(pf.StatsError, "the mean of site '2' has shape (3,)", "4 positions", "[4]"):
        pf.compensate(net().params, wrong, {"0": bits("1011")}, spec=net().spec)


# ---- choices


def test_an_unknown_kind() -> None:
    with raises(
        pf.PruneError, "there is no kind 'hiden'", "hidden, residual, heads, head_dim, groups", "did you mean 'hidden'"
    ):
        pf.kind("hidden", "hiden")


def test_only_with_nothing_left() -> None:
    scores = pf.score(stats())
    with raises(pf.PruneError, "no group of 0, 2", "matches 'blocks.*'"):
        pf.only(scores, "blocks.*")
    with raises(pf.PruneError, "no group of 0, 2", "matches"):
        pf.only(scores, pf.kind("heads"), spec=net().spec)
    assert pf.only({}, "blocks.*") == {}


def test_only_needs_the_spec_for_predicates() -> None:
    scores = pf.score(stats())
    with raises(pf.PruneError, "needs the spec", "only(scores, where, spec=spec)"):
        pf.only(scores, pf.kind("hidden"))
    with raises(pf.PruneError, "a group 'x', but the spec has no such group"):
        pf.only({"x": torch.ones(2)}, "*", spec=net().spec)
    assert list(pf.only(scores, "2")) == ["2"]
    assert list(pf.only(scores, lambda g: g.size == 4, spec=net().spec)) == ["0"]


@pytest.mark.parametrize("name", ["2.weigth", "nothing like it"])
def test_explaining_an_unknown_name(name: str) -> None:
    with raises(pf.ParamsError, f"no tensor or group is called {name!r}"):
        net().spec.explain(name)


def test_a_model_that_cannot_be_traced() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x

    with raises(pf.TraceError, "Broken", "cannot be recorded"):
        pf.trace(Broken(), (randn(2, 3),))


def test_hints() -> None:
    assert nearest("layer1.conv", ["layer1.conv1", "fc"]) == "; did you mean 'layer1.conv1'?"
    assert nearest("fc", ["fc1", "fc2"]) in ("; did you mean 'fc1' or 'fc2'?", "; did you mean 'fc2' or 'fc1'?")
    assert nearest("zzz", list("abcdefg")) == "; known are a, b, c, d, e …"
    assert nearest("zzz", ["a", "b"]) == "; known are a, b"
    assert nearest("zzz", []) == "; there are none"
