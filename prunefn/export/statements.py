"""The statements of a plain forward: one for each op, in the order of the program, under the path of its module."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..errors import PruneError
from ..spec.layers import Use
from ..spec.plain import Call, plain
from .text import Bound, Code, Group, Text, call, flat, infix, lines, literal, sliced

MAIN = "x"
"""Name of the main chain of values; a branch from it is named after the module in which it begins."""
LONG = 40
"""Characters of a size that gets a name instead of being repeated."""
FOREVER = 1 << 60
DEVICE = torch.device("cpu", 0)
"""Stands for the device of the parameters in the graph of a program that is written; no model says `cpu:0` itself."""
TRAINING = {"F.batch_norm": "training", "F.instance_norm": "use_input_stats"} | {
    f"torch.{name}": "train" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
}
"""Function → its argument that says whether the module trains."""


class Value(NamedTuple):
    """What a node was seen to give."""

    dims: int | None = None
    """Number of dims of a tensor."""
    count: int | None = None
    """Number of results of an op with several."""

    @property
    def is_number(self) -> bool:
        """Whether it is neither a tensor nor several."""
        return self.dims is None and self.count is None


class Module(NamedTuple):
    """What the statements refer to."""

    modules: Mapping[fx.Node, str]
    """Last node of each instruction → path of its module."""
    seen: Mapping[fx.Node, Value]
    uses: Mapping[fx.Node, Use]
    """Node → the layer that is called for it."""
    access: Callable[[str], str]
    """Path of a module or tensor → its expression."""
    inputs: Sequence[str]
    """Names of the inputs in the source."""
    sizes: Mapping[tuple[int, int], str]
    """(place of an input, dim) → name of its size."""
    headings: frozenset[str]
    """Modules that have a heading: those that contain modules with tensors."""


def observe(graph: fx.Graph, root: torch.nn.Module, inputs: Iterable[Tensor]) -> dict[fx.Node, Value]:
    """Run a graph once, and return what each node gives."""
    seen: dict[fx.Node, Value] = {}

    class Observer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            dims = result.ndim if isinstance(result, Tensor) else None
            seen[n] = Value(dims, len(result) if isinstance(result, list | tuple) else None)
            return result

    with torch.no_grad():
        Observer(fx.GraphModule(root, graph), graph=graph).run(*inputs)
    return seen


class Body:
    """The statements of one graph."""

    def __init__(self, graph: fx.Graph, module: Module) -> None:
        self.module, self.nodes = module, list(graph.nodes)
        self.lines: list[str] = []
        self.outputs: list[Text] = []
        self.rooms: set[str] = set()
        """Modules whose functions are called: `torch`, `F`, `math`."""
        self.reads_device = False
        self._paths = _paths(self.nodes, module.modules)
        self._places = {n: i for i, n in enumerate(self.nodes)}
        self._text: dict[fx.Node, Bound] = {}
        self._busy = dict.fromkeys(["self", "torch", "F", "nn", "math", "device", "_"], FOREVER)
        """Name → place of the last statement that reads its value."""
        self._sizes: dict[tuple[str, int], str] = {}
        self._heading = ""
        inputs = iter(enumerate(module.inputs))
        for node in self.nodes:
            if node.op == "placeholder":
                place, name = next(inputs)
                self._text[node] = Bound(name)
                self._busy[name] = self._end(node) if name == MAIN else FOREVER
                self._sizes |= {(name, d): text for (i, d), text in module.sizes.items() if i == place}
        self._named_sizes: set[tuple[str, int]] = set()
        self._now = 0
        """Place of the statement that is being written."""
        for place, node in enumerate(self.nodes):
            self._now = place
            self._write(node)

    # ---- statements

    def _write(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._text[node] = Bound(self.module.access(str(node.target)))
        elif node.op == "output":
            self.outputs = [self._value(v) for v in node.args[0]]  # type: ignore[union-attr]
        elif node.op == "call_method":
            self._write_size(node)
        elif node.op == "call_function" and node not in self._text:
            if node.target is torch._assert:
                self.rooms.add("torch")
                self._add("", call("torch._assert", [self._value(a) for a in node.args]))
            elif self.module.seen[node].is_number:
                self._write_number(node)
            else:
                self._write_tensors(node)

    def _write_size(self, node: fx.Node) -> None:
        """Write a size of a dim, with the name that it has in the spec."""
        value, dim = node.args
        source = flat(self._value(value))
        key = (
            (source, dim) if isinstance(value, fx.Node) and value.op == "placeholder" and isinstance(dim, int) else None
        )
        if key in self._named_sizes and key is not None:
            self._text[node] = Bound(self._sizes[key])
            return
        name = self._fresh(self._sizes.get(key, "size") if key else "size")
        self._busy[name] = FOREVER
        if key:
            self._sizes[key] = name
            self._named_sizes.add(key)
        self._text[node] = Bound(name)
        self._add(f"{name} = ", f"{source}.shape[{flat(self._value(dim))}]")

    def _write_number(self, node: fx.Node) -> None:
        """Write arithmetic on sizes where it is read, or under a name if it is long."""
        room, name = getattr(node.target, "__module__", ""), getattr(node.target, "__name__", "")
        operands = [a if isinstance(a, Bound) else Bound(flat(a)) for a in map(self._operand, node.args)]
        if room == "_operator":
            number = infix(name, operands)
        elif room in ("math", "builtins", "torch"):
            self.rooms |= {room} - {"builtins"}
            number = Bound(call(name if room == "builtins" else f"{room}.{name}", [o.text for o in operands]))
        else:
            number = self._called(node)
        if room not in ("_operator", "math", "builtins", "torch") or len(flat(number.text)) > LONG:
            name = self._fresh("size")
            self._busy[name] = FOREVER
            self._add(f"{name} = ", number.text)
            number = Bound(name)
        self._text[node] = number

    def _write_tensors(self, node: fx.Node) -> None:
        """Write an op, and give its result a name: that of a value which is not read again, or a new one."""
        use = self.module.uses.get(node)
        if use is None:
            value = self._called(node).text
        else:
            value = call(self.module.access(use.path), [self._value(i) for i in use.inputs])
        self._head(node, use)
        results = self.module.seen[node].count
        names = [self._text[a].text for a in node.all_input_nodes if a.op != "get_attr" and a in self._text]
        freed = [n for n in names if isinstance(n, str) and n.isidentifier() and self._busy.get(n) == self._now]
        if results is None:
            self._text[node] = Bound(self._named(node, freed, self._end(node)))
            self._add(f"{flat(self._text[node].text)} = ", value)
        elif all(u.target is operator.getitem and isinstance(u.args[1], int) for u in node.users):
            self._unpack(node, results, freed, value)
        else:
            name = self._fresh("parts")
            self._busy[name] = FOREVER
            self._text[node] = Bound(name)
            self._add(f"{name} = ", value)

    def _unpack(self, node: fx.Node, results: int, freed: list[str], value: Text) -> None:
        """Write an op with several results."""
        targets = ["_"] * results
        for i in range(results):
            items = [u for u in node.users if u.args[1] in (i, i - results)]
            if items:
                targets[i] = self._named(node, freed, max(map(self._end, items)))
                freed = []
                self._text.update(dict.fromkeys(items, Bound(targets[i])))
        self._add(f"{', '.join(targets)}{',' if results == 1 else ''} = ", value)

    def _add(self, before: str, value: Text) -> None:
        self.lines += lines(value, 2, before)

    def _head(self, node: fx.Node, use: Use | None) -> None:
        """Begin a paragraph if the op belongs to another module than the one before."""
        path = use.path.rpartition(".")[0] if use is not None else self._paths[node]
        while path and path not in self.module.headings:
            path = path.rpartition(".")[0]
        if path != self._heading:
            self.lines += ["", f"        # {path}"] if path else [""]
            self._heading = path

    # ---- names

    def _end(self, node: fx.Node) -> int:
        """Return the place of the last statement that reads a node's value, also through expressions that are written there."""
        return max((self._places[u] for u in node.users), default=self._places[node])

    def _named(self, node: fx.Node, freed: list[str], end: int) -> str:
        """Return the name of a result, and keep it until the end."""
        parts = [p for p in self._paths[node].split(".") if p and not p.isdigit()]
        own = parts[-1] if parts else str(node.name).removesuffix("_default")
        if MAIN in freed or self._busy.get(MAIN, -1) <= self._now:
            name = MAIN
        else:
            name = freed[0] if freed else self._fresh(own)
        self._busy[name] = end
        return name

    def _fresh(self, wanted: str) -> str:
        """Return a name that no value has that is still read."""
        base = re.sub(r"\W", "_", wanted)
        base = f"value_{base}" if not base.isidentifier() or keyword.iskeyword(base) or base.startswith("_") else base
        names = (base if n == 1 else f"{base}_{n}" for n in count(1))
        return next(name for name in names if self._busy.get(name, -1) <= self._now)

    # ---- expressions

    def _operand(self, value: Any) -> Bound:
        if isinstance(value, fx.Node):
            return self._text[value]
        if isinstance(value, Call):
            return self._expression(value)
        negative = isinstance(value, int | float) and value < 0
        return Bound(self._value(value), 70 if negative else 100)

    def _value(self, value: Any) -> Text:
        if isinstance(value, fx.Node | Call):
            return self._operand(value).text
        if isinstance(value, list | tuple):
            return Group("[", tuple(map(self._value, value)), "]")
        if value == DEVICE and isinstance(value, torch.device):
            self.reads_device = True
            return "device"
        if isinstance(value, torch.dtype | torch.memory_format | torch.device):
            self.rooms.add("torch")
        return literal(value)

    def _called(self, node: fx.Node) -> Bound:
        """Return the public call for an op.

        Raises:
            PruneError: there is none; names the op and its module.
        """
        written = plain(node)
        if written is None:
            raise refusal(str(node.target), self._paths[node])
        return self._expression(written)

    def _expression(self, written: Call) -> Bound:
        function, args = written.function, written.args
        if function == "operator.getitem":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return Bound(Group(f"{_bracketed(self._operand(args[0]))}[", tuple(map(self._key, index)), "]"))
        if function.startswith("operator."):
            return infix(function.removeprefix("operator."), [self._operand(a) for a in args])
        kwargs = [(n, self._value(v)) for n, v in self._training(written).items()]
        if function.startswith("."):
            head = f"{_bracketed(self._operand(args[0]))}{function}"
            return Bound(call(head, [self._value(a) for a in args[1:]], kwargs))
        self.rooms.add(function.partition(".")[0])
        return Bound(call(function, [self._value(a) for a in args], kwargs))

    def _training(self, written: Call) -> dict[str, Any]:
        """Return the arguments by name; ops that train otherwise follow the mode of the module."""
        flag = TRAINING.get(written.function)
        has_statistics = not flag or flag == "train" or written.args[1] is not None
        if flag is None or written.kwargs.get(flag) is True or not has_statistics:
            return written.kwargs
        return {**written.kwargs, flag: Code("self.training")}

    def _key(self, key: Any) -> str:
        if isinstance(key, slice):
            return sliced(*("" if k is None else flat(self._value(k)) for k in (key.start, key.stop, key.step)))
        return flat(self._value(key))


def refusal(op: str, path: str) -> PruneError:
    """Return the error for an op that plain source cannot call."""
    where = f" in module {path!r}" if path else ""
    return PruneError(
        f"op {op}{where} is no public function of torch, so that the network cannot be written as plain source; "
        "pf.export.program writes it as an exported program, and to_module(…, model=model) gives the original class"
    )


def _bracketed(value: Bound) -> str:
    return flat(value.text) if value.strength == 100 else f"({flat(value.text)})"


def _paths(nodes: Sequence[fx.Node], modules: Mapping[fx.Node, str]) -> dict[fx.Node, str]:
    """Return the module of every node; an instruction ends with the node that `modules` has."""
    paths: dict[fx.Node, str] = {}
    part: list[fx.Node] = []
    for node in nodes:
        part.append(node)
        if node in modules:
            paths.update(dict.fromkeys(part, modules[node]))
            part = []
    return {**dict.fromkeys(nodes, ""), **paths}
