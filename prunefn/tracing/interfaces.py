"""Free axes that are frozen only for being an interface: vocabularies, classes, channels of inputs and outputs, queries."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, fx, nn

from ..errors import ParamsError, TraceError, nearest
from ..frozen_dict import FrozenDict
from ..spec.interface import Interface
from .analyse import Analysis, reason_of
from .axes import Term, Var
from .capture import Captured
from .rules import Contraction, Value
from .sites import base_name, owner_of
from .token_names import token_names

Requested = str | Sequence[str] | Mapping[str, int]
"""Words such as `vocabulary`, names of tensors or modules, or a dict tensor or input → dim."""
WORDS = {
    "vocabulary": "vocabulary",
    "classes": "classes",
    "inputs": "inputs",
    "input channels": "inputs",
    "outputs": "outputs",
    "output channels": "outputs",
}
"""Word → kind of the groups that it frees."""
KEEPS = frozenset(
    "view reshape _unsafe_view to _to_copy clone contiguous alias detach unsqueeze squeeze expand slice select transpose permute t "
    "flatten unflatten split chunk unbind split_with_sizes narrow movedim repeat tile expand_as broadcast_to lift_fresh_copy".split()
)
"""Ops that pass integers on."""
SHAPES = frozenset(
    "sym_size sym_numel sym_stride zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_full new_empty "
    "_assert_tensor_metadata".split()
)
"""Ops that read only the shape of their argument."""
COMPARES = frozenset(("eq", "ne"))


class RequestError(TraceError):
    """An axis that the caller wants to free cannot be freed."""


class _Request(NamedTuple):
    """One interface that the caller asked for."""

    text: str
    """As the caller wrote it, for messages."""
    name: str
    dim: int | None = None
    """None: the rows, and for a vocabulary also those of its head."""


def free_interfaces(model: nn.Module, captured: Captured, a: Analysis, requested: Requested) -> None:
    """Release the leaves of the interfaces that were asked for, write them to `a.freed`, which `settle` then leaves free.

    Raises:
        TraceError: there is no such interface, or there are several; it is frozen for another reason; or the program computes
            with the integers that are its positions.
        ParamsError: no tensor or input has this name.
    """
    finder = _Finder(model, captured, a)
    requests = _requests(requested)
    for request in sorted(requests, key=lambda r: r.name != "vocabulary"):  # classes are outputs that are no vocabulary
        for kind, leaf, name in finder.leaves(request):
            finder.free(kind, leaf, name, request)
    a.freed = {leaf: i for leaf, i in a.freed.items() if a.alg.find(leaf) == leaf}


def _requests(requested: Requested) -> list[_Request]:
    if isinstance(requested, Mapping):
        return [_Request(f"free={{{name!r}: {dim}}}", name, dim) for name, dim in requested.items()]
    names = [requested] if isinstance(requested, str) else requested
    return [_Request(f"free={name!r}", name) for name in names]


class _Finder:
    """The interfaces of one graph."""

    def __init__(self, model: nn.Module, captured: Captured, a: Analysis) -> None:
        self.model, self.captured, self.a = model, captured, a
        self.layers = [c for c in a.contractions if c.weight is not None and not c.weight.active]
        self.joined: dict[Var, str] = {}

    # ---- which leaves

    def leaves(self, request: _Request) -> list[tuple[str, Var, str]]:
        """Return the leaves that a request frees, with the kind and the name of their group."""
        kind = WORDS.get(request.name) if request.dim is None else None
        if kind is None:
            return self._named(request)
        if kind == "vocabulary":
            tables = self._tables()
            leaf = self._only(tables, request, "no table is looked up by integers of an input")
            if not self.a.alg.is_held(leaf):
                self._refuse(request, tables[leaf], leaf)
            return [(kind, self._with_head(leaf, tables[leaf]), tables[leaf])]
        layers = self._inputs() if kind == "inputs" else self._outputs()
        held = {v: name for v, name in layers.items() if self.a.alg.is_held(v)}
        if not held and layers:
            self._refuse(request, next(iter(layers.values())), next(iter(layers)))
        if kind == "classes":
            leaf = self._only(held, request, "no output is made by the weights of a layer")
            return [(kind, leaf, held[leaf])]
        if not held:
            raise RequestError(f"{request.text}: no {kind[:-1]} meets the weights of a layer along a dim")
        return [(kind, v, name) for v, name in held.items()]

    def _only(self, found: Mapping[Var, str], request: _Request, none: str) -> Var:
        """Return the only leaf that was found.

        Raises:
            TraceError: there is none, or there are several; names them.
        """
        if len(found) == 1:
            return next(iter(found))
        if not found:
            raise RequestError(
                f"{request.text}: {none}; to free another axis, name its tensor and dim: free={{'x.weight': 0}}"
            )
        names = " or ".join(f"{name!r} ({self.a.alg.size(v)})" for v, name in found.items())
        raise RequestError(
            f"{request.text} may mean {names}; name the one to free: free={next(iter(found.values()))!r}"
        )

    def _tables(self) -> dict[Var, str]:
        """Return leaf → name of the table that integers of an input look up along it."""
        found: dict[Var, str] = {}
        for node, axis, index in self.a.lookups:
            table = self._table_of(node)
            leaf = self.a.alg.find(axis)
            if table and isinstance(leaf, Var) and not isinstance(self._source(index), str):
                found.setdefault(leaf, base_name(self._name_of_table(table)))
        return found

    def _name_of_table(self, tensor: str) -> str:
        """Return the name of a tied tensor that belongs to an embedding; else its own name."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        modules = dict(self.model.named_modules(remove_duplicate=False))
        tied = [n for n, t in named.items() if t is named.get(tensor)]
        tables = (n for n in tied if isinstance(modules.get(n.rpartition(".")[0]), nn.Embedding | nn.EmbeddingBag))
        return next(tables, tensor)

    def _table_of(self, node: str) -> str:
        """Return the tensor that a lookup reads rows of; empty if it reads a computed value."""
        source = self.captured.nodes[node].args[0]
        return self.captured.tensors.get(source.name, "") if isinstance(source, fx.Node) else ""

    def _with_head(self, leaf: Var, table: str) -> Var:
        """Return the leaf of a table, joined with the rows of heads that return numbers over it."""
        alg, outputs = self.a.alg, self._outputs()
        if leaf in outputs:
            self.joined[leaf] = f"{table!r} is tied to a head, so that ids and outputs have the same positions"
        same = {v: n for v, n in outputs.items() if v != leaf and alg.size(v) == alg.size(leaf) and alg.is_held(v)}
        for v in same:
            alg.unify(v, leaf)
        leaf = alg.find(leaf)  # type: ignore[assignment]
        if same:
            heads = ", ".join(map(repr, same.values()))
            self.joined[leaf] = f"{heads} and {table!r} are joined by their equal size, {alg.size(leaf)}"
        return leaf

    def _outputs(self) -> dict[Var, str]:
        """Return leaf of an output that the weights of a layer make → name of the layer."""
        nodes = [n for n in self.captured.outputs if isinstance(n, fx.Node) and n not in self.captured.unread]
        return self._layers(((c, self.a.alg.vars(c.out)) for c in self.layers), self._leaves_of(nodes))

    def _inputs(self) -> dict[Var, str]:
        """Return leaf of an input that the weights of a layer sum over → name of the layer."""
        inputs = (self.captured.nodes[n] for n in self.captured.inputs)
        summed = ((c, self.a.alg.vars(c.x.axes[c.dim])) for c in self.layers if c.x is not None)
        return self._layers(summed, self._leaves_of(inputs))

    def _layers(self, found: Iterable[tuple[Contraction, Iterable[Var]]], wanted: set[Var]) -> dict[Var, str]:
        """Return wanted leaf → name of the first layer that has it."""
        layers: dict[Var, str] = {}
        for c, leaves in found:
            for v in leaves:
                if v in wanted:
                    layers.setdefault(v, owner_of(self.captured, c))
        return layers

    def _leaves_of(self, nodes: Iterable[fx.Node]) -> set[Var]:
        values = [v for n in nodes if isinstance(v := self.a.values[n], Value)]
        return {leaf for v in values for axis in v.axes for leaf in self.a.alg.vars(axis)}

    def _named(self, request: _Request) -> list[tuple[str, Var, str]]:
        """Return the leaves of a dim of a tensor or input; those of a table's rows with their head."""
        name, axes = self._axes_named(request)
        dim = request.dim or 0
        if not -len(axes) <= dim < len(axes):
            raise RequestError(f"{request.text}: {name!r} has {len(axes)} dims; give a dim below that")
        leaves = list(dict.fromkeys(self.a.alg.vars(axes[dim])))
        if not leaves:
            raise RequestError(f"{request.text}: {name!r} has one position along dim {dim}")
        for v in leaves:
            if not self.a.alg.is_held(v):
                self._refuse(request, f"{name} dim {dim}", v)
        tables = self._tables()
        if request.dim is None and len(leaves) == 1 and leaves[0] in tables:
            return [("vocabulary", self._with_head(leaves[0], tables[leaves[0]]), tables[leaves[0]])]
        return [(self._kind(v), v, base_name(name)) for v in leaves]

    def _axes_named(self, request: _Request) -> tuple[str, tuple[Term, ...]]:
        """Return the full name and the axes of a tensor, or of an input if a dim is given."""
        for name in (request.name, f"{request.name}.weight"):
            if name in self.a.tensors:
                return name, self.a.tensors[name]
        if request.dim is not None and request.name in self.captured.inputs:
            return request.name, self.a.values[self.captured.nodes[request.name]].axes
        known = [*WORDS, *self.a.tensors, *self.captured.inputs, *map(base_name, self.a.tensors)]
        raise ParamsError(
            f"{request.text}: this is no tensor, no module with a weight, and none of the words {', '.join(WORDS)}"
            f"{nearest(request.name, known)}"
        )

    def _kind(self, v: Var) -> str:
        if v in self._tables():
            return "vocabulary"
        if v in self._leaves_of(self.captured.nodes[n] for n in self.captured.inputs):
            return "inputs"
        return "outputs" if v in self._outputs() else "interface"

    def _refuse(self, request: _Request, what: str, v: Var) -> NoReturn:
        reason = self.a.alg.reason(v)
        why = (
            "it is free already: leave it out"
            if reason is None
            else f"it is not frozen for being an interface alone: {reason}"
        )
        raise RequestError(f"{request.text}: {what} cannot be freed; {why}")

    # ---- what is known about a leaf

    def free(self, kind: str, leaf: Var, name: str, request: _Request) -> None:
        """Add a leaf to the freed ones, with the inputs that hold its positions, and the positions that have a name."""
        joined = self.joined.get(leaf, "")
        inputs, leaf = self._inputs_of(leaf, request)
        if not any(leaf in self.a.alg.vars(x) for axes in self.a.tensors.values() for x in axes):
            raise RequestError(f"{request.text}: no parameter has this dim, so that nothing would become smaller")
        size = self.a.alg.size(leaf)
        named = {n: text for n, text in self._names(leaf).items() if n < size}
        self.a.freed[leaf] = name, Interface(kind, range(size), tuple(inputs), FrozenDict(named), joined)

    def _inputs_of(self, leaf: Var, request: _Request) -> tuple[list[str], Var]:
        """Return the inputs whose integers are positions of a leaf; tables of equal size that they look up, too, are joined.

        Raises:
            TraceError: positions are computed, or the program computes with them.
        """
        inputs: dict[str, None] = {}
        for node, axis, index in self.a.lookups:
            if leaf not in self.a.alg.vars(axis):
                continue
            if self.a.alg.find(axis) != leaf:
                raise RequestError(f"{request.text}: it is only a part of what {self._place(node)} looks up")
            source = self._source(index)
            if isinstance(source, str):
                raise RequestError(f"{request.text}: its positions are no integers of an input, but {source}")
            inputs[source.name] = None
        for name in inputs:
            if (other := self._check_users(name, leaf, request)) is not None:
                self.a.alg.unify(other, leaf)
                joined = self.a.alg.find(leaf)
                assert isinstance(joined, Var)
                return self._inputs_of(joined, request)
        return list(inputs), leaf

    def _source(self, index: Value) -> fx.Node | str:
        """Return the input that a value of integers is a view of, or what it is else."""
        node: Any = self.captured.nodes[index.name]
        while node.op == "call_function":
            if node.target is not operator.getitem and _op(node) not in KEEPS and not _pads_negative(node):
                return f"computed by {self._place(node.name)}"
            node = node.args[0]
        if node.name not in self.captured.inputs:
            return "a constant of the model"
        value = node.meta["val"]
        is_integer = isinstance(value, Tensor) and not (value.is_floating_point() or value.dtype == torch.bool)
        return node if is_integer else "no integers"

    def _check_users(self, name: str, leaf: Var, request: _Request) -> Var | None:
        """Check that an input of positions is only looked up and compared; return another leaf of equal size that it looks up.

        Raises:
            TraceError: the program computes with the positions, which are renumbered when some are removed.
        """
        lookups = {n: axis for n, axis, _ in self.a.lookups}
        todo = [self.captured.nodes[name]]
        while todo:
            node = todo.pop()
            for user in (u for u in node.users if u in self.a.live):
                if user.name in lookups:
                    other = self.a.alg.find(lookups[user.name])
                    if other != leaf:
                        if isinstance(other, Var) and self.a.alg.size(other) == self.a.alg.size(leaf):
                            return other
                        raise RequestError(
                            f"{request.text}: {name!r} also looks up another table, by {self._place(user.name)}"
                        )
                elif user.target is operator.getitem or _op(user) in KEEPS or _pads_negative(user):
                    todo.append(user)
                elif _op(user) in COMPARES and type(user.args[1]) is int:
                    if 0 <= user.args[1] < self.a.alg.size(leaf):
                        self.a.compared[user] = (leaf, user.args[1])
                elif _op(user) not in SHAPES:
                    raise RequestError(
                        f"{request.text}: the model computes with {name!r} by {self._place(user.name)}; positions that are "
                        "renumbered may only be looked up, and compared with numbers"
                    )
        return None

    def _names(self, leaf: Var) -> dict[int, str]:
        """Return position → what names it: comparisons of the program, attributes, and configs."""
        named = {n: self._place(node.name) for node, (v, n) in self.a.compared.items() if v == leaf}
        tables = {t for t, axes in self.a.tensors.items() if axes and self.a.alg.find(axes[0]) == leaf}
        if any(self._table_of(n) in tables for n, axis, _ in self.a.lookups if self.a.alg.find(axis) == leaf):
            for t in token_names(self.model):
                if not t.table or t.table in tables:
                    named = {**dict.fromkeys(t.ids(), str(t)), **named}
        return named

    def _place(self, node: str) -> str:
        reason = reason_of(self.captured.nodes[node])
        return f"{self.captured.nodes[node].target}" + (f" at {reason.source}" if reason.source else "")


def _op(node: fx.Node) -> str:
    """Return the plain name of an op: `aten.eq.Scalar` → `eq`."""
    name = str(node.target)
    return name.split(".")[1] if name.startswith("aten.") else name


def _pads_negative(node: fx.Node) -> bool:
    """Return whether a node pads integers with a negative number, which is no position, such as the −100 of labels."""
    value = node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0)
    return _op(node) == "constant_pad_nd" and isinstance(value, int | float) and value < 0
