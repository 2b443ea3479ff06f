"""params + spec → nn.Module."""

from __future__ import annotations

from torch import nn

from ..trace.spec import Spec, check_runnable
from ..types import Params
from .graph import graph_module
from .rebuild import rebuild


def to_module(params: Params, *, spec: Spec, model: nn.Module | None = None) -> nn.Module:
    """A module at the spec's sizes whose parameters have their original names.

    Without `model`, a graph module: it takes and returns what the traced model does; it trains, compiles, exports, and
    `load_state_dict` works. It runs in the mode that was traced, whatever `train()` or `eval()` says; traced with
    `train=True`, it updates its BatchNorm buffers.

    With `model`, the original class: a copy of its module tree with new tensors, and the attributes that size its ops set
    to the new sizes. It is confirmed by running it against `forward` on random inputs like the traced ones. Where the class
    computes a scale from its width (attention's 1 / √head_dim), the scale of the traced width is kept by folding the ratio
    into the layer that feeds it.

    The params are copied: training the module does not write to them. Tied parameters stay tied.

    Args:
        params: of the spec.
        spec: of the params; `shrink(spec, mask)` for pruned ones.
        model: the module that was traced, at its sizes of then; it is not changed.

    Raises:
        ParamsError: the params or the model do not fit the spec.
        TraceError: the spec was recorded, and no `model` is given.
        PruneError: the class cannot run at these sizes; the message says where in its source.

    >>> import torch, prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> mask = {"0": torch.tensor([True, False, True])}
    >>> to_module(pf.apply(pf.params(model), mask, spec=spec), spec=pf.shrink(spec, mask), model=model)
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    if model is not None:
        return rebuild(params, spec, model)
    check_runnable(spec)
    return graph_module(params, spec)
