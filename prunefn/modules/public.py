"""Graphs in the words of users: layers of `torch.nn` and public functions instead of ops.

Quantisers, TorchScript and everything else that looks for layers or functions of torch then find them in a graph module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, fx, nn

from ..names import ancestors
from ..spec.layers import Use, layer_use
from ..spec.plain import Call, function_of, plain
from ..spec.spec import Spec


def use_layers(
    graph: fx.Graph, modules: dict[fx.Node, str], root: nn.Module, spec: Spec, *, blocks: Sequence[str]
) -> None:
    """Call layers for the ops that belong to modules which do nothing else, in place.

    BatchNorm stays a function, because a graph module keeps the traced mode.

    Args:
        graph: the program as a flat graph.
        modules: last node of each instruction → path of its module; updated for the new nodes.
        root: the module that has the tensors; containers of tensors are replaced by layers that have the same tensors.
        spec: of the program.
        blocks: paths of modules that become graph modules of their own, and no layers.
    """
    busy = {*blocks, *(p for path in modules.values() for p in ancestors(path))}
    names = {
        n for n, _ in (*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False))
    }
    uses = {
        n: use for n, path in modules.items() if path not in busy and (use := _use(n, path, names, spec)) is not None
    }
    shared = {path for n, path in modules.items() if path in {u.path for u in uses.values()} and n not in uses}
    first: dict[str, Use] = {}
    calls: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        use = uses.get(node)
        if use is None or use.path in shared or first.setdefault(use.path, use).layer != use.layer:
            continue
        if first[use.path] is use:
            _replace(root, use)
        with graph.inserting_before(node):
            calls[node] = called = graph.call_module(use.path, tuple(calls.get(i, i) for i in use.inputs))
        read = [a for a in node.all_input_nodes if a.op == "get_attr"]
        node.replace_all_uses_with(called)
        graph.erase_node(node)
        for tensor in [t for t in read if not t.users]:
            graph.erase_node(tensor)
        modules[called] = modules.pop(node)


def _use(node: fx.Node, path: str, names: Iterable[str], spec: Spec) -> Use | None:
    """Return the layer that a node may call: that of its module, whose tensors are the layer's and no others."""
    use = layer_use(node, spec.shape, 0) if node.op == "call_function" else None
    is_free = path and path not in names and not hasattr(fx.GraphModule, path.partition(".")[0])
    if use is None or use.path not in ("", path) or not is_free:
        return None
    own = {n.removeprefix(f"{path}.") for n in names if n.startswith(f"{path}.")}
    return use._replace(path=path) if own == use.layer.tensors() else None


def _replace(root: nn.Module, use: Use) -> None:
    """Put a layer in the place of a module, with its tensors."""
    layer, (parent, _, name) = use.layer.build(), use.path.rpartition(".")
    owner = root
    for part in parent.split(".") if parent else ():
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    for leaf in layer.state_dict():
        t: Tensor = getattr(getattr(owner, name), leaf)
        setattr(layer, leaf, t)
    owner.add_module(name, layer)


def use_functions(graph: fx.Graph) -> None:
    """Call public functions of torch for the ops that have one, in place."""
    for node in [n for n in graph.nodes if n.op == "call_function"]:
        call = plain(node)
        if call is not None:
            with graph.inserting_before(node):
                public = _emitted(call, graph)
            node.replace_all_uses_with(public)
            public.meta = node.meta
            graph.erase_node(node)


def _emitted(call: Call, graph: fx.Graph) -> fx.Node:
    """Return the node of a call; calls among its arguments become nodes before it."""
    args = tuple(_emitted(a, graph) if isinstance(a, Call) else a for a in call.args)
    function = function_of(call)
    if isinstance(function, str):
        return graph.call_method(function, args, call.kwargs)
    return graph.call_function(function, args, call.kwargs)
