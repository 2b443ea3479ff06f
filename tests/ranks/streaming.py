"""Prunes a checkpoint of 200 MB, whose largest tensor has 40 MB, and measures statistics with its params on disk.

python -m tests.ranks.streaming FOLDER

Prints by how many bytes the resident memory grew at its peak, in JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import prunefn as pf
from prunefn.files.tensors import Entry, Writer

NARROW, WIDE, LAYERS = 2500, 4000, 5
LARGEST = 4 * NARROW * WIDE


def model() -> nn.Module:
    """Without numbers."""
    widths = [(NARROW, WIDE) if i % 2 == 0 else (WIDE, NARROW) for i in range(LAYERS)]
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in widths))


def generate(path: Path) -> None:
    """Row by row."""
    generator = torch.Generator().manual_seed(0)
    entries = {n: Entry("F32", tuple(t.shape)) for n, t in model().state_dict().items()}
    with Writer(path, entries, {}) as writer:
        for entry in writer.entries.values():
            for _ in range(entry.shape[0]):
                writer.write((torch.rand(entry.shape[1], generator=generator) / 1e3).numpy().tobytes())


def resident(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return 1024 * int(line.split()[1])


def growth(call: Callable[[], object]) -> int:
    """Of the resident memory, at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    source = folder / "model.safetensors"
    generate(source)
    spec = pf.trace(model(), (torch.zeros(2, NARROW, device="meta"),))
    mask = {g: torch.arange(n) % 3 != 1 for g, n in spec.sizes.items()}
    x = torch.rand(4, NARROW)
    small = {n: torch.randn(300, 300) @ torch.randn(300, 300) for n in "ab"}  # libraries are loaded
    params = pf.lazy_params(source, spec=spec, verify=False)
    found = {
        "whole": sum(t.nbytes for t in params.values()),
        "apply": growth(lambda: pf.apply_checkpoint(source, folder / "small", mask, spec=spec, progress=False)),
        "statistics": growth(lambda: pf.collect_stats(params, [x, x], spec=spec)),
    }
    print(json.dumps(found))
