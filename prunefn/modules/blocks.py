"""Blocks of a graph module: parts of the graph that become separate graph modules at their original paths.

The outer graph calls them as modules, so that tools that hook modules (`fully_shard`, activation checkpoints) work on them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import fx, nn

from ..errors import PruneError, nearest
from ..names import ancestors

CLONE, COPY = torch.ops.aten.clone.default, torch.ops.aten.copy_.default


def block_paths(patterns: Sequence[str] | str, tensors: Iterable[str], running: Iterable[str]) -> list[str]:
    """Return the paths of the modules that match, in the order of their tensors; of modules inside each other, the outermost.

    Args:
        patterns: globs of module paths.
        tensors: names of all tensors; a module without tensors is no block.
        running: paths of the modules that instructions belong to; a module without instructions is no block.

    Raises:
        PruneError: a pattern matches nothing.

    >>> block_paths("layers.*", ["stem.bias", "layers.0.fc.weight", "layers.1.weight"], ["stem", "layers.0", "layers.1"])
    ['layers.0', 'layers.1']
    """
    with_tensors = list(dict.fromkeys(p for name in tensors for p in ancestors(name)[1:]))
    with_instructions = {p for path in running for p in [*ancestors(path)[1:], path]}
    possible = [p for p in with_tensors if p in with_instructions]
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matching = [p for p in possible if fnmatchcase(p, pattern)]
        if not matching:
            raise PruneError(
                f"blocks={pattern!r} matches no module that has tensors and runs in the program{nearest(pattern, possible)}"
            )
        matched.update(matching)
    return [p for p in possible if p in matched and not matched.intersection(ancestors(p))]


def in_block(path: str, paths: Iterable[str]) -> str | None:
    """Return the block that contains a tensor or module; None if no block does.

    >>> in_block("layers.1.weight", ["layers.1", "layers.10"])
    'layers.1'
    """
    return next((p for p in paths if path == p or path.startswith(f"{p}.")), None)


class Nested(NamedTuple):
    """A graph that calls blocks, and the graphs of the blocks."""

    outer: fx.Graph
    inner: dict[str, fx.Graph]
    """Path → graph; the names of tensors in it are relative to the path."""


def nest(flat: fx.Graph, modules: Mapping[fx.Node, str], paths: Sequence[str], root: nn.Module) -> Nested:
    """Move the nodes of blocks into separate graphs.

    A block reads its own tensors itself and gets everything else as arguments: values, sizes of the batch, tensors and constants
    of other modules. It returns the values that other nodes read.

    Args:
        flat: the whole graph; the nodes that update buffers are at its end.
        modules: last node of each instruction → path of the module that it belongs to.
        paths: paths of the blocks.
        root: the module that has the tensors.

    Raises:
        PruneError: a block cannot be called as a whole, or shares a parameter with code outside of it.
    """
    owner = _owners(flat, modules, paths)
    _check_tied(root, paths)
    _assign_tensors(flat, owner, paths, root)
    nodes = {p: [n for n in flat.nodes if owner.get(n) == p] for p in paths}
    calls = {p: [n for n in ns if n.op.startswith("call_") and n.target is not COPY] for p, ns in nodes.items()}
    ends = {ns[-1]: p for p, ns in calls.items() if ns}
    outer, inner = fx.Graph(), {}
    env: dict[fx.Node, fx.Node] = {}
    order: list[fx.Node] = []
    for node in flat.nodes:
        if node in ends:
            path = ends[node]
            _check_available(path, nodes[path], env, owner)
            inner[path] = _add_call(path, nodes[path], outer, env)
            order += nodes[path]
        elif node not in owner:
            _check_available(None, [node], env, owner)
            if node.op == "output":
                outer.output(fx.map_arg(node.args[0], env.__getitem__))
            else:
                env[node] = outer.node_copy(node, env.__getitem__)
            order.append(node)
    _check_random(flat, order, owner)
    return Nested(outer, inner)


def _owners(flat: fx.Graph, modules: Mapping[fx.Node, str], paths: Sequence[str]) -> dict[fx.Node, str]:
    """Return node → its block, for the computing nodes of blocks, in the order of the graph.

    The nodes of an instruction end with the node that `modules` has as its key.
    """
    owner: dict[fx.Node, str] = {}
    sizes: set[fx.Node] = set()
    part: list[fx.Node] = []
    for node in flat.nodes:
        if _is_size(node, sizes):
            sizes.add(node)  # the size of an input is computed outside, so that all blocks can read it
        elif node.op.startswith("call_") and not _is_buffer_copy(node) and node.target is not COPY:
            part.append(node)
        if node in modules:
            if path := in_block(modules[node], paths):
                owner.update(dict.fromkeys(part, path))
            part = []
    return owner


def _is_size(node: fx.Node, sizes: set[fx.Node]) -> bool:
    """Return whether a node is the size of an input, or computed from such sizes only."""
    if node.op == "call_method" and node.target == "size":
        return isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"
    return bool(node.all_input_nodes) and all(n in sizes for n in node.all_input_nodes) and _is_arithmetic(node)


def _is_arithmetic(node: fx.Node) -> bool:
    """Return whether a node calls a function of Python's `operator` or `math`."""
    return node.op == "call_function" and getattr(node.target, "__module__", "") in ("_operator", "math")


def _is_buffer_copy(node: fx.Node) -> bool:
    """Return whether a node is the copy of a buffer that is updated later."""
    return node.target is CLONE and isinstance(node.args[0], fx.Node) and node.args[0].op == "get_attr"


def _assign_tensors(flat: fx.Graph, owner: dict[fx.Node, str], paths: Sequence[str], root: nn.Module) -> None:
    """Assign the nodes that load or update a tensor to its block, if nothing outside of the block uses the tensor.

    Raises:
        PruneError: a node outside of a block reads a parameter of the block.
    """
    for node in [n for n in flat.nodes if n.op == "get_attr"]:
        name = str(node.target)
        path = in_block(name, paths)
        load = next((n for n in node.users if _is_buffer_copy(n)), node)
        if path is None:
            continue
        readers = [n for n in load.users if n.target is not COPY]
        outside = [n for n in readers if owner.get(n) != path]
        copies = [n for n in node.users if n.target is COPY]
        written_outside = any(owner.get(a) != path for c in copies for a in c.all_input_nodes if a is not node)
        if outside and isinstance(_tensor(root, name), nn.Parameter):
            raise PruneError(
                f"parameter {name!r} of block {path!r} is also read by {owner.get(outside[0]) or outside[0].name!r}, outside of it, "
                "where a sharded block does not have it; choose a larger block that has both, or leave this one out"
            )
        if not outside and not written_outside:
            owner.update(dict.fromkeys([node, load, *copies], path))


def _check_tied(root: nn.Module, paths: Sequence[str]) -> None:
    """Check that no parameter is both inside and outside of a block, under two names.

    Raises:
        PruneError: a parameter is; states both names and the block.
    """
    names: dict[int, str] = {}
    for name, p in root.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(p), name)
        a, b = in_block(first, paths), in_block(name, paths)
        if a != b:
            raise PruneError(
                f"{first!r} and {name!r} are tied, but block {a or b!r} has only one of them; choose a larger block that has "
                "both, or leave this one out"
            )


def _check_available(
    path: str | None, nodes: Sequence[fx.Node], env: Mapping[fx.Node, fx.Node], owner: Mapping
) -> None:
    """Check that every value that the nodes read is available when they run.

    Raises:
        PruneError: a value comes from a block that has not ended yet, so the nodes of that block are not consecutive.
    """
    own = set(nodes) if path else set()
    for node in nodes:
        for a in node.all_input_nodes:
            if a not in own and a not in env:
                other, reader = owner[a], path or node.name
                raise PruneError(
                    f"block {other!r} cannot be called as a whole: {reader!r} reads {a.name!r} of it before it ends; choose a "
                    f"larger block that has both, such as {other.rpartition('.')[0] or 'all'!r}, or leave this one out"
                )


def _check_random(flat: fx.Graph, order: Sequence[fx.Node], owner: Mapping[fx.Node, str]) -> None:
    """Check that random numbers are drawn in the order of the flat graph.

    Raises:
        PruneError: a block changes the order; names the block.
    """
    before, after = [n for n in flat.nodes if _draws_random(n)], [n for n in order if _draws_random(n)]
    for a, b in zip(before, after, strict=True):
        if a is not b:
            raise PruneError(
                f"block {owner.get(a) or owner.get(b)!r} cannot be called as a whole: {a.name!r} and {b.name!r} would draw their "
                "random numbers in another order; choose a larger block that has both, or leave this one out"
            )


def _draws_random(node: fx.Node) -> bool:
    """Return whether the op of a node draws from torch's generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _add_call(path: str, nodes: Sequence[fx.Node], outer: fx.Graph, env: dict[fx.Node, fx.Node]) -> fx.Graph:
    """Return the block's graph; put its call into the outer graph and the results of the call into `env`."""
    own, graph = set(nodes), fx.Graph()
    arguments = dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a not in own)
    inside = {a: graph.placeholder(a.name) for a in arguments}
    for node in nodes:
        inside[node] = graph.node_copy(node, inside.__getitem__)
        if node.op in ("get_attr", "call_module"):
            inside[node].target = str(node.target).removeprefix(f"{path}.")
    results = [n for n in nodes if any(u not in own for u in n.users)]
    graph.output(inside[results[0]] if len(results) == 1 else tuple(inside[n] for n in results))
    call = outer.call_module(path, tuple(env[a] for a in arguments))
    if len(results) == 1:
        env[results[0]] = call
    else:
        env.update({n: outer.call_function(operator.getitem, (call, i)) for i, n in enumerate(results)})
    return graph


def _tensor(root: nn.Module, name: str) -> object:
    """Return the tensor of a name in the module tree."""
    module, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(module), leaf)
