"""Export to torch's own formats: exported programs, AOTInductor packages, TorchScript."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from .. import trees
from ..doors import door
from ..modules.exported import Example, exported
from ..spec.spec import Spec
from ..types import Params
from .verify import ATOL, BATCHES, Exported, Run, export


@door
def program(
    params: Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec,
    batches: Sequence[int] = BATCHES,
    atol: float = ATOL,
) -> Exported:
    """Write the network as an exported program of `torch.export` with a free batch: a .pt2 file for `torch.export.load`.

    Args:
        params: params of the spec.
        path: the file, whose name ends in .pt2.
        spec: spec of the params; `shrink(spec, mask)` for pruned params.
        batches: batch sizes at which the file, read back, is compared with `forward`.
        atol: maximal difference allowed; it is multiplied by the largest output if that is above one.

    Raises:
        PruneError: the file differs by more; then nothing is written.
        TraceError: the spec was recorded, so it has no program.

    >>> import tempfile, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = program(pf.params(model), f"{folder}/small.pt2", spec=spec)
    >>> max(done.differences.values()) < 1e-6, list(done.differences)
    (True, [1, 2, 5])
    """

    def make(example: Example, file: Path) -> Run:
        exported_program = exported(example)
        save_bytes(file, lambda buffer: torch.export.save(exported_program, buffer))
        return Flat(torch.export.load(file).module(), example)

    return export(params, path, spec=spec, kind="exported program", batches=batches, atol=atol, make=make)


@door
def aoti(
    params: Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec,
    batches: Sequence[int] = BATCHES,
    atol: float = ATOL,
) -> Exported:
    """Compile the network ahead of time for this machine's CPU, to run without Python.

    The file is a .pt2 package for `torch._inductor.aoti_load_package`. Compiling needs a C++ compiler, and takes half a minute
    for a ResNet.

    Args:
        params, path, spec, batches, atol: as for `program`.

    Raises:
        PruneError: as for `program`, or the compiler fails.
    """
    import torch._inductor as inductor

    def make(example: Example, file: Path) -> Run:
        inductor.aoti_compile_and_package(exported(example), package_path=str(file))
        return Flat(inductor.aoti_load_package(str(file)), example)

    return export(params, path, spec=spec, kind="AOTInductor", batches=batches, atol=atol, make=make)


@door
def torchscript(
    params: Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec,
    batches: Sequence[int] = BATCHES,
    atol: float = ATOL,
) -> Exported:
    """Trace the network to TorchScript, for runtimes that support nothing newer: a .pt file for `torch.jit.load`.

    Args:
        params, path, spec, batches, atol: as for `program`. The file takes flat inputs by position.

    Raises:
        PruneError: as for `program`, for example if the trace has a constant instead of the batch size.
    """

    def make(example: Example, file: Path) -> Run:
        _make_traceable(example.module)
        inputs = trees.tensors((example.args, example.kwargs))
        with torch.no_grad():
            traced = torch.jit.trace(_FlatModule(example), tuple(inputs), check_trace=False)
        save_bytes(file, lambda buffer: torch.jit.save(traced, buffer))
        loaded = torch.jit.load(str(file))
        return lambda flat_inputs: trees.tensors(loaded(*flat_inputs))

    return export(params, path, spec=spec, kind="TorchScript", batches=batches, atol=atol, make=make)


def save_bytes(file: Path, save: Callable[[BytesIO], object]) -> None:
    """Write a file through memory, because torch's own writer of archives ends the process on a full disk."""
    buffer = BytesIO()
    save(buffer)
    file.write_bytes(buffer.getbuffer())


class Flat:
    """A function of flat tensors that calls a module with the arguments of the traced call."""

    def __init__(self, module: Any, example: Example) -> None:
        self.module = module
        leaves, self.tree = trees.flatten((example.args, example.kwargs))
        self.constants = [None if isinstance(x, Tensor) else x for x in leaves]
        self.is_tensor = [isinstance(x, Tensor) for x in leaves]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        tensors = iter(inputs)
        leaves = [next(tensors) if t else c for t, c in zip(self.is_tensor, self.constants, strict=True)]
        args, kwargs = trees.unflatten(leaves, self.tree)
        return trees.tensors(self.module(*args, **kwargs))


class _FlatModule(torch.nn.Module):
    """`Flat` as a module, for TorchScript."""

    def __init__(self, example: Example) -> None:
        super().__init__()
        self.module, self.flat = example.module, Flat(example.module, example)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.flat(inputs))


def _fill(like: Tensor, value: Tensor) -> Tensor:
    """Return a tensor of the shape of `like`, filled with a value of no dims."""
    return torch.zeros_like(like) + value


def _make_traceable(module: fx.GraphModule) -> None:
    """Replace ops that take sizes by methods and functions of torch, for which TorchScript's tracer keeps sizes variable."""
    sizes: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.fill.Scalar:
            node.target = torch.full_like  # the trace of `fill` has arguments that no op of TorchScript takes
        elif node.target is torch.ops.aten.fill.Tensor:  # the overload that torch 2.11 uses
            node.target = _fill
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
