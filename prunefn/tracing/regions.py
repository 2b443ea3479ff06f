"""Parts of an exported graph that torch keeps as functions: regions under a context, and levels of `torch.func`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

OPERANDS = {
    "wrap_with_autocast": 1,
    "wrap_with_set_grad_enabled": 1,
    "wrap": 1,
    "tag_activation_checkpoint": 1,
    "invoke_subgraph": 2,
}
"""Op that calls one function once → the place of the function's first argument, counted from the function."""
AUTOCAST, ENABLED = "wrap_with_autocast", 2
LEVELS = "torch._functorch"
"""Module of the functions that begin and end `torch.vmap`, `torch.func.jvp` and their kin."""


def runs_in_levels(gm: fx.GraphModule) -> bool:
    """Return whether ops mean something else than they say, so that the graph must be decomposed.

    Inside `torch.vmap` they act on batched tensors; inside an enabled autocast they cast their arguments.
    """
    return any(
        getattr(n.target, "__module__", "").startswith(LEVELS) or (_name(n) == AUTOCAST and bool(n.args[ENABLED]))
        for n in _calls(gm)
    )


def _calls(gm: fx.GraphModule) -> Iterator[fx.Node]:
    """Yield the calls of a graph and of the functions that it calls."""
    for n in gm.graph.nodes:
        if n.op == "call_function":
            yield n
        elif n.op == "get_attr" and isinstance(inner := getattr(gm, n.target, None), fx.GraphModule):
            yield from _calls(inner)


def inline_regions(gm: fx.GraphModule) -> None:
    """Inline functions that are called once, such as the regions under autocast or no_grad, which torch exports as submodules."""
    for node in list(gm.graph.nodes):
        operands = OPERANDS.get(_name(node))
        index = next((i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr"), None)
        if operands is None or index is None:
            continue
        inner: fx.GraphModule = getattr(gm, node.args[index].target)
        inline_regions(inner)
        results = _inlined(gm.graph, node, inner, node.args[index + operands :])
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            gm.graph.erase_node(user)
        gm.graph.erase_node(node)


def _inlined(graph: fx.Graph, node: fx.Node, inner: fx.GraphModule, operands: tuple[Any, ...]) -> list[Any]:
    """Copy a function's ops before the node that calls it, and return its results."""
    env: dict[fx.Node, Any] = dict(zip((n for n in inner.graph.nodes if n.op == "placeholder"), operands, strict=True))
    assert graph.owning_module is not None
    with graph.inserting_before(node):
        for n in inner.graph.nodes:
            if n.op == "call_function":
                env[n] = graph.node_copy(n, env.__getitem__)
            elif n.op == "get_attr":  # a function that a higher-order op calls
                name = f"{node.name}_{n.name}"
                setattr(graph.owning_module, name, getattr(inner, n.target))
                env[n] = graph.get_attr(name)
    returned = next(n for n in inner.graph.nodes if n.op == "output").args[0]
    return [env.get(r, r) if isinstance(r, fx.Node) else r for r in returned]


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""
