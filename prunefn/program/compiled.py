"""The traced program compiled for the sizes of a spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, fx, nn

from .._shapes import Float
from ..doors import check_run
from ..errors import ParamsError, TraceError, nearest
from ..spec.axis import size as axis_size
from ..spec.example import Like
from ..spec.parts import Site
from ..spec.program import Program, Ref, needed_by
from ..spec.spec import Spec
from ..types import Params
from .build import build
from .inputs import signature
from .sharded import Gathering, gather, is_elsewhere


class Compiled(NamedTuple):
    """A function of flat tensors, with a description of its arguments."""

    call: Callable[..., Any]
    names: tuple[str, ...]
    """Names of the tensors, the function's first arguments; constants and inputs follow."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the tensors."""
    constants: tuple[Tensor, ...]
    gathered: tuple[str, ...] = ()
    """Names of the tensors that the function gathers, in the order of gathering."""
    inputs: tuple[tuple[str, torch.dtype | None], ...] = ()
    """(name, traced dtype) of each input."""
    positions: tuple[tuple[str, str], ...] = ()
    """Input whose integers are positions of a group → which they may be."""

    def __call__(self, params: Params, inputs: Iterable[Any], *more: Any) -> Any:
        """Run the program; `more` are the arguments that `emit` added by `argument`."""
        flat_inputs = list(inputs)
        try:
            tensors = [params[n] for n in self.names]
        except KeyError as error:
            raise ParamsError(f"params lack {error.args[0]!r}{nearest(str(error.args[0]), params)}") from None
        try:
            return self.call(*tensors, *self.constants, *flat_inputs, *more)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            check_run(
                error, params, zip(self.inputs, flat_inputs, strict=False), dict(self.positions)
            )  # a segment takes more
            raise


_CACHE: dict[tuple[Any, ...], str] = {}
_COMPILED: dict[str, Compiled] = {}
"""Name → compiled program: torch.compile accepts a name, but not a function, as a constant."""
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
    """Return the program for the spec's sizes as a Python function; the last 64 programs are cached.

    Args:
        spec: the spec of the program.
        params: only their names, their device and their kind matter; DTensors are gathered just before their first use, and
            dropped after the last.
        key: cache key that identifies `emit`.
        emit: computes the results from the values.
        only: names of the required values; None: all.
        program: a variant of the spec's program; `key` must identify it.
    """
    return _COMPILED[named(spec, *placed(spec, params), key, emit, only, program)]


def placed(spec: Spec, params: Params) -> tuple[frozenset[str], torch.device, frozenset[str]]:
    """Return the biases that a compensation created, the device, and the names of tensors that must be gathered."""
    slots = signature(spec).slots
    device = next((t.device for t in params.values()), torch.device("cpu"))
    return (
        frozenset([n for n in slots if n in params]),
        device,
        frozenset([n for n, t in params.items() if is_elsewhere(t)]),
    )


def named(
    spec: Spec,
    present: frozenset[str],
    device: torch.device,
    sharded: frozenset[str],
    key: tuple[Any, ...],
    emit: Callable[[fx.Graph, Any], Any],
    only: Iterable[str] | None = None,
    program: Program | None = None,
) -> str:
    """Compile a program unless it is cached, and return its name for `remembered`."""
    cache_key = (spec, present, device, *key, *([sharded] if sharded else []))
    if cache_key not in _CACHE:
        while len(_CACHE) >= _CACHE_LIMIT:  # dicts keep their order: the oldest program is dropped first
            del _COMPILED[_CACHE.pop(next(iter(_CACHE)))]
        name = f"program_{next(_NUMBER)}"
        _COMPILED[name] = _compile(spec, program or spec.program, present, device, sharded, emit, only)
        _CACHE[cache_key] = name
    return _CACHE[cache_key]


def remembered(name: str) -> Compiled:
    """Return the compiled program with this name, as returned by `named`."""
    return _COMPILED[name]


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
    sharded_nodes: dict[fx.Node, str] = {}

    def load(graph: fx.Graph, name: str) -> fx.Node:
        names.append(name)
        node = graph.placeholder("v_" + "".join(c if c.isalnum() else "_" for c in name) + f"_{len(names)}")
        if name in sharded:
            sharded_nodes[node] = name
        return node

    graph = build(program, spec.sizes, present=present, device=device, load=load, emit=emit, only=only)
    gathered = _insert_gathers(graph, sharded_nodes)
    module = fx.GraphModule(nn.Module(), graph)
    inputs = {i.name for i in program.inputs}
    tensors = tuple(n for n in names if n not in inputs and n not in spec.constants.tensors)
    constants = tuple(constant(spec, n, device) for n in names if n in spec.constants.tensors)
    shapes = tuple(map(spec.shape, tensors))
    return Compiled(module.forward, tensors, shapes, constants, gathered, _input_dtypes(spec), _positions(spec))


def argument(graph: fx.Graph, name: str) -> fx.Node:
    """Return the node of a further argument of a program, after all others; for `emit`."""
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        return graph.placeholder(name)


def _input_dtypes(spec: Spec) -> tuple[tuple[str, torch.dtype | None], ...]:
    """Return (name, dtype) of each input; the dtype is that of the example, or None if it is unknown."""
    names, likes = signature(spec).inputs, [x for x in spec.example.leaves if isinstance(x, Like)]
    dtypes = [x.dtype for x in likes] if len(likes) == len(names) else [None] * len(names)
    return tuple(zip(names, dtypes, strict=True))


def _positions(spec: Spec) -> tuple[tuple[str, str], ...]:
    """Return input whose integers are positions of a group → a text about the integers that it may have."""
    name_of = dict(zip((i.name for i in spec.program.inputs), signature(spec).inputs, strict=True))
    return tuple(
        (name_of[name], f"its integers are positions of group {group!r}, 0 to {spec.sizes[group] - 1}")
        for group, interface in spec.program.interfaces.items()
        for name in interface.inputs
    )


def constant(spec: Spec, name: str, device: torch.device) -> Tensor:
    """Return a constant (a tensor that no state dict contains) on a device.

    Raises:
        TraceError: the model was traced on `meta`, so the constant's values are unknown.
    """
    t = spec.constants.tensors[name]
    if t.is_meta and device.type != "meta":
        raise TraceError(
            f"the spec's constant {spec.constants.sources.get(name, name)!r} has no numbers, because the model was traced on `meta`; "
            "take them from a model that has them: spec = pf.sharded.with_constants(spec, model)"
        )
    return t.to(device)


def _insert_gathers(graph: fx.Graph, sharded_nodes: Mapping[fx.Node, str]) -> tuple[str, ...]:
    """Insert a gather of each tensor just before its first use, and return their names in this order.

    The generated code of a graph drops values after their last use.
    """
    order: list[str] = []
    for node in list(graph.nodes):
        for node_of_part in [a for a in node.all_input_nodes if a in sharded_nodes]:
            with graph.inserting_before(node):
                whole = graph.call_function(gather, (node_of_part,))
            node_of_part.replace_all_uses_with(whole, delete_user_cb=lambda user, whole=whole: user is not whole)
            order.append(sharded_nodes[node_of_part])
    return tuple(order)


def result(spec: Spec, env: Any) -> Any:
    """Return the program's outputs, flattened."""
    outputs = spec.program.outputs[
        : spec.program.out_spec.num_leaves
    ]  # a recorded run has further ones, which Python read
    return tuple(env[o.name] if isinstance(o, Ref) else o for o in outputs)


def value_of(params: Params, name: str, *, spec: Spec) -> Tensor:
    """Return a parameter, or a value that the program computes from parameters alone (a standardised weight); gathered."""
    if name in params:
        return gather(params[name])
    needed = needed_by(spec.program, {name}, {})
    if any(i.name in needed for i in spec.program.inputs):
        raise ParamsError(f"{name!r} depends on the inputs")
    no_inputs = [None] * len(spec.program.inputs)
    return compiled(spec, params, ("value", name), lambda _, env: env[name], only=[name])(params, no_inputs)


def site_weight(params: Mapping[str, Tensor], site: Site, *, spec: Spec) -> Float[Tensor, "g o i t"]:
    """Return the weight of a site's contraction in float64, [groups, out, in, taps], even if it is computed from parameters.

    That of an expert is its slice of the stacked weight.
    """
    source = params.params if isinstance(params, Gathering) else params
    weight = value_of(dict(source), site.weight, spec=spec)
    if site.expert is not None:
        weight = of_expert(weight, site)
    return rearrange(weight.detach().double(), site.pattern, **conv_groups(site, spec))


def of_expert(weight: Tensor, site: Site) -> Tensor:
    """Return the slice of a stacked weight that an expert's site is, as a view [1, …] with the dims of the weight."""
    assert site.expert is not None
    return weight.narrow(site.pattern.split().index("g"), site.expert, 1)


def conv_groups(site: Site, spec: Spec) -> dict[str, int]:
    """Return the number of groups for einops, if the site's pattern needs it."""
    needs_groups = site.expert is None and "g" in site.pattern.split("->")[0]
    return {"g": axis_size(site.groups, spec.sizes)} if needs_groups else {}
