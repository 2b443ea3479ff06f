"""Shapes of recurrent layers during an export: torch would find them by running every time step, which fixes their number."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey

KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


def _lstm(
    input: Tensor,
    hx: list[Tensor],
    params: Any,
    has_biases: Any,
    num_layers: Any,
    dropout: Any,
    train: Any,
    *rest: bool,
) -> tuple[Tensor, ...]:
    return _output(input, hx[0], bidirectional=rest[0]), *(torch.empty_like(h) for h in hx)


def _one_state(
    input: Tensor, hx: Tensor, params: Any, has_biases: Any, num_layers: Any, dropout: Any, train: Any, *rest: bool
) -> tuple[Tensor, Tensor]:
    return _output(input, hx, bidirectional=rest[0]), torch.empty_like(hx)


def _output(input: Tensor, state: Tensor, *, bidirectional: bool) -> Tensor:
    return input.new_empty((*input.shape[:-1], state.shape[-1] * (2 if bidirectional else 1)))


@contextlib.contextmanager
def recurrent_shapes() -> Iterator[None]:
    """Let recurrent layers return tensors of the right shapes without numbers; only for fake tensors."""
    aten: Any = torch.ops.aten
    kernels = {aten.lstm.input: _lstm}
    kernels |= dict.fromkeys((aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), _one_state)
    before = {op: dict(op.py_kernels) for op in kernels}
    try:
        for op, kernel in kernels.items():
            op.py_kernels.update(dict.fromkeys(KEYS, kernel))
            op._dispatch_cache.clear()
        yield
    finally:
        for op, original in before.items():
            op.py_kernels.clear()
            op.py_kernels.update(original)
            op._dispatch_cache.clear()
