"""A program as an ONNX file whose nodes say which layer they belong to, because runtimes fuse the nodes of layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...modules.exported import example_of, onnx_program
from ...sparse.layouts import weights
from ...spec.spec import Spec
from ...types import Params
from .loaded import Part

MARK = re.compile(r"(?:^|\W)part(\d+)__")
"""What names of nodes and results begin with; a runtime names a fused node after one of its nodes or results."""


class Marked(NamedTuple):
    """What a file's nodes belong to."""

    parts: tuple[Part, ...]
    outputs: dict[str, int]
    """Output of the file, whose name is not marked → number of its part."""

    def number_of(self, name: str) -> int | None:
        """Return the number of the part of a node that a runtime ran; None if its name does not say it.

        >>> marked = Marked((), {"linear": 2})
        >>> marked.number_of("part1__conv"), marked.number_of("linear_nchwc"), marked.number_of("ReorderOutput")
        (1, 2, None)
        """
        outputs = (n for o, n in self.outputs.items() if name == o or name.startswith(f"{o}_"))
        number = part_number(name)
        return next(outputs, None) if number is None else number


def write_marked(params: Params, spec: Spec, file: Path) -> Marked:
    """Write the network as `export.onnx` does, with the part of each node in its name, and return the parts.

    Args:
        params, spec: of the network.
        file: the file; weights beyond 2 GB go to a second file beside it.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
    """
    program = onnx_program(example_of(params, spec))
    graph = program.model.graph
    names = _weights_of_initializers(graph.initializers, params, spec)
    parts = [Part("", ())]
    part_of: dict[int, int] = {}  # id of a value → number of its part
    for node in graph:
        weight = next((names[v.name] for v in node.inputs if v is not None and v.name in names), None)
        number = max((part_of.get(id(v), 0) for v in node.inputs), default=0)
        if weight is not None:
            number = len(parts)
            parts.append(Part(weight, spec.axes[weight]))
        node.name = f"part{number}__{node.name}"
        for value in node.outputs:
            part_of[id(value)] = number
            if not value.is_graph_output():
                value.name = f"part{number}__{value.name}"
    program.save(str(file))
    return Marked(tuple(parts), {str(v.name): part_of.get(id(v), 0) for v in graph.outputs})


def _weights_of_initializers(initializers: Mapping[str, Any], params: Params, spec: Spec) -> dict[str, str]:
    """Return name of an initializer → the weight that it is, also where the exporter transposed the weight."""
    layouts = weights(spec)
    names = {n: n for n in initializers if n in layouts}
    transposed: dict[str, list[str]] = {}
    for n in layouts:
        if n not in names and params[n].ndim == 2:
            transposed.setdefault(_digest(params[n].detach().cpu().t().numpy()), []).append(n)
    for name, value in initializers.items():
        if name in names or value.const_value is None or len(value.shape) != 2:
            continue
        if same := transposed.get(_digest(value.const_value.numpy())):
            names[name] = same.pop(0)  # weights of equal numbers are taken in the order of the program
    return names


def _digest(array: np.ndarray) -> str:
    """Return a digest of shape and numbers."""
    return f"{array.shape} {sha256(array.tobytes()).hexdigest()}"


def part_number(name: str) -> int | None:
    """Return the number of the part of a node that a runtime ran; None if its name does not say it.

    >>> part_number("part3__relu_1_nchwc"), part_number("Gelu/part12__mul"), part_number("ReorderOutput")
    (3, 12, None)
    """
    found = MARK.search(name)
    return int(found[1]) if found else None
