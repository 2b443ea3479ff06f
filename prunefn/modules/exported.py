"""The program of a spec as an exported program of torch.export, and as ONNX."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.export import Dim

from .. import trees
from .._extras import needs
from ..errors import PruneError
from ..spec.axis import Leaf
from ..spec.spec import Spec, check_runnable
from ..types import Params
from .graph import graph_module

TRACED = 2
"""Batch size of the example: torch.export treats 0 and 1 as constants."""


class Example(NamedTuple):
    """The input of an exporter: a graph module with example arguments."""

    module: fx.GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: tuple[Any, ...]
    """For each of args, then kwargs: in place of a tensor, a dict of its free dims (those of the batch)."""


def example_of(params: Params, spec: Spec) -> Example:
    """Return the graph module on the CPU with random inputs.

    Raises:
        PruneError: the spec was traced in train mode.
        TraceError: the spec was recorded.
    """
    check_runnable(spec)
    if spec.train:
        raise PruneError("this spec was traced in train mode; export the spec of trace(model, args) in eval mode")
    args, kwargs = spec.example.draw(batch=TRACED)
    inputs, free = spec.program.inputs, spec.program.free
    free_dims = iter(
        [{d: Dim.AUTO for d, a in enumerate(i.axes) if isinstance(a, Leaf) and a.name in free} for i in inputs]
    )
    shapes = trees.map_leaves(lambda x: next(free_dims) if isinstance(x, Tensor) else None, (args, kwargs))
    on_cpu = {n: t.cpu() for n, t in params.items()}
    module = graph_module(on_cpu, spec).eval().requires_grad_(False)
    return Example(module, tuple(args), dict(kwargs), shapes)


def exported(example: Example) -> torch.export.ExportedProgram:
    """Return the graph module as an exported program of torch.export, with a free batch."""
    args, kwargs = example.dynamic
    names = inspect.signature(example.module.forward).parameters
    shapes = dict(zip(names, (*args, *kwargs.values()), strict=True))
    return torch.export.export(example.module, example.args, example.kwargs or None, dynamic_shapes=shapes)


def onnx_program(example: Example, opset: int | None = None) -> torch.onnx.ONNXProgram:
    """Return the graph module as ONNX with a free batch, by torch's exporter.

    Args:
        example: the graph module and its inputs.
        opset: opset of ONNX; default: torch's.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
    """
    with needs("export", "ONNX"):
        import onnxscript  # noqa: F401 (torch's exporter imports it later, with a less clear error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own code
        program = torch.onnx.export(exported(example), dynamo=True, verbose=False, opset_version=opset)
    assert program is not None
    return program
