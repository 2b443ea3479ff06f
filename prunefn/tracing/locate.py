"""Locate where a program differs from its module: the first submodule whose output differs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from .. import trees
from ..spec.program import Instruction
from .analyse import reason_of


class Outputs:
    """A context that collects the first output of each submodule while the model runs, in the order of completion."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}
        self.hooks: list[Any] = []

    def __enter__(self) -> Outputs:
        named = [(name, m) for name, m in self.model.named_modules() if name]
        self.hooks = [m.register_forward_hook(partial(self._record_output, name)) for name, m in named]
        return self

    def __exit__(self, *exception: Any) -> None:
        for hook in self.hooks:
            hook.remove()

    def _record_output(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        first = next((t for t in trees.leaves(output) if isinstance(t, Tensor)), None)
        if first is not None:
            self.tensors.setdefault(name, first.detach().clone())


def first_difference(
    outputs: Outputs,
    values: Mapping[str, Any],
    instructions: tuple[Instruction, ...],
    nodes: Mapping[str, fx.Node],
    differ: Any,
) -> str:
    """Return a text with the first submodule whose output differs, and its line; an empty text if there is none.

    Only submodules that are called once are compared; the program's value is the last one of the same shape inside the module.

    Args:
        outputs: outputs of the submodules.
        values: values of the program, by name of the instruction.
        instructions: instructions of the program.
        nodes: nodes of the traced graph, which hold the source lines.
        differ: (tensor, tensor) → difference, or an empty text.
    """
    for path, expected in outputs.tensors.items():
        inside = [i for i in instructions if i.module == path or i.module.startswith(f"{path}.")]
        same_shape = [i for i in inside if isinstance(t := values.get(i.name), Tensor) and t.shape == expected.shape]
        if outputs.calls[path] == 1 and same_shape and differ(expected, values[same_shape[-1].name]):
            source = reason_of(nodes[same_shape[-1].name]).source
            return f" from {path!r} on" + (f" ({source})" if source else "")
    return ""
