"""Model → functional graph, through `torch.export`."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection, export
from torch.export.graph_signature import InputKind, OutputKind

from .. import trees
from ..errors import TraceError
from ..frozen_dict import FrozenDict
from .composites import composites
from .dynamic import Names
from .functional import make_functional, spell_out_writes
from .off_meta import OffMeta
from .recurrent_shapes import recurrent_shapes
from .regions import inline_regions, runs_in_levels
from .rules import Rule, use_canonical
from .strided import spell_out_strides
from .symbols import fixed_dims
from .unchanged import reseed, unchanged

LIBRARIES = tuple(f"{Path(file).parent}/" for file in (torch.__file__, __file__))
"""Folders of torch and of the trace, whose lines are not the user's."""
DROPOUT = ("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout")
DEPTH = 4
"""Most ops between an op without a rule and the ops that it is defined by."""
CHECKS = ("aten._assert_tensor_metadata", "aten._assert_scalar", "aten.sym_constrain_range", "aten._assert_async")


class Captured(NamedTuple):
    """A functional graph whose placeholders are parameters, constants and inputs."""

    graph: fx.Graph
    tensors: dict[str, str]
    """Placeholder → name of the parameter or buffer."""
    constants: dict[str, Tensor]
    """Placeholder → value that no state dict contains."""
    sources: dict[str, str]
    """Placeholder of a constant → path of the buffer or attribute that holds it."""
    inputs: list[str]
    """Placeholders of the tensor inputs, in the order of the flattened arguments."""
    in_spec: trees.Form
    out_spec: trees.Form
    outputs: list[Any]
    """Nodes and constants, in the order of the flattened result."""
    updates: dict[str, fx.Node]
    """Buffer → its new value, in train mode."""
    nodes: dict[str, fx.Node]
    """All nodes by name."""
    names: list[Names]
    """Name of the size of each dim of an input that was asked to vary; None: the dim is fixed."""
    fixed: dict[str, str]
    """Dim of an input that was asked to vary, but that the export fixed → its size and the reason."""
    reads: dict[str, tuple[int | bool, ...] | None]
    """Value that Python read in a recorded run → its numbers; None for floats, or too many numbers to compare."""
    refusal: str = ""
    """Why a recorded run cannot be replayed; empty if nothing forbids it."""
    how: str = "exported"
    """`exported` or `recorded`; if recorded, all sizes are those of the example, and outputs include all values that Python read."""
    unread: frozenset[fx.Node] = frozenset()
    """The outputs of a recorded run that nothing read, but that another run may read."""


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    train: bool,
    names: list[Names],
    rules: Mapping[str, Rule] = FrozenDict(),
) -> Captured:
    """Export the model in train or eval mode, and return its functional graph; the model is left unchanged.

    `names` holds the dims of each tensor input that may vary, `rules` the user's rules.
    """
    args_on_device, kwargs_on_device = _follow_to_meta(model, (args, dict(kwargs)))
    with in_mode(model, train), unchanged(model), torch.no_grad():  # a failed export would leave changes
        program = _export(model, args_on_device, kwargs_on_device, names)
    if runs_in_levels(program.graph_module):
        program = _decomposed(program)
    _simplify(program)
    writes = spell_out_writes(program.graph)
    if train or writes or not make_functional(program.graph, program.graph_signature.inputs_to_buffers):
        program = _decomposed(program)
        _simplify(program)
    program = _without_composites(program, rules)
    _drop_dead_code(program.graph)  # all ops are functional now
    return _read_program(program, _in_program_order(program, (args, dict(kwargs)), names))


def live_nodes(results: Iterable[Any]) -> set[fx.Node]:
    """Return the nodes that results need, themselves included."""
    live, todo = set[fx.Node](), [n for n in results if isinstance(n, fx.Node)]
    while todo:
        if (node := todo.pop()) not in live:
            live.add(node)
            todo += node.all_input_nodes
    return live


def _drop_dead_code(graph: fx.Graph) -> None:
    """Erase the nodes that no output needs, except for those around tensors that only such nodes read.

    The class runs these nodes, too, so the tensors have to follow the sizes of what they meet.
    """
    live = live_nodes(n for n in graph.nodes if n.op == "output")
    kept = {n for n in graph.nodes if n.op == "placeholder" and n.users and n not in live}
    for node in graph.nodes:
        if node not in live and not kept.isdisjoint(node.all_input_nodes):
            kept.add(node)
    kept = live_nodes(kept)
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and node not in live and node not in kept:
            graph.erase_node(node)


def _without_composites(program: ExportedProgram, rules: Mapping[str, Rule]) -> ExportedProgram:
    """Return the program with ops that torch defines by others in place of ops without a rule, as far as torch can do that."""
    refused: set[Any] = set()
    for _ in range(DEPTH):
        table = {op: f for op, f in composites(program.graph, rules).items() if op not in refused}
        if not table:
            break
        for some in (table, *({op: f} for op, f in table.items())):
            try:
                program = _decomposed(program, some)
                _simplify(program)
                break
            except TraceError:
                refused |= set(some) if len(some) == 1 else set()
    return program


def _decomposed(program: ExportedProgram, table: dict[Any, Any] | None = None) -> ExportedProgram:
    """Return the functional form of a program, with the ops of the table replaced by the functions in it.

    Raises:
        TraceError: torch cannot decompose it.
    """
    try:
        with torch.no_grad():
            return program.run_decompositions(table or {})
    except Exception as e:  # torch raises many kinds
        raise TraceError(f"torch.export cannot decompose the program: {str(e)[:2000]}") from e


def _in_program_order(program: ExportedProgram, example: Any, names: list[Names]) -> list[Names]:
    """Return the names of the dims of each tensor input, with keywords in the order of the program."""
    flat, form = trees.flatten(example)
    remaining = iter(names)
    names_at = [next(remaining) if isinstance(x, Tensor) else None for x in flat]
    args, kwargs = trees.unflatten(list(range(len(flat))), form)
    assert program.call_spec.in_spec is not None
    keywords = program.call_spec.in_spec.children()[1].context or list(kwargs)
    indices = trees.leaves((args, {k: kwargs[k] for k in keywords}))
    return [dims for i in indices if (dims := names_at[i]) is not None]


def _simplify(program: ExportedProgram) -> None:
    """Rewrite a program in place into fewer and more common ops."""
    inline_regions(program.graph_module)
    use_canonical(program.graph)
    spell_out_strides(program.graph)
    for n in list(program.graph.nodes):
        name = str(n.target) if n.op == "call_function" else ""
        if name.startswith(CHECKS):
            program.graph.erase_node(n)
        elif name.startswith(DROPOUT) and not n.args[2]:  # argument `train` is False
            n.replace_all_uses_with(n.args[0])
            program.graph.erase_node(n)
        elif name == "aten._native_batch_norm_legit_no_training.default":
            _use_plain_batch_norm(program.graph, n)


def _use_plain_batch_norm(graph: fx.Graph, norm: fx.Node) -> None:
    """Replace the decomposed form of an evaluating BatchNorm, which has three outputs, by the op with one output."""
    *tensors, momentum, eps = norm.args
    with graph.inserting_before(norm):
        plain = graph.call_function(torch.ops.aten.batch_norm.default, (*tensors, False, momentum, eps, False))
    plain.meta = {**norm.meta, "val": norm.meta["val"][0]}
    for item in list(norm.users):
        if item.args[1] == 0:
            item.replace_all_uses_with(plain)
        if not item.users:
            graph.erase_node(item)
    if not norm.users:
        graph.erase_node(norm)


@contextlib.contextmanager
def in_mode(model: nn.Module, train: bool) -> Iterator[None]:
    """Put the whole module into train or eval mode, and restore the mode of each submodule afterwards."""
    flags = {m: m.training for m in model.modules()}
    try:
        model.train(train)
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def _follow_to_meta(model: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the example inputs, moved to `meta` if the whole model is on `meta`."""
    tensors = [*model.parameters(), *model.buffers()]
    if not tensors or any(t.device.type != "meta" for t in tensors):
        return args
    return trees.map_tensors(lambda t: t.to("meta"), args)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[Names]) -> ExportedProgram:
    """Export with symbolic sizes; double a batch of one, because torch would treat size 1 as broadcasting."""
    tensors = trees.tensors((args, kwargs))
    attempts = [(args, kwargs)]
    if tensors and all(t.ndim and t.shape[0] == 1 for t in tensors):
        attempts.insert(0, trees.map_tensors(lambda t: torch.cat([t, t]), (args, kwargs)))
    error: Exception | None = None
    for a, k in attempts:
        shapes = ShapesCollection()
        for t, dims in zip(trees.tensors((a, k)), names, strict=True):
            if any(dims):
                shapes[t] = {d: Dim.AUTO for d, name in enumerate(dims) if name is not None}
        try:
            with (
                OffMeta(),
                recurrent_shapes(),
                warnings.catch_warnings(),
                contextlib.redirect_stderr(io.StringIO()),
            ):  # torch prints the graph of a failed export
                warnings.filterwarnings(
                    "ignore", "The tensor attributes? .* assigned during export"
                )  # torch.export undoes these
                reseed()
                return export(model, a, k, dynamic_shapes=shapes.dynamic_shapes(model, a, k), strict=False)
        except Exception as e:  # torch.export raises many kinds
            error = e
    raise TraceError(f"torch.export cannot capture {type(model).__name__}: {str(error)[:2000]}") from error


def _read_program(program: ExportedProgram, names: list[Names]) -> Captured:
    signature, graph = program.graph_signature, program.graph
    tensors, constants, sources, inputs = {}, {}, {}, []
    values = {**program.constants}
    for spec in signature.input_specs:
        name = str(getattr(spec.arg, "name", ""))
        if spec.kind == InputKind.PARAMETER or (spec.kind == InputKind.BUFFER and spec.persistent):
            tensors[name] = str(spec.target)
        elif spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            constants[name], sources[name] = values[str(spec.target)], str(spec.target)
        elif spec.kind == InputKind.USER_INPUT:
            inputs.append(name)
        else:
            raise TraceError(f"the model takes an input of kind {spec.kind}, which prunefn does not support")
    nodes = {n.name: n for n in graph.nodes}
    inputs = [n for n in inputs if n in nodes and isinstance(nodes[n].meta.get("val"), Tensor)]
    updates, outputs = {}, []
    returned_values = next(n for n in reversed(graph.nodes) if n.op == "output").args[0]
    for spec, value in zip(signature.output_specs, returned_values, strict=True):
        if spec.kind == OutputKind.USER_OUTPUT:
            outputs.append(value)
        elif spec.kind == OutputKind.BUFFER_MUTATION:
            updates[str(spec.target)] = value
        else:
            raise TraceError(
                f"the model writes to {spec.target or 'an input'} ({spec.kind}); prunefn's programs have no such side effects; "
                "return the value instead"
            )
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    assert in_spec is not None and out_spec is not None
    metas = [nodes[n].meta["val"] for n in inputs]
    return Captured(
        graph,
        tensors,
        constants,
        sources,
        inputs,
        in_spec,
        out_spec,
        outputs,
        updates,
        nodes,
        names,
        fixed_dims(inputs, metas, names),
        {},
    )
