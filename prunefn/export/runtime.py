"""Export to ONNX, for ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .._extras import needs
from ..doors import door
from ..modules.exported import Example, onnx_program
from ..spec.spec import Spec
from ..types import Params
from .verify import ATOL, BATCHES, Exported, Run, export


@door
def onnx(
    params: Params,
    path: str | os.PathLike[str],
    *,
    spec: Spec,
    batches: Sequence[int] = BATCHES,
    atol: float = ATOL,
    opset: int | None = None,
) -> Exported:
    """Write the network as ONNX with a free batch, by torch's exporter on top of torch.export.

    Args:
        params: params of the spec.
        path: the file, whose name ends in .onnx; weights beyond 2 GB go to a second file beside it.
        spec: spec of the params; `shrink(spec, mask)` for pruned params.
        batches: batch sizes at which ONNX Runtime's results are compared with `forward`.
        atol: maximal difference allowed; it is multiplied by the largest output if that is above one.
        opset: opset of ONNX; default: torch's.

    Raises:
        PruneError: the file differs by more; then nothing is written.
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.

    >>> import tempfile, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = onnx(pf.params(model), f"{folder}/small.onnx", spec=spec)
    >>> max(done.differences.values()) < 1e-6
    True
    """
    with needs("export", "export.onnx"):
        import onnxruntime

    def make(example: Example, file: Path) -> Run:
        onnx_program(example, opset).save(str(file))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            feeds = {n: t.numpy() for n, t in zip(names, inputs, strict=True)}
            return [torch.from_numpy(y) for y in session.run(None, feeds)]

        return run

    return export(params, path, spec=spec, kind="ONNX", batches=batches, atol=atol, make=make)
