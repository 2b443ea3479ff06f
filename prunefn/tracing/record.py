"""Model → functional graph, by recording one real run: for models whose control flow depends on data.

Every op of the run is recorded above autograd, autocast and decompositions, the level of `torch.export`: `linear`, `conv2d`,
`layer_norm` and attention stay single ops. Values that Python reads from tensors (`.item()`, `if t.any()`, `tolist()`) are
constants of this run: its axes are those of every run, and it can be replayed on other inputs of the same shapes as long as Python
reads the same numbers there.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import peek_interpreter_stack
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from .. import trees
from ..errors import TraceError
from ..frozen_dict import FrozenDict
from .capture import LIBRARIES, Captured, in_mode
from .composites import definition
from .dynamic import positional_names
from .functional import functional_twin
from .memory import Memory, memory, shadow
from .rules import Rule, use_canonical
from .strided import spell_out_strides
from .unchanged import Writes, buffer_copies, reseed, unchanged, written_by

MOST_READ = 4096
"""Numbers of a value that Python reads that are kept."""
METADATA = ("aten.result_type", "aten.is_same_size", "aten.can_cast", "aten.sym_", "prim.", "profiler.")
"""Ops that return types and sizes to Python, not values."""
READERS = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
"""Functions that return values to Python without the dispatcher."""


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    train: bool,
    rules: Mapping[str, Rule] = FrozenDict(),
) -> Captured:
    """Run the model once in train or eval mode, and record its ops; the model is left unchanged.

    Args:
        model: any module that runs.
        args, kwargs: example inputs, nested as the model expects them.
        train: run in train mode.
        rules: the user's rules; an op that has none at all is recorded as the ops that torch defines it by.

    Returns:
        The graph at the sizes of the example, with `how = "recorded"`. Values that Python reads are among the outputs.

    Raises:
        TraceError: an op writes to several tensors. Errors of the model itself pass through.
    """
    graph = fx.Graph()
    tape = _Tape(model, graph, rules)
    inputs = trees.map_tensors(torch.clone, (args, dict(kwargs)))  # the model may write to them
    buffers = buffer_copies(model)
    tape.placeholders(buffers, [*zip(positional_names(model, len(args)), inputs[0], strict=True), *inputs[1].items()])
    with in_mode(model, train), unchanged(model), torch.no_grad(), Writes(model), _recording(tape):
        reseed()
        result = torch.func.functional_call(model, buffers, *inputs)
    leaves, out_spec = trees.flatten(result)
    outputs = [tape.memory.node(x) if isinstance(x, Tensor) else _constant_or_none(x) for x in leaves]
    hidden_outputs = [tape.memory.node(t) for x in leaves if not isinstance(x, Tensor) for t in tensors_in(x)]
    listed = {x for x in outputs if isinstance(x, fx.Node)}
    unread = tape.ends()
    outputs += [n for n in dict.fromkeys([*hidden_outputs, *tape.read, *unread]) if n not in listed]
    graph.output(tuple(outputs))
    use_canonical(graph)
    spell_out_strides(graph)
    _, in_spec = trees.flatten(inputs)
    nodes = {n.name: n for n in graph.nodes}
    return Captured(
        graph,
        tape.tensors,
        tape.constants,
        tape.sources,
        tape.inputs,
        in_spec,
        out_spec,
        outputs,
        {},
        nodes,
        names=[(None,) * t.ndim for t in trees.tensors(inputs)],
        fixed={},
        reads={node.name: numbers for node, numbers in tape.read.items()},
        how="recorded",
        refusal=tape.refusal,
        unread=frozenset(unread).difference(listed, hidden_outputs, tape.read),
    )


class _Tape:
    """A growing graph, and the current position of the run in the model."""

    def __init__(self, model: nn.Module, graph: fx.Graph, rules: Mapping[str, Rule]) -> None:
        self.rules = rules
        self.graph, self.memory = graph, Memory(graph, self.constant)
        self.model = model
        self.paths = {m: name for name, m in model.named_modules()}
        self.stack: list[nn.Module] = []
        self.tensors: dict[str, str] = {}
        self.constants: dict[str, Tensor] = {}
        self.sources: dict[str, str] = {}
        """Constant → path of the buffer or attribute that holds it."""
        self.attributes = {id(t): path for path, t in _tensor_attributes(model)}
        self.inputs: list[str] = []
        self.last: fx.Node | None = None
        """The last placeholder."""
        self.results: list[fx.Node] = []
        """Values that ops have created."""
        self.read: dict[fx.Node, tuple[int | bool, ...] | None] = {}
        """Value that Python read → its numbers; None for floats, or too many numbers to compare."""
        self.refusal = ""

    # ---- placeholders

    def placeholders(self, buffers: Mapping[str, Tensor], inputs: Iterable[tuple[str, Any]]) -> None:
        """Add placeholders of parameters, buffers and inputs, in this order."""
        for name, t in self.model.named_parameters():
            self.tensors[self.placeholder(f"p_{name}", t).name] = name
        for name, t in buffers.items():
            if t in self.memory:
                continue
            node = self.placeholder(f"b_{name}", t)
            path, _, leaf = name.rpartition(".")
            if leaf in self.model.get_submodule(path)._non_persistent_buffers_set:
                self.constants[node.name], self.sources[node.name] = t, name
            else:
                self.tensors[node.name] = name
        for name, value in inputs:
            for t in tensors_in(value):
                if t not in self.memory:
                    self.inputs.append(self.placeholder(name, t).name)

    def placeholder(self, name: str, t: Tensor) -> fx.Node:
        """Add a placeholder of a tensor after the other placeholders, and return it."""
        name = "".join(c if c.isalnum() else "_" for c in name)
        with self.graph.inserting_after(self.last) if self.last is not None else contextlib.nullcontext():
            self.last = node = self.graph.placeholder(name)
        node.target = node.name
        node.meta["val"] = shadow(t)
        self.memory.add(t, node)
        return node

    def constant(self, t: Tensor) -> fx.Node:
        """Add the placeholder of a tensor that Python created, or read from an attribute, and return it."""
        node = self.placeholder("c", t)
        self.constants[node.name] = t.detach().clone()
        if id(t) in self.attributes:
            self.sources[node.name] = self.attributes[id(t)]
        return node

    # ---- ops

    def reads(self, value: Any) -> None:
        """Record that Python read the values of these tensors."""
        for t in trees.leaves(value):
            if isinstance(t, Tensor):
                self.read[self.memory.node(t)] = _numbers(t)

    def ends(self) -> list[fx.Node]:
        """Return values that nothing reads; the model still computes them, so these ops must keep working after pruning."""
        unread = [n for n in self.results if not any(u.users or u.target is not operator.getitem for u in n.users)]
        return [n for n in unread if n not in self.memory.replaced]

    def op(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op, record it, and return its result."""
        if str(func).startswith(METADATA):
            return func(*args, **kwargs)
        if peek_interpreter_stack() is not None:
            self.refusal = f"{func} runs inside torch.func, whose tensors a recording cannot follow"
        inputs = trees.tensors((args, kwargs))
        nodes = trees.map_tensors(self.memory.node, (args, kwargs))
        out = func(*args, **kwargs)
        if func._schema.is_mutable:
            self.write(func, written_by(func, args, kwargs), nodes)
        elif not (created := trees.tensors(out)):
            self.reads(inputs)
        elif any(all(t is not g for g in inputs) for t in created):  # else the op returned its inputs unchanged
            self.results.append(self.node(func, nodes, out))
            self.add(out, self.results[-1], inputs)
        return out

    def node(self, func: Any, nodes: tuple[Any, ...], out: Any) -> fx.Node:
        """Add a node with the metadata that export would give it, and return it."""
        name = func._schema.name.rpartition("::")[2]
        node = self.graph.create_node("call_function", func, *nodes, name=name)
        stack = {self.paths.get(m, ""): (self.paths.get(m, ""), type(m).__qualname__) for m in self.stack}
        node.meta |= {
            "val": trees.map_tensors(shadow, out),
            "nn_module_stack": stack,
            "stack_trace": _source_line(),
        }
        return node

    def add(self, out: Any, node: fx.Node, inputs: list[Tensor]) -> None:
        """Register the results of an op."""
        items: list[tuple[Any, fx.Node]] = [(out, node)]
        if not isinstance(out, Tensor):
            items = [(t, self.graph.call_function(operator.getitem, (node, i))) for i, t in enumerate(out)]
        for t, n in items:
            if isinstance(t, Tensor) and not any(t is g for g in inputs):
                n.meta = {**node.meta, "val": shadow(t)}
                parent = next((g for g in inputs if memory(g) == memory(t)), None)
                self.memory.add(t, n, parent, None if parent is None else self.memory.node(parent))

    def write(self, func: OpOverload, written: list[Tensor], nodes: tuple[Any, ...]) -> None:
        """Record an in-place op, as its functional twin if it has one."""
        if len(written) != 1:
            raise TraceError(f"{func} writes to {len(written)} tensors at once, which a recording cannot follow")
        self.memory.write(written[0], self.node(functional_twin(func) or func, nodes, written[0]))


class _Mode(ProxyTorchDispatchMode):
    """A mode that intercepts all ops at the pre-dispatch level, where torch accepts only a few classes of modes."""

    def __init__(self, tape: _Tape) -> None:
        super().__init__(None, "real", pre_dispatch=True)  # type: ignore[arg-type]
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (function := definition(func, self.tape.rules)) is not None:
            with self:
                return function(*args, **(kwargs or {}))
        return self.tape.op(func, args, kwargs or {})


class _Readers(TorchFunctionMode):
    """A mode that intercepts functions that return values to Python directly."""

    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READERS:
            with _disable_current_modes():
                self.tape.reads(args[:1])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _recording(tape: _Tape) -> Iterator[None]:
    """Record all ops on the tape, with the module that calls them."""
    call, fused = nn.Module.__call__, torch.backends.mha.get_fastpath_enabled()

    def enter(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tape.stack.append(module)
        try:
            return call(module, *args, **kwargs)
        finally:
            tape.stack.pop()

    try:
        nn.Module.__call__ = enter  # type: ignore[method-assign]
        torch.backends.mha.set_fastpath_enabled(False)  # it would run a whole encoder layer as one op
        with enable_python_dispatcher(), _Readers(tape), _Mode(tape):
            yield
    finally:
        nn.Module.__call__ = call  # type: ignore[method-assign]
        torch.backends.mha.set_fastpath_enabled(fused)


def _source_line() -> str:
    """Return the innermost line outside of torch and of the trace, in the format of export."""
    frame, inner = sys._getframe(1), ""
    while frame is not None and frame.f_code is not record.__code__:
        path = frame.f_code.co_filename
        if path != __file__:
            inner = inner or f'File "{path}", line {frame.f_lineno}'
            if not path.startswith(LIBRARIES):
                return f'File "{path}", line {frame.f_lineno}'
        frame = frame.f_back
    return inner


def tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yield all tensors in nested containers and plain objects."""
    for leaf in trees.leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif depth and hasattr(leaf, "__dict__") and not isinstance(leaf, type):
            yield from tensors_in(list(vars(leaf).values()), depth - 1)


def _tensor_attributes(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (path, tensor) of tensors that are plain attributes of modules."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield (f"{path}.{name}" if path else name), value


def _numbers(t: Tensor) -> tuple[int | bool, ...] | None:
    """Return the numbers of a tensor; None for floats, which differ from run to run, and for many of them."""
    if t.is_floating_point() or t.is_complex() or t.numel() > MOST_READ:
        return None
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        return tuple(t.detach().reshape(-1).tolist())


def _constant_or_none(x: Any) -> Any:
    """Return a constant result, or None for an object that torch's pytree does not know."""
    return x if isinstance(x, int | float | str | bool | None) else None
