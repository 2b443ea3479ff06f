"""The runtimes in which latencies are measured: eager torch, torch.compile, ONNX Runtime, OpenVINO."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch

from ...errors import PruneError
from ...spec.spec import Spec
from ...types import Params
from . import compiled_forwards, openvino_requests, sessions
from .loaded import Loaded

Runtime = Literal["eager", "compiled", "onnx", "openvino"]
RUNTIMES: tuple[str, ...] = get_args(Runtime)
ON_CPU = ("onnx", "openvino")
"""Runtimes that are measured on the CPU alone."""


class Kernels(NamedTuple):
    """How the kernels of a runtime treat numbers of channels."""

    multiple: int = 16
    """They compute blocks of this many: 16 floats fill a vector of AVX-512, and tensor cores prefer 8 or 16."""
    filled: int | None = None
    """Multiples of this number are filled up to a block with zeros; None: they have slower kernels for what is no multiple."""


KERNELS = {
    "eager": Kernels(),
    "compiled": Kernels(),
    "onnx": Kernels(filled=4),
    "openvino": Kernels(filled=1),
}


def check_runtime(runtime: str, device: torch.device) -> None:
    """Raise a PruneError if there is no such runtime, or it does not run on the device."""
    if runtime not in RUNTIMES:
        raise PruneError(f"runtime is {runtime!r}; write one of {', '.join(map(repr, RUNTIMES))}")
    if runtime in ON_CPU and device.type != "cpu":
        raise PruneError(
            f"runtime={runtime!r} measures on the CPU, but the device is {str(device)!r}; write device='cpu'"
        )


def version_of(runtime: str) -> str:
    """Return the name and version of a runtime.

    Raises:
        ModuleNotFoundError: it is not installed; names the extra that brings it.
    """
    versions = {
        "eager": lambda: f"torch {torch.__version__}",
        "compiled": lambda: f"torch.compile {torch.__version__}",
        "onnx": sessions.version,
        "openvino": openvino_requests.version,
    }
    return versions[runtime]()


def load(runtime: str, params: Params, spec: Spec, inputs: tuple[Any, Any]) -> Loaded:
    """Load a network into a runtime other than eager torch, with as many threads as torch uses.

    Args:
        runtime: `compiled`, `onnx` or `openvino`.
        params, spec: of the network.
        inputs: (args, kwargs), on the device.

    Raises:
        ModuleNotFoundError: the runtime, or what writes its files, is not installed.
    """
    loaders = {"compiled": compiled_forwards.load, "onnx": sessions.load, "openvino": openvino_requests.load}
    return loaders[runtime](params, spec, inputs)
