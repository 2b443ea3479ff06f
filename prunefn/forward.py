"""Run the traced program on params: `forward`, `forward_train`, and the compiled functions behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .errors import BatchError, ParamsError
from .trace.expr import Leaf
from .trace.expr import size as axis_size
from .trace.program import Program, Ref, build, needed_by
from .trace.spec import Spec, check_params
from .types import Params


class Compiled(NamedTuple):
    """A function of flat tensors, and what they are."""

    call: Callable[..., Any]
    names: tuple[str, ...]
    """Tensors, then constants; inputs follow."""
    constants: tuple[Tensor, ...]

    def __call__(self, params: Params, inputs: Iterable[Any]) -> Any:
        return self.call(*[params[n] for n in self.names], *self.constants, *inputs)


_CACHE: dict[tuple[Any, ...], Compiled] = {}
_CACHE_LIMIT = 64


def compiled(
    spec: Spec,
    params: Params,
    key: tuple[Any, ...],
    emit: Callable[[fx.Graph, Any], Any],
    *,
    only: Iterable[str] | None = None,
    program: Program | None = None,
) -> Compiled:
    """The program for the spec's sizes as a Python function; the last 64 are kept.

    Args:
        spec: whose program.
        params: only their names and their device are looked at.
        key: says what `emit` does.
        emit: makes the results from the values.
        only: names of the values that are wanted; None: all.
        program: a variant of the spec's own; `key` must tell it apart.
    """
    present = frozenset(s.tensor for s in spec.program.slots if s.tensor in params)
    device = next((params[n].device for n in spec.program.tensors), torch.device("cpu"))
    full = (spec, present, device, *key)
    if full not in _CACHE:
        while len(_CACHE) >= _CACHE_LIMIT:
            _CACHE.pop(next(iter(_CACHE)))
        _CACHE[full] = _compile(spec, program or spec.program, present, device, emit, only)
    return _CACHE[full]


def _compile(
    spec: Spec,
    program: Program,
    present: frozenset[str],
    device: torch.device,
    emit: Callable[[fx.Graph, Any], Any],
    only: Iterable[str] | None,
) -> Compiled:
    names: list[str] = []

    def load(graph: fx.Graph, name: str) -> fx.Node:
        names.append(name)
        return graph.placeholder("v_" + "".join(c if c.isalnum() else "_" for c in name) + f"_{len(names)}")

    graph = build(program, spec.sizes, present=present, device=device, load=load, emit=emit, only=only)
    module = fx.GraphModule(nn.Module(), graph)
    constants = tuple(spec.constants.tensors[n].to(device) for n in names if n in spec.constants.tensors)
    inputs = {i.name for i in program.inputs}
    return Compiled(
        module.forward, tuple(n for n in names if n not in inputs and n not in spec.constants.tensors), constants
    )


def flat_inputs(spec: Spec, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensor inputs in the program's order, checked.

    Raises:
        BatchError: their number or a shape does not fit.
    """
    leaves = [x for x in pytree.tree_leaves((inputs, kwargs)) if isinstance(x, Tensor)]
    names = [i.name for i in spec.program.inputs]
    if kwargs and not inputs and set(kwargs) == set(names):
        leaves = [kwargs[n] for n in names]
    if len(leaves) != len(names):
        raise BatchError(f"the model has {len(names)} tensor inputs ({', '.join(names)}), but {len(leaves)} were given")
    for i, x in zip(spec.program.inputs, leaves, strict=True):
        for d, axis in enumerate(i.axes):
            if x.ndim != len(i.axes) or (not isinstance(axis, Leaf) and x.shape[d] != axis_size(axis, spec.sizes)):
                wanted = [a.name if isinstance(a, Leaf) else axis_size(a, spec.sizes) for a in i.axes]
                raise BatchError(
                    f"input {i.name!r} has shape {tuple(x.shape)}; the spec was traced with ({', '.join(map(str, wanted))})"
                )
    return leaves


def result(spec: Spec, env: Any) -> Any:
    """The program's outputs, flat."""
    return tuple(env[o.name] if isinstance(o, Ref) else o for o in spec.program.outputs)


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

    >>> import prunefn as pf
    >>> model = nn.Linear(4, 2)
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> x = torch.randn(3, 4)
    >>> torch.equal(forward(pf.params(model), x, spec=spec), model(x))
    True
    """
    flat = flat_inputs(spec, inputs, kwargs)
    check_params(params, spec, spec.program.tensors)
    out = compiled(spec, params, ("forward",), lambda _, env: result(spec, env))(params, flat)
    return pytree.tree_unflatten(out, spec.program.out_spec)


def forward_train(params: Params, *inputs: Any, spec: Spec, **kwargs: Any) -> tuple[Any, Params]:
    """Run the network in train mode; buffers that it updates (BatchNorm) come back in new params.

    Dropout draws from torch's global generator, as in any training.

    Args:
        params, inputs, spec: as for `forward`; the spec is of `trace(…, train=True)`.

    Returns:
        (output, params with updated buffers).

    Raises:
        ParamsError: the spec was traced in eval mode.
    """
    if not spec.train:
        raise ParamsError("this spec was traced in eval mode; forward_train needs trace(model, args, train=True)")
    flat = flat_inputs(spec, inputs, kwargs)
    check_params(params, spec, spec.program.tensors)
    updates = spec.program.updates
    run = compiled(spec, params, ("train",), lambda _, env: (result(spec, env), tuple(env[r.name] for _, r in updates)))
    out, new = run(params, flat)
    return pytree.tree_unflatten(out, spec.program.out_spec), {
        **params,
        **dict(zip((n for n, _ in updates), new, strict=True)),
    }


def value_of(params: Params, name: str, *, spec: Spec) -> Tensor:
    """A value that the program computes from parameters alone (a standardised weight), or the parameter itself."""
    if name in params:
        return params[name]
    needed = needed_by(spec.program, {name}, {})
    if any(i.name in needed for i in spec.program.inputs):
        raise ParamsError(f"{name!r} depends on the inputs")
    no_inputs = [None] * len(spec.program.inputs)
    return compiled(spec, params, ("value", name), lambda _, env: env[name], only=[name])(params, no_inputs)
