"""The interface of a rule: the call that it receives, and the statements that it makes.

A rule is a function from a `Call` (one op of the graph, with its tensor arguments as `Value`s) to the axes of its outputs. It
also states equations (`call.unify`), freezes axes (`call.freeze`), names the axes behind static sizes (`call.resize`), and
records contractions (`call.contract`). A table keyed by op name holds the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from ...errors import TraceError
from ...spec.parts import Geometry
from ..axes import ONE, Algebra, Term

Axes = tuple[Term, ...]
Rule = Callable[["Call"], "Axes | list[Axes]"]


SEQUENCE = "sequence"
"""Mark of an axis along which positions are combined, so that they are no samples."""


CHOSEN = "chosen:"
"""Beginning of the mark of an axis of which a top-k chooses a number of positions, which follows."""
EXPERTS = "experts"
"""Mark of an axis whose positions a top-k chooses, and that other ops then look up."""


class Value(NamedTuple):
    """A tensor of the graph during the analysis."""

    name: str
    axes: Axes
    active: bool
    """Whether it depends on the inputs; otherwise it depends on parameters and constants alone."""
    boolean: bool = False
    """Whether it holds truth values; such an index is a mask."""
    zero: bool = True
    """Whether it is zero at a unit whose tensors are all zero."""
    repeated: frozenset[int] = frozenset()
    """Dims, counted from the right (-1), along which all of its values are equal."""
    picks: Term | None = None
    """The axis that its integers are positions of, such as the experts that a top-k picks."""

    def repeats(self, dim: int) -> bool:
        """Return whether its values are equal along a dim, counted from the right; also if it broadcasts along it."""
        return dim in self.repeated or -dim > len(self.axes) or self.axes[dim] == ONE


class Reason(NamedTuple):
    """The reason why an axis is frozen: the op, what it does, and its place in the user's source."""

    text: str
    op: str = ""
    source: str = ""

    def __str__(self) -> str:
        op = f" by {self.op}" if self.op else ""
        return f"{self.text}{op}" + (f" at {self.source}" if self.source else "")


class Contraction(NamedTuple):
    """A sum over an axis, with its cost and the layout of its weight."""

    node: str
    macs: Axes
    """The number of multiply-accumulates is the product of these axes."""
    x: Value | None = None
    dim: int = -1
    """The dim of x that is summed over."""
    weight: Value | None = None
    pattern: str = ""
    """einops pattern from the weight to [g, out, in, taps]."""
    groups: Term = ONE
    bias: Value | None = None
    bias_arg: str = ""
    """Name of the op's bias argument; empty if it has none."""
    out: Term = ONE
    geometry: Geometry | None = None


class TermLayout(NamedTuple):
    """The layout of a value that is the weight of a contraction."""

    node: str
    weight: Value
    pattern: str
    """einops pattern from the weight to [g, out, in, taps]."""
    groups: Term = ONE
    convolution: bool = False
    """Whether its dims are [filters, inputs, *kernel]; False for a transposed convolution."""


class Lookup(NamedTuple):
    """Positions of an axis that the integers of a value pick."""

    node: str
    axis: Term
    index: Value


@dataclass
class Call:
    """One op of the graph, as passed to a rule: a function from a `Call` to the axes of the op's outputs.

    `call["x"]` is an argument by the name in the op's schema (by its place, `call["0"]`, for a higher-order op such as
    `higher_order.cond`): a number, None, a tensor as `Value` with `axes`, or a list of these. A rule returns one tuple of axes, or a
    list with one for each output. Before that it states all that must hold:

    * `unify(a, b)`: two dims have the same units, as the columns of x and of weight in `x @ weight.T`;
    * `freeze(axes, why)`: no unit of these may go; `frozen(sizes, why)` are new axes of this kind, `fresh(sizes)` free ones;
    * `broadcast(values)`: the axes of the result of an elementwise op;
    * `mark(axes, "mixed:op")`: the result changes if a unit is removed instead of set to zero, as by a norm or a mean;
    * `contract(…)`: the op multiplies by a weight; this is all that statistics, compensation and costs need;
    * `resize(name, axes)`: this int argument of the call is the size of these axes.

    An op that is not torch's has no rule, so all axes that it touches are frozen and `spec.unknown` names it. A
    `torch.autograd.Function` is no op: its forward is traced. To give it a rule, make an op of it by `torch.library.custom_op`, with
    `register_fake` for its shapes and `register_autograd` for its gradient.

    >>> import torch, prunefn as pf
    >>> @torch.library.custom_op("prunefn_docs::project", mutates_args=())
    ... def project(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    ...     return x @ weight
    >>> _ = project.register_fake(lambda x, weight: x.new_empty((*x.shape[:-1], weight.shape[1])))
    >>> def rule(call):
    ...     x, w = call["x"], call["weight"]
    ...     inner, axes = call.unify(x.axes[-1], w.axes[0]), (*x.axes[:-1], w.axes[1])
    ...     call.contract(macs=(*axes, inner), x=x, dim=-1, weight=w, pattern="i o -> 1 o i 1", out=w.axes[1])
    ...     return axes
    >>> class Own(torch.nn.Linear):
    ...     def forward(self, x):
    ...         return project(x, self.weight.T)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.ReLU(), Own(8, 2, bias=False))
    >>> pf.trace(model, (torch.randn(2, 4),)).groups  # without a rule
    FrozenDict({})
    >>> spec = pf.trace(model, (torch.randn(2, 4),), rules={"prunefn_docs::project": rule})
    >>> list(spec.groups), pf.cost(spec).macs, spec.einops("2.weight")
    (['0'], 48, '2 hidden')
    """

    alg: Algebra
    op: str
    node: str
    args: Mapping[str, Any]
    shapes: list[tuple[int, ...]]
    """Shape of each tensor output."""
    at: Reason
    unused: frozenset[int] = frozenset()
    """Outputs that nothing reads."""
    resized: dict[str, Any] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    layouts: list[TermLayout] = field(default_factory=list)
    scales: list[Value] = field(default_factory=list)
    """Weights of a norm layer."""
    lookups: list[Lookup] = field(default_factory=list)
    picks: dict[int, Term] = field(default_factory=dict)
    """Output → the axis that its integers are positions of."""
    layer: bool = False
    """Whether its result is an activation even if its input is a parameter, such as a learned query."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.shapes[0]

    def __getitem__(self, name: str) -> Any:
        return self.args.get(name)

    def tensors(self) -> list[Value]:
        """Return all tensor arguments, including those in lists."""
        flat: list[Value] = []
        for a in self.args.values():
            flat += (
                [a] if isinstance(a, Value) else [v for v in a if isinstance(v, Value)] if isinstance(a, list) else []
            )
        return flat

    def unify(self, a: Term, b: Term) -> Term:
        """State that two axes are the same, and return it."""
        self.alg.unify(a, b, self.at._replace(text="the sizes do not factor alike"))
        return a

    def freeze(self, axes: Sequence[Term] | Term, text: str) -> None:
        """State that no unit of these axes may be pruned."""
        for a in axes if isinstance(axes, Sequence) else (axes,):
            self.alg.freeze(a, self.at._replace(text=text))

    def hold(self, axes: Sequence[Term] | Term, text: str, *, mixed: bool = False) -> None:
        """State that no unit of these axes may be pruned unless the caller of `trace` asks for them.

        `mixed` says that the units then affect each other, as in a softmax.
        """
        for a in axes if isinstance(axes, Sequence) else (axes,):
            self.alg.hold(a, self.at._replace(text=text))
            if mixed and self.alg.lenient:
                self.alg.mark(a, f"mixed:{self.op}")

    def look_up(self, axis: Term, index: Value, text: str) -> None:
        """State that the integers of a value pick positions of an axis, as ids pick the rows of a table; it is held."""
        self.hold(axis, text)
        self.lookups.append(Lookup(self.node, axis, index))

    def choose(self, axis: Term, k: int, *, output: int) -> None:
        """State that an output has the positions of the k largest values along an axis, which is held: others may look them up."""
        self.hold(axis, "its largest are picked", mixed=True)
        self.picks[output] = axis
        for v in reversed(list(self.alg.vars(axis))):
            # the inner leaf keeps all that are chosen, so that any number of outer ones is enough
            n = min(k, self.alg.size(v))
            self.mark([v], f"{CHOSEN}{n}")
            k = -(-k // n)

    def pick(self, axis: Term, index: Value, text: str) -> bool:
        """State that the integers of a value pick positions of an axis; return whether another op chose them as positions.

        Then the axis is the one that they were chosen from, and it is held; else it is frozen.
        """
        same_size = index.picks is not None and self.alg.size(index.picks) == self.alg.size(axis)
        if not (self.alg.lenient and same_size):
            self.freeze(axis, text)
            if index.picks is not None:
                self.freeze(index.picks, "its positions are looked up in an axis that is frozen")
            return False
        self.unify(axis, index.picks)  # type: ignore[arg-type]
        self.hold(axis, text)
        self.mark([axis], EXPERTS)
        return True

    def mark(self, axes: Sequence[Term], mark: str) -> None:
        """Mark each leaf of these axes with a kind, or with an op that mixes their units."""
        for a in axes:
            self.alg.mark(a, mark)

    def fresh(self, sizes: Sequence[int]) -> Axes:
        """Return new free axes, such as those of a tensor filled with one number."""
        return tuple(self.alg.leaf(n) for n in sizes)

    def frozen(self, sizes: Sequence[int], text: str) -> Axes:
        """Return new axes that may not be pruned."""
        return tuple(self.alg.leaf(n, self.at._replace(text=text)) for n in sizes)

    def resize(self, arg: str, axes: Any) -> None:
        """State that the static sizes in `arg` are the sizes of `axes` (a term, an int, or a nested list of these)."""
        self.resized[arg] = axes

    def contract(self, **kwargs: Any) -> None:
        """Record a contraction of this node with the fields of `Contraction`; a pattern also records the weight's layout."""
        c = Contraction(self.node, **kwargs)
        self.contractions.append(c)
        if c.weight is not None and c.pattern:
            self.lay_out(c.weight, c.pattern, c.groups)

    def lay_out(self, weight: Value | None, pattern: str, groups: Term = ONE, *, convolution: bool = False) -> None:
        """Record the layout of a weight once; call it for weights whose contraction cannot be a site."""
        if weight is not None and all(layout.weight.name != weight.name for layout in self.layouts):
            self.layouts.append(TermLayout(self.node, weight, pattern, groups, convolution))

    def broadcast(self, values: Sequence[Value], shape: Sequence[int] | None = None) -> Axes:
        """Unify the dims of several tensors from the right, except those of size 1, and return the axes of the result."""
        out: list[Term] = []
        for d, n in enumerate(shape := self.shape if shape is None else shape):
            axis: Term | None = ONE if n == 1 else None
            for v in values:
                i = d - len(shape) + len(v.axes)
                if axis is not ONE and i >= 0 and self.alg.size(v.axes[i]) == n:
                    axis = v.axes[i] if axis is None else self.unify(axis, v.axes[i])
            out.append(self.alg.leaf(n) if axis is None else axis)
        return tuple(out)

    def dims(self, v: Value, dim: int | Sequence[int] | None) -> list[int]:
        """Return dims counted from the left; all dims if `dim` is None or empty."""
        rank = len(v.axes)
        if dim is None or (not isinstance(dim, int) and not dim):
            return list(range(rank))
        return [d % rank for d in ([dim] if isinstance(dim, int) else dim)] if rank else []


TABLE: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule in the table under op names such as `aten.linear` (all overloads) or `aten.add.Tensor`."""

    def enter(function: Rule) -> Rule:
        for op in ops:
            if op in TABLE:
                raise TraceError(f"two rules for {op}")
            TABLE[op] = function
        return function

    return enter


T = TypeVar("T")


def replaced(axes: Sequence[T], changes: Mapping[int, T]) -> tuple[T, ...]:
    """Return axes (or sizes) with some dims replaced."""
    return tuple(changes.get(d, a) for d, a in enumerate(axes))
