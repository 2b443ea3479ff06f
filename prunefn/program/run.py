"""Run the traced program on params: `forward` and `forward_train`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .. import trees
from ..doors import door
from ..errors import ParamsError
from ..spec.spec import Spec, check_params, check_runnable
from ..types import Params
from .compiled import Compiled, named, placed, remembered, result
from .inputs import flat_inputs


@torch.compiler.assume_constant_result
def _forward(spec: Spec, present: frozenset[str], device: torch.device, sharded: frozenset[str]) -> str:
    return named(spec, present, device, sharded, ("forward",), lambda _, env: result(spec, env))


@torch.compiler.assume_constant_result
def _forward_train(spec: Spec, present: frozenset[str], device: torch.device, sharded: frozenset[str]) -> str:
    def emit(_: fx.Graph, env: Any) -> Any:
        return result(spec, env), tuple(env[r.name] for _, r in spec.program.updates)

    return named(spec, present, device, sharded, ("train",), emit)


def _check_shapes(params: Params, run: Compiled, spec: Spec) -> None:
    # a cheap loop that torch.compile can trace; the full check, which writes the message, runs only on a mismatch
    for name, shape in zip(run.names, run.shapes, strict=True):
        if name not in params or params[name].shape != shape:
            check_params(params, spec, run.names)


@door
def forward(params: Params, *inputs: Any, spec: Spec, **kwargs: Any) -> Any:
    """Run the network; the result is bit-identical to that of the module in the traced mode.

    Args:
        params: params at the sizes of the spec; `torch.func.grad`, `vmap` and `torch.compile` are supported.
        inputs: the inputs of the module, at any batch size, nested as the module takes them; pass keyword inputs as keywords.
            Flags and other arguments without tensors have their traced values, and may be left out.
        spec: the spec of the params; `shrink(spec, mask)` for pruned params.

    Returns:
        The module's output: a tensor, tuple, dict or model output.

    Raises:
        ParamsError, BatchError: params or inputs do not fit the spec; the message names the tensor and its shapes. On the CPU, so
            does an id that a smaller vocabulary lacks; `remap` gives the new ids.
        TraceError: the spec was recorded, so its program cannot be run.

    >>> import prunefn as pf
    >>> model = torch.nn.Linear(4, 2)
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> x = torch.randn(3, 4)
    >>> torch.equal(forward(pf.params(model), x, spec=spec), model(x))
    True
    """
    return forward_flat(params, flat_inputs(spec, inputs, kwargs), spec)


def forward_flat(params: Params, inputs: list[Tensor], spec: Spec) -> Any:
    """Run the network on inputs of `flat_inputs`; see `forward`."""
    run = remembered(_forward(spec, *placed(spec, params)))
    _check_shapes(params, run, spec)
    return trees.unflatten(run(params, inputs), spec.program.out_spec)


@door
def forward_train(params: Params, *inputs: Any, spec: Spec, **kwargs: Any) -> tuple[Any, Params]:
    """Run the network in train mode, and return buffers that it updates (BatchNorm) in new params.

    Dropout draws from torch's global generator, as usual.

    Args:
        params, inputs, spec: as for `forward`; the spec comes from `trace(…, train=True)`.

    Returns:
        (output, params with updated buffers).

    Raises:
        ParamsError: the spec was traced in eval mode.
        TraceError: the spec was recorded, so its program cannot be run.
    """
    check_runnable(spec)
    if not spec.train:
        raise ParamsError("this spec was traced in eval mode; forward_train needs trace(model, args, train=True)")
    flat = flat_inputs(spec, inputs, kwargs)
    run = remembered(_forward_train(spec, *placed(spec, params)))
    _check_shapes(params, run, spec)
    out, new_buffers = run(params, flat)
    updated = dict(zip([n for n, _ in spec.program.updates], new_buffers, strict=True))
    return trees.unflatten(out, spec.program.out_spec), {**params, **updated}
