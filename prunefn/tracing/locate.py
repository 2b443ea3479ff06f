"""Where a program leaves its module: the first submodule whose output it does not give."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from .. import trees
from ..spec.program import Instruction
from .analyse import reason_of


class Outputs:
    """The first output of each submodule, in the order in which they are done; a context in which the module runs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}
        self.hooks: list[Any] = []

    def __enter__(self) -> Outputs:
        named = [(name, m) for name, m in self.model.named_modules() if name]
        self.hooks = [m.register_forward_hook(partial(self._keep, name)) for name, m in named]
        return self

    def __exit__(self, *exception: Any) -> None:
        for hook in self.hooks:
            hook.remove()

    def _keep(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
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
    """Return the first submodule, called once, whose last value of the same shape differs, with its line.

    Args:
        outputs: of the module.
        values: of the program, by name of the instruction.
        instructions: of the program.
        nodes: of the traced graph; they know the lines.
        differ: (tensor, tensor) → what differs, or an empty text.
    """
    for path, expected in outputs.tensors.items():
        inside = [i for i in instructions if i.module == path or i.module.startswith(f"{path}.")]
        same = [i for i in inside if isinstance(t := values.get(i.name), Tensor) and t.shape == expected.shape]
        if outputs.calls[path] == 1 and same and differ(expected, values[same[-1].name]):
            source = reason_of(nodes[same[-1].name]).source
            return f" from {path!r} on" + (f" ({source})" if source else "")
    return ""
