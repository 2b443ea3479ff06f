"""OpenVINO on the CPU: whole forwards, and the seconds of each part of the file."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from ... import trees
from ..._extras import needs
from ...spec.spec import Spec
from ...types import Params
from .clock import WARM_UP, Call, quiet
from .loaded import Loaded, sum_by_part
from .onnx_parts import write_marked


def version() -> str:
    """Return the name and version of OpenVINO.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    return f"OpenVINO {_openvino().__version__.partition('-')[0]}"


def _openvino() -> Any:
    with needs("openvino", "runtime='openvino'"):
        import openvino  # type: ignore[import-not-found]
    return openvino


def load(params: Params, spec: Spec, inputs: tuple[Any, Any]) -> Loaded:
    """Write the network to a temporary file of ONNX and compile it in float32 for the shapes of the inputs; see `runtimes.load`."""
    openvino = _openvino()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        marked = write_marked(params, spec, file)
        model = openvino.Core().read_model(file)
        names = [i.get_any_name() for i in model.inputs]
        feeds = {n: t.numpy() for n, t in zip(names, trees.tensors(inputs), strict=True)}
        model.reshape({n: list(x.shape) for n, x in feeds.items()})
        request = _request(openvino, model, counters=False)  # while the file, which it may map, is there

    def profile(rounds: int) -> dict[int, float]:
        profiled, times = _request(openvino, model, counters=True), defaultdict[tuple[int, str], list[float]](list)
        for k in range(WARM_UP + rounds):
            profiled.infer(feeds, share_inputs=True)
            for i, kernel in enumerate(profiled.profiling_info if k >= WARM_UP else ()):
                times[i, kernel.node_name].append(kernel.real_time.total_seconds())
        kernels = [(name, quiet(seconds)) for (_, name), seconds in times.items()]
        return sum_by_part(kernels, marked.number_of)

    return Loaded(marked.parts, Call("whole", "openvino", request.infer, (feeds,), {"share_inputs": True}), profile)


def _request(openvino: Any, model: Any, *, counters: bool) -> Any:
    """Return a request for one forward at a time, which runs in the calling thread where torch has one thread."""
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # else it computes in bfloat16 where the CPU can
        "PERF_COUNT": counters,
    }
    return openvino.Core().compile_model(model, "CPU", options).create_infer_request()
