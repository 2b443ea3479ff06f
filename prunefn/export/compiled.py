"""torch's own formats: exported programs, AOTInductor packages, TorchScript."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from .. import trees
from ..doors import door
from ..spec.spec import Spec
from ..types import Params
from .verify import BATCHES, LIMIT, Example, Exported, Run, export


@door
def program(
    params: Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec,
    batches: Sequence[int] = BATCHES,
    limit: float = LIMIT,
) -> Exported:
    """Write what torch.export makes of the network, with a free batch: a .pt2 file for `torch.export.load`.

    Args:
        params: of the spec.
        path: ends in .pt2.
        spec: of the params; `shrink(spec, mask)` for pruned ones.
        batches: sizes at which the file, read back, is compared with `forward`.
        limit: largest difference, times the largest output where that is above one.

    Raises:
        PruneError: it differs by more; nothing is written then.
        TraceError: the spec was recorded, so that there is no program.

    >>> import tempfile, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = program(pf.params(model), f"{folder}/small.pt2", spec=spec)
    >>> max(done.differences.values()) < 1e-6, list(done.differences)
    (True, [1, 2, 5])
    """

    def make(example: Example, file: Path) -> Run:
        made = exported(example)
        save_bytes(file, lambda buffer: torch.export.save(made, buffer))
        return Flat(torch.export.load(file).module(), example)

    return export(params, path, spec=spec, kind="exported program", batches=batches, limit=limit, make=make)


@door
def aoti(
    params: Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec,
    batches: Sequence[int] = BATCHES,
    limit: float = LIMIT,
) -> Exported:
    """Compile the network ahead of time for this machine's CPU: a .pt2 package for `torch._inductor.aoti_load_package`, no Python.

    Takes a C++ compiler, and half a minute for a ResNet.

    Args:
        params, path, spec, batches, limit: as for `program`.

    Raises:
        PruneError: as for `program`, or the compiler fails.
    """
    import torch._inductor as inductor

    def make(example: Example, file: Path) -> Run:
        inductor.aoti_compile_and_package(exported(example), package_path=str(file))
        return Flat(inductor.aoti_load_package(str(file)), example)

    return export(params, path, spec=spec, kind="AOTInductor", batches=batches, limit=limit, make=make)


@door
def torchscript(
    params: Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec,
    batches: Sequence[int] = BATCHES,
    limit: float = LIMIT,
) -> Exported:
    """Trace the network to TorchScript, for runtimes that have nothing newer: a .pt file for `torch.jit.load`.

    Args:
        params, path, spec, batches, limit: as for `program`. Inputs are flat and by position.

    Raises:
        PruneError: as for `program`; such as a batch size that is a constant somewhere in the trace.
    """

    def make(example: Example, file: Path) -> Run:
        _traceable(example.module)
        inputs = trees.tensors((example.args, example.kwargs))
        with torch.no_grad():
            traced = torch.jit.trace(_Traced(example), tuple(inputs), check_trace=False)
        save_bytes(file, lambda buffer: torch.jit.save(traced, buffer))
        loaded = torch.jit.load(str(file))
        return lambda given: trees.tensors(loaded(*given))

    return export(params, path, spec=spec, kind="TorchScript", batches=batches, limit=limit, make=make)


def save_bytes(file: Path, save: Callable[[BytesIO], object]) -> None:
    """Write a file through memory: on a full disk, torch's own writer of archives ends the process."""
    buffer = BytesIO()
    save(buffer)
    file.write_bytes(buffer.getbuffer())


class Flat:
    """What takes the arguments of the traced call, as a function of flat tensors."""

    def __init__(self, module: Any, example: Example) -> None:
        self.module = module
        leaves, self.tree = trees.flatten((example.args, example.kwargs))
        self.others = [None if isinstance(x, Tensor) else x for x in leaves]
        self.tensors = [isinstance(x, Tensor) for x in leaves]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        given = iter(inputs)
        leaves = [next(given) if t else o for t, o in zip(self.tensors, self.others, strict=True)]
        args, kwargs = trees.unflatten(leaves, self.tree)
        return trees.tensors(self.module(*args, **kwargs))


class _Traced(torch.nn.Module):
    """The same as a module, for TorchScript."""

    def __init__(self, example: Example) -> None:
        super().__init__()
        self.module, self.flat = example.module, Flat(example.module, example)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.flat(inputs))


def _filled(like: Tensor, value: Tensor) -> Tensor:
    return torch.zeros_like(like) + value


def exported(example: Example) -> torch.export.ExportedProgram:
    """The graph module through torch.export, with a free batch."""
    args, kwargs = example.dynamic
    names = inspect.signature(example.module.forward).parameters
    shapes = dict(zip(names, (*args, *kwargs.values()), strict=True))
    return torch.export.export(example.module, example.args, example.kwargs or None, dynamic_shapes=shapes)


def _traceable(module: fx.GraphModule) -> None:
    """Ops that take sizes become methods and functions of torch: these the tracer of TorchScript sees with sizes that vary."""
    sizes: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.fill.Scalar:
            node.target = torch.full_like  # its own trace has arguments that no op of TorchScript takes
        elif node.target is torch.ops.aten.fill.Tensor:  # as torch 2.11 has it
            node.target = _filled
        if node.op == "call_method" and node.target == "size":
            sizes.add(node)
        elif node.op == "call_function" and sizes.intersection(node.all_input_nodes):
            if not isinstance(node.target, torch._ops.OpOverload):
                sizes.add(node)  # arithmetic on sizes
                continue
            name = node.target._schema.name.removeprefix("aten::")
            if hasattr(torch.Tensor, name):
                node.op, node.target = "call_method", name
            else:
                node.target = getattr(torch, name)
    module.recompile()
