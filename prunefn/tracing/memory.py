"""Which node of a growing graph holds the value of which tensor, while a real run is recorded.

In-place ops become their functional twins: a write to a view is put back into what it looks at, and other views of the same
memory are taken again when they are next read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

aten = torch.ops.aten


class View(NamedTuple):
    """How a tensor was taken from another that it shares memory with."""

    parent: Tensor
    source: fx.Node
    """The parent's node at the time."""
    node: fx.Node
    """The op, or the item of an op with several outputs."""


class Memory:
    """Tensors are told apart by identity, and all are held until the recording ends.

    Args:
        graph: where nodes are added.
        constant: makes the node of a tensor that nothing recorded has made.
    """

    def __init__(self, graph: fx.Graph, constant: Callable[[Tensor], fx.Node]) -> None:
        self.graph, self.constant = graph, constant
        self.held: list[Tensor] = []
        self.nodes: dict[int, fx.Node] = {}
        self.views: dict[int, View] = {}
        self.places: dict[tuple[Any, ...], Tensor] = {}
        self.roots: dict[int, Tensor] = {}
        """Memory → the first tensor that was met there."""
        self.writes: dict[int, int] = {}
        """Tensor that is no view → number of writes to its memory."""
        self.seen: dict[int, int] = {}
        """Tensor → number of writes that its node knows of."""
        self.replaced: set[fx.Node] = set()
        """Views that were taken again after a write."""

    def add(self, t: Tensor, node: fx.Node, parent: Tensor | None = None, source: fx.Node | None = None) -> None:
        """A tensor that was just made, as a view of `parent` if one is given."""
        self.held.append(t)
        self.nodes[id(t)] = node
        if parent is not None and source is not None:
            self.views[id(t)] = View(parent, source, node)
        self.seen[id(t)] = self.writes.setdefault(id(self._base(t)), 0)
        self.roots.setdefault(memory(t), t)
        self.places[place(t)] = t

    def __contains__(self, t: Tensor) -> bool:
        return id(t) in self.nodes

    def node(self, t: Tensor) -> fx.Node:
        """The node that holds the tensor's value now."""
        if t not in self:
            self._meet(t)
        view = self.views.get(id(t))
        writes = self.writes[id(self._base(t))]
        if view is not None and self.seen[id(t)] != writes:
            self.replaced.add(self.nodes[id(t)])
            self.nodes[id(t)] = self._again(view, self.node(view.parent))
            self.seen[id(t)] = writes
        return self.nodes[id(t)]

    def write(self, t: Tensor, new: fx.Node) -> None:
        """An in-place op has left the value of `new` in a tensor that has a node."""
        chain = [t]
        while (view := self.views.get(id(chain[-1]))) is not None:
            chain.append(view.parent)
        old = [self.node(x) for x in chain]
        self.writes[id(chain[-1])] += 1
        for i, x in enumerate(chain):
            if i:
                new = self._put_back(self.views[id(chain[i - 1])].node, chain[i - 1], x, old[i], new)
            self.nodes[id(x)] = new
            self.seen[id(x)] = self.writes[id(chain[-1])]

    def _base(self, t: Tensor) -> Tensor:
        while (view := self.views.get(id(t))) is not None:
            t = view.parent
        return t

    def _meet(self, t: Tensor) -> None:
        """A tensor that no recorded op has made: another look at known memory (`.data`), or a constant."""
        if (known := self.places.get(place(t))) is not None:
            self._look(t, known, aten.alias.default)
        elif (root := self.roots.get(memory(t))) is not None:
            layout = (list(t.shape), list(t.stride()), t.storage_offset())
            self._look(t, root, aten.as_strided.default, *layout)
        else:
            self.add(t, self.constant(t))

    def _look(self, t: Tensor, parent: Tensor, op: Any, *args: Any) -> None:
        source = self.node(parent)
        self.add(t, self._call(op, (source, *args), source, t), parent, source)

    def _again(self, view: View, parent: fx.Node) -> fx.Node:
        """The same view of the parent's present value."""

        def replace(n: fx.Node) -> fx.Node:
            return parent if n is view.source else n

        if view.node.target is operator.getitem:
            op = self.graph.node_copy(view.node.all_input_nodes[0], replace)
            return self.graph.node_copy(view.node, lambda _: op)
        return self.graph.node_copy(view.node, replace)

    def _put_back(self, op: fx.Node, view: Tensor, parent: Tensor, old: fx.Node, new: fx.Node) -> fx.Node:
        """`old`, the parent's value, with `new` in the place that the view looks at."""
        item: Any = op.args[1] if op.target is operator.getitem else None
        call = op.all_input_nodes[0] if item is not None else op
        taken = Taken(call.target, call.args[1:], dict(call.kwargs), item, view, parent)
        back = BACK.get(str(call.target).removeprefix("aten.").split(".")[0], _same_place)
        target, args = back(taken, old, new)
        return new if target is None else self._call(target, args, old, parent)

    def _call(self, op: Any, args: tuple[Any, ...], like: fx.Node, t: Tensor) -> fx.Node:
        node = self.graph.call_function(op, args)
        node.meta = {**like.meta, "val": shadow(t)}
        return node


# ---- how a view is put back: (view, old value of the parent, new value of the view) → op and arguments


class Taken(NamedTuple):
    """A view, and the op that took it."""

    op: Any
    args: tuple[Any, ...]
    """Without the parent."""
    kwargs: dict[str, Any]
    item: int | None
    """Which of several outputs it is."""
    view: Tensor
    parent: Tensor

    def given(self, name: str, position: int, default: Any = None) -> Any:
        """An argument."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


Back = Callable[[Taken, fx.Node, fx.Node], tuple[Any, tuple[Any, ...]]]


def _slice(v: Taken, old: fx.Node, new: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    bounds = (v.given("dim", 0, 0), v.given("start", 1), v.given("end", 2), v.given("step", 3, 1))
    return aten.slice_scatter.default, (old, new, *bounds)


def _select(v: Taken, old: fx.Node, new: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    return aten.select_scatter.default, (old, new, v.given("dim", 0), v.given("index", 1))


def _unbind(v: Taken, old: fx.Node, new: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    return aten.select_scatter.default, (old, new, v.given("dim", 0, 0), v.item)


def _diagonal(v: Taken, old: fx.Node, new: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    return aten.diagonal_scatter.default, (old, new, *v.args)


def _split(v: Taken, old: fx.Node, new: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """One of several runs of positions along a dim."""
    differs = (d for d, (n, m) in enumerate(zip(v.view.shape, v.parent.shape, strict=True)) if n != m)
    if (d := next(differs, None)) is None:
        return None, ()
    start = (v.view.storage_offset() - v.parent.storage_offset()) // v.parent.stride(d)
    return aten.slice_scatter.default, (old, new, d, start, start + v.view.shape[d])


def _again(v: Taken, old: fx.Node, new: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """An op that is its own inverse."""
    return v.op, (new, *v.args)


def _permute(v: Taken, old: fx.Node, new: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    dims = [d % v.parent.ndim for d in v.given("dims", 0)]
    return aten.permute.default, (new, [dims.index(i) for i in range(len(dims))])


def _reshape(v: Taken, old: fx.Node, new: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    if v.view.dtype != v.parent.dtype:
        return _same_place(v, old, new)
    return aten.reshape.default, (new, list(v.parent.shape))


def _same_place(v: Taken, old: fx.Node, new: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """The whole of it under another name; anything else by an op without a rule, which freezes both."""
    if place(v.view) == place(v.parent):
        return None, ()
    layout = (list(v.view.shape), list(v.view.stride()), v.view.storage_offset())
    return aten.as_strided_scatter.default, (old, new, *layout)


BACK: dict[str, Back] = {
    "slice": _slice,
    "select": _select,
    "unbind": _unbind,
    "diagonal": _diagonal,
    "permute": _permute,
    **dict.fromkeys(("split", "chunk", "tensor_split", "split_with_sizes"), _split),
    **dict.fromkeys(("transpose", "t", "swapaxes", "swapdims", "mT"), _again),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "ravel"), _reshape),
    **dict.fromkeys(("flatten", "unflatten", "squeeze", "unsqueeze"), _reshape),
}


def memory(t: Tensor) -> int:
    """Tensors that share memory have the same number."""
    try:
        storage = t.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse tensors
        return id(t)
    return storage.data_ptr() or storage._cdata


def place(t: Tensor) -> tuple[Any, ...]:
    """What part of memory a tensor looks at, and how."""
    strided = t.layout == torch.strided
    return (memory(t), t.dtype, t.shape, *((t.storage_offset(), t.stride()) if strided else ()))


def shadow(t: Tensor) -> Tensor:
    """Shape, strides and type without the values."""
    if t.layout != torch.strided:
        return torch.empty(t.shape, dtype=t.dtype, device="meta")
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
