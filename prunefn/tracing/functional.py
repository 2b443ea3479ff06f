"""In-place ops → their functional twins, so that a graph need not be decomposed.

`relu_(x)` becomes `relu(x)`, and later reads of x read the result. A write to a slice of x becomes a scatter into x. Where
another view of the same tensor, made before the write, is read after it, this gives up: then torch's own functionalisation
must do it.
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
    """Rename all in-place ops. False: a write could not be followed, and the graph must be thrown away.

    Args:
        graph: of an export.
        buffers: placeholders whose new values are results, so that torch must follow what is written to them.
    """
    return all(map(_Writes(graph, buffers).visit, list(graph.nodes)))


def spell_out_writes(graph: fx.Graph) -> bool:
    """Make running statistics that a norm writes to without saying so in its schema visible; return whether there are some.

    `instance_norm` becomes one without them and a write of its own. `batch_norm` stays: torch's functionalisation knows it.
    """
    writing = [n for n in graph.nodes if _updates_statistics(n)]
    for n in writing:
        if n.target is aten.instance_norm.default:
            _write_statistics(graph, n)
    return bool(writing)


def _updates_statistics(n: fx.Node) -> bool:
    """Whether a norm takes the input's own statistics, and keeps running ones of them."""
    return (
        n.target in (aten.batch_norm.default, aten.instance_norm.default) and bool(n.args[5]) and n.args[3] is not None
    )


def _write_statistics(graph: fx.Graph, norm: fx.Node) -> None:
    """x [n, c, …] → running statistics [c]: of the samples' means and unbiased variances, the mean."""
    x, weight, bias, *running, _, momentum, eps, cudnn = norm.args
    spatial = list(range(2, norm.meta["val"].ndim))
    new: list[fx.Node] = []

    def op(target: OpOverload, *args: Any, **kwargs: Any) -> fx.Node:
        new.append(graph.call_function(target, args, kwargs))
        return new[-1]

    with graph.inserting_before(norm):
        of_samples = (op(aten.mean.dim, x, spatial), op(aten.var.correction, x, spatial, correction=1))
        for statistic, per_sample in zip(running, of_samples, strict=True):
            kept = op(aten.mul.Tensor, statistic, 1 - momentum)  # type: ignore[operator]
            added = op(aten.mul.Tensor, op(aten.mean.dim, per_sample, [0]), momentum)
            op(aten.copy_.default, statistic, op(aten.add.Tensor, kept, added))
    for n in new:  # torch decomposes the graph next, which gives each node its own value
        n.meta = {k: v for k, v in norm.meta.items() if k != "val"}
    norm.args = (x, weight, bias, None, None, True, momentum, eps, cudnn)


class _Writes:
    """One walk over a graph that knows which values share memory."""

    def __init__(self, graph: fx.Graph, buffers: Collection[str]) -> None:
        self.graph, self.buffers = graph, buffers
        self.order = {n: i for i, n in enumerate(graph.nodes)}
        self.parent: dict[fx.Node, fx.Node] = {}
        self.views: dict[fx.Node, list[fx.Node]] = {}

    def visit(self, n: fx.Node) -> bool:
        """Take note of a node, and rewrite it if it writes."""
        if n.op == "call_function" and isinstance(n.target, OpOverload) and n.target._schema.is_mutable:
            return self.rewrite(n)
        if is_view(n) and n.all_input_nodes:
            self.parent[n] = n.all_input_nodes[0]
        self.views.setdefault(self.base(n), []).append(n)
        return True

    def base(self, n: fx.Node) -> fx.Node:
        """The value whose memory a node looks at."""
        while n in self.parent:
            n = self.parent[n]
        return n

    def rewrite(self, n: fx.Node) -> bool:
        """One in-place op, with all that looks at the same memory."""
        written, twin = n.args[0], functional_twin(n.target)
        if twin is None or not isinstance(written, fx.Node):
            return False
        chain = [written]
        while chain[-1] in self.parent:
            chain.append(self.parent[chain[-1]])
        if chain[-1].name in self.buffers:
            return False
        stale = [v for v in self.views[chain[-1]] if v not in chain]
        if any(self.order[u] > self.order[n] for v in stale for u in v.users if u in self.order):
            return False
        n.target, new = twin, n
        for view, parent in zip(chain, [*chain[1:], None], strict=True):
            later = {u for u in view.users if u in self.order and self.order[u] > self.order[n]}
            view.replace_all_uses_with(new, delete_user_cb=later.__contains__)
            self.views.setdefault(new, []).append(new)
            if parent is None:
                return True
            if not any(u in self.order and self.order[u] > self.order[n] for p in chain for u in p.users):
                return True  # nobody looks at the rest again
            if view.target not in SCATTERS:
                return False
            new = self.scatter(view, parent, new)
        return True

    def scatter(self, view: fx.Node, parent: fx.Node, new: fx.Node) -> fx.Node:
        """`parent` with `new` in the place that `view` looks at."""
        with self.graph.inserting_after(new):
            args = (parent, new, *view.args[1:])
            node = self.graph.call_function(SCATTERS[view.target], args, dict(view.kwargs))
        node.meta = {**view.meta, "val": parent.meta["val"]}
        return node


def is_view(n: fx.Node) -> bool:
    """Whether a node may look at the memory of its first input."""
    if n.target is aten.contiguous.default or getattr(n.target, "__name__", "") == "getitem":
        return True
    return isinstance(n.target, OpOverload) and any(r.alias_info is not None for r in n.target._schema.returns)


def functional_twin(op: Any) -> OpOverload | None:
    """`aten.relu_.default` → `aten.relu.default`; None where there is none with the same arguments."""
    name = op._schema.name.removeprefix("aten::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(aten, name.removesuffix("_"), None)
    twin = getattr(packet, op._overloadname, None) if packet is not None else None
    if twin is None or [a.name for a in twin._schema.arguments] != [a.name for a in op._schema.arguments]:
        return None
    return twin
