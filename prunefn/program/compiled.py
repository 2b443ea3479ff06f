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
    return _COMPILED[named(spec, *placed(spec, params), key, emit, only, program)]


def placed(spec: Spec, params: Params) -> tuple[frozenset[str], torch.device, frozenset[str]]:
    """The biases that a compensation created, the device, and the names of DTensors."""
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
    """Compile a program if that has not been done, and return its name, which `remembered` takes."""
    full = (spec, present, device, *key, *([sharded] if sharded else []))
    if full not in _CACHE:
        while len(_CACHE) >= _CACHE_LIMIT:
            del _COMPILED[_CACHE.pop(next(iter(_CACHE)))]
        name = f"program_{next(_NUMBER)}"
        _COMPILED[name] = _compile(spec, program or spec.program, present, device, sharded, emit, only)
        _CACHE[full] = name
    return _CACHE[full]


def remembered(name: str) -> Compiled:
    """The function that `named` gave a name to."""
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


def result(spec: Spec, env: Any) -> Any:
    """The program's outputs, flat."""
    return tuple(env[o.name] if isinstance(o, Ref) else o for o in spec.program.outputs)


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
