"""Params, masks and specs: removal, zeroing, composition (laws 2, 3 and 5)."""

from __future__ import annotations

import copy
import pickle
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import prunefn as pf

from .small import (
    Attention,
    Recurrent,
    Residual,
    Tied,
    Traced,
    Twice,
    bits,
    close,
    cnn,
    laws,
    masks,
    mlp,
    randn,
    same,
    traced,
)


class Halves(nn.Module):
    """A gated layer: two halves of one weight; a buffer and a constant along the units; a table that is in no state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 10), nn.Linear(5, 2)
        self.register_buffer("shift", torch.randn(5))
        self.register_buffer("table", torch.randn(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, -1)
        scale = torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0], dtype=x.dtype)
        return self.down(F.silu(a) * (b + self.shift) * self.table * scale)


class Channels(nn.Module):
    """Convolutions of every kind, a shuffle of channels, and a flatten before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3)
        self.grouped = nn.Conv2d(8, 6, 1, groups=2)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(self.grouped(F.relu(self.stem(x)))))
        return self.head(F.relu(self.up(F.channel_shuffle(x, 2))).flatten(1)[:, : 4 * 16])


CASES = {
    "mlp": (lambda: mlp(3, 5, 4, 2), (3,)),
    "cnn": (cnn, (3, 6, 6)),
    "attention": (lambda: Attention(8, 3, 4), (5, 8)),
    "residual": (lambda: Residual(3, 5, 6, 2), (3,)),
    "twice": (Twice, (4,)),
    "recurrent": (Recurrent, (4,)),
    "halves": (Halves, (3,)),
    "channels": (Channels, (2, 4, 4)),
}
each = pytest.mark.parametrize("name", CASES)


@lru_cache
def case(name: str) -> tuple[Traced, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[name]
    x = randn(3, *shape)
    t = traced(make(), x)
    assert t.spec.groups
    return t, x


def everything(spec: pf.Spec, value: bool = True) -> pf.Mask:
    return {g.name: torch.full((g.size,), value) for g in spec.groups.values()}


# ---- params


@each
def test_params_are_the_state_dict(name: str) -> None:
    t, _ = case(name)
    state = t.model.state_dict()
    assert set(t.params) == set(state)
    for n, v in t.params.items():
        assert v.data_ptr() == state[n].data_ptr()
        assert not v.requires_grad
        assert not isinstance(v, nn.Parameter)


def test_params_see_what_is_written_to_the_module() -> None:
    model = mlp(2, 3, 2)
    params = pf.params(model)
    model[0].bias.detach().fill_(7.0)
    assert params["0.bias"].tolist() == [7.0] * 3


def test_tied_tensors_are_one_object() -> None:
    model = Tied()
    params = pf.params(model)
    assert set(params) == {"embed.weight", "hidden.weight", "hidden.bias", "out.weight"}
    assert params["embed.weight"] is params["out.weight"]
    block = nn.Linear(3, 3)
    shared = pf.params(nn.Sequential(block, nn.ReLU(), block))
    assert shared["0.weight"] is shared["2.weight"]


def test_buffers_that_are_in_no_state_dict_are_left_out() -> None:
    assert set(pf.params(Halves())) == {"up.weight", "up.bias", "down.weight", "down.bias", "shift"}


# ---- apply and zero: goldens


def numbered(t: Traced) -> pf.Params:
    return {n: torch.arange(1.0, v.numel() + 1).reshape(v.shape).double() for n, v in t.params.items()}


def test_golden_apply_and_zero() -> None:
    t = traced(mlp(2, 3, 1), randn(2, 2))
    p, mask = numbered(t), {"0": bits("101")}
    small = pf.apply(p, mask, spec=t.spec)
    assert {n: v.tolist() for n, v in small.items()} == {
        "0.weight": [[1, 2], [5, 6]], "0.bias": [1, 3], "2.weight": [[1, 3]], "2.bias": [1],
    }  # fmt: skip
    zeroed = pf.zero(p, mask, spec=t.spec)
    assert {n: v.tolist() for n, v in zeroed.items()} == {
        "0.weight": [[1, 2], [0, 0], [5, 6]], "0.bias": [1, 0, 3], "2.weight": [[1, 0, 3]], "2.bias": [1],
    }  # fmt: skip
    assert small["2.bias"] is p["2.bias"]
    assert p["0.bias"].tolist() == [1, 2, 3]


def test_golden_heads_of_a_fused_qkv() -> None:
    """Rows are (3 heads head_dim): the second head's are 3, 4 of every six."""
    t = traced(Attention(1, 2, 2), randn(2, 3, 1))
    small = pf.apply(numbered(t), {"qkv.heads": bits("10")}, spec=t.spec)
    assert small["qkv.bias"].tolist() == [1, 2, 5, 6, 9, 10]
    assert small["proj.weight"].tolist() == [[1, 2]]
    small = pf.apply(numbered(t), {"qkv.head_dim": bits("01")}, spec=t.spec)
    assert small["qkv.bias"].tolist() == [2, 4, 6, 8, 10, 12]
    assert small["proj.weight"].tolist() == [[2, 4]]


def test_golden_halves() -> None:
    """A unit of a gated layer stands in both halves, in the buffer, and in the constants."""
    t, _ = case("halves")
    (group,) = t.spec.groups
    small = pf.apply(numbered(t), {group: bits("10010")}, spec=t.spec)
    assert small["up.bias"].tolist() == [1, 4, 6, 9]
    assert small["shift"].tolist() == [1, 4]
    assert small["down.weight"].tolist() == [[1, 4], [6, 9]]


def test_golden_flatten() -> None:
    t = traced(nn.Sequential(nn.Conv1d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6, 1)), randn(2, 1, 2))
    small = pf.apply(numbered(t), {"0": bits("011")}, spec=t.spec)
    assert small["3.weight"].tolist() == [[3, 4, 5, 6]]


def test_zero_leaves_buffers_alone() -> None:
    t, _ = case("cnn")
    mask = {g.name: torch.arange(g.size) == 0 for g in t.spec.groups.values()}
    zeroed = pf.zero(t.params, mask, spec=t.spec)
    for n, v in zeroed.items():
        assert (v is t.params[n]) == (n not in t.spec.parameters or n == "10.bias")
        assert v.shape == t.params[n].shape


# ---- law 2


@each
@pytest.mark.parametrize("whole", ["all kept", "empty mask"])
def test_law_2_keeping_all_changes_nothing(name: str, whole: str) -> None:
    t, _ = case(name)
    mask = everything(t.spec) if whole == "all kept" else {}
    for function in (pf.apply, pf.zero):
        after = function(t.params, mask, spec=t.spec)
        assert after is not t.params
        same(after, t.params)
    assert all(v is t.params[n] for n, v in pf.apply(t.params, mask, spec=t.spec).items())
    assert pf.shrink(t.spec, mask) == t.spec
    assert pf.cost(t.spec, mask) == pf.cost(t.spec)


# ---- law 3


@each
@laws
@given(data=st.data())
def test_law_3_removing_is_zeroing(name: str, data: st.DataObject) -> None:
    t, x = case(name)
    assert all(g.exact for g in t.spec.groups.values())
    mask = data.draw(masks(t.spec, some=True))
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    assert {n: tuple(v.shape) for n, v in small.items()} == {n: spec.shape(n) for n in small}
    close(pf.forward(small, x, spec=spec), pf.forward(pf.zero(t.params, mask, spec=t.spec), x, spec=t.spec), 1e-10)


@each
@laws
@given(data=st.data())
def test_zero_then_apply_is_apply(name: str, data: st.DataObject) -> None:
    t, _ = case(name)
    mask = data.draw(masks(t.spec))
    same(pf.apply(pf.zero(t.params, mask, spec=t.spec), mask, spec=t.spec), pf.apply(t.params, mask, spec=t.spec))


# ---- law 5


@each
@laws
@given(data=st.data())
def test_law_5_two_rounds_are_one(name: str, data: st.DataObject) -> None:
    t, _ = case(name)
    a = data.draw(masks(t.spec, some=True))
    once, between = pf.apply(t.params, a, spec=t.spec), pf.shrink(t.spec, a)
    b = data.draw(masks(between, some=True))
    both = pf.compose(a, b)
    same(pf.apply(once, b, spec=between), pf.apply(t.params, both, spec=t.spec))
    assert pf.shrink(between, b) == pf.shrink(t.spec, both)
    assert hash(pf.shrink(between, b)) == hash(pf.shrink(t.spec, both))
    assert pf.cost(between, b) == pf.cost(t.spec, both) == pf.cost(pf.shrink(t.spec, both))


@laws
@given(data=st.data())
def test_compose_is_associative_and_the_empty_mask_is_its_identity(data: st.DataObject) -> None:
    t, _ = case("mlp")
    a = data.draw(masks(t.spec, some=True))
    after = pf.shrink(t.spec, a)
    b = data.draw(masks(after, some=True))
    c = data.draw(masks(pf.shrink(after, b), some=True))
    left, right = pf.compose(pf.compose(a, b), c), pf.compose(a, pf.compose(b, c))
    assert {g: m.tolist() for g, m in left.items()} == {g: m.tolist() for g, m in right.items()}
    for m in (pf.compose(a, {}), pf.compose({}, a)):
        assert {g: v.tolist() for g, v in m.items()} == {g: v.tolist() for g, v in a.items()}


@laws
@given(data=st.data())
def test_zeroing_twice_is_zeroing_what_either_removes(data: st.DataObject) -> None:
    t, _ = case("residual")
    a, b = data.draw(masks(t.spec)), data.draw(masks(t.spec))
    both = {g: a[g] & b[g] for g in a}
    if all(bool(m.any()) for m in both.values()):
        same(pf.zero(pf.zero(t.params, a, spec=t.spec), b, spec=t.spec), pf.zero(t.params, both, spec=t.spec))


def test_golden_compose() -> None:
    both = pf.compose({"a": bits("10110"), "b": bits("01")}, {"a": bits("010"), "c": bits("011")})
    assert {g: m.int().tolist() for g, m in both.items()} == {"a": [0, 0, 1, 0, 0], "b": [0, 1], "c": [0, 1, 1]}


def test_compose_refuses_masks_over_something_else() -> None:
    with pytest.raises(pf.MaskError, match=r"second mask of group 'a' has shape \(5,\), but the first leaves 3 units"):
        pf.compose({"a": bits("10110")}, {"a": bits("10110")})


def test_compose_writes_to_neither() -> None:
    a, b = {"a": bits("101")}, {"a": bits("01")}
    pf.compose(a, b)
    assert (a["a"].tolist(), b["a"].tolist()) == ([True, False, True], [False, True])


# ---- tied tensors, dtypes, gradients


@pytest.mark.parametrize("source", ["params", "state_dict"])
def test_tied_tensors_stay_one_object(source: str) -> None:
    model = Tied()
    x = torch.arange(6).reshape(2, 3)
    spec = pf.trace(model, (x,))
    params = pf.params(model) if source == "params" else dict(model.state_dict())
    (group,) = spec.groups
    mask = {group: bits("101101")}
    for function in (pf.apply, pf.zero):
        after = function(params, mask, spec=spec)
        assert after["out.weight"] is after["embed.weight"]
        assert list(after) == list(params)


def test_tensors_that_are_tied_in_the_model_but_not_in_the_params() -> None:
    """Two tensors of equal values are both cut."""
    model = Tied()
    spec = pf.trace(model, (torch.arange(6).reshape(2, 3),))
    params = {n: v.clone() for n, v in pf.params(model).items()}
    (group,) = spec.groups
    small = pf.apply(params, {group: bits("101101")}, spec=spec)
    assert torch.equal(small["out.weight"], small["embed.weight"])
    assert small["out.weight"].shape == (7, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_stay(dtype: torch.dtype) -> None:
    t, _ = case("cnn")
    params = {n: v.to(dtype) if v.is_floating_point() else v for n, v in t.params.items()}
    mask = {g.name: torch.arange(g.size) == 0 for g in t.spec.groups.values()}
    for function in (pf.apply, pf.zero):
        after = function(params, mask, spec=t.spec)
        assert {n: v.dtype for n, v in after.items()} == {n: v.dtype for n, v in params.items()}


def test_gradients_flow_through_removal() -> None:
    t, x = case("mlp")
    mask = {"0": bits("10110"), "2": bits("0111")}
    spec = pf.shrink(t.spec, mask)
    through = torch.func.grad(lambda p: pf.forward(pf.apply(p, mask, spec=t.spec), x, spec=spec).square().sum())(
        t.params
    )
    zeroed = pf.zero(t.params, mask, spec=t.spec)
    expected = torch.func.grad(lambda p: pf.forward(pf.zero(p, mask, spec=t.spec), x, spec=t.spec).square().sum())(
        zeroed
    )
    for n, g in through.items():
        close(g, expected[n], 1e-10)
    assert bool((through["0.weight"][1] == 0).all())
    assert bool((through["0.weight"][0] != 0).any())


def test_params_on_meta() -> None:
    t, _ = case("channels")
    mask = {g.name: torch.arange(g.size) == 0 for g in t.spec.groups.values()}
    small = pf.apply({n: v.to("meta") for n, v in t.params.items()}, mask, spec=t.spec)
    assert {n: v.shape for n, v in small.items()} == {
        n: v.shape for n, v in pf.apply(t.params, mask, spec=t.spec).items()
    }


# ---- specs


@each
def test_specs_are_values(name: str) -> None:
    t, x = case(name)
    mask = {g.name: torch.arange(g.size) % 2 == 0 for g in t.spec.groups.values()}
    small = pf.shrink(t.spec, mask)
    for spec in (t.spec, small):
        for twin in (pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):
            assert twin == spec
            assert hash(twin) == hash(spec)
    assert small != t.spec
    assert pf.trace(t.model, (x,)) == t.spec
    reloaded = pickle.loads(pickle.dumps(small))
    params = pf.apply(t.params, mask, spec=t.spec)
    assert torch.equal(pf.forward(params, x, spec=reloaded), pf.forward(params, x, spec=small))
    with pytest.raises((AttributeError, TypeError)):
        t.spec.train = True  # type: ignore[misc]


def test_shrinking_shares_what_it_can_and_changes_nothing() -> None:
    t, _ = case("halves")
    before = pickle.dumps(t.spec)
    (group,) = t.spec.groups
    small = pf.shrink(t.spec, {group: bits("10011")})
    assert pickle.dumps(t.spec) == before
    assert small.program is t.spec.program
    assert small.sizes[group] == small.groups[group].size == 3
    assert {tuple(v.shape) for v in small.constants.tensors.values()} == {(3,)}
