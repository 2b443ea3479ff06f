"""Graphs in the words of users: layers of `torch.nn` and public functions instead of ops.

Quantisers, TorchScript and everything else that looks for layers or functions of torch then find them in a graph module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..spec.layers import Use, layer_use
from ..spec.plain import Call, function_of, plain
from ..spec.spec import Spec


def use_layers(graph: fx.Graph, modules: dict[fx.Node, str], root: nn.Module, spec: Spec) -> None:
    """Call layers for the ops that belong to modules which do nothing else, in place.

    BatchNorm stays a function, because a graph module keeps the traced mode.

    Args:
        graph: the program as a flat graph.
        modules: last node of each instruction → path of its module; updated for the new nodes.
        root: the module that has the tensors; containers of tensors are replaced by layers that have the same tensors.
        spec: of the program.
    """
    busy = {p for path in modules.values() for p in _outside(path)}
    uses = {n: use for n, path in modules.items() if (use := _use(n, path, root, spec)) is not None and path not in busy}
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


def _outside(path: str) -> list[str]:
    """Return the paths of the modules that contain a module."""
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(len(parts))]


def _use(node: fx.Node, path: str, root: nn.Module, spec: Spec) -> Use | None:
    """Return the layer that a node may call: that of its module, whose tensors are the layer's and no others."""
    use = layer_use(node, spec.shape, 0) if node.op == "call_function" else None
    if use is None or use.path not in ("", path) or not path or hasattr(fx.GraphModule, path.partition(".")[0]):
        return None
    owner: Any = root
    for part in path.split("."):
        owner = getattr(owner, part, None)
        if owner is None:
            break
    own = set() if owner is None else set(dict([*owner.named_parameters(), *owner.named_buffers()])) if isinstance(owner, nn.Module) else {""}
    return use._replace(path=path) if own == set(use.layer.build().state_dict()) else None


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
                args, kwargs = _emitted(call, graph)
            function = function_of(call)
            node.op, node.target = ("call_method" if isinstance(function, str) else "call_function"), function
            node.args, node.kwargs = args, kwargs


def _emitted(call: Call, graph: fx.Graph) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call; calls among them become nodes."""
    args = []
    for a in call.args:
        if isinstance(a, Call):
            function, (inner, options) = function_of(a), _emitted(a, graph)
            create = graph.call_method if isinstance(function, str) else graph.call_function
            a = create(function, inner, options)
        args.append(a)
    return tuple(args), dict(call.kwargs)
