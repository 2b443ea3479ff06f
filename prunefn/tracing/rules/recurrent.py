"""Recurrent layers and cells: the rows of a weight are gates times the hidden axis, and the state is fed back.

One call has one hidden size: its states are stacked along layers and directions, so their hidden axes are the same axis.
Removing a unit removes its rows of all gates and its column of every matrix that reads the state. This is exact, since a unit
whose rows are zero has a state of zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...spec.parts import OUT_IN
from ..axes import ONE, Plus, Term, Times
from .base import SEQUENCE, Axes, Call, Value, rule
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
    """Contract all layers and directions of a recurrent network.

    x is [batch, steps, in], [steps, batch, in] or packed [positions, in]; h₀ and c₀ are [layers × directions, batch, …].
    """
    call.layer = True
    x: Value = call["data"] if call["input"] is None else call["input"]
    states: list[Value] = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    gates, state, hidden = _gate_axes(call), states[0].axes[2], states[-1].axes[2]
    projected = call.alg.size(state) != call.alg.size(hidden)
    if projected:
        call.freeze(hidden, "torch knows a projection by its size, which must stay another than the hidden size")
    elif len(states) == 2:
        call.unify(state, hidden)
    batch = _unify_batch(call, x, states)
    y = x
    for layer in _iterate_layers(call, projected):
        for w in layer:
            _contract_layer(call, w, y, gates, state, hidden)
        inner = state if len(layer) == 1 else Plus((state,) * len(layer))
        y = y._replace(axes=(*x.axes[:-1], inner), active=False)
    # torch 2.11 reports one dim too many for the states of an LSTM
    ones = (ONE,) * (len(call.shapes[-1]) - 3)
    return [y.axes, *((states[0].axes[0], *ones, batch, s.axes[2]) for s in states)]


@rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def cell(call: Call) -> Axes | list[Axes]:
    """Contract one step of one layer: x [batch, in], h and c [batch, hidden]."""
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
    _contract_layer(call, w, x, _gate_axes(call), hidden, hidden)
    out = [s.axes for s in states]
    return out if len(out) > 1 else out[0]


@rule("aten._pack_padded_sequence", "aten._pad_packed_sequence")
def packing(call: Call) -> list[Axes]:
    """Freeze all but the last dim when sequences of several lengths are packed row after row, or unpacked."""
    x, *others = call.tensors()
    call.freeze([*x.axes[:-1], *(a for v in others for a in v.axes)], "steps of several sequences are packed")
    lead, rest = call.shapes[0][:-1], call.shapes[1]
    return [(*call.frozen(lead, "packed steps"), x.axes[-1]), call.frozen(rest, "packed steps")]


def _gate_axes(call: Call) -> list[Term]:
    """Return the frozen axis of the gates; none for a plain RNN."""
    n = GATES[call.op.split(".")[1].removesuffix("_cell")]
    return list(call.frozen([n], "its positions are gates")) if n > 1 else []


def _unify_batch(call: Call, x: Value, states: Sequence[Value]) -> Term:
    """Unify the batch axes of the states and x, freeze the steps, and return the batch axis."""
    packed = call["input"] is None
    batch, steps = states[0].axes[1], x.axes[0]
    if not packed:
        b, s = (0, 1) if call["batch_first"] else (1, 0)
        batch, steps = x.axes[b], x.axes[s]
    call.freeze(steps, "a recurrent layer runs along it")
    if not packed:  # packed positions are those of all samples
        call.mark([steps], SEQUENCE)
    if packed:
        call.freeze(call["batch_sizes"].axes, "a recurrent layer runs along it")
    for s in states:
        call.freeze(s.axes[0], "states of layers and directions are stacked along it")
        call.unify(s.axes[1], batch)
        call.unify(s.axes[0], states[0].axes[0])
    return batch


def _iterate_layers(call: Call, projected: bool) -> Iterator[list[Weights]]:
    """Yield the weights of each layer, one entry per direction, from the flat list of parameters."""
    flat: list[Value] = call["params"]
    biases, directions = 2 * bool(call["has_biases"]), 1 + bool(call["bidirectional"])
    n = 2 + biases + projected
    chunks = [flat[i : i + n] for i in range(0, len(flat), n)]
    weights = [Weights(p[0], p[1], p[2 : 2 + biases], p[-1] if projected else None) for p in chunks]
    for i in range(0, len(weights), directions):
        yield weights[i : i + directions]


def _contract_layer(call: Call, w: Weights, x: Value, gates: list[Term], state: Term, hidden: Term) -> None:
    """State the equations and the costs of one layer in one direction.

    Only an input from outside is a site, since the mean of the state differs from step to step.
    """
    positions, out = x.axes[:-1], Times((*gates, hidden)) if gates else hidden
    for v in (w.inputs, w.state, *(b for b in w.biases if b is not None)):
        call.unify(v.axes[0], out)
    call.unify(w.inputs.axes[1], x.axes[-1])
    call.unify(w.state.axes[1], state)
    bias, state_bias = w.biases or (None, None)
    for matrix in (w.inputs, w.state, w.projection):
        call.lay_out(matrix, OUT_IN)
    pattern = OUT_IN if bias is not None else ""  # without a bias, a compensation has no place for a shift
    call.contract(macs=(*positions, *w.inputs.axes), x=x, weight=w.inputs, pattern=pattern, bias=bias, out=out)
    fed_back = x._replace(axes=(*positions, state), active=False)
    call.contract(
        macs=(*positions, *w.state.axes), x=fed_back, weight=w.state, pattern=OUT_IN, bias=state_bias, out=out
    )
    if w.projection is not None:
        call.unify(w.projection.axes[0], state)
        call.unify(w.projection.axes[1], hidden)
        before_projection = x._replace(axes=(*positions, hidden), active=False)
        call.contract(macs=(*positions, *w.projection.axes), x=before_projection, weight=w.projection, out=state)
