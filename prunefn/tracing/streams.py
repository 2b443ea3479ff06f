"""Which axes are residual streams: x + f(x), told from sums of parallel branches, f(x) + g(x).

A group is `residual` if some sum adds to a value, carried on unit by unit, what weights compute from that same value.

*Carried on* means through norms, activations, gates, crops and reshapes; *computed by weights* means that the other term is the
output of a linear layer, a convolution or a table and does not carry the value on as well. So the following stay `hidden`:

* sums of parallel branches: a low-rank update beside a layer, 3×3 + 1×1, base + spline, a projection beside a block;
* a value and its own scaled self: D·x beside a scan of x, x + x·gate(x);
* the state of a recurrent cell that is unrolled: the older and the newer units come from the same weights.

All of it follows from the ancestry of the values, in one pass: neither names nor the order of additions count.
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
"""Op → the arguments of each of its terms; no argument stands for the product that the op itself makes."""
ZEROS = ("zeros", "new_zeros", "zeros_like")
VIEWS = ("clone", "to", "expand", "view", "reshape", "unsqueeze", "select", "slice")
PICKS = ("select", "slice", "narrow")
PIECES = ("unbind", "split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")


class Units(NamedTuple):
    """Where the units of one axis of a value come from; each a set of nodes as the bits of an int."""

    carried: int = 0
    """What reaches here unit by unit: outputs of makers, and positions picked out of values."""
    makers: int = 0
    """The ops whose weights made the units."""
    before: int = 0
    """What the makers were computed from."""


class Carried(NamedTuple):
    """A node whose units reach a sum unit by unit."""

    makers: int
    same: int
    """The node itself, and what it was picked from."""
    weight: Any
    """The same for two calls with the same weights."""


class Pick(NamedTuple):
    """An op that takes some positions of a value along a dim."""

    source: fx.Node
    axes: tuple[Term, ...]
    """The dim that is picked from."""
    key: tuple[Any, ...]
    """Equal where the same positions are picked."""


def mark_streams(graph: fx.Graph, a: Analysis, leaves: Collection[Var]) -> None:
    """Mark those of `leaves` that are residual streams."""
    zeros = _zeros(graph)
    nodes = [
        n for n in graph.nodes if n.op == "call_function" and n not in zeros and any(v.active for v in _values(a, n))
    ]
    found = Streams(a, nodes, leaves)
    for node in nodes if found.wanted else ():
        found.visit(node)
    for v in found.streams:
        a.alg.mark(v, "residual")


class Streams:
    """What is known of the units of every axis after some nodes of the graph."""

    def __init__(self, a: Analysis, nodes: list[fx.Node], leaves: Collection[Var]) -> None:
        self.a, self.active = a, set(nodes)
        self.terms = {n: terms for n in nodes if (terms := _terms(n, self.active))}
        self.picks = {n: pick for n in nodes if (pick := _pick(a, n)) is not None}
        self.weights = {c.node: c.weight.name for c in a.contractions if c.weight is not None and not c.weight.active}
        """Node → a weight that it contracts with."""
        self.cache: dict[Term, frozenset[Var]] = {}
        self.wanted, self.streams = frozenset(leaves), set[Var]()
        self.wanted = frozenset(v for terms in self.terms.values() for v in self._shared(terms))
        self.cache.clear()
        self.bits: dict[Any, int] = {}
        self.ancestors: dict[fx.Node, int] = {}
        """What a node is computed from, with itself; of a value that it reads some positions of, only these."""
        self.units: dict[tuple[fx.Node, Var], Units] = {}
        self.carried: dict[tuple[int, Var], Carried] = {}
        self.parts: dict[int, int] = {}
        """What is carried → what was picked from it."""

    def visit(self, node: fx.Node) -> None:
        """Follow the units through one op, whose inputs have been visited."""
        inputs = [n for n in node.all_input_nodes if n in self.active]
        before, pick = _union(self.ancestors[n] for n in inputs), self.picks.get(node)
        leaves = self._leaves(_axes(self.a, node))
        if pick is not None:
            before &= ~self._of(pick, leaves)
        self.ancestors[node] = before
        for v in leaves - self.streams:
            past = self._past(inputs, v)
            if node.name in self.weights:
                new = self._begin(node, v, before)
                terms = [self._past(term, v) if term else new for term in self.terms.get(node, [[]])]
            elif not past.makers:
                terms = [self._begin(node, v, before)]
            elif pick is not None and v not in self._leaves(pick.axes):
                terms = [self._part(node, pick, v, past)]
            else:
                terms = [self._past(term, v) for term in self.terms.get(node, [inputs])]
            self.units[node, v] = _joined(terms)
            if any(self._passes(x, y, v) for x, y in permutations(terms, 2)):
                self.streams.add(v)

    def _past(self, inputs: Iterable[fx.Node], v: Var) -> Units:
        """The units of an axis in several values together."""
        return _joined([self.units.get((n, v), Units()) for n in inputs])

    def _begin(self, node: fx.Node, v: Var, before: int) -> Units:
        """New units."""
        bit = self._bit(node)
        self.ancestors[node] |= bit
        self.carried[bit, v] = Carried(bit, bit, self.weights.get(node.name, node))
        return Units(bit, bit, before)

    def _part(self, node: fx.Node, pick: Pick, v: Var, past: Units) -> Units:
        """The same units at some positions."""
        bit = self._bit(pick.key)
        self.ancestors[node] |= bit
        for whole in _each(past.carried):
            self.parts[whole] = self.parts.get(whole, 0) | bit
        weights = frozenset(self.carried[b, v].weight for b in _each(past.carried))
        weight = next(iter(weights)) if len(weights) == 1 else weights
        self.carried[bit, v] = Carried(past.makers, bit | past.carried, weight)
        return past._replace(carried=bit)

    def _of(self, pick: Pick, leaves: Iterable[Var]) -> int:
        """What the source of a pick carries."""
        return _union(self.units[pick.source, v].carried for v in leaves if (pick.source, v) in self.units)

    def _passes(self, x: Units, y: Units, v: Var) -> bool:
        """Whether x carries on what new units of y were computed from."""
        if not y.before:
            return False
        weights = Counter(self.carried[b, v].weight for b in _each(x.carried | y.carried))
        for bit in _each(x.carried):
            it = self.carried[bit, v]
            if (it.same | self.parts.get(bit, 0)) & y.before and it.makers & ~y.makers and weights[it.weight] == 1:
                return True
        return False

    def _bit(self, key: Any) -> int:
        return self.bits.setdefault(key, 1 << len(self.bits))

    def _shared(self, terms: list[list[fx.Node]]) -> Iterator[Var]:
        """The axes that several terms run over."""
        counts = Counter(v for term in terms for v in self._leaves([t for n in term for t in _axes(self.a, n)]))
        return (v for v, n in counts.items() if n > 1 or [] in terms)

    def _leaves(self, axes: Iterable[Term]) -> frozenset[Var]:
        """The wanted leaves of some axes."""
        found = frozenset[Var]()
        for t in axes:
            if t not in self.cache:
                self.cache[t] = frozenset(self.a.alg.vars(t)) & self.wanted
            found |= self.cache[t]
        return found


# ---- nodes


def _zeros(graph: fx.Graph) -> set[fx.Node]:
    """Values that are zero, such as the first state of a scan, and what it is multiplied with."""
    found = set[fx.Node]()
    for node in graph.nodes:
        if node.op == "call_function":
            op, zero = _op(node), [n in found for n in node.all_input_nodes]
            if op in ZEROS or (any(zero) if op == "mul" else op in VIEWS and zero[0]):
                found.add(node)
    return found


def _values(a: Analysis, node: fx.Node) -> list[Value]:
    value = a.values.get(node)
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, Value)]


def _axes(a: Analysis, node: fx.Node) -> list[Term]:
    return [t for v in _values(a, node) for t in v.axes]


def _op(node: fx.Node) -> str:
    """`aten.add_.Tensor` → `add`."""
    name = str(node.target)
    return name.split(".")[1].rstrip("_") if name.startswith("aten.") else ""


def _arguments(node: fx.Node) -> dict[str, Any]:
    arguments = schema(node.target)
    return dict(arguments) | dict(zip((name for name, _ in arguments), node.args, strict=False)) | node.kwargs


def _terms(node: fx.Node, active: Collection[fx.Node]) -> list[list[fx.Node]]:
    """The active values of each term, where an op adds several active terms; the product that it makes itself is empty."""
    op = _op(node)
    if op in ("sum", "mean") and (stacked := _stacked(node)):
        return [[n] for n in stacked if n in active]
    if op not in SUMS:
        return []
    arguments = _arguments(node)
    terms = [[n for k in names.split() if (n := arguments[k]) in active] for names in SUMS[op]]
    return terms if all(t or not names for t, names in zip(terms, SUMS[op], strict=True)) else []


def _stacked(node: fx.Node) -> list[fx.Node]:
    """The values that a sum adds, which were stacked before."""
    stack, dims = node.args[0], _arguments(node).get("dim")
    if not isinstance(stack, fx.Node) or _op(stack) != "stack":
        return []
    given, rank = _arguments(stack), len(stack.meta["val"].shape)
    return given["tensors"] if dims is None or given["dim"] % rank in {d % rank for d in dims} else []


def _pick(a: Analysis, node: fx.Node) -> Pick | None:
    """What an op takes out of a value, if it takes a part of its positions."""
    index = None
    taker = node
    if node.target is getitem:
        taker, index = node.args  # type: ignore[assignment]
    if not isinstance(taker, fx.Node) or _op(taker) not in (PICKS if index is None else PIECES):
        return None
    source, *rest = taker.args
    value = a.values.get(source)  # type: ignore[arg-type]
    if not isinstance(value, Value) or value.axes == a.values[node].axes:
        return None
    dim = _arguments(taker)["dim"]
    return Pick(source, (value.axes[dim],), (source, _op(taker), str(rest), str(taker.kwargs), index))  # type: ignore[arg-type]


def _joined(units: list[Units]) -> Units:
    return Units(*(_union(sets) for sets in zip(*units, strict=True))) if units else Units()


def _union(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)


def _each(bits: int) -> Iterator[int]:
    """The bits of a set one by one."""
    while bits:
        yield (bit := bits & -bits)
        bits ^= bit
