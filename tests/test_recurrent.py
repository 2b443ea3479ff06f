"""Recurrent layers: hidden and projection axes, in every arrangement of nn.RNN, nn.GRU and nn.LSTM."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.costs.counted import flop_counter

from .orders import permuted
from .small import Traced, close, same, traced
from .toys.base import Case, tokens
from .zoo import random_mask


class Net(nn.Module):
    """A recurrent layer between linear layers, with or without a LayerNorm behind it."""

    def __init__(self, kind: type[nn.RNNBase], norm: bool = False, **options: Any) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 6)
        self.rnn = kind(6, 5, **{"batch_first": True, **options})
        width = (self.rnn.proj_size or 5) * (1 + self.rnn.bidirectional)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.fc = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.rnn(self.enter(x).relu())[0]))


class LastState(nn.Module):
    """The final states are read, and those of both directions stand side by side."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(4, 5, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = self.rnn(x)[1]
        state = state[0] if isinstance(state, tuple) else state
        return self.fc(torch.cat([state[0], state[1]], -1))


class LearnedState(nn.Module):
    """The first state is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)
        self.start = nn.Parameter(torch.zeros(1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x, self.start.expand(-1, len(x), -1).contiguous())[0])


class ConvLstm(nn.Module):
    """Channels become the input of the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.rnn, self.fc = nn.LSTM(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x.transpose(1, 2))).relu()
        return self.fc(self.rnn(y.permute(2, 0, 1))[0][-1])


class Residual(nn.Module):
    """What the layer adds to the stream ties its hidden axis to the stream's."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.rnn, self.fc = (
            nn.Linear(4, 6),
            nn.LSTM(6, 3, bidirectional=True, batch_first=True),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.fc(x + self.rnn(x)[0])


class Steps(nn.Module):
    """A cell that is called by hand, step after step."""

    def __init__(self, kind: type[nn.RNNCellBase], **options: Any) -> None:
        super().__init__()
        self.enter, self.cell, self.fc = nn.Linear(4, 6), kind(6, 5, **options), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, state = self.enter(x), None
        for i in range(x.shape[1]):
            state = self.cell(x[:, i], state)
        return self.fc(state[0] if isinstance(state, tuple) else state)


def net(kind: type[nn.RNNBase], **options: Any) -> Case:
    return Case(lambda: Net(kind, **options), tokens(4))


CASES: dict[str, Case] = {
    "tanh": net(nn.RNN), "relu": net(nn.RNN, nonlinearity="relu"), "gru": net(nn.GRU), "lstm": net(nn.LSTM),
    "gru_2": net(nn.GRU, num_layers=2), "lstm_2": net(nn.LSTM, num_layers=2),
    "gru_both": net(nn.GRU, bidirectional=True), "lstm_both_2": net(nn.LSTM, bidirectional=True, num_layers=2),
    "no_bias": net(nn.LSTM, bias=False), "norm": net(nn.LSTM, norm=True),
    "projected": net(nn.LSTM, proj_size=3), "projected_both_2": net(nn.LSTM, proj_size=3, bidirectional=True, num_layers=2),
    "last_gru": Case(lambda: LastState(nn.GRU), tokens(4)), "last_lstm": Case(lambda: LastState(nn.LSTM), tokens(4)),
    "learned": Case(LearnedState, tokens(4)), "conv": Case(ConvLstm, tokens(4)), "residual": Case(Residual, tokens(4)),
    "lstm_cell": Case(lambda: Steps(nn.LSTMCell), tokens(4)), "gru_cell": Case(lambda: Steps(nn.GRUCell), tokens(4)),
    "tanh_cell": Case(lambda: Steps(nn.RNNCell), tokens(4)),
    "bare_cell": Case(lambda: Steps(nn.RNNCell, bias=False, nonlinearity="relu"), tokens(4)),
}  # fmt: skip
GROUPS = {
    **dict.fromkeys(CASES, (6, 5)), "projected": (6, 3), "projected_both_2": (6, 3),
    "last_gru": (5,), "last_lstm": (5,), "learned": (5,), "residual": (3,),
}  # fmt: skip
"""Sizes of all groups: one hidden (or projection) axis for all layers and directions of a call."""
every = pytest.mark.parametrize("name", CASES)


@cache
def case(name: str) -> Traced:
    return traced(CASES[name].model().requires_grad_(False), *CASES[name].inputs()[0])


def run(name: str, params: pf.Params, spec: pf.Spec, batch: int = 3) -> Tensor:
    return pf.forward(params, *CASES[name].inputs(batch)[0], spec=spec)


@every
def test_groups(name: str) -> None:
    spec = case(name).spec
    assert not spec.unknown
    assert tuple(g.size for g in spec.widths.values()) == GROUPS[name]
    assert all(g.exact == (name != "norm" or g.size == 6) for g in spec.groups.values())


@every
@pytest.mark.parametrize("batch", [1, 3])
def test_forward_is_the_module_bit_for_bit(name: str, batch: int) -> None:
    t = case(name)
    (x,) = CASES[name].inputs(batch)[0]
    with torch.no_grad():
        assert torch.equal(run(name, t.params, t.spec, batch), t.model(x))


@every
def test_removing_is_zeroing(name: str) -> None:
    t = case(name)
    mask = random_mask(t.spec, 1, groups=[g.name for g in t.spec.groups.values() if g.exact])
    small = run(name, pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask))
    close(small, run(name, pf.zero(t.params, mask, spec=t.spec), t.spec), 1e-10)
    assert not torch.allclose(small, run(name, t.params, t.spec))


@every
def test_zero_columns_of_all_that_read_the_state_are_enough(name: str) -> None:
    t = case(name)
    group = next(g for g in reversed(list(t.spec.widths.values())) if g.exact)
    mask = random_mask(t.spec, 1, groups=[group.name])
    kept = pf.kept_positions(mask, spec=t.spec)
    params = dict(t.params)
    for m in group.members:
        if m.role == "in":
            blind = torch.zeros_like(params[m.tensor])
            blind.index_copy_(m.dim, kept[m.tensor][m.dim], params[m.tensor].index_select(m.dim, kept[m.tensor][m.dim]))
            params[m.tensor] = blind
    assert any(not torch.equal(params[n], t.params[n]) for n in params)
    small = run(name, pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask))
    close(small, run(name, params, t.spec), 1e-10)


@every
def test_another_order_of_the_units_changes_nothing(name: str) -> None:
    t = case(name)
    close(run(name, *permuted(t.params, t.spec, 3)), run(name, t.params, t.spec), 1e-10)


@every
def test_keeping_all_and_two_rounds(name: str) -> None:
    t = case(name)
    whole = {g: torch.ones(n, dtype=torch.bool) for g, n in t.spec.sizes.items()}
    same(pf.apply(t.params, whole, spec=t.spec), t.params)
    assert pf.shrink(t.spec, whole) == t.spec
    first = random_mask(t.spec, 2, 0.7)
    smaller = pf.shrink(t.spec, first)
    second = random_mask(smaller, 3, 0.6)
    both = pf.compose(first, second)
    once = pf.apply(t.params, both, spec=t.spec)
    same(pf.apply(pf.apply(t.params, first, spec=t.spec), second, spec=smaller), once)
    assert pf.shrink(smaller, second) == pf.shrink(t.spec, both)
    run(name, once, pf.shrink(t.spec, both))


MATRICES: dict[str, Callable[[str], int]] = {
    "conv": lambda n: 5 if n != "fc.weight" else 1,
    "last_gru": lambda n: 5 if n != "fc.weight" else 1,
    "last_lstm": lambda n: 5 if n != "fc.weight" else 1,
    **dict.fromkeys(("lstm_cell", "gru_cell", "tanh_cell", "bare_cell"), lambda n: 5 if n != "fc.weight" else 1),
}
"""How often each matrix is multiplied in a sample of five steps; elsewhere five times."""


@every
def test_costs_are_those_of_every_matrix_at_every_step(name: str) -> None:
    """By hand, and as torch counts them in float64 (its float32 kernel for LSTMs is not counted)."""
    t = case(name)
    for spec in (t.spec, pf.shrink(t.spec, random_mask(t.spec, 4))):
        shapes = {n: spec.shape(n) for n in spec.parameters if "weight" in n and len(spec.shape(n)) > 1}
        times = MATRICES.get(name, lambda n: 5)
        assert pf.cost(spec).macs == sum(times(n) * prod(s) for n, s in shapes.items())
        params = {n: torch.ones(spec.shape(n), dtype=torch.float64) for n in t.params}
        with flop_counter() as counter:
            run(name, params, spec, 1)
        assert 2 * pf.cost(spec).macs == counter.get_total_flops()
        assert pf.cost(spec).params == sum(prod(spec.shape(n)) for n in spec.parameters)


@pytest.mark.parametrize("name", ["lstm", "gru", "tanh", "lstm_both_2"])
def test_a_constant_input_goes_into_the_biases(name: str) -> None:
    t = case(name)
    params = {**t.params, "enter.weight": t.params["enter.weight"].clone(), "enter.bias": t.params["enter.bias"].abs()}
    mask = {"enter": torch.tensor([True, False, True, True, False, True])}
    params["enter.weight"][~mask["enter"]] = 0
    stats = pf.collect_stats(params, list(CASES[name].inputs(4)[0]), spec=t.spec)
    filled = pf.compensate(params, stats, mask, spec=t.spec)
    assert list(filled) == list(params)
    small = pf.apply(filled, mask, spec=t.spec)
    close(run(name, small, pf.shrink(t.spec, mask)), run(name, params, t.spec), 1e-10)


def test_einops_forms() -> None:
    spec = case("lstm_both_2").spec
    hidden = spec.groups["rnn.weight_ih_l0.hidden"]
    assert spec.einops("rnn.weight_ih_l0") == f"(4 {hidden.label}) {spec.groups['enter'].label}"
    assert spec.einops("rnn.weight_ih_l1_reverse") == f"(4 {hidden.label}) ({hidden.label} + {hidden.label})"
    assert {(m.dim, m.role) for m in hidden.members if m.tensor == "rnn.weight_hh_l1"} == {(0, "out"), (1, "in")}
    assert {(m.dim, m.role) for m in hidden.members if m.tensor == "rnn.bias_hh_l1"} == {(0, "out")}


class Packed(nn.Module):
    """Sequences of several lengths; such a model is recorded, not exported."""

    def __init__(self, kind: type[nn.RNNBase], *, ordered: bool) -> None:
        super().__init__()
        self.enter, self.rnn, self.fc = (
            nn.Linear(4, 6),
            kind(6, 5, batch_first=True, bidirectional=True),
            nn.Linear(10, 2),
        )
        self.ordered = ordered

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(x.shape[1], x.shape[1] - len(x), -1)
        lengths = lengths if self.ordered else lengths.flip(0)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.enter(x), lengths, batch_first=True, enforce_sorted=self.ordered
        )
        return self.fc(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


@pytest.mark.parametrize(("kind", "ordered"), [(nn.GRU, True), (nn.GRU, False), (nn.LSTM, False), (nn.RNN, False)])
def test_packed_sequences(kind: type[nn.RNNBase], ordered: bool) -> None:
    """Torch puts the last states into the order of the samples; that nothing reads them freezes no hidden unit."""
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    t = traced(Packed(kind, ordered=ordered).requires_grad_(False), x)
    assert [g.size for g in t.spec.groups.values()] == [6, 5]
    assert not t.spec.unknown
    mask = random_mask(t.spec, 2)
    small = pf.to_module(pf.apply(t.params, mask, spec=t.spec), spec=pf.shrink(t.spec, mask), model=t.model)
    zeroed = torch.func.functional_call(t.model, dict(pf.zero(t.params, mask, spec=t.spec)), (x,))
    close(small(x), zeroed, 1e-10)
    assert small.rnn.hidden_size < 5


def test_a_trace_in_train_mode_knows_the_layers_too() -> None:
    t = traced(nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 5)), torch.randn(7, 2, 3, dtype=torch.float64), train=True)
    assert [g.size for g in t.spec.groups.values()] == [4]
    assert not t.spec.unknown


def test_a_projection_keeps_its_hidden_size() -> None:
    spec = case("projected").spec
    assert "torch knows a projection by its size" in spec.explain("rnn.weight_hr_l0")
    assert spec.einops("rnn.weight_hr_l0") == "hidden_1 5"


def test_steps_are_frozen() -> None:
    x = torch.randn(2, 5, 4, dtype=torch.float64)

    class Mixer(nn.Module):
        """Makes the steps itself."""

        def __init__(self) -> None:
            super().__init__()
            self.mix, self.rnn, self.fc = nn.Linear(5, 6), nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(self.mix(x.transpose(1, 2)).transpose(1, 2))[0])

    spec = traced(Mixer(), x).spec
    assert [g.size for g in spec.groups.values()] == [3]
    assert "a recurrent layer runs along it by aten.gru.input" in spec.explain("mix.weight")


@pytest.mark.parametrize("name", ["lstm_2", "gru_both", "projected"])
def test_the_original_class_comes_back(name: str) -> None:
    t = case(name)
    mask = random_mask(t.spec, 7)
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    module = pf.to_module(small, spec=spec, model=t.model)
    (x,) = CASES[name].inputs(3)[0]
    assert type(module) is Net
    with torch.no_grad():
        close(module(x), run(name, small, spec), 1e-12)
