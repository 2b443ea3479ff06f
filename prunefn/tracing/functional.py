"""Replace in-place ops by their functional twins, so that a graph need not be decomposed.

`relu_(x)` becomes `relu(x)`, and later reads of x read the result. A write to a slice of x becomes a scatter into x. If another
view of the same tensor was created before the write and is read after it, the rewrite fails: then torch's own functionalisation
is needed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

aten = torch.ops.aten
SCATTERS: dict[Any, Any] = {
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
}


def make_functional(graph: fx.Graph, buffers: Collection[str]) -> bool:
    """Replace all in-place ops; return False if a write could not be followed, and the graph must be discarded.

    Args:
        graph: the graph of an export.
        buffers: placeholders whose new values are results, so torch must follow writes to them.
    """
    return all(map(_Writes(graph, buffers).visit, list(graph.nodes)))


def spell_out_writes(graph: fx.Graph) -> bool:
    """Make writes of norms to running statistics explicit, which their schemas omit; return whether there are any.

    `instance_norm` becomes one without running statistics, plus separate writes. `batch_norm` stays: torch's functionalisation
    handles it.
    """
    writing = [n for n in graph.nodes if _updates_statistics(n)]
    for n in writing:
        if n.target is aten.instance_norm.default:
            _write_statistics(graph, n)
    return bool(writing)


def _updates_statistics(n: fx.Node) -> bool:
    """Return whether a norm uses the statistics of its input, and updates running statistics with them."""
    return (
        n.target in (aten.batch_norm.default, aten.instance_norm.default) and bool(n.args[5]) and n.args[3] is not None
    )


def _write_statistics(graph: fx.Graph, norm: fx.Node) -> None:
    """Update running statistics [c] from x [n, c, …] by the mean of the samples' means and of their unbiased variances."""
    x, weight, bias, *running, _, momentum, eps, cudnn = norm.args
    spatial = list(range(2, norm.meta["val"].ndim))
    new_nodes: list[fx.Node] = []

    def op(target: OpOverload, *args: Any, **kwargs: Any) -> fx.Node:
        new_nodes.append(graph.call_function(target, args, kwargs))
        return new_nodes[-1]

    with graph.inserting_before(norm):
        sample_statistics = (op(aten.mean.dim, x, spatial), op(aten.var.correction, x, spatial, correction=1))
        for statistic, per_sample in zip(running, sample_statistics, strict=True):
            old_part = op(aten.mul.Tensor, statistic, 1 - momentum)  # type: ignore[operator]
            new_part = op(aten.mul.Tensor, op(aten.mean.dim, per_sample, [0]), momentum)
            op(aten.copy_.default, statistic, op(aten.add.Tensor, old_part, new_part))
    for n in new_nodes:  # torch decomposes the graph next, which sets the value of each node
        n.meta = {k: v for k, v in norm.meta.items() if k != "val"}
    norm.args = (x, weight, bias, None, None, True, momentum, eps, cudnn)


class _Writes:
    """The state of one pass over a graph: which values share memory."""

    def __init__(self, graph: fx.Graph, buffers: Collection[str]) -> None:
        self.graph, self.buffers = graph, buffers
        self.order = {n: i for i, n in enumerate(graph.nodes)}
        self.parent: dict[fx.Node, fx.Node] = {}
        self.views: dict[fx.Node, list[fx.Node]] = {}

    def visit(self, n: fx.Node) -> bool:
        """Register a node, and rewrite it if it writes; return False if that fails."""
        if n.op == "call_function" and isinstance(n.target, OpOverload) and n.target._schema.is_mutable:
            return self.rewrite(n)
        if is_view(n) and n.all_input_nodes:
            self.parent[n] = n.all_input_nodes[0]
        self.views.setdefault(self.base(n), []).append(n)
        return True

    def base(self, n: fx.Node) -> fx.Node:
        """Return the value whose memory a node shares."""
        while n in self.parent:
            n = self.parent[n]
        return n

    def rewrite(self, n: fx.Node) -> bool:
        """Rewrite one in-place op and all later reads of the same memory; return False if that fails."""
        written, twin = n.args[0], functional_twin(n.target)
        if twin is None or not isinstance(written, fx.Node):
            return False
        chain = [written]
        while chain[-1] in self.parent:
            chain.append(self.parent[chain[-1]])
        if chain[-1].name in self.buffers:
            return False
        other_views = [v for v in self.views[chain[-1]] if v not in chain]
        if any(self.order[u] > self.order[n] for v in other_views for u in v.users if u in self.order):
            return False
        n.target, new = twin, n
        for view, parent in zip(chain, [*chain[1:], None], strict=True):
            later = {u for u in view.users if u in self.order and self.order[u] > self.order[n]}
            view.replace_all_uses_with(new, delete_user_cb=later.__contains__)
            self.views.setdefault(new, []).append(new)
            if parent is None:
                return True
            if not any(u in self.order and self.order[u] > self.order[n] for p in chain for u in p.users):
                return True  # nothing reads the rest of the chain again
            if view.target not in SCATTERS:
                return False
            new = self.scatter(view, parent, new)
        return True

    def scatter(self, view: fx.Node, parent: fx.Node, new: fx.Node) -> fx.Node:
        """Return `parent` with `new` at the positions of `view`."""
        with self.graph.inserting_after(new):
            args = (parent, new, *view.args[1:])
            node = self.graph.call_function(SCATTERS[view.target], args, dict(view.kwargs))
        node.meta = {**view.meta, "val": parent.meta["val"]}
        return node


def is_view(n: fx.Node) -> bool:
    """Return whether a node may share the memory of its first input."""
    if n.target is aten.contiguous.default or getattr(n.target, "__name__", "") == "getitem":
        return True
    return isinstance(n.target, OpOverload) and any(r.alias_info is not None for r in n.target._schema.returns)


def functional_twin(op: Any) -> OpOverload | None:
    """Return the functional op of an in-place op (`aten.relu_.default` → `aten.relu.default`) with equal arguments, or None."""
    name = op._schema.name.removeprefix("aten::")
    if name.startswith("__i"):  # `__iand__`
        packet = getattr(aten, f"__{name.removeprefix('__i')}", None)
    elif not name.endswith("_") or name.endswith("__"):
        return None
    else:
        packet = getattr(aten, name.removesuffix("_"), None)
    overloads = [] if packet is None else packet.overloads()
    twins = (getattr(packet, o) for o in sorted(overloads, key=lambda o: o != op._overloadname))
    return next((t for t in twins if _arguments(t) == _arguments(op)), None)


def _arguments(op: OpOverload) -> list[tuple[Any, ...]]:
    return [(a.name, str(a.type), a.has_default_value()) for a in op._schema.arguments]
