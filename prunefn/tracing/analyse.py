"""Graph → axes of every value, by one pass of the rules over the ops."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from .. import trees
from ..errors import TraceError, warn
from ..spec.interface import Interface
from . import rules
from .axes import Algebra, Plus, Term, Times, Var
from .capture import LIBRARIES, Captured, live_nodes
from .rules import Axes, Call, Contraction, Lookup, Reason, Rule, SizeOf, TermLayout, Value
from .rules.reduce import RETURNED
from .symbols import expression

INPUT, OUTPUT, INTEGER = Reason("it is an input"), Reason("it is an output"), Reason("it holds integers")
BATCH = Reason("it is the batch")
UNREAD = Reason("nothing reads what is computed with it")
MADE = Reason("it is made in forward, which a recorded run does not change")
FRAME = re.compile(r'File "(.*)", line (\d+)')


class WrongRuleError(TraceError):
    """A rule of the user returns what cannot be the axes of the op's results."""


@dataclass
class Analysis:
    """The statements of the rules about a graph."""

    live: set[fx.Node]
    """Nodes that an output needs. Others only say which axes are the same."""
    alg: Algebra = field(default_factory=Algebra)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    """Node → a Value, a list of Values, a SizeOf, or a plain number."""
    tensors: dict[str, Axes] = field(default_factory=dict)
    """Parameter or buffer → its axes."""
    resized: dict[fx.Node, dict[str, Any]] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    layouts: list[TermLayout] = field(default_factory=list)
    scales: list[Value] = field(default_factory=list)
    """Weights of norm layers."""
    lookups: list[Lookup] = field(default_factory=list)
    freed: dict[Var, tuple[str, Interface]] = field(default_factory=dict)
    """Leaf of an interface that the caller asked for → (name of its layer or tensor, the interface)."""
    compared: dict[fx.Node, tuple[Var, int]] = field(default_factory=dict)
    """Comparison of ids with a number → (leaf, number): the number is a position of this leaf."""
    layers: set[str] = field(default_factory=set)
    """Nodes whose results are activations, even if they read only parameters."""
    written: list[tuple[str, Axes]] = field(default_factory=list)
    """(node, axes) of every output that is not a view."""
    symbols: dict[Any, Term] = field(default_factory=dict)
    """Expression of a symbolic size → its axis, which is frozen."""
    fixed: list[Term] = field(default_factory=list)
    """Axes of dims whose size is a number."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Op without a rule → the place of its first call."""


def analyse(captured: Captured, extra: Mapping[str, Rule], *, lenient: bool = False) -> Analysis:
    """Run the rules over the graph, and return their statements.

    If `lenient`, axes that are frozen for being an interface are only held.

    Dead code says which of its tensors follow the sizes of others. Where it would freeze what the outputs' code leaves free, it is
    erased from the graph.
    """
    a = _analyse(captured, extra, lenient)
    dead = [n for n in captured.graph.nodes if n.op == "call_function" and n not in a.live]
    if not dead:
        return a
    without = _analyse(captured, extra, lenient, skip=frozenset(dead))
    free = {(t, d) for t, axes in without.tensors.items() for d, x in enumerate(axes) if not without.alg.is_pinned(x)}
    alone = {
        captured.tensors[n.name]
        for n in captured.graph.nodes
        if n.name in captured.tensors and n.users.keys() <= set(dead)
    }
    if not any(a.alg.is_pinned(a.tensors[t][d]) for t, d in free if t not in alone):
        return a
    for node in reversed(dead):
        captured.graph.erase_node(node)
    return _analyse(captured, extra, lenient)


def _analyse(
    captured: Captured, extra: Mapping[str, Rule], lenient: bool, skip: frozenset[fx.Node] = frozenset()
) -> Analysis:
    a = Analysis(live_nodes([*captured.outputs, *captured.updates.values()]), Algebra(lenient=lenient))
    for node in captured.graph.nodes:
        if node in skip:
            continue
        if node.op == "placeholder":
            a.values[node] = _analyse_placeholder(a, node, captured)
        elif node.op == "call_function":
            a.values[node] = _analyse_call(a, node, extra)
        elif node.op == "get_attr":  # a function that a higher-order op calls
            a.values[node] = None
    for node in (v for v in captured.outputs if isinstance(v, fx.Node)):
        shared = _leaves_of_siblings(a, node, captured.unread) if node in captured.unread else set[Var]()
        for v in _leaves(a, node) - shared:
            a.alg.hold(v, OUTPUT)
        for axis in (v.picks for v in _values(a.values[node]) if v.picks is not None):
            chooser: Any = node.args[0] if node.target is operator.getitem else node
            a.alg.freeze(axis, reason_of(chooser)._replace(text=RETURNED))
    for name, node in captured.updates.items():
        for x, y in zip(a.tensors.get(name, ()), a.values[node].axes, strict=False):
            a.alg.unify(x, y)
    _freeze_unread(a)
    return a


def _freeze_unread(a: Analysis) -> None:
    """Freeze the axes of tensors that occur in no value that an output needs."""
    if all(node in a.live for node in a.values if node.op == "call_function"):
        return
    live = {var for node in a.values if node in a.live for var in _leaves(a, node)}
    for axis in (x for axes in a.tensors.values() for x in axes):
        for var in a.alg.vars(axis):
            if var not in live:
                a.alg.freeze(var, UNREAD)


def _values(result: Any) -> list[Value]:
    """Return the values of an op's result: one, or a nest of lists."""
    if isinstance(result, list):
        return [v for item in result for v in _values(item)]
    return [result] if isinstance(result, Value) else []


def _leaves(a: Analysis, node: fx.Node) -> set[Var]:
    """Return the leaves of the axes of a value."""
    return {v for w in _values(a.values[node]) for axis in w.axes for v in a.alg.vars(axis)}


def _leaves_of_siblings(a: Analysis, node: fx.Node, unread: Collection[fx.Node]) -> set[Var]:
    """Return the leaves of results that are read, of ops that gave the value of `node`, too, as an RNN gives all steps and a state."""
    while node.all_input_nodes:
        if node.target is operator.getitem:
            siblings = [u for u in node.all_input_nodes[0].users if u is not node and u.users and u not in unread]
            if siblings:
                return set().union(*(_leaves(a, u) for u in siblings))
        node = node.all_input_nodes[0]
    return set()


def hints(value: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor with symbolic sizes replaced by those of the example."""
    shape = [n.node.hint if isinstance(n, torch.SymInt) else n for n in value.shape]
    if None in shape:
        raise TraceError(
            f"the size {value.shape[shape.index(None)]} of a tensor of shape {tuple(value.shape)} depends on data"
        )
    return tuple(int(n) for n in shape if n is not None)


def _analyse_placeholder(a: Analysis, node: fx.Node, captured: Captured) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return value
    shape = hints(value)
    if node.name in captured.inputs:
        batch = BATCH if captured.how == "exported" else INPUT
        varies = [d == 0 or expression(n) is not None for d, n in enumerate(value.shape)]
        axes = tuple(a.alg.leaf(n, (INPUT if d else batch) if varies[d] else None) for d, n in enumerate(shape))
        for d, axis in enumerate(axes):
            a.alg.hold(axis, INPUT if d else batch)
        _unify_sizes(a, [value], [axes])
        return Value(node.name, axes, True, boolean=value.dtype == torch.bool, zero=False)
    floating = value.dtype.is_floating_point or value.dtype.is_complex or rules.is_zero_point(node)
    made_in_forward = (
        captured.how == "recorded" and node.name in captured.constants and node.name not in captured.sources
    )
    axes = tuple(a.alg.leaf(n, MADE if made_in_forward else None if floating else INTEGER) for n in shape)
    a.fixed += axes
    name = captured.tensors.get(node.name)
    if name is not None and (node.users or name in captured.updates):
        if name in a.tensors:  # one tensor under two placeholders
            for x, y in zip(axes, a.tensors[name], strict=True):
                a.alg.unify(x, y)
        a.tensors[name] = axes
    return Value(node.name, axes, False, boolean=value.dtype == torch.bool, zero=name is not None)


def _analyse_call(a: Analysis, node: fx.Node, extra: Mapping[str, Rule]) -> Any:
    if node.target is operator.getitem:
        item = a.values[node.args[0]][node.args[1]]  # type: ignore[index]
        return item._replace(name=node.name) if isinstance(item, Value) else item
    meta: Any = node.meta.get("val")
    metas = trees.tensors(meta)
    if not metas and meta not in ((), []):
        return _analyse_size(a, node, meta)
    shapes, unused = [hints(m) for m in metas], _unused_outputs(node, meta)
    call = Call(a.alg, str(node.target), node.name, _bind_arguments(a, node), shapes, reason_of(node), unused)
    call, out = _apply_rule(a, node, call, extra)
    rules.follow_picks(call)
    _unify_sizes(a, metas, out)
    values = _record(a, node, call, out, metas)
    if isinstance(meta, Tensor):
        return values[0]
    rest = iter(values)  # an op may return tensors, lists of them, and numbers
    return list(trees.map_tensors(lambda _: next(rest), meta))


def _apply_rule(a: Analysis, node: fx.Node, call: Call, extra: Mapping[str, Rule]) -> tuple[Call, list[Axes]]:
    """Return the call with the statements of its rule, and the axes of the outputs.

    An op without a rule, or whose rule raises, freezes all axes that it touches and is reported.

    Raises:
        WrongRuleError: a rule of the user returns no axes, or axes of other sizes than the op's results.
    """
    rule = rules.find(node.target, extra)
    if rule is None:
        return call, _freeze_call(a, call, rules.why_no_rule(call.op))
    name = next((f"rules[{key!r}]" for key, r in extra.items() if r is rule), "")
    # a rule that fails may have made some statements: the copy has none
    untouched = replace(call, resized={}, contractions=[], layouts=[], scales=[], lookups=[], picks={}, layer=False)
    try:
        out = rule(call)
    except Exception as error:  # a rule may raise anything
        text = f"{name or 'its rule'} raises {type(error).__name__}: {error}"
        if name:
            warn(f"{text} at {call.at.source or node.name}; all axes that {call.op} touches are frozen")
        return untouched, _freeze_call(a, untouched, text)
    out = [out] if isinstance(out, tuple) else out
    if not (problem := _wrong_sizes(call, out)):
        return call, out
    if name:
        raise WrongRuleError(f"{name} {problem} at {call.at.source or node.name}")
    return untouched, _freeze_call(a, untouched, f"its rule {problem}")


def _freeze_call(a: Analysis, call: Call, why: str) -> list[Axes]:
    """Freeze all axes that an op touches, and report it."""
    a.unknown.setdefault(call.op, f"{call.at.source} ({why})".strip() if why != rules.NO_RULE else call.at.source)
    return rules.freeze_all(call, why)


def _unused_outputs(node: fx.Node, meta: Any) -> frozenset[int]:
    """Return the indices of the tensors among several results that nothing reads."""
    if isinstance(meta, Tensor):
        return frozenset()
    read: list[Any] = [u.args[1] for u in node.users if u.target is operator.getitem and u.users]
    is_read = [i in read for i, m in enumerate(meta) for _ in trees.tensors(m)]
    return frozenset(i for i, r in enumerate(is_read) if not r)


def _unify_sizes(a: Analysis, metas: list[Tensor], out: list[Axes]) -> None:
    """Unify axes of the same symbolic size, since a rule may lose them (an op without a rule always does)."""
    for meta, axes in zip(metas, out, strict=True):
        for n, axis in zip(meta.shape, axes, strict=True):
            if (expr := expression(n)) is None:
                a.fixed.append(axis)
            elif not a.alg.is_frozen(known := a.symbols.get(expr, axis)):
                continue
            elif expr not in a.symbols:
                a.symbols[expr] = axis
            elif isinstance(a.alg.find(axis), Var):
                a.alg.unify(axis, known)


def _record(a: Analysis, node: fx.Node, call: Call, out: list[Axes], metas: list[Tensor]) -> list[Value]:
    """Add the statements of a call to the analysis, and return a value for each of its tensors."""
    inputs = call.tensors()
    active = any(v.active for v in inputs)
    if node in a.live:
        _record_statements(a, node, call, out)
    zero, repeated = rules.keeps_zero(node.target, call), rules.repeated_dims(node.target, call)
    return [
        Value(node.name, axes, active, m.dtype == torch.bool, zero, repeated, call.picks.get(n))
        for n, (axes, m) in enumerate(zip(out, metas, strict=True))
    ]


def _record_statements(a: Analysis, node: fx.Node, call: Call, out: list[Axes]) -> None:
    """Record what the rule states about an op that an output needs."""
    if call.resized:
        a.resized[node] = call.resized
    a.contractions += call.contractions
    a.layouts += call.layouts
    a.scales += call.scales
    a.lookups += call.lookups
    a.layers |= {node.name} if call.layer else set()
    if not any(r.alias_info is not None for r in getattr(getattr(node.target, "_schema", None), "returns", ())):
        a.written += [(node.name, axes) for axes in out]


def _wrong_sizes(call: Call, out: Any) -> str:
    """Return how the result of a rule differs from the op's results, to find its bug here rather than in a pruned network."""
    terms = (Var, Times, Plus)
    if not isinstance(out, list) or not all(isinstance(t, tuple) and all(isinstance(x, terms) for x in t) for t in out):
        return f"returns {out!r:.100}, which is no tuple of axes, and no list of such tuples"
    sizes = [tuple(call.alg.size(x) for x in axes) for axes in out]
    return "" if sizes == call.shapes else f"returns axes of sizes {sizes} for outputs of shapes {call.shapes}"


def _analyse_size(a: Analysis, node: fx.Node, meta: Any) -> Any:
    """Return the result of arithmetic on symbolic sizes; the size of a dim and products of sizes stay traceable to axes."""
    args: list[Any] = [a.values.get(x, x) if isinstance(x, fx.Node) else x for x in node.args]
    if "sym_size" in str(node.target) and isinstance(args[0], Value):
        return SizeOf(args[0].axes[args[1]])
    if node.target is operator.mul and any(isinstance(x, SizeOf) for x in args):
        sizes = [a.alg.size(x.axis) if isinstance(x, SizeOf) else x for x in args if isinstance(x, SizeOf | int)]
        if len(sizes) == 2:  # a number does not say which factor comes first
            return SizeOf(a.alg.leaf(sizes[0] * sizes[1]))
    return meta


_SCHEMAS: dict[Any, list[tuple[str, Any]]] = {}


def schema(op: Any) -> list[tuple[str, Any]]:
    """Return (name, default) of each argument of an op."""
    if op not in _SCHEMAS:
        _SCHEMAS[op] = [(x.name, x.default_value if x.has_default_value() else None) for x in op._schema.arguments]
    return _SCHEMAS[op]


def _bind_arguments(a: Analysis, node: fx.Node) -> dict[str, Any]:
    def value(x: Any) -> Any:
        if isinstance(x, fx.Node):
            return a.values[x]
        return [value(y) for y in x] if isinstance(x, (list, tuple)) else x

    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): value(x) for i, x in enumerate(node.args)}
    arguments = schema(node.target)
    bound = dict(arguments)
    bound.update(zip((name for name, _ in arguments), map(value, node.args), strict=False))
    bound.update({k: value(x) for k, x in node.kwargs.items()})
    return bound


def reason_of(node: fx.Node) -> Reason:
    """Return the place of an op's call: the innermost line outside of torch, if there is one."""
    frames = [f for f in FRAME.findall(node.meta.get("stack_trace") or "") if not f[0].startswith("<")]
    if not frames:
        return Reason("", str(node.target))
    path, line = next((f for f in reversed(frames) if not f[0].startswith(LIBRARIES)), frames[-1])
    return Reason("", str(node.target), f"{path.rpartition('site-packages/')[2]}:{line}")
