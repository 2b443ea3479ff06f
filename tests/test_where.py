"""What may change: predicates on groups, and tensors that are frozen."""

from __future__ import annotations

import itertools
from fnmatch import fnmatchcase
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import prunefn as pf
from prunefn.spec.parts import Group
from prunefn.types import Where

from .small import Attention, Residual, Tied, Traced, bits, close, cnn, laws, masks, mlp, randn, traced
from .toys import CASES


class Net(nn.Module):
    """Two blocks on a normalised stream, attention and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.blocks = nn.ModuleList([Residual(6, 6, 8, 6), Residual(6, 6, 8, 6)])
        self.norm = nn.LayerNorm(6)
        self.attn = Attention(6, 2, 4)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(F.relu(self.attn(self.norm(x))))


@lru_cache
def net() -> Traced:
    return traced(Net(), randn(2, 5, 3))


def chosen(where: Where | str) -> list[str]:
    return list(pf.only({g.name: torch.ones(g.size) for g in net().spec.widths.values()}, where, spec=net().spec))


GROUPS = [
    "stem", "blocks.0.stem", "blocks.0.up", "blocks.1.stem", "blocks.1.up",
    "attn.qkv.heads", "attn.qkv.head_dim", "attn.proj",
]  # fmt: skip


def test_the_groups_of_the_network() -> None:
    assert list(net().spec.widths) == GROUPS


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (pf.kind("heads", "head_dim"), GROUPS[5:7]),
        (pf.glob("*.up", "attn.proj"), ["blocks.0.up", "blocks.1.up", "attn.proj"]),
        (pf.module("blocks.0"), ["blocks.0.stem", "blocks.0.up"]),
        (pf.module("blocks"), GROUPS[1:5]),
        (pf.module("attn.qkv"), GROUPS[5:7]),
        (pf.module("blocks.?", "stem"), GROUPS[:5]),
        (pf.touches("head.weight"), ["attn.proj"]),
        (pf.touches("blocks.0.up.weight"), ["blocks.0.stem", "blocks.0.up"]),
        (pf.touches("blocks.0.up"), ["blocks.0.stem", "blocks.0.up"]),
        (pf.touches("norm.*", "blocks.?.down.bias"), ["stem", "blocks.0.stem", "blocks.1.stem"]),
        (~pf.exact(), ["stem"]),
    ],
    ids=repr,
)
def test_golden_choices(where: Where, expected: list[str]) -> None:
    assert chosen(where) == expected


def test_a_module_is_not_the_beginning_of_another_ones_name() -> None:
    def group(name: str) -> Group:
        return Group(name, "hidden", 4, (), ())

    assert pf.module("layer1")(group("layer1.0.conv1"))
    assert not pf.module("layer1")(group("layer10.0.conv1"))
    assert not pf.touches("layer1")(group("layer1"))  # it has no member


ATOMS = {
    "kind": pf.kind("hidden"),
    "glob": "blocks.*",
    "module": pf.module("attn"),
    "function": lambda group: group.size > 6,
    "touches": pf.touches("*.up.weight"),
}


PAIRS = [(a, b) for a, b in itertools.permutations(ATOMS, 2) if {a, b} != {"glob", "function"}]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_predicates_combine_as_sets_do(a: str, b: str) -> None:
    x, y = ATOMS[a], ATOMS[b]
    x_groups, y_groups = set(chosen(x)), set(chosen(y))
    both, either = x & y, x | y
    assert {g for g in GROUPS if both(net().spec.widths[g])} == x_groups & y_groups
    assert {g for g in GROUPS if either(net().spec.widths[g])} == x_groups | y_groups
    assert isinstance(both, Where)


def test_laws_of_not() -> None:
    hidden, blocks = pf.kind("hidden"), pf.module("blocks")
    for g in net().spec.widths.values():
        assert (~hidden)(g) is not hidden(g)
        assert (~~hidden)(g) is hidden(g)
        assert (~(hidden & blocks))(g) is (~hidden | ~blocks)(g)


def test_a_predicate_prints_as_it_is_written() -> None:
    where = (pf.kind("hidden") | "a*") & ~(pf.module("b") & pf.exact())
    assert repr(where) == "(kind('hidden') | glob('a*')) & ~(module('b') & exact())"
    with pytest.raises(pf.PruneError, match=r"matches module\('blocks\.7'\) & kind\('hidden'\)"):
        chosen(pf.module("blocks.7") & pf.kind("hidden"))


def test_a_pipeline_takes_combined_predicates() -> None:
    prune = pf.pipeline(
        criterion=pf.criteria.magnitude(), where=pf.kind("hidden") & ~pf.module("blocks.1", "attn"), ratio=0.5
    )
    pruned = prune(net().params, [randn(4, 5, 3)], spec=net().spec)
    assert pruned.info.removed == {"blocks.0.up": (4, 8)}


# ---- freeze


def unchanged(before: pf.Params, after: pf.Params, names: list[str]) -> None:
    assert names
    for n in names:
        assert torch.equal(before[n], after[n])


FREEZE = [
    "head",
    "head.weight",
    "blocks.0.up.weight",
    "blocks.1.down",
    "attn.qkv.*",
    "norm",
    "blocks.0",
    "attn.proj.bias",
]


@pytest.mark.parametrize("freeze", FREEZE)
@pytest.mark.parametrize("late", [False, True])
def test_frozen_tensors_stay_to_the_bit(freeze: str, late: bool) -> None:
    """`late`: frozen by the pipeline, not by the trace."""
    x = randn(4, 5, 3, seed=1)
    spec = net().spec if late else pf.trace(net().model, (x,), freeze=freeze)
    prune = pf.pipeline(
        criterion=pf.criteria.variance(), ratio=0.5, scope=pf.scope.local(), freeze=freeze if late else ()
    )
    pruned = prune(net().params, [x], spec=spec)
    assert any(not bool(m.all()) for m in pruned.mask.values())
    unchanged(
        net().params, pruned.params, [n for n in net().params if fnmatchcase(n, freeze) or n.startswith(f"{freeze}.")]
    )
    assert pf.forward(pruned.params, x, spec=pruned.spec).shape == (4, 5, 2)


def test_a_shared_input_axis_is_frozen_with_the_tensor() -> None:
    model, x = mlp(3, 5, 4, 2), randn(2, 3)
    spec = pf.trace(model.double(), (x,), freeze=("2.weight",))
    assert not spec.widths
    assert "dim 1, size 5: frozen: by the caller" in spec.explain("2.weight")
    assert "dim 0, size 5: frozen: by the caller" in spec.explain("0.weight")


def test_a_stream_is_frozen_by_one_of_its_readers() -> None:
    spec = pf.trace(net().model, (randn(2, 5, 3),), freeze=["blocks.0.stem.weight"])
    assert list(spec.widths) == [g for g in GROUPS if g not in ("stem", "blocks.0.stem")]


@pytest.mark.parametrize("late", [False, True])
def test_a_frozen_norm_sends_the_compensation_into_a_new_bias(late: bool) -> None:
    model, x = cnn().double().eval(), randn(6, 3, 6, 6)
    freeze, params = ("7",), pf.params(model)  # the BatchNorm behind the last convolution, which has no bias
    spec = pf.trace(model, (x,), freeze=() if late else freeze)
    prune = pf.pipeline(
        criterion=pf.criteria.variance(), ratio=0.5, scope=pf.scope.local(), freeze=freeze if late else ()
    )
    pruned = prune(params, [x], spec=spec)
    unchanged(params, pruned.params, [n for n in params if n.startswith("7.")])
    assert "6.bias" in pruned.params
    assert pruned.params["6.bias"].shape == (5,)
    close(pf.forward(pruned.params, x, spec=pruned.spec), pf.to_module(pruned.params, spec=pruned.spec)(x))


def test_a_diverted_compensation_is_as_good() -> None:
    model, x = cnn().double().eval(), randn(6, 3, 6, 6)  # 7 is the BatchNorm of 6
    params, mask = pf.params(model), {"0.hidden": bits("101"), "3.hidden": bits("1101")}
    outputs = []
    for freeze in ((), ("7",)):
        spec = pf.trace(model, (x,), freeze=freeze)
        filled = pf.compensate(params, pf.collect_stats(params, [x], spec=spec), mask, spec=spec)
        outputs.append((filled, pf.forward(pf.apply(filled, mask, spec=spec), x, spec=pf.shrink(spec, mask))))
    (usual, y), (norm, y_norm) = outputs
    assert not torch.equal(usual["7.running_mean"], params["7.running_mean"])
    assert torch.equal(norm["7.running_mean"], params["7.running_mean"])
    close(norm["6.bias"], params["7.running_mean"] - usual["7.running_mean"])
    close(y_norm, y)


def test_a_frozen_bias_is_joined_by_another() -> None:
    model, x = cnn().double().eval(), randn(6, 3, 6, 6)
    params, mask, outputs = pf.params(model), {"0.hidden": bits("101")}, []
    for freeze in ((), ("3.bias",)):
        spec = pf.trace(model, (x,), freeze=freeze)
        filled = pf.compensate(params, pf.collect_stats(params, [x], spec=spec), mask, spec=spec)
        small = pf.shrink(spec, mask)
        outputs.append((filled, pf.forward(pf.apply(filled, mask, spec=spec), x, spec=small)))
    (usual, y), (kept, y_kept) = outputs
    assert torch.equal(kept["3.bias"], params["3.bias"])
    close(kept["3.bias"] + kept["3.bias_shift"], usual["3.bias"])
    close(y_kept, y)


@pytest.mark.parametrize("late", [False, True])
def test_a_frozen_bias_that_no_other_can_join_freezes_its_weight(late: bool) -> None:
    """The output of an LSTM is a tuple, to which nothing can be added."""
    model, ((x,), _) = CASES["lstm"].model(), CASES["lstm"].inputs()
    params, freeze = pf.params(model), "lstm.bias_ih_l0"
    spec = pf.trace(model, (x,), freeze=() if late else freeze)
    pruned = pf.pipeline(
        criterion=pf.criteria.variance(), ratio=0.5, scope=pf.scope.local(), freeze=freeze if late else ()
    )(params, [x], spec=spec)
    assert any(not bool(m.all()) for m in pruned.mask.values())
    unchanged(params, pruned.params, [freeze, "lstm.weight_ih_l0"])


def test_tied_tensors_are_frozen_together() -> None:
    model = Tied()
    x = torch.zeros(2, 3, dtype=torch.int64)
    whole = pf.trace(model, (x,))
    assert whole.groups
    assert not pf.trace(model, (x,), freeze="out.weight").groups
    assert not pf.trace(model, (x,), freeze="embed").groups


def test_a_pattern_that_matches_nothing() -> None:
    for call in (
        lambda: pf.trace(net().model, (randn(2, 5, 3),), freeze=("head", "blocks.0.upp")),
        lambda: pf.pipeline(criterion=pf.criteria.variance(), freeze="blocks.0.upp")(
            net().params, [randn(2, 5, 3)], spec=net().spec
        ),
    ):
        with pytest.raises(
            pf.ParamsError, match=r"freeze='blocks.0.upp' matches no tensor and no module; did you mean"
        ):
            call()


def test_nothing_frozen_is_the_spec_as_it_was() -> None:
    assert pf.trace(net().model, (randn(2, 5, 3),), freeze=()) == net().spec


def test_all_frozen() -> None:
    with pytest.raises(pf.PruneError, match=r"freeze=.* leaves no group"):
        pf.pipeline(criterion=pf.criteria.variance(), freeze="*")(net().params, [randn(2, 5, 3)], spec=net().spec)


@laws
@given(data=st.data())
def test_no_mask_reaches_a_frozen_tensor(data: st.DataObject) -> None:
    names = data.draw(st.sampled_from([("blocks.0.up.bias",), ("attn.qkv.bias", "stem.weight"), ("head.weight",)]))
    spec = frozen_spec(names)
    mask = data.draw(masks(spec))
    unchanged(net().params, pf.apply(net().params, mask, spec=spec), list(names))


@lru_cache
def frozen_spec(names: tuple[str, ...]) -> pf.Spec:
    return pf.trace(net().model, (randn(2, 5, 3),), freeze=names)


def test_what_matches_nothing_is_said_before_anything_is_measured() -> None:
    t = net()
    for where, hint in (
        ("hiden", "did you mean"),
        ("hidden", r"write pf.kind\('hidden'\)"),
        ("blokcs.*", "did you mean"),
    ):
        with pytest.raises(pf.PruneError, match=f"no group matches '.*'; .*{hint}|no group matches .*; {hint}"):
            pf.pipeline(criterion=pf.criteria.variance(), where=where)(t.params, [randn(2, 5, 3)], spec=t.spec)
