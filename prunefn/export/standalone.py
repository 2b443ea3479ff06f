"""Export as plain PyTorch source, which needs torch and safetensors alone."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, fx

from .. import trees
from ..doors import door
from ..errors import PruneError
from ..modules.exported import Example
from ..modules.graph import constant_path, flat_graph
from ..names import ancestors
from ..parameters.transforms import tied_names
from ..program.compiled import constant
from ..spec.layers import Layer, Use, layer_use
from ..spec.program import HIGHER_ORDER
from ..spec.spec import Spec
from ..types import Params
from .containers import Containers, Tensors
from .interface import Interface, interface_of
from .source_text import Parts, source_text
from .statements import DEVICE, Body, Module, Value, observe, refusal
from .text import Group, Text, call, flat, literal, quoted
from .verify import ATOL, BATCHES, Exported, Run, export

INLINE = 16
"""Numbers of a constant that is written into the source; larger ones go to a file beside it."""


@door
def source(
    params: Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec,
    batches: Sequence[int] = BATCHES,
    atol: float = ATOL,
) -> Exported:
    """Write the network as a Python module of plain PyTorch, with its weights beside it: `small.py` and `small.safetensors`.

    The source has a class `Model`, whose `forward` is one statement an op: layers of `torch.nn` where the op reads the tensors
    of one module, otherwise operators, methods and functions of `torch` and `torch.nn.functional`. Comments name the modules
    of the original. `load()` returns the model with its weights, in eval mode. The names of the state dict are the original
    ones. Its tensor inputs have the names of the original; arguments that are no tensors have their traced values. Named
    tuples stand for outputs of other classes.

    The module trains: BatchNorm layers follow `train()` and `eval()` as usual. Dropout and stochastic depth are not part of a
    network that was traced in eval mode, so training runs without them. `torch.jit.script`, `torch.export` and `torch.compile`
    take it where inputs and outputs are of types that they take.

    Constants of more than 16 numbers that no state dict has, such as position tables, are in `small.constants.safetensors`.

    Args:
        params: params of the spec.
        path: the file, whose name ends in .py.
        spec: spec of the params; `shrink(spec, mask)` for pruned params.
        batches: batch sizes at which the module, imported from the file, is compared with `forward`.
        atol: maximal difference allowed; it is multiplied by the largest output if that is above one.

    Raises:
        PruneError: the module differs by more, or an op is no public function of torch; then nothing is written.
        TraceError: the spec was recorded, so it has no program.

    >>> import tempfile, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = source(pf.params(model), f"{folder}/small.py", spec=spec)
    ...     print([line.strip() for line in done.path.read_text().splitlines() if "x = " in line])
    ['x = getattr(self, "0")(input)', 'x = F.relu(x)', 'x = getattr(self, "2")(x)']
    """
    if Path(path).suffix != ".py":
        raise PruneError(f"path is {os.fspath(path)!r}; the name of a source ends in .py, such as 'small.py'")

    if higher := next((i for i in spec.program.instructions if i.op.startswith(HIGHER_ORDER)), None):
        raise refusal(higher.op, higher.module)

    def make(example: Example, file: Path) -> Run:
        interface = interface_of(spec)
        tensors = {n: t.detach().cpu() for n, t in params.items()}
        constants, tied = _constants(spec), tied_names(params, spec)
        file.write_text(_written(tensors, constants, tied, spec, example, interface, file.stem), encoding="utf-8")
        first = {n: t.contiguous() for n, t in tensors.items() if n not in tied}
        save_file(first, file.with_suffix(".safetensors"), {"format": "pt"})
        if large := {n: t for n, t in constants.items() if t.numel() > INLINE}:
            save_file(large, file.with_suffix(".constants.safetensors"), {"format": "pt"})
        return _imported(file, example, interface)

    return export(params, path, spec=spec, kind="Python source", batches=batches, atol=atol, make=make)


def _imported(file: Path, example: Example, interface: Interface) -> Run:
    """Import a source, and return a function of flat inputs that runs it."""
    description = importlib.util.spec_from_file_location(f"_{file.stem}", file)
    assert description is not None and description.loader is not None
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    model, form = module.load(), trees.flatten((example.args, example.kwargs))
    is_tensor = [isinstance(x, Tensor) for x in form[0]]

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        tensors = iter(inputs)
        leaves = [next(tensors) if t else x for t, x in zip(is_tensor, form[0], strict=True)]
        args, kwargs = trees.unflatten(leaves, form[1])
        given = dict(zip(interface.arguments, (*args, *kwargs.values()), strict=True))
        return trees.tensors(model(**{name: given[name] for name in interface.parameters}))

    return run


def _constants(spec: Spec) -> dict[str, Tensor]:
    """Return the constants by the paths where the original has them, as far as they are free."""
    out: dict[str, Tensor] = {}
    taken = {*spec.axes, *(i.module for i in spec.program.instructions)}
    for n in spec.program.constants:
        path = spec.constants.sources.get(n, n)
        parent = path.rpartition(".")[0]
        is_free = (
            path not in taken and path not in out and (not parent or any(t.startswith(f"{parent}.") for t in taken))
        )
        name = path if is_free else f"constants.{n.replace('.', '_')}"
        out[name] = constant(spec, n, torch.device("cpu"))
    return out


def _written(
    tensors: dict[str, Tensor],
    constants: Mapping[str, Tensor],
    tied: Mapping[str, str],
    spec: Spec,
    example: Example,
    interface: Interface,
    stem: str,
) -> str:
    """Return the source."""
    graph, modules = flat_graph(tensors, spec, DEVICE)
    inputs = trees.tensors((example.args, example.kwargs))
    seen = observe(graph, example.module, inputs)
    uses = _uses(graph, seen, tensors, spec)
    values = {n: _constant_text(n, t) for n, t in constants.items()}
    layers = {u.path: u.layer for u in uses.values()}
    containers = Containers(Tensors(tensors, spec.parameters | spec.slots, spec.without_grad, tied, values, layers))
    place = {constant_path(n): name for n, name in zip(spec.program.constants, constants, strict=True)}
    places = {i.name: at for at, i in enumerate(spec.program.inputs)}
    body = Body(
        graph,
        Module(
            modules,
            seen,
            uses,
            lambda path: containers.access(place.get(path) or path),
            interface.variables,
            {(places[i], d): leaf for leaf, (i, d) in spec.program.free.items()},
            frozenset(p for n in tensors for p in ancestors(n.rpartition(".")[0])),
        ),
    )
    return source_text(
        Parts(stem, containers.lines(), body, interface, tied, any("constants[" in flat(v) for v in values.values()))
    )


def _uses(
    graph: fx.Graph, seen: Mapping[fx.Node, Value], tensors: Mapping[str, Tensor], spec: Spec
) -> dict[fx.Node, Use]:
    """Return the nodes that are calls of layers: of modules whose tensors are those of the layer, and no others."""
    layers: dict[str, Layer] = {}
    uses: dict[fx.Node, Use] = {}
    for node in graph.nodes:
        use = layer_use(node, spec.shape, seen[node].dims or 0) if node.op == "call_function" else None
        if use is not None and use.path and layers.get(use.path, use.layer) == use.layer:
            own = {n.removeprefix(f"{use.path}.") for n in tensors if n.startswith(f"{use.path}.")}
            if use.path in layers or own == use.layer.tensors():
                layers[use.path], uses[node] = use.layer, use
    return uses


def _constant_text(name: str, t: Tensor) -> Text:
    """Return the expression of a constant."""
    if t.numel() > INLINE:
        return Group("constants[", (quoted(name),), "]")
    dtype = [] if t.dtype in (torch.float32, torch.int64, torch.bool) and t.numel() else [("dtype", literal(t.dtype))]
    return call("torch.tensor", [literal(t.tolist())], dtype)
