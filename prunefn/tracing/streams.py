"""Find axes that are residual streams: x + f(x), as opposed to sums of parallel branches, f(x) + g(x).

A group is `residual` if some sum has two terms: a value that is carried on unit by unit, and a result of weights computed from
that same value.

*Carried on* means through norms, activations, gates, crops and reshapes. *A result of weights* is the output of a linear layer, a
convolution or a table that does not carry the value on as well. So the following groups stay `hidden`:

* sums of parallel branches: a low-rank update beside a layer, 3×3 + 1×1, base + spline, a projection beside a block;
* a value and its own scaled self: D·x beside a scan of x, x + x·gate(x);
* the state of a recurrent cell that is unrolled: the older and the newer units come from the same weights.

All this follows from the ancestry of the values, in one pass: neither names nor the order of additions matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import reduce
from itertools import permutations
from operator import getitem, or_
from typing import Any, NamedTuple

from torch import fx

from .analyse import Analysis, schema
from .axes import Term, Var
from .rules import Value

SUMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("add", "sub", "rsub", "_add_relu"), ("self", "other")),
    **dict.fromkeys(("addcmul", "addcdiv"), ("self", "tensor1 tensor2")),
    "lerp": ("self", "end"),
    "index_add": ("self", "source"),
    **dict.fromkeys(("scatter_add", "scatter_reduce"), ("self", "src")),
    **dict.fromkeys(("addmm", "addmv", "baddbmm", "addbmm"), ("self", "")),
}
"""Op → arguments of each of its terms; an empty text represents the product that the op itself computes."""
ZEROS = ("zeros", "new_zeros", "zeros_like")
VIEWS = ("clone", "to", "expand", "view", "reshape", "unsqueeze", "select", "slice")
PICKS = ("select", "slice", "narrow")
PIECES = ("unbind", "split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")


class Units(NamedTuple):
    """The origin of the units of one axis of a value; each field is a set of nodes, as the bits of an int."""

    carried: int = 0
    """Values that arrive here unit by unit: outputs of makers, and positions picked from values."""
    makers: int = 0
    """Ops whose weights produced the units."""
    before: int = 0
    """Values from which the makers were computed."""


class Carried(NamedTuple):
    """A node whose units reach a sum unit by unit."""

    makers: int
    same: int
    """The node itself, and the values that it was picked from."""
    weight: Any
    """Key that is equal for two calls with the same weights."""


class Pick(NamedTuple):
    """An op that takes some positions of a value along a dim."""

    source: fx.Node
    axes: tuple[Term, ...]
    """The dim that is picked from."""
    key: tuple[Any, ...]
    """Key that is equal if the same positions are picked."""


def mark_streams(graph: fx.Graph, a: Analysis, leaves: Collection[Var]) -> None:
    """Mark the `leaves` that are residual streams."""
    zeros = _zero_values(graph)
    nodes = [
        n for n in graph.nodes if n.op == "call_function" and n not in zeros and any(v.active for v in _values_of(a, n))
    ]
    streams = Streams(a, nodes, leaves)
    for node in nodes if streams.wanted else ():
        streams.visit(node)
    for v in streams.streams:
        a.alg.mark(v, "residual")


class Streams:
    """The origins of the units of every axis, after some nodes of the graph."""

    def __init__(self, a: Analysis, nodes: list[fx.Node], leaves: Collection[Var]) -> None:
        self.a, self.active = a, set(nodes)
        self.terms = {n: terms for n in nodes if (terms := _sum_terms(n, self.active))}
        self.picks = {n: pick for n in nodes if (pick := _pick_of(a, n)) is not None}
        self.weights = {c.node: c.weight.name for c in a.contractions if c.weight is not None and not c.weight.active}
        """Node → a weight that it contracts with."""
        self.cache: dict[Term, frozenset[Var]] = {}
        self.wanted, self.streams = frozenset(leaves), set[Var]()
        self.wanted = frozenset(v for terms in self.terms.values() for v in self._shared_axes(terms))
        self.cache.clear()
        self.bits: dict[Any, int] = {}
        self.ancestors: dict[fx.Node, int] = {}
        """Node → values from which it is computed, and itself; if it reads some positions of a value, only these."""
        self.units: dict[tuple[fx.Node, Var], Units] = {}
        self.carried: dict[tuple[int, Var], Carried] = {}
        self.parts: dict[int, int] = {}
        """Carried value → values that were picked from it."""

    def visit(self, node: fx.Node) -> None:
        """Follow the units through one op, whose inputs have been visited."""
        inputs = [n for n in node.all_input_nodes if n in self.active]
        before, pick = _union(self.ancestors[n] for n in inputs), self.picks.get(node)
        leaves = self._wanted_leaves(_axes_of(self.a, node))
        if pick is not None:
            before &= ~self._carried_by_source(pick, leaves)
        self.ancestors[node] = before
        for v in leaves - self.streams:
            units = self._units_in(inputs, v)
            if node.name in self.weights:
                started = self._start_units(node, v, before)
                terms = [self._units_in(term, v) if term else started for term in self.terms.get(node, [[]])]
            elif not units.makers:
                terms = [self._start_units(node, v, before)]
            elif pick is not None and v not in self._wanted_leaves(pick.axes):
                terms = [self._pick_units(node, pick, v, units)]
            else:
                terms = [self._units_in(term, v) for term in self.terms.get(node, [inputs])]
            self.units[node, v] = _join_units(terms)
            if any(self._is_stream(x, y, v) for x, y in permutations(terms, 2)):
                self.streams.add(v)

    def _units_in(self, inputs: Iterable[fx.Node], v: Var) -> Units:
        """Return the union of the units of an axis in several values."""
        return _join_units([self.units.get((n, v), Units()) for n in inputs])

    def _start_units(self, node: fx.Node, v: Var, before: int) -> Units:
        """Return new units, which this node produces."""
        bit = self._bit(node)
        self.ancestors[node] |= bit
        self.carried[bit, v] = Carried(bit, bit, self.weights.get(node.name, node))
        return Units(bit, bit, before)

    def _pick_units(self, node: fx.Node, pick: Pick, v: Var, units: Units) -> Units:
        """Return the same units at some positions."""
        bit = self._bit(pick.key)
        self.ancestors[node] |= bit
        for whole in _each_bit(units.carried):
            self.parts[whole] = self.parts.get(whole, 0) | bit
        weights = frozenset(self.carried[b, v].weight for b in _each_bit(units.carried))
        weight = next(iter(weights)) if len(weights) == 1 else weights
        self.carried[bit, v] = Carried(units.makers, bit | units.carried, weight)
        return units._replace(carried=bit)

    def _carried_by_source(self, pick: Pick, leaves: Iterable[Var]) -> int:
        """Return the values that the source of a pick carries."""
        return _union(self.units[pick.source, v].carried for v in leaves if (pick.source, v) in self.units)

    def _is_stream(self, x: Units, y: Units, v: Var) -> bool:
        """Return whether x carries on a value from which new units of y were computed."""
        if not y.before:
            return False
        weights = Counter(self.carried[b, v].weight for b in _each_bit(x.carried | y.carried))
        for bit in _each_bit(x.carried):
            carried = self.carried[bit, v]
            if (
                (carried.same | self.parts.get(bit, 0)) & y.before
                and carried.makers & ~y.makers
                and weights[carried.weight] == 1
            ):
                return True
        return False

    def _bit(self, key: Any) -> int:
        return self.bits.setdefault(key, 1 << len(self.bits))

    def _shared_axes(self, terms: list[list[fx.Node]]) -> Iterator[Var]:
        """Return the axes that several terms run over."""
        counts = Counter(
            v for term in terms for v in self._wanted_leaves([t for n in term for t in _axes_of(self.a, n)])
        )
        return (v for v, n in counts.items() if n > 1 or [] in terms)

    def _wanted_leaves(self, axes: Iterable[Term]) -> frozenset[Var]:
        """Return the wanted leaves of some axes."""
        leaves = frozenset[Var]()
        for t in axes:
            if t not in self.cache:
                self.cache[t] = frozenset(self.a.alg.vars(t)) & self.wanted
            leaves |= self.cache[t]
        return leaves


# ---- nodes


def _zero_values(graph: fx.Graph) -> set[fx.Node]:
    """Return the values that are zero, such as the first state of a scan and products with it."""
    zeros = set[fx.Node]()
    for node in graph.nodes:
        if node.op == "call_function":
            op, zero = _op_name(node), [n in zeros for n in node.all_input_nodes]
            if op in ZEROS or (any(zero) if op == "mul" else op in VIEWS and zero[0]):
                zeros.add(node)
    return zeros


def _values_of(a: Analysis, node: fx.Node) -> list[Value]:
    value = a.values.get(node)
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, Value)]


def _axes_of(a: Analysis, node: fx.Node) -> list[Term]:
    return [t for v in _values_of(a, node) for t in v.axes]


def _op_name(node: fx.Node) -> str:
    """Return the plain name of an op: `aten.add_.Tensor` → `add`."""
    name = str(node.target)
    return name.split(".")[1].rstrip("_") if name.startswith("aten.") else ""


def _arguments_of(node: fx.Node) -> dict[str, Any]:
    arguments = schema(node.target)
    return dict(arguments) | dict(zip((name for name, _ in arguments), node.args, strict=False)) | node.kwargs


def _sum_terms(node: fx.Node, active: Collection[fx.Node]) -> list[list[fx.Node]]:
    """Return the active values of each term, if an op adds several active terms; the op's own product is an empty term."""
    op = _op_name(node)
    if op in ("sum", "mean") and (stacked := _stacked_terms(node)):
        return [[n] for n in stacked if n in active]
    if op not in SUMS:
        return []
    arguments = _arguments_of(node)
    terms = [[n for k in names.split() if (n := arguments[k]) in active] for names in SUMS[op]]
    return terms if all(t or not names for t, names in zip(terms, SUMS[op], strict=True)) else []


def _stacked_terms(node: fx.Node) -> list[fx.Node]:
    """Return the values that a sum adds after they were stacked; none if they were not."""
    stack, dims = node.args[0], _arguments_of(node).get("dim")
    if not isinstance(stack, fx.Node) or _op_name(stack) != "stack":
        return []
    stack_args, rank = _arguments_of(stack), len(stack.meta["val"].shape)
    return stack_args["tensors"] if dims is None or stack_args["dim"] % rank in {d % rank for d in dims} else []


def _pick_of(a: Analysis, node: fx.Node) -> Pick | None:
    """Return the pick of an op that takes a part of a value's positions; else None."""
    index = None
    picking_op = node
    if node.target is getitem:
        picking_op, index = node.args  # type: ignore[assignment]
    if not isinstance(picking_op, fx.Node) or _op_name(picking_op) not in (PICKS if index is None else PIECES):
        return None
    source, *rest = picking_op.args
    value = a.values.get(source)  # type: ignore[arg-type]
    if not isinstance(value, Value) or value.axes == a.values[node].axes:
        return None
    dim = _arguments_of(picking_op)["dim"]
    key = (source, _op_name(picking_op), str(rest), str(picking_op.kwargs), index)
    return Pick(source, (value.axes[dim],), key)  # type: ignore[arg-type]


def _join_units(units: list[Units]) -> Units:
    return Units(*(_union(sets) for sets in zip(*units, strict=True))) if units else Units()


def _union(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)


def _each_bit(bits: int) -> Iterator[int]:
    """Yield the bits of a set one by one."""
    while bits:
        yield (bit := bits & -bits)
        bits ^= bit
