"""Pruned networks for other runtimes, each file verified against `forward` before it gets its name.

`onnx` for ONNX Runtime, `program` for torch.export (.pt2), `aoti` compiled ahead of time by AOTInductor, `torchscript` for old
runtimes. The original class goes to disk by `prunefn.save`.
"""

from __future__ import annotations

from .compiled import aoti as aoti
from .compiled import program as program
from .compiled import torchscript as torchscript
from .runtime import onnx as onnx
from .verify import Exported as Exported
