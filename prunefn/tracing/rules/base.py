"""What a rule sees and what it says.

A rule is a function from a `Call` (one op of the graph, its tensor arguments as `Value`s) to the axes of its outputs. On
the way it states equations (`call.unify`), freezes axes (`call.freeze`), names the axes behind static sizes
(`call.resize`), and records contractions (`call.contract`). Rules are found in a table keyed by op name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from ...spec.parts import Geometry
from ..axes import ONE, Algebra, Term

Axes = tuple[Term, ...]
Rule = Callable[["Call"], "Axes | list[Axes]"]


class Value(NamedTuple):
    """A tensor of the graph during the analysis."""

    name: str
    axes: Axes
    active: bool
    """Depends on the inputs; otherwise on parameters and constants alone."""
    boolean: bool = False
    """It holds truth values: as an index it is a mask."""
    zero: bool = True
    """Where all tensors of a unit are zero, it is zero, too."""


class Reason(NamedTuple):
    """Why an axis is frozen: the op, what it does, and where it stands in the user's source."""

    text: str
    op: str = ""
    source: str = ""

    def __str__(self) -> str:
        op = f" by {self.op}" if self.op else ""
        return f"{self.text}{op}" + (f" at {self.source}" if self.source else "")


class Contraction(NamedTuple):
    """A sum over an axis: its cost, and how its weight is laid out."""

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
    """Name of the op's argument that takes a bias; empty where it has none."""
    out: Term = ONE
    geometry: Geometry | None = None


class Layout(NamedTuple):
    """How a value is laid out as the weight of a contraction."""

    node: str
    weight: Value
    pattern: str
    """einops pattern from the weight to [g, out, in, taps]."""
    groups: Term = ONE
    convolution: bool = False
    """Whether its dims are [filters, inputs, *kernel]; not of a transposed one."""


@dataclass
class Call:
    """One op of the graph as a rule sees it."""

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
    layouts: list[Layout] = field(default_factory=list)
    scales: list[Value] = field(default_factory=list)
    """Weights of a norm."""
    layer: bool = False
    """Its result is an activation, also where its input is a parameter, such as a learned query."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.shapes[0]

    def __getitem__(self, name: str) -> Any:
        return self.args.get(name)

    def tensors(self) -> list[Value]:
        """All tensor arguments, those in lists too."""
        flat: list[Value] = []
        for a in self.args.values():
            flat += (
                [a] if isinstance(a, Value) else [v for v in a if isinstance(v, Value)] if isinstance(a, list) else []
            )
        return flat

    def unify(self, a: Term, b: Term) -> Term:
        """The two axes are one; returns it."""
        self.alg.unify(a, b, self.at._replace(text="the sizes do not factor alike"))
        return a

    def freeze(self, axes: Sequence[Term] | Term, text: str) -> None:
        """None of these axes may be pruned."""
        for a in axes if isinstance(axes, Sequence) else (axes,):
            self.alg.freeze(a, self.at._replace(text=text))

    def mark(self, axes: Sequence[Term], mark: str) -> None:
        """Note something of each leaf of these axes (a kind, or an op that mixes their units)."""
        for a in axes:
            self.alg.mark(a, mark)

    def fresh(self, sizes: Sequence[int]) -> Axes:
        """New free axes, as of a tensor filled with one number."""
        return tuple(self.alg.leaf(n) for n in sizes)

    def frozen(self, sizes: Sequence[int], text: str) -> Axes:
        """New axes that may not be pruned."""
        return tuple(self.alg.leaf(n, self.at._replace(text=text)) for n in sizes)

    def resize(self, arg: str, axes: Any) -> None:
        """The static sizes in `arg` are the sizes of `axes` (a term, an int, or a nested list of them)."""
        self.resized[arg] = axes

    def contract(self, **kwargs: Any) -> None:
        """Record a contraction of this node; the fields are those of `Contraction`, and a pattern is the weight's layout, too."""
        c = Contraction(self.node, **kwargs)
        self.contractions.append(c)
        if c.weight is not None and c.pattern:
            self.lay_out(c.weight, c.pattern, c.groups)

    def lay_out(self, weight: Value | None, pattern: str, groups: Term = ONE, *, convolution: bool = False) -> None:
        """Record how a weight is laid out, once; for weights whose contraction nothing can be measured at."""
        if weight is not None and all(layout.weight.name != weight.name for layout in self.layouts):
            self.layouts.append(Layout(self.node, weight, pattern, groups, convolution))

    def broadcast(self, values: Sequence[Value], shape: Sequence[int] | None = None) -> Axes:
        """Unify the dims of several tensors from the right, leaving out those of size 1; axes of the result."""
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
        """Dims counted from the left; all of them where none is given."""
        rank = len(v.axes)
        if dim is None or (not isinstance(dim, int) and not dim):
            return list(range(rank))
        return [d % rank for d in ([dim] if isinstance(dim, int) else dim)] if rank else []


TABLE: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table under op names such as `aten.linear` (all overloads) or `aten.add.Tensor`."""

    def enter(function: Rule) -> Rule:
        for op in ops:
            if op in TABLE:
                raise ValueError(f"two rules for {op}")
            TABLE[op] = function
        return function

    return enter


T = TypeVar("T")


def replaced(axes: Sequence[T], changes: Mapping[int, T]) -> tuple[T, ...]:
    """Axes (or sizes) with some dims replaced."""
    return tuple(changes.get(d, a) for d, a in enumerate(axes))
