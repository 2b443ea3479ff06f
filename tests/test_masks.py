"""Masks by hand, index maps of what is kept, and the way back to the dense shapes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, reduce
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import prunefn as pf

from .small import Attention, Residual, Tied, Traced, Twice, bits, close, cnn, laws, masks, mlp, randn, same, traced
from .test_params import Halves


class Depthwise(nn.Module):
    """Each unit of `a` stands at two positions of the next weight's output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 6, 1, groups=3)
        self.c = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)).relu())


class Stuck(nn.Module):
    """The units of `a` and the first half of those of `b` are put in another order, which freezes them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.b(x).chunk(2, -1)
        return self.c(self.a(x).flip(-1)) + first.flip(-1) + self.d(second)


CASES = {
    "mlp": (lambda: mlp(3, 5, 4, 2), (3,)),
    "cnn": (cnn, (3, 6, 6)),
    "attention": (lambda: Attention(8, 3, 4), (5, 8)),
    "residual": (lambda: Residual(3, 5, 6, 2), (3,)),
    "twice": (Twice, (4,)),
    "halves": (Halves, (3,)),
    "depthwise": (Depthwise, (2, 3, 3)),
    "stuck": (Stuck, (3,)),
}
each = pytest.mark.parametrize("name", CASES)


@lru_cache
def case(name: str) -> Traced:
    torch.manual_seed(0)
    make, shape = CASES[name]
    return traced(make().eval(), randn(3, *shape))


@lru_cache
def tied() -> Traced:
    torch.manual_seed(0)
    model = Tied()
    return Traced(model, pf.trace(model, (torch.zeros(2, 3, dtype=torch.int64),)), pf.params(model))


# ---- mask


@pytest.mark.parametrize(
    ("name", "removed", "group", "expected"),
    [
        ("mlp", {"0": [0, 3]}, "0", "01101"),
        ("mlp", {"0": []}, "0", "11111"),
        ("mlp", {"0.weight": (1,)}, "0", "10111"),
        ("mlp", {"0.bias": {4}}, "0", "11110"),
        ("mlp", {"0": range(4)}, "0", "00001"),
        ("mlp", {"0": torch.tensor([2, 1])}, "0", "10011"),
        ("mlp", {"0": bits("10101")}, "0", "10101"),
        ("mlp", {"0": [True, True, False, True, True]}, "0", "11011"),
        ("mlp", {"0": [0], "0.bias": [0, 1]}, "0", "00111"),
        ("residual", {"down": [1]}, "stem", "10111"),
        ("cnn", {"7": [0, 4]}, "6", "01110"),
        ("cnn", {"7.running_mean": [2]}, "6", "11011"),
        ("cnn", {"3.hidden": [3]}, "3.hidden", "1110"),
        ("attention", {"qkv.head_dim": [0]}, "qkv.head_dim", "0111"),
        ("twice", {"a": [1]}, "a", "101"),
        ("stuck", {"b": [3]}, "b", "10"),
        ("halves", {"shift": [1, 2]}, "up", "10011"),
        ("halves", {"up.weight": [1, 6]}, "up", "10111"),
        ("halves", {"up.bias": bits("1011010110")}, "up", "10110"),
    ],
)
def test_golden_masks(name: str, removed: Any, group: str, expected: str) -> None:
    spec = case(name).spec
    group = group if group in spec.groups else next(g for g in spec.groups if g.startswith(group))
    mask = pf.mask(spec, removed)
    assert list(mask) == [group]
    assert mask[group].tolist() == bits(expected).tolist()
    assert mask[group].dtype == torch.bool


def test_several_groups_at_once() -> None:
    mask = pf.mask(case("mlp").spec, {"0": [1], "2": bits("0111")})
    assert {g: m.tolist() for g, m in mask.items()} == {"0": bits("10111").tolist(), "2": bits("0111").tolist()}
    assert pf.mask(case("mlp").spec, {}) == {}


WRONG: dict[str, tuple[str, dict[str, Any], Iterable[str]]] = {
    "no such key": ("mlp", {"4": [0], "3": [0]}, ["'4.weight'", "nothing can be removed"]),
    "misspelt": (
        "residual",
        {"stemm": [0]},
        ["no group, tensor or module with a weight", "'stemm'", "did you mean 'stem"],
    ),
    "too high": ("mlp", {"0": [5]}, ["'0'", "no index 5", "from 0 to 4"]),
    "negative": ("mlp", {"0": [2, -1]}, ["'0'", "no index -1", "from 0 to 4"]),
    "twice": ("mlp", {"0": [1, 2, 1]}, ["'0'", "index 1 is given 2 times", "once"]),
    "emptied": ("mlp", {"0": range(5)}, ["'0'", "all 5 units", "at least one must stay"]),
    "emptied by two": ("mlp", {"0": [0, 1, 2], "0.bias": [3, 4]}, ["'0'", "all 5 units"]),
    "floats": ("mlp", {"0": torch.tensor([0.5])}, ["'0'", "torch.float32", "list of indices"]),
    "a matrix": ("mlp", {"0": torch.zeros(2, 2, dtype=torch.int64)}, ["'0'", "shape (2, 2)", "list of indices"]),
    "too short": ("mlp", {"0": bits("101")}, ["'0'", "3 entries", "must have 5"]),
    "via a tensor": ("cnn", {"7.bias": [7]}, ["'7.bias' (group '6')", "no index 7", "from 0 to 4"]),
    "an output": (
        "mlp",
        {"4.weight": [0]},
        ["rows (dim 0) of '4.weight' = 2 hidden_1", "explain('4.weight')", "{'2': […]}"],
    ),
    "several groups": ("attention", {"qkv": [0]}, ["'qkv.weight'", "2 groups", "'qkv.heads', 'qkv.head_dim'"]),
    "a product": ("cnn", {"3": [0]}, ["'3.weight'", "2 groups", "choose by group", "'3.hidden'"]),
    "half of a unit": ("halves", {"up": [1]}, ["unit 1 of group 'up", "positions 1, 6 of 'up'", "{'up"]),
    "a frozen part": ("stuck", {"b": [0, 2]}, ["position 0 of 'b' cannot be removed", "frozen"]),
    "all frozen": (
        "stuck",
        {"a": [0]},
        ["nothing can be removed from the rows (dim 0) of 'a.weight'", "explain('a.weight')"],
    ),
    "no dims": ("cnn", {"1.num_batches_tracked": [0]}, ["nothing can be removed", "'1.num_batches_tracked'"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_masks_that_cannot_be(wrong: str) -> None:
    name, removed, words = WRONG[wrong]
    with pytest.raises(pf.MaskError) as caught:
        pf.mask(case(name).spec, removed)
    for word in words:
        assert word in str(caught.value)


@each
@laws
@given(data=st.data())
def test_a_mask_by_hand_is_the_mask(name: str, data: st.DataObject) -> None:
    spec = case(name).spec
    mask = data.draw(masks(spec))
    by_index = pf.mask(spec, {g: (~m).nonzero()[:, 0].tolist() for g, m in mask.items()})
    by_bool = pf.mask(spec, mask)
    for g, m in mask.items():
        assert torch.equal(by_index[g], m)
        assert torch.equal(by_bool[g], m)
        assert by_bool[g].data_ptr() != m.data_ptr()


class Words(nn.Module):
    """A vocabulary of 9, a stream of 4 that only the embedding produces, and a product of [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4)
        self.mix = nn.Parameter(torch.randn(4, 5))
        self.head = nn.Linear(5, 9, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.norm(self.wte(x)) @ self.mix).relu())


def test_an_index_by_tensor_means_its_rows() -> None:
    spec = pf.trace(Words(), (torch.zeros(2, 3, dtype=torch.int64),))
    assert {"wte", "mix"} <= set(spec.groups)
    with pytest.raises(
        pf.MaskError, match=r"'wte' means two things: a group of 4 units, and the rows.*'wte.weight'.*vocabulary"
    ):
        pf.mask(spec, {"wte": [1, 2]})
    with pytest.raises(
        pf.MaskError, match=r"nothing can be removed from the rows \(dim 0\) of 'wte.weight'.*write {'wte': "
    ):
        pf.mask(spec, {"wte.weight": [1, 2]})
    for key, kept in ((spec.groups["wte"], [1]), ("norm", [1]), ("wte", bits("1011"))):
        assert {g: m.tolist() for g, m in pf.mask(spec, {key: kept}).items()} == {"wte": [True, False, True, True]}
    assert list(pf.mask(spec, {"mix": [4]})) == ["mix"]  # outputs of the product


def test_rows_of_a_transposed_convolution_are_its_inputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ConvTranspose1d(3, 4, 1), nn.Conv1d(4, 1, 1))
    spec = pf.trace(net, (torch.randn(2, 2, 5),))
    assert list(pf.mask(spec, {"1": [3]})) == ["1"]  # the group of its outputs
    assert list(pf.mask(spec, {"1.weight": [2]})) == ["0"]


# ---- rounds


def test_rounds_that_empty_a_group_or_are_no_masks() -> None:
    with pytest.raises(pf.MaskError, match="second mask of group 'a' removes all 2 units"):
        pf.compose({"a": bits("101")}, {"a": bits("00")})
    with pytest.raises(pf.MaskError, match="first mask of group 'a' removes all 3 units"):
        pf.compose({"a": bits("000")}, {})
    with pytest.raises(pf.MaskError, match="second mask of group 'b' removes all"):
        pf.compose({"a": bits("101")}, {"b": bits("00")})
    with pytest.raises(pf.MaskError, match=r"first mask of group 'a' has dtype torch.uint8"):
        pf.compose({"a": bits("101").to(torch.uint8)}, {"a": bits("01")})
    with pytest.raises(pf.MaskError, match=r"second mask of group 'b' has dtype torch.uint8"):
        pf.compose({}, {"b": bits("101").to(torch.uint8)})
    with pytest.raises(pf.MaskError, match=r"has shape \(1, 3\); it must be a vector"):
        pf.compose({"a": bits("101")[None]}, {})
    with pytest.raises(pf.MaskError, match=r"shape \(3,\), but the first leaves 2 units"):
        pf.compose({"a": bits("101")}, {"a": bits("011")})


@each
@laws
@given(data=st.data())
def test_compose_of_many_rounds(name: str, data: st.DataObject) -> None:
    spec, params, rounds = case(name).spec, case(name).params, []
    for _ in range(3):
        rounds.append(data.draw(masks(spec, some=True)))
        params, spec = pf.apply(params, rounds[-1], spec=spec), pf.shrink(spec, rounds[-1])
    mask = pf.compose(*rounds)
    same(params, pf.apply(case(name).params, mask, spec=case(name).spec))
    two_by_two = reduce(pf.compose, rounds)
    assert all(torch.equal(m, two_by_two[g]) for g, m in mask.items())
    kept = pf.kept(mask, case(name).spec)
    assert {g: len(i) for g, i in kept.items()} == {g.name: g.size for g in spec.groups.values()}


@each
@laws
@given(data=st.data())
def test_kept_maps_count_in_the_original(name: str, data: st.DataObject) -> None:
    """A map of each round indexes that of the round before."""
    spec = case(name).spec
    first = data.draw(masks(spec, some=True))
    second = data.draw(masks(pf.shrink(spec, first), some=True))
    a, b = pf.kept(first, spec), pf.kept(second, pf.shrink(spec, first))
    both = pf.kept(pf.compose(first, second), spec)
    assert list(both) == list(spec.groups)
    for g in spec.groups:
        assert both[g].dtype == torch.int64
        assert torch.equal(both[g], a[g][b[g]])


@each
@laws
@given(data=st.data())
def test_kept_positions_index_the_dense_tensors(name: str, data: st.DataObject) -> None:
    t = case(name)
    mask = data.draw(masks(t.spec, some=True))
    at, small = pf.kept_positions(mask, t.spec), pf.apply(t.params, mask, spec=t.spec)
    assert set(t.params) <= set(at)
    for n, dense in t.params.items():
        assert len(at[n]) == dense.ndim
        assert torch.equal(dense[torch.meshgrid(*at[n], indexing="ij")] if dense.ndim else dense, small[n])


def test_golden_kept() -> None:
    spec = case("mlp").spec
    mask = {"0": bits("01101")}
    assert {g: i.tolist() for g, i in pf.kept(mask, spec).items()} == {"0": [1, 2, 4], "2": [0, 1, 2, 3]}
    assert [i.tolist() for i in pf.kept_positions(mask, spec)["2.weight"]] == [[0, 1, 2, 3], [1, 2, 4]]


def test_maps_check_the_mask() -> None:
    for use in (pf.kept, pf.kept_positions):
        with pytest.raises(pf.MaskError, match=r"'0' has shape \(2,\)"):
            use({"0": bits("10")}, case("mlp").spec)


# ---- expand


@each
@laws
@given(data=st.data())
def test_expand_puts_back_and_fills_with_zeros(name: str, data: st.DataObject) -> None:
    t = case(name)
    mask = data.draw(masks(t.spec, some=True))
    small = pf.apply(t.params, mask, spec=t.spec)
    dense, at = pf.expand(small, mask, spec=t.spec), pf.kept_positions(mask, t.spec)
    assert list(dense) == list(t.params)
    for n, v in t.params.items():
        expected = torch.zeros_like(v)
        where = torch.meshgrid(*at[n], indexing="ij") if v.ndim else ...
        expected[where] = v[where]
        assert dense[n].dtype == v.dtype
        assert torch.equal(dense[n], expected)
    same(pf.apply(dense, mask, spec=t.spec), small)


@each
def test_expand_computes_what_the_small_network_does(name: str) -> None:
    t = case(name)
    x = randn(3, *CASES[name][1], seed=4)
    mask = {g.name: torch.arange(g.size) % 2 == 0 for g in t.spec.groups.values() if g.exact}
    small = pf.apply(t.params, mask, spec=t.spec)
    y = pf.forward(small, x, spec=pf.shrink(t.spec, mask))
    close(pf.forward(pf.expand(small, mask, spec=t.spec), x, spec=t.spec), y)


def test_golden_expand() -> None:
    model = mlp(2, 3, 1)
    spec, params = pf.trace(model, (torch.randn(1, 2),)), pf.params(model)
    small = {
        "0.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "0.bias": torch.tensor([5.0, 6.0]),
        "2.weight": torch.tensor([[7.0, 8.0]]), "2.bias": torch.tensor([9.0]),
    }  # fmt: skip
    dense = pf.expand(small, {"0": bits("101")}, spec=spec)
    assert dense["0.weight"].tolist() == [[1, 2], [0, 0], [3, 4]]
    assert dense["0.bias"].tolist() == [5, 0, 6]
    assert dense["2.weight"].tolist() == [[7, 0, 8]]
    assert dense["2.bias"] is small["2.bias"]
    assert list(dense) == list(params)


def test_expand_keeps_ties_and_writes_to_nothing() -> None:
    t = tied()
    mask = {g: torch.arange(n) > 0 for g, n in t.spec.sizes.items()}
    small = pf.apply(t.params, mask, spec=t.spec)
    before = {n: v.clone() for n, v in small.items()}
    dense = pf.expand(small, mask, spec=t.spec)
    assert dense["embed.weight"] is dense["out.weight"]
    assert dense["embed.weight"].shape == (7, 6)
    same(small, before)


def test_expand_carries_the_biases_of_a_compensation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))
    t = traced(model, randn(2, 3))
    mask, x = {"0": bits("1010"), "2": bits("11010")}, randn(8, 3, seed=2)
    filled = pf.compensate(t.params, pf.collect_stats(t.params, [x], spec=t.spec), mask, spec=t.spec)
    small = pf.apply(filled, mask, spec=t.spec)
    dense = pf.expand(small, mask, spec=t.spec)
    assert torch.equal(dense["2.bias"], torch.where(bits("11010"), filled["2.bias"], 0.0))
    close(pf.forward(dense, x, spec=t.spec), pf.forward(small, x, spec=pf.shrink(t.spec, mask)))


def test_expand_passes_gradients() -> None:
    t = case("mlp")
    small = {n: v.requires_grad_() for n, v in pf.apply(t.params, {"0": bits("01101")}, spec=t.spec).items()}
    pf.expand(small, {"0": bits("01101")}, spec=t.spec)["2.weight"].sum().backward()
    assert small["2.weight"].grad is not None
    assert small["2.weight"].grad.tolist() == [[1.0] * 3] * 4


def test_expand_refuses_params_that_are_not_of_the_mask() -> None:
    t = case("mlp")
    with pytest.raises(pf.ParamsError, match=r"'0.weight' has shape \(5, 3\), but the spec says \(3, 3\)"):
        pf.expand(t.params, {"0": bits("01101")}, spec=t.spec)
    with pytest.raises(pf.MaskError, match="'x', but the spec has no such group"):
        pf.expand(t.params, {"x": bits("01")}, spec=t.spec)
