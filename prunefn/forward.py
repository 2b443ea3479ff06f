"""Run the traced program on params: `forward`, `forward_train`, and the compiled functions behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .doors import check_run, door
from .errors import BatchError, ParamsError, TraceError, nearest
from .shapes import Float
from .sharded import Gathering, gather, is_elsewhere
from .trace.domain import Guard, Limit, refusal
from .trace.example import Like
from .trace.expr import Leaf
from .trace.expr import size as axis_size
from .trace.program import Program, Ref, build, needed_by
from .trace.spec import Spec, check_params, check_runnable
from .types import Params, Site


class Compiled(NamedTuple):
    """A function of flat tensors, and what they are."""

    call: Callable[..., Any]
    names: tuple[str, ...]
    """Tensors, then constants; inputs follow."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the tensors."""
    constants: tuple[Tensor, ...]
    gathered: tuple[str, ...] = ()
    """DTensors, in the order in which the function gathers them."""
    inputs: tuple[tuple[str, torch.dtype | None], ...] = ()
    """Name and traced dtype of each."""

    def __call__(self, params: Params, inputs: Iterable[Any]) -> Any:
        given = list(inputs)
        try:
            tensors = [params[n] for n in self.names]
        except KeyError as error:
            raise ParamsError(f"params lack {error.args[0]!r}{nearest(str(error.args[0]), params)}") from None
        try:
            return self.call(*tensors, *self.constants, *given)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            check_run(error, params, zip(self.inputs, given, strict=True))
            raise


_CACHE: dict[tuple[Any, ...], str] = {}
_COMPILED: dict[str, Compiled] = {}
"""By a name, because torch.compile can take a name, but not a function, as a constant."""
_CACHE_LIMIT = 64
_NUMBER = count()


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
        params: only their names, their device and their kind are looked at; DTensors are gathered just before their first use,
            and dropped after the last.
        key: says what `emit` does.
        emit: makes the results from the values.
        only: names of the values that are wanted; None: all.
        program: a variant of the spec's own; `key` must tell it apart.
    """
    return _COMPILED[_cached(spec, *_placed(spec, params), key, emit, only, program)]


def _placed(spec: Spec, params: Params) -> tuple[frozenset[str], torch.device, frozenset[str]]:
    """The biases that a compensation created, the device, and the names of DTensors."""
    slots = _signature(spec).slots
    device = next((t.device for t in params.values()), torch.device("cpu"))
    return (
        frozenset([n for n in slots if n in params]),
        device,
        frozenset([n for n, t in params.items() if is_elsewhere(t)]),
    )


def _cached(
    spec: Spec,
    present: frozenset[str],
    device: torch.device,
    sharded: frozenset[str],
    key: tuple[Any, ...],
    emit: Callable[[fx.Graph, Any], Any],
    only: Iterable[str] | None = None,
    program: Program | None = None,
) -> str:
    full = (spec, present, device, *key, *([sharded] if sharded else []))
    if full not in _CACHE:
        while len(_CACHE) >= _CACHE_LIMIT:
            del _COMPILED[_CACHE.pop(next(iter(_CACHE)))]
        name = f"program_{next(_NUMBER)}"
        _COMPILED[name] = _compile(spec, program or spec.program, present, device, sharded, emit, only)
        _CACHE[full] = name
    return _CACHE[full]


def _compile(
    spec: Spec,
    program: Program,
    present: frozenset[str],
    device: torch.device,
    sharded: frozenset[str],
    emit: Callable[[fx.Graph, Any], Any],
    only: Iterable[str] | None,
) -> Compiled:
    names: list[str] = []
    parts: dict[fx.Node, str] = {}

    def load(graph: fx.Graph, name: str) -> fx.Node:
        names.append(name)
        node = graph.placeholder("v_" + "".join(c if c.isalnum() else "_" for c in name) + f"_{len(names)}")
        if name in sharded:
            parts[node] = name
        return node

    graph = build(program, spec.sizes, present=present, device=device, load=load, emit=emit, only=only)
    gathered = _gather(graph, parts)
    module = fx.GraphModule(nn.Module(), graph)
    inputs = {i.name for i in program.inputs}
    tensors = tuple(n for n in names if n not in inputs and n not in spec.constants.tensors)
    constants = tuple(constant(spec, n, device) for n in names if n in spec.constants.tensors)
    return Compiled(
        module.forward, tensors, tuple(map(spec.shape, tensors)), constants, gathered, _traced(spec, program)
    )


def _traced(spec: Spec, program: Program) -> tuple[tuple[str, torch.dtype | None], ...]:
    """The inputs with the dtypes that they had in the example, where these are known."""
    names, likes = [i.name for i in program.inputs], [x for x in spec.example.leaves if isinstance(x, Like)]
    dtypes = [x.dtype for x in likes] if len(likes) == len(names) else [None] * len(names)
    return tuple(zip(names, dtypes, strict=True))


def constant(spec: Spec, name: str, device: torch.device) -> Tensor:
    """A tensor that is in no state dict, on a device.

    Raises:
        TraceError: nobody knows its numbers.
    """
    t = spec.constants.tensors[name]
    if t.is_meta and device.type != "meta":
        raise TraceError(
            f"the spec's constant {spec.constants.sources.get(name, name)!r} has no numbers, because the model was traced on `meta`; "
            "take them from a model that has them: spec = pf.sharded.with_constants(spec, model)"
        )
    return t.to(device)


def _gather(graph: fx.Graph, parts: Mapping[fx.Node, str]) -> tuple[str, ...]:
    """Gather tensors just before their first use; the code of a graph drops values after their last. Their names, in order."""
    order: list[str] = []
    for node in list(graph.nodes):
        for part in [a for a in node.all_input_nodes if a in parts]:
            with graph.inserting_before(node):
                whole = graph.call_function(gather, (part,))
            part.replace_all_uses_with(whole, delete_user_cb=lambda user, whole=whole: user is not whole)
            order.append(parts[part])
    return tuple(order)


# ---- what torch.compile takes as constants; it guards on the spec


class Signature(NamedTuple):
    """What a program takes."""

    inputs: tuple[str, ...]
    shapes: tuple[tuple[int | str, ...], ...]
    """Of the inputs; a name stands for a size that may change from call to call."""
    keywords: tuple[str, ...]
    """Keyword arguments in the order of the traced call."""
    slots: tuple[str, ...]
    limits: tuple[tuple[str, Limit], ...]
    guards: tuple[Guard, ...]


@lru_cache(maxsize=_CACHE_LIMIT)
def _signature_of(spec: Spec) -> Signature:
    inputs, slots = spec.program.inputs, dict.fromkeys(s.tensor for s in spec.program.slots)
    shapes = [tuple(a.name if isinstance(a, Leaf) else axis_size(a, spec.sizes) for a in i.axes) for i in inputs]
    domain = spec.program.domain
    keywords = spec.program.in_spec.children()[1].context or ()
    names = tuple(i.name for i in inputs)
    return Signature(names, tuple(shapes), tuple(keywords), tuple(slots), tuple(domain.limits.items()), domain.guards)


@torch.compiler.assume_constant_result
def _signature(spec: Spec) -> Signature:
    return _signature_of(spec)


@torch.compiler.assume_constant_result
def _forward(spec: Spec, present: frozenset[str], device: torch.device, sharded: frozenset[str]) -> str:
    return _cached(spec, present, device, sharded, ("forward",), lambda _, env: result(spec, env))


@torch.compiler.assume_constant_result
def _forward_train(spec: Spec, present: frozenset[str], device: torch.device, sharded: frozenset[str]) -> str:
    def emit(_: fx.Graph, env: Any) -> Any:
        return result(spec, env), tuple(env[r.name] for _, r in spec.program.updates)

    return _cached(spec, present, device, sharded, ("train",), emit)


# ---- the public edge


def flat_inputs(spec: Spec, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensor inputs in the program's order, checked.

    Raises:
        BatchError: their number, a name or a shape does not fit.
        TraceError: the spec was recorded, so that it has no program that runs.
    """
    check_runnable(spec)
    known = _signature(spec)
    given = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    for name in _in_order(kwargs, known):
        given += [x for x in pytree.tree_leaves(kwargs[name]) if isinstance(x, Tensor)]
    if len(given) != len(known.inputs):
        arrays = any([isinstance(x, np.ndarray) for x in pytree.tree_leaves((inputs, dict(kwargs)))])
        raise BatchError(
            f"the model has {len(known.inputs)} tensor inputs ({', '.join(known.inputs)}), but {len(given)} were given"
            + ("; write torch.from_numpy(…) for a numpy array" if arrays else "")
        )
    sizes: dict[str, int] = {}
    for name, shape, x in zip(known.inputs, known.shapes, given, strict=True):
        if x.ndim != len(shape) or any([n != m for n, m in zip(shape, x.shape, strict=True) if not isinstance(n, str)]):
            wanted = ", ".join([str(n) for n in shape])
            raise BatchError(f"input {name!r} has shape {tuple(x.shape)}; the spec was traced with ({wanted})")
        for n, m in zip(shape, x.shape, strict=True):
            if isinstance(n, str) and sizes.setdefault(n, m) != m:
                raise BatchError(f"input {name!r} has {n} = {m}, but the inputs before it have {n} = {sizes[n]}")
    if (known.limits or known.guards) and (why := refusal(sizes, known.limits, known.guards)):
        raise BatchError(f"the program of this spec does not stand for the model here: {why}")
    return given


def _in_order(kwargs: Mapping[str, Any], known: Signature) -> list[str]:
    """Names of keyword arguments: first inputs that were traced by position, then keywords as they were traced."""
    order = [*[n for n in known.inputs if n not in known.keywords], *known.keywords]
    for name, value in kwargs.items():
        if name not in order and any([isinstance(x, Tensor) for x in pytree.tree_leaves(value)]):
            raise BatchError(f"the model has no input {name!r}{nearest(name, order)}")
    return [n for n in order if n in kwargs]


def _check(params: Params, run: Compiled, spec: Spec) -> None:
    for name, shape in zip(run.names, run.shapes, strict=True):
        if name not in params or params[name].shape != shape:
            check_params(params, spec, run.names)


def result(spec: Spec, env: Any) -> Any:
    """The program's outputs, flat."""
    return tuple(env[o.name] if isinstance(o, Ref) else o for o in spec.program.outputs)


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
    run = _COMPILED[_forward(spec, *_placed(spec, params))]
    _check(params, run, spec)
    return pytree.tree_unflatten(run(params, flat), spec.program.out_spec)


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
    run = _COMPILED[_forward_train(spec, *_placed(spec, params))]
    _check(params, run, spec)
    out, new = run(params, flat)
    updated = dict(zip([n for n, _ in spec.program.updates], new, strict=True))
    return pytree.tree_unflatten(out, spec.program.out_spec), {**params, **updated}


def value_of(params: Params, name: str, *, spec: Spec) -> Tensor:
    """A value that the program computes from parameters alone (a standardised weight), or the parameter itself; in whole."""
    if name in params:
        return gather(params[name])
    needed = needed_by(spec.program, {name}, {})
    if any(i.name in needed for i in spec.program.inputs):
        raise ParamsError(f"{name!r} depends on the inputs")
    no_inputs = [None] * len(spec.program.inputs)
    return compiled(spec, params, ("value", name), lambda _, env: env[name], only=[name])(params, no_inputs)


def site_weight(params: Mapping[str, Tensor], site: Site, *, spec: Spec) -> Float[Tensor, "g o i t"]:
    """The weight of a site's contraction in float64, [groups, out, in, taps]; also where it is computed from parameters."""
    given = params.params if isinstance(params, Gathering) else params
    weight = value_of(dict(given), site.weight, spec=spec)
    return rearrange(weight.detach().double(), site.pattern, **conv_groups(site, spec))


def conv_groups(site: Site, spec: Spec) -> dict[str, int]:
    """The number of groups, where the site's pattern needs it."""
    return {"g": axis_size(site.groups, spec.sizes)} if "g" in site.pattern.split("->")[0] else {}
