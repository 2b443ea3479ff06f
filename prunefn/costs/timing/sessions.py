"""ONNX Runtime on the CPU: whole forwards, and the seconds of each part of the file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ... import trees
from ..._extras import needs
from ...errors import PruneError
from ...spec.spec import Spec
from ...types import Params
from .clock import WARM_UP, Call, quiet
from .loaded import Loaded, sum_by_part
from .onnx_parts import Marked, write_marked


def version() -> str:
    """Return the name and version of ONNX Runtime.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    with needs("export", "runtime='onnx'"):
        import onnxruntime
    return f"ONNX Runtime {onnxruntime.__version__}"


def load(params: Params, spec: Spec, inputs: tuple[Any, Any]) -> Loaded:
    """Write the network to a temporary file and load it; see `runtimes.load`."""
    version()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        marked = write_marked(params, spec, file)
        session = _session(file)
        # with weights in a second file, a session may read them later
        content = file.read_bytes() if len(list(Path(folder).iterdir())) == 1 else None
    names = [i.name for i in session.get_inputs()]
    feeds = {n: t.numpy() for n, t in zip(names, trees.tensors(inputs), strict=True)}

    def profile(rounds: int) -> dict[int, float]:
        if content is None:
            raise PruneError("ONNX Runtime times the layers of networks up to 2 GB; this one is larger")
        with tempfile.TemporaryDirectory() as folder:
            profiled = _session(content, f"{folder}/profile")
            for _ in range(WARM_UP + rounds):
                profiled.run(None, feeds)
            events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
        return seconds_of_parts(events, WARM_UP, marked)

    return Loaded(marked.parts, Call("whole", "onnxruntime", session.run, (None, feeds)), profile)


def _session(model: Path | bytes, profile: str | None = None) -> Any:
    """Return a session of ONNX Runtime; with `profile`, it writes the times of its kernels to a file of this prefix."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def seconds_of_parts(events: Sequence[dict[str, Any]], skip: int, marked: Marked) -> dict[int, float]:
    """Return part → seconds of a forward, from the events that ONNX Runtime's profiler wrote.

    Kernels that a runtime adds, such as a change of layout, count for the part of the kernel before them.

    Args:
        events: of all forwards, in order.
        skip: number of first forwards that do not count.
        marked: what the nodes of the file belong to.

    >>> kernel = lambda name, us: {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": {"node_index": name}}
    >>> {k: round(1e6 * s) for k, s in seconds_of_parts([kernel("part1__conv", 5), kernel("ReorderOutput", 2)], 0, Marked((), {})).items()}
    {1: 7}
    """
    by_node: dict[str, list[float]] = {}
    names: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = str(event["args"]["node_index"])
            names.setdefault(node, event["name"])
            by_node.setdefault(node, []).append(event["dur"] / 1e6)  # microseconds → seconds
    return sum_by_part([(names[node], quiet(times[skip:])) for node, times in by_node.items()], marked.number_of)
