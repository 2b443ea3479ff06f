"""Track which node of a growing graph holds the value of each tensor, while a real run is recorded.

In-place ops become their functional twins: a write to a view is written back into its parent, and other views of the same
memory are taken again at their next read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

aten = torch.ops.aten


class View(NamedTuple):
    """A tensor that shares the memory of another, and the op that created it."""

    parent: Tensor
    source: fx.Node
    """The parent's node when the view was created."""
    node: fx.Node
    """The node of the op, or of one output of an op with several."""


class Memory:
    """A map from tensors to nodes; tensors are distinguished by identity, and all are kept alive until the recording ends.

    Args:
        graph: the graph to which nodes are added.
        constant: creates the node of a tensor that no recorded op created.
    """

    def __init__(self, graph: fx.Graph, constant: Callable[[Tensor], fx.Node]) -> None:
        self.graph, self.constant = graph, constant
        self.kept_alive: list[Tensor] = []
        self.nodes: dict[int, fx.Node] = {}
        self.views: dict[int, View] = {}
        self.places: dict[tuple[Any, ...], Tensor] = {}
        self.roots: dict[int, Tensor] = {}
        """Memory → first tensor that was registered there."""
        self.writes: dict[int, int] = {}
        """Tensor that is not a view → number of writes to its memory."""
        self.included_writes: dict[int, int] = {}
        """Tensor → number of writes that its node includes."""
        self.replaced: set[fx.Node] = set()
        """Views that were taken again after a write."""

    def add(self, t: Tensor, node: fx.Node, parent: Tensor | None = None, source: fx.Node | None = None) -> None:
        """Register a tensor that was just created, as a view of `parent` if one is given."""
        self.kept_alive.append(t)
        self.nodes[id(t)] = node
        if parent is not None and source is not None:
            self.views[id(t)] = View(parent, source, node)
        self.included_writes[id(t)] = self.writes.setdefault(id(self._base_of(t)), 0)
        self.roots.setdefault(memory(t), t)
        self.places[place(t)] = t

    def __contains__(self, t: Tensor) -> bool:
        return id(t) in self.nodes

    def node(self, t: Tensor) -> fx.Node:
        """Return the node that holds the tensor's current value."""
        if t not in self:
            self._register_unknown(t)
        view = self.views.get(id(t))
        writes = self.writes[id(self._base_of(t))]
        if view is not None and self.included_writes[id(t)] != writes:
            self.replaced.add(self.nodes[id(t)])
            self.nodes[id(t)] = self._take_again(view, self.node(view.parent))
            self.included_writes[id(t)] = writes
        return self.nodes[id(t)]

    def write(self, t: Tensor, new: fx.Node) -> None:
        """Register that an in-place op wrote the value of `new` to a tensor that has a node."""
        chain = [t]
        while (view := self.views.get(id(chain[-1]))) is not None:
            chain.append(view.parent)
        old_nodes = [self.node(x) for x in chain]
        self.writes[id(chain[-1])] += 1
        for i, x in enumerate(chain):
            if i:
                new = self._write_back(self.views[id(chain[i - 1])].node, chain[i - 1], x, old_nodes[i], new)
            self.nodes[id(x)] = new
            self.included_writes[id(x)] = self.writes[id(chain[-1])]

    def _base_of(self, t: Tensor) -> Tensor:
        while (view := self.views.get(id(t))) is not None:
            t = view.parent
        return t

    def _register_unknown(self, t: Tensor) -> None:
        """Register a tensor that no recorded op created: another view of known memory (`.data`), or a constant."""
        if (same_place := self.places.get(place(t))) is not None:
            self._add_view(t, same_place, aten.alias.default)
        elif (root := self.roots.get(memory(t))) is not None:
            layout = (list(t.shape), list(t.stride()), t.storage_offset())
            self._add_view(t, root, aten.as_strided.default, *layout)
        else:
            self.add(t, self.constant(t))

    def _add_view(self, t: Tensor, parent: Tensor, op: Any, *args: Any) -> None:
        source = self.node(parent)
        self.add(t, self._add_call(op, (source, *args), source, t), parent, source)

    def _take_again(self, view: View, parent: fx.Node) -> fx.Node:
        """Return the same view of the parent's current value."""

        def replace(n: fx.Node) -> fx.Node:
            return parent if n is view.source else n

        if view.node.target is operator.getitem:
            op = self.graph.node_copy(view.node.all_input_nodes[0], replace)
            return self.graph.node_copy(view.node, lambda _: op)
        return self.graph.node_copy(view.node, replace)

    def _write_back(self, op: fx.Node, view: Tensor, parent: Tensor, old_value: fx.Node, new_value: fx.Node) -> fx.Node:
        """Return `old_value`, the parent's, with `new_value` at the positions of the view."""
        item: Any = op.args[1] if op.target is operator.getitem else None
        call = op.all_input_nodes[0] if item is not None else op
        taken_view = Taken(call.target, call.args[1:], dict(call.kwargs), item, view, parent)
        write_back = BACK.get(str(call.target).removeprefix("aten.").split(".")[0], _same_place)
        target, args = write_back(taken_view, old_value, new_value)
        return new_value if target is None else self._add_call(target, args, old_value, parent)

    def _add_call(self, op: Any, args: tuple[Any, ...], like: fx.Node, t: Tensor) -> fx.Node:
        node = self.graph.call_function(op, args)
        node.meta = {**like.meta, "val": shadow(t)}
        return node


# ---- write a view back: (view, old value of the parent, new value of the view) → op and arguments


class Taken(NamedTuple):
    """A view, and the op that took it."""

    op: Any
    args: tuple[Any, ...]
    """Arguments of the op, without the parent."""
    kwargs: dict[str, Any]
    item: int | None
    """Index among several outputs."""
    view: Tensor
    parent: Tensor

    def given(self, name: str, position: int, default: Any = None) -> Any:
        """Return an argument of the op."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


Back = Callable[[Taken, fx.Node, fx.Node], tuple[Any, tuple[Any, ...]]]


def _slice(v: Taken, old_value: fx.Node, new_value: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    bounds = (v.given("dim", 0, 0), v.given("start", 1), v.given("end", 2), v.given("step", 3, 1))
    return aten.slice_scatter.default, (old_value, new_value, *bounds)


def _select(v: Taken, old_value: fx.Node, new_value: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    return aten.select_scatter.default, (old_value, new_value, v.given("dim", 0), v.given("index", 1))


def _unbind(v: Taken, old_value: fx.Node, new_value: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    return aten.select_scatter.default, (old_value, new_value, v.given("dim", 0, 0), v.item)


def _diagonal(v: Taken, old_value: fx.Node, new_value: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    return aten.diagonal_scatter.default, (old_value, new_value, *v.args)


def _split(v: Taken, old_value: fx.Node, new_value: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """Write back one of several ranges of positions along a dim."""
    differs = (d for d, (n, m) in enumerate(zip(v.view.shape, v.parent.shape, strict=True)) if n != m)
    if (d := next(differs, None)) is None:
        return None, ()
    start = (v.view.storage_offset() - v.parent.storage_offset()) // v.parent.stride(d)
    return aten.slice_scatter.default, (old_value, new_value, d, start, start + v.view.shape[d])


def _invert_by_same_op(v: Taken, old_value: fx.Node, new_value: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """Write back through an op that is its own inverse."""
    return v.op, (new_value, *v.args)


def _permute(v: Taken, old_value: fx.Node, new_value: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    dims = [d % v.parent.ndim for d in v.given("dims", 0)]
    return aten.permute.default, (new_value, [dims.index(i) for i in range(len(dims))])


def _reshape(v: Taken, old_value: fx.Node, new_value: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    if v.view.dtype != v.parent.dtype:
        return _same_place(v, old_value, new_value)
    return aten.reshape.default, (new_value, list(v.parent.shape))


def _same_place(v: Taken, old_value: fx.Node, new_value: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """Write back a view of the whole parent as it is; write back any other by an op without a rule, which freezes both."""
    if place(v.view) == place(v.parent):
        return None, ()
    layout = (list(v.view.shape), list(v.view.stride()), v.view.storage_offset())
    return aten.as_strided_scatter.default, (old_value, new_value, *layout)


BACK: dict[str, Back] = {
    "slice": _slice,
    "select": _select,
    "unbind": _unbind,
    "diagonal": _diagonal,
    "permute": _permute,
    **dict.fromkeys(("split", "chunk", "tensor_split", "split_with_sizes"), _split),
    **dict.fromkeys(("transpose", "t", "swapaxes", "swapdims", "mT"), _invert_by_same_op),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "ravel"), _reshape),
    **dict.fromkeys(("flatten", "unflatten", "squeeze", "unsqueeze"), _reshape),
}


def memory(t: Tensor) -> int:
    """Return a number that is equal for tensors that share memory."""
    try:
        storage = t.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse tensors
        return id(t)
    return storage.data_ptr() or storage._cdata


def place(t: Tensor) -> tuple[Any, ...]:
    """Return which part of memory a tensor views, and how."""
    strided = t.layout == torch.strided
    return (memory(t), t.dtype, t.shape, *((t.storage_offset(), t.stride()) if strided else ()))


def shadow(t: Tensor) -> Tensor:
    """Return a tensor on meta with the same shape, dtype and place in memory."""
    if t.layout != torch.strided:
        return torch.empty(t.shape, dtype=t.dtype, device="meta")
    if not t.storage_offset():
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
    last = t.storage_offset() + sum(s * (n - 1) for n, s in zip(t.shape, t.stride(), strict=True) if n)
    memory = torch.empty(last + 1, dtype=t.dtype, device="meta")
    return memory.as_strided(t.shape, t.stride(), t.storage_offset())
