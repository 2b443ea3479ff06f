"""Recurrent layers and cells: gates are a product with the hidden axis, and the state is fed back.

One call has one hidden size: its states are stacked along layers and directions, so that the hidden axes of all of them
are one axis. A removed unit takes its rows of all gates and its column of every matrix that reads the state with it; as a
unit whose rows are zero has a state of zero, that is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...spec.parts import OUT_IN
from ..axes import ONE, Plus, Term, Times
from .base import Axes, Call, Value, rule
from .shape import freeze_all

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


class Weights(NamedTuple):
    """The parameters of one layer in one direction."""

    inputs: Value
    """[(gates hidden), in]"""
    state: Value
    """[(gates hidden), state]"""
    biases: Sequence[Value | None] = ()
    projection: Value | None = None
    """[state, hidden]"""


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def layers(call: Call) -> list[Axes]:
    """x [batch, steps, in] or [steps, batch, in], or packed [positions, in]; h₀ and c₀ [layers × directions, batch, …]."""
    call.layer = True
    x: Value = call["data"] if call["input"] is None else call["input"]
    states: list[Value] = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    gates, state, hidden = _gates(call), states[0].axes[2], states[-1].axes[2]
    projected = call.alg.size(state) != call.alg.size(hidden)
    if projected:
        call.freeze(hidden, "torch knows a projection by its size, which must stay another than the hidden size")
    elif len(states) == 2:
        call.unify(state, hidden)
    batch = _batch(call, x, states)
    y = x
    for layer in _by_layer(call, projected):
        for w in layer:
            _layer(call, w, y, gates, state, hidden)
        inner = state if len(layer) == 1 else Plus((state,) * len(layer))
        y = y._replace(axes=(*x.axes[:-1], inner), active=False)
    # torch 2.11 says that the states of an LSTM have a dim more than they have
    ones = (ONE,) * (len(call.shapes[-1]) - 3)
    return [y.axes, *((states[0].axes[0], *ones, batch, s.axes[2]) for s in states)]


@rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def cell(call: Call) -> Axes | list[Axes]:
    """x [batch, in], h and c [batch, hidden]: one step of one layer."""
    call.layer = True
    x: Value = call["input"]
    states: list[Value] = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    w = Weights(call["w_ih"], call["w_hh"], (call["b_ih"], call["b_hh"]))
    if any(len(s.axes) != len(x.axes) for s in states) or any(
        m is not None and len(m.axes) != rank
        for m, rank in zip((w.inputs, w.state, *w.biases), (2, 2, 1, 1), strict=True)
    ):
        return freeze_all(call, "its states or weights are of another rank")
    for s in states:
        for a, b in zip(s.axes, (*x.axes[:-1], w.state.axes[1]), strict=True):
            call.unify(a, b)
    hidden = states[0].axes[-1]
    _layer(call, w, x, _gates(call), hidden, hidden)
    out = [s.axes for s in states]
    return out if len(out) > 1 else out[0]


@rule("aten._pack_padded_sequence", "aten._pad_packed_sequence")
def packing(call: Call) -> list[Axes]:
    """Steps of sequences of several lengths, one row after the other, and back: the last dim passes."""
    x, *others = call.tensors()
    call.freeze([*x.axes[:-1], *(a for v in others for a in v.axes)], "steps of several sequences are packed")
    lead, rest = call.shapes[0][:-1], call.shapes[1]
    return [(*call.frozen(lead, "packed steps"), x.axes[-1]), call.frozen(rest, "packed steps")]


def _gates(call: Call) -> list[Term]:
    """The axis of the gates, frozen; a plain network has none."""
    n = GATES[call.op.split(".")[1].removesuffix("_cell")]
    return list(call.frozen([n], "its positions are gates")) if n > 1 else []


def _batch(call: Call, x: Value, states: Sequence[Value]) -> Term:
    """The states' axes meet, and the steps are scanned along; the batch."""
    packed = call["input"] is None
    batch, steps = states[0].axes[1], x.axes[0]
    if not packed:
        b, s = (0, 1) if call["batch_first"] else (1, 0)
        batch, steps = x.axes[b], x.axes[s]
    call.freeze(steps, "a recurrent layer runs along it")
    if packed:
        call.freeze(call["batch_sizes"].axes, "a recurrent layer runs along it")
    for s in states:
        call.freeze(s.axes[0], "states of layers and directions are stacked along it")
        call.unify(s.axes[1], batch)
        call.unify(s.axes[0], states[0].axes[0])
    return batch


def _by_layer(call: Call, projected: bool) -> Iterator[list[Weights]]:
    """The flat list of parameters: for each layer, for each direction, matrices, biases and projection."""
    flat: list[Value] = call["params"]
    biases, directions = 2 * bool(call["has_biases"]), 1 + bool(call["bidirectional"])
    n = 2 + biases + projected
    each = [flat[i : i + n] for i in range(0, len(flat), n)]
    weights = [Weights(p[0], p[1], p[2 : 2 + biases], p[-1] if projected else None) for p in each]
    for i in range(0, len(weights), directions):
        yield weights[i : i + directions]


def _layer(call: Call, w: Weights, x: Value, gates: list[Term], state: Term, hidden: Term) -> None:
    """The equations and the costs of one layer in one direction. Only an input from outside is a site: the state has
    another mean at each step."""
    positions, out = x.axes[:-1], Times((*gates, hidden)) if gates else hidden
    for v in (w.inputs, w.state, *(b for b in w.biases if b is not None)):
        call.unify(v.axes[0], out)
    call.unify(w.inputs.axes[1], x.axes[-1])
    call.unify(w.state.axes[1], state)
    bias, state_bias = w.biases or (None, None)
    for matrix in (w.inputs, w.state, w.projection):
        call.lay_out(matrix, OUT_IN)
    pattern = OUT_IN if bias is not None else ""  # without a bias there is no place for a shift
    call.contract(macs=(*positions, *w.inputs.axes), x=x, weight=w.inputs, pattern=pattern, bias=bias, out=out)
    back = x._replace(axes=(*positions, state), active=False)
    call.contract(macs=(*positions, *w.state.axes), x=back, weight=w.state, pattern=OUT_IN, bias=state_bias, out=out)
    if w.projection is not None:
        call.unify(w.projection.axes[0], state)
        call.unify(w.projection.axes[1], hidden)
        within = x._replace(axes=(*positions, hidden), active=False)
        call.contract(macs=(*positions, *w.projection.axes), x=within, weight=w.projection, out=state)
