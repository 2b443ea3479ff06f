"""Trace a Llama of 70 B parameters on the `meta` device: no weights, seconds and megabytes. Prints one line of JSON.

Run by `speed.py` in a process of its own, so that the peak of memory is its own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import prunefn as pf


def megabytes() -> float:
    """Peak resident memory of this program; Linux's `ru_maxrss` also counts that of the process which started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def main() -> None:
    """Build, trace, report."""
    config = LlamaConfig(
        num_hidden_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        use_cache=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    before = megabytes()
    start = time.perf_counter()
    spec = pf.trace(model, (torch.zeros(2, 16, dtype=torch.long, device="meta"),))
    found = {
        "seconds": time.perf_counter() - start,
        "peak": megabytes(),
        "before": before,
        "parameters": pf.cost(spec).params,
        "groups": len(spec.groups),
        "kinds": dict(Counter(g.kind for g in spec.groups.values())),
        "capture": spec.capture,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
