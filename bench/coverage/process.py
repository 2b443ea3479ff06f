"""One model with one tool, in a process of its own."""

from __future__ import annotations

import json
import multiprocessing as mp
import resource
import signal
import tempfile
from pathlib import Path
from typing import Any

from .cases import cases

PRELOAD = [
    "torch",
    "timm",
    "torchvision.models",
    "transformers",
    "prunefn",
    "bench.coverage.check",
    "bench.coverage.others",
]


IDLE = 20
"""Times the limit after which a process is stopped that waits instead of computing, or shares its core with many others."""


def work(suite: str, name: str, tool: str, threads: int, path: str, limit: float) -> None:
    """One model with one tool, in this process; the result goes to a file."""
    import torch

    from .check import check
    from .others import check_other

    resource.setrlimit(resource.RLIMIT_CPU, (round(limit), round(limit) + 5))
    torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(False)  # the fused kernel rounds differently
    case = next(c for c in cases(suite) if c.name == name)
    try:
        result = check(case) if tool == "prunefn" else check_other(case, tool)
    except Exception as e:  # every failure is a row of the table
        result = {"error" if tool == "prunefn" else tool: f"{type(e).__name__}: {str(e)[:300]}"}
    Path(path).write_text(json.dumps(result))


def run(suite: str, name: str, tool: str, threads: int, limit: float) -> dict[str, Any]:
    """The result of a process of its own; out of CPU time and crashes are results, too."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    key = "error" if tool == "prunefn" else tool
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        process = context.Process(target=work, args=(suite, name, tool, threads, str(path), limit))
        process.start()
        process.join(IDLE * limit)
        if path.exists():
            return json.loads(path.read_text())
        late = process.is_alive() or process.exitcode == -signal.SIGXCPU
        if process.is_alive():
            process.kill()
            process.join()
        return {key: f"no result within {limit:.0f} s" if late else f"the process died with {process.exitcode}"}
