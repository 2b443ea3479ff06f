"""Run the traced program on params: `forward` and `forward_train`."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

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


def _check(params: Params, run: Compiled, spec: Spec) -> None:
    for name, shape in zip(run.names, run.shapes, strict=True):
        if name not in params or params[name].shape != shape:
            check_params(params, spec, run.names)


@door
def forward(params: Params, *inputs: Any, spec: Spec, **kwargs: Any) -> Any:
    """Run the network: bit for bit what the module gives in the traced mode.

    Args:
        params: of the spec, at its sizes; works under `torch.func.grad`, `vmap` and `torch.compile`.
        inputs: as for the module (any batch size); keyword inputs as keywords.
        spec: of the params; `shrink(spec, mask)` for pruned ones.

    Returns:
        What the module returns: a tensor, tuple, dict or model output.

    Raises:
        ParamsError, BatchError: something does not fit; the message names tensor and shapes.
        TraceError: the spec was recorded, so that it has no program that runs.

    >>> import prunefn as pf
    >>> model = nn.Linear(4, 2)
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> x = torch.randn(3, 4)
    >>> torch.equal(forward(pf.params(model), x, spec=spec), model(x))
    True
    """
    flat = flat_inputs(spec, inputs, kwargs)
    run = remembered(_forward(spec, *placed(spec, params)))
    _check(params, run, spec)
    return trees.unflatten(run(params, flat), spec.program.out_spec)


@door
def forward_train(params: Params, *inputs: Any, spec: Spec, **kwargs: Any) -> tuple[Any, Params]:
    """Run the network in train mode; buffers that it updates (BatchNorm) come back in new params.

    Dropout draws from torch's global generator, as in any training.

    Args:
        params, inputs, spec: as for `forward`; the spec is of `trace(…, train=True)`.

    Returns:
        (output, params with updated buffers).

    Raises:
        ParamsError: the spec was traced in eval mode.
        TraceError: the spec was recorded, so that it has no program that runs.
    """
    check_runnable(spec)
    if not spec.train:
        raise ParamsError("this spec was traced in eval mode; forward_train needs trace(model, args, train=True)")
    flat = flat_inputs(spec, inputs, kwargs)
    run = remembered(_forward_train(spec, *placed(spec, params)))
    _check(params, run, spec)
    out, new = run(params, flat)
    updated = dict(zip([n for n, _ in spec.program.updates], new, strict=True))
    return trees.unflatten(out, spec.program.out_spec), {**params, **updated}
