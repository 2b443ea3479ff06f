"""Pruned networks for other runtimes, each file verified against `forward` before it gets its name.

`onnx` writes for ONNX Runtime, `program` for torch.export (.pt2), `aoti` compiles ahead of time with AOTInductor, `torchscript`
is for old runtimes, `source` writes plain PyTorch, `state_dict` for the original class.
"""

from __future__ import annotations

from .compiled import aoti as aoti
from .compiled import program as program
from .compiled import torchscript as torchscript
from .original import state_dict as state_dict
from .runtime import onnx as onnx
from .standalone import source as source
from .verify import Exported as Exported

__all__ = ["Exported", "aoti", "onnx", "program", "source", "state_dict", "torchscript"]


def __dir__() -> list[str]:
    return __all__
