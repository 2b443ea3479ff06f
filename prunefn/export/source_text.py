"""The text of a plain source: imports, classes, `load`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .interface import Interface, Returned, returned
from .statements import Body
from .text import Group, call, lines, literal, quoted


class Parts(NamedTuple):
    """What a source is made of."""

    stem: str
    """Name of the file without its suffix."""
    containers: list[str]
    """Statements that make modules and tensors."""
    body: Body
    interface: Interface
    tied: Mapping[str, str]
    """Second name of a tensor → first name."""
    has_constants: bool
    """Whether constants are in a file."""


def source_text(parts: Parts) -> str:
    """Return the text of a source."""
    classes: list[tuple[str, tuple[tuple[str, str], ...]]] = []
    result = returned(parts.interface.outputs, iter(parts.body.outputs), classes)
    sections = [
        [*_head(parts), "", *_imports(parts, bool(classes)), "", *_files(parts)],
        *(
            [f"class {name}(NamedTuple):", *(f"    {field}: {kind}" for field, kind in fields)]
            for name, fields in classes
        ),
        [*_model(parts), "", *_forward(parts, result)],
        _load(parts),
    ]
    return "\n\n\n".join("\n".join(s) for s in sections) + "\n"


def _head(parts: Parts) -> list[str]:
    return [
        '"""A network in plain PyTorch.',
        "",
        f"`load()` returns it with the weights of {parts.stem}.safetensors, which is beside this",
        "file, in eval mode. Dropout is not part of it, so it trains without.",
        '"""',
    ]


def _imports(parts: Parts, has_classes: bool) -> list[str]:
    text = "\n".join(parts.containers)
    rooms = parts.body.rooms | ({"torch"} if "torch." in text or parts.interface.fixed else set())
    standard = ["import math"] * ("math" in rooms) + ["from pathlib import Path"]
    standard += ["from typing import NamedTuple"] * has_classes
    third = ["import torch"] * ("torch" in rooms) + ["import torch.nn.functional as F"] * ("F" in rooms)
    return [*standard, "", *third, "from safetensors.torch import load_file", "from torch import Tensor, nn"]


def _files(parts: Parts) -> list[str]:
    out = ['WEIGHTS = Path(__file__).with_suffix(".safetensors")']
    if parts.has_constants:
        out.append('CONSTANTS = Path(__file__).with_suffix(".constants.safetensors")')
    if parts.tied:
        pairs = tuple(f"{quoted(second)}: {quoted(first)}" for second, first in parts.tied.items())
        out += [*lines(Group("TIED = {", pairs, "}"), 0), '"""Second name of a tensor → its name in the file."""']
    return out


def _model(parts: Parts) -> list[str]:
    constants = ["        constants = load_file(CONSTANTS)"] if parts.has_constants else []
    head = ["class Model(nn.Module):", '    """The network without its weights; `load` returns it with them."""', ""]
    return [*head, "    def __init__(self) -> None:", "        super().__init__()", *constants, *parts.containers]


def _forward(parts: Parts, result: Returned) -> list[str]:
    i = parts.interface
    typed = [f"{name}: {kind}" if kind else name for name, kind in i.parameters.items()]
    arrow = f" -> {result.type}" if result.type else ""
    shapes = dict(zip(i.variables, i.shapes, strict=True))
    paths = dict(i.unpacked)
    doc = ['        """Run the network.', "", "        Args:"]
    doc += [f"            {paths.get(v, v)}: {shape}." for v, shape in shapes.items()] + ['        """']
    checks = [
        line
        for path, value in i.fixed
        for line in lines(
            call("torch._assert", [f"{path} == {literal(value)}", quoted(f"{path} must be {value!r}")]), 2
        )
    ]
    unpacked = [f"        {variable} = {path}" for variable, path in i.unpacked]
    device = [f"        device = {i.variables[0]}.device"] if parts.body.reads_device else []
    body = [*checks, *unpacked, *device, *parts.body.lines]
    body = body[1:] if body and not body[0] else body
    return [
        *lines(Group("def forward(", ("self", *typed), ")"), 1, after=f"{arrow}:"),
        *doc,
        *body,
        *lines(result.text, 2, "return "),
    ]


def _load(parts: Parts) -> list[str]:
    tied = ["    tensors |= {second: tensors[first] for second, first in TIED.items()}"] if parts.tied else []
    return [
        "def load(path: str | Path = WEIGHTS) -> Model:",
        '    """Return the model with the weights of a file, in eval mode."""',
        "    model, tensors = Model(), load_file(path)",
        *tied,
        "    model.load_state_dict(tensors)",
        "    return model.eval()",
    ]
