"""The program of a spec as a graph module with the params."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from .. import trees
from ..parameters.transforms import check_names, tied_names
from ..program.batches import device_of
from ..program.build import build
from ..program.compiled import constant, result
from ..program.sharded import is_sharded, outline
from ..spec.axis import Leaf, size
from ..spec.example import Like
from ..spec.expressions import Expr, emitted, names
from ..spec.spec import Spec
from ..types import Params
from .blocks import block_paths, nest
from .public import use_functions, use_layers


def graph_module(params: Params, spec: Spec, blocks: Sequence[str] | str = ()) -> fx.GraphModule:
    """Return the program as a graph module; see `to_module`."""
    check_names(params, spec)
    device = device_of(params)
    root = nn.Module()
    for name, t in copies(params, spec).items():
        _register(root, name, t, persistent=True)
    for n in spec.program.constants:
        _register(root, constant_path(n), constant(spec, n, device).clone(), persistent=False)
    graph, modules = flat_graph(params, spec, device)
    paths = block_paths(blocks, params, modules.values()) if blocks else []
    use_layers(graph, modules, root, spec, blocks=paths)
    if paths:
        graph, inner = nest(graph, modules, paths, root)
        for path, block in inner.items():
            use_functions(block)
            _arrange(block, [n.removeprefix(f"{path}.") for n in params if n.startswith(f"{path}.")])
            root.set_submodule(path, fx.GraphModule(root.get_submodule(path), block))
    use_functions(graph)
    _add_unread_inputs(graph, spec)
    if is_flat(spec):
        _nest_output(graph, spec)
    else:
        graph.set_codegen(_signature(spec))
    _name_where_read(graph)
    if list(fx.GraphModule(root, copy.deepcopy(graph)).state_dict()) != list(params):
        _arrange(graph, params)
    module = fx.GraphModule(root, graph)
    if spec.program.constants:  # GraphModule of torch 2.11 copies buffers as persistent; these are not
        module.set_submodule("_constants", root.get_submodule("_constants"))
    return module


def flat_graph(params: Params, spec: Spec, device: torch.device) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """Return the program as a graph of flat inputs and outputs, and the last node of each instruction → path of its module.

    Tensors have their names, and constants that of `constant_path`.
    """
    constants = {n: constant_path(n) for n in spec.program.constants}
    inputs = [i.name for i in spec.program.inputs]
    updates = dict(spec.program.updates)
    modules: dict[fx.Node, str] = {}

    def load(graph: fx.Graph, name: str) -> fx.Node:
        if name in inputs:
            return graph.placeholder(name)
        node = graph.get_attr(constants.get(name, name))
        # autograd may keep what is read, so a buffer that is updated later is read as a copy
        return graph.call_function(torch.ops.aten.clone.default, (node,)) if name in updates else node

    def emit(graph: fx.Graph, env: Any) -> Any:
        modules.update({env[f"%{i.name}"]: i.module for i in spec.program.instructions})
        for name, ref in updates.items():
            graph.call_function(torch.ops.aten.copy_.default, (graph.get_attr(name), env[ref.name]))
        return list(result(spec, env))

    present = spec.slots.intersection(params)
    graph = build(spec.program, spec.sizes, present=present, device=device, load=load, emit=emit)
    first = next(iter(graph.nodes))
    for node in [n for n in graph.nodes if n.op == "placeholder" and n is not first]:
        first.prepend(node)
    _assert_domain(graph, spec)
    return graph, modules


def constant_path(name: str) -> str:
    """Return the path of a constant in a graph module."""
    return f"_constants.{name.replace('.', '_')}"


def _assert_domain(graph: fx.Graph, spec: Spec) -> None:
    """Add assertions that reject sizes of dim 0 for which the program does not represent the model, as `forward` does."""
    program, places = spec.program, dict(spec.program.free)
    conditions: list[tuple[Expr, str]] = []
    for i in program.inputs:
        n = size(i.axes[0], spec.sizes) if i.axes and not isinstance(i.axes[0], Leaf) else 1
        if n > 1:
            places[f"{i.name}.shape[0]"] = i.name, 0
            conditions.append((("==", f"{i.name}.shape[0]", n), f"{i.name}.shape[0] must be {n}, as it was traced"))
    for leaf, limit in program.domain.limits.items():
        op = "==" if limit.high == limit.low else ">="
        conditions.append(((op, leaf, limit.low), f"{leaf} must be {limit}"))
    conditions += [(guard.expr, f"this holds where {guard}") for guard in program.domain.guards]
    inputs = {n.name: n for n in graph.nodes if n.op == "placeholder"}
    read = {name for expr, _ in conditions for name in names(expr)}
    with graph.inserting_before(next((n for n in graph.nodes if n.op != "placeholder"), None)):
        sizes = {
            leaf: graph.call_method("size", (inputs[name], d)) for leaf, (name, d) in places.items() if leaf in read
        }
        for expr, text in conditions:
            graph.call_function(torch._assert, (emitted(expr, sizes, graph), text))


def copies(params: Params, spec: Spec) -> dict[str, Tensor]:
    """Return parameters and buffers for a module, by name: tied names share a tensor, and DTensors are on `meta`."""
    first_names = tied_names(params, spec)
    slots = spec.slots
    out: dict[str, Tensor] = {}
    for name, t in params.items():
        if name not in first_names:
            new = outline(t) if is_sharded(t) else t.detach().clone()
            is_parameter = name in spec.parameters or name in slots
            trains = new.is_floating_point() and name not in spec.without_grad
            out[name] = nn.Parameter(new, trains) if is_parameter else new
    return {name: out[first_names.get(name, name)] for name in params}


def _register(root: nn.Module, path: str, t: Tensor, *, persistent: bool) -> None:
    """Register a parameter or buffer at a path, and create the modules on the way."""
    *parents, leaf = path.split(".")
    for p in parents:
        if not hasattr(root, p):
            root.add_module(p, nn.Module())
        root = getattr(root, p)
    if isinstance(t, nn.Parameter):
        root.register_parameter(leaf, t)
    else:
        root.register_buffer(leaf, t, persistent=persistent)


def _add_unread_inputs(graph: fx.Graph, spec: Spec) -> None:
    """Add placeholders for arguments that are no tensors: the caller passes these flags again, but nothing reads them."""
    tensors = iter([n for n in graph.nodes if n.op == "placeholder"])
    last: fx.Node | None = None
    for i, leaf in enumerate(spec.example.leaves):
        if isinstance(leaf, Like):
            last = next(tensors)
            continue
        with graph.inserting_before(next(iter(graph.nodes))) if last is None else graph.inserting_after(last):
            last = graph.placeholder(f"not_read_{i}")


def _name_where_read(graph: fx.Graph) -> None:
    """Name each tensor just before its first reader, so that quantisers may replace a layer: nothing else names its tensors."""
    places = {n: i for i, n in enumerate(graph.nodes)}
    for node in [n for n in graph.nodes if n.op == "get_attr" and n.users]:
        min(node.users, key=places.__getitem__).prepend(node)


def _arrange(graph: fx.Graph, params: Iterable[str]) -> None:
    """Put the inputs first, then all tensors in the order of the params.

    A graph module has (and copies) only the tensors that its graph names. So tensors that the graph does not use are named,
    too: counters, spare layers, second names of tied tensors, tensors of blocks.
    """
    read = {n.target: n for n in reversed(graph.nodes) if n.op == "get_attr"}
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        tensors = [read.get(name) or graph.get_attr(name) for name in params]
    for node in reversed([*inputs, *tensors]):
        if node is not first:
            first.prepend(node)
        first = node


def is_flat(spec: Spec) -> bool:
    """Return whether all arguments are tensors, and the result is one, or tuples, lists and dicts of them."""
    arguments = [child.kind for part in trees.outline(spec.program.in_spec).children for child in part.children]
    return (
        set(arguments) <= {"leaf"}
        and all(isinstance(x, Like) for x in spec.example.leaves)
        and _is_plain(spec.program.out_spec)
    )


def _is_plain(form: trees.Form) -> bool:
    return form.type in (None, tuple, list, dict) and all(map(_is_plain, form.children()))


def _nest_output(graph: fx.Graph, spec: Spec) -> None:
    """Nest the flat outputs of a graph as the traced model does."""
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    output.args = (trees.unflatten(list(output.args[0]), spec.program.out_spec),)  # type: ignore[arg-type]


def _signature(spec: Spec) -> _PyTreeCodeGen:
    """Return the code generator that nests arguments and results as in the traced model."""
    args, kwargs = spec.program.in_spec.children()
    names = [f"arg_{i}" for i in range(args.num_children)] + list(kwargs.context or [])
    return _PyTreeCodeGen(_PyTreeInfo(names, spec.program.in_spec, spec.program.out_spec))
