"""Prune a checkpoint of 4 GB from file to file: seconds and the peak of memory, beside those of statistics with its params on disk.

    python bench/stream.py --dir FOLDER [--layers 32]

The checkpoint has the shapes of a Llama (random numbers, bfloat16) and is generated file by file. Each step runs in a process of
its own. What is pruned is compared with the source, tensor by tensor. All files are deleted in the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import prunefn as pf
from prunefn.files.folder import INDEX, shards
from prunefn.files.tensors import Entry, Reader, Writer
from prunefn.spec.spec import take

SHARD = 1_000_000_000


def config(layers: int) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=32000,
        use_cache=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def outline(layers: int) -> nn.Module:
    """The model without numbers."""
    with torch.device("meta"):
        return LlamaForCausalLM(config(layers)).to(torch.bfloat16).eval()


def traced(layers: int) -> pf.Spec:
    return pf.trace(outline(layers), (), {"input_ids": torch.zeros(2, 16, dtype=torch.long, device="meta")})


def generate(layers: int, folder: Path) -> None:
    """Files of about a GB, a tensor at a time."""
    folder.mkdir()
    config(layers).save_pretrained(folder)
    parts: list[dict[str, Entry]] = [{}]
    for name, t in outline(layers).state_dict().items():
        if sum(e.nbytes for e in parts[-1].values()) > SHARD:
            parts.append({})
        parts[-1][name] = Entry("BF16", tuple(t.shape))
    places, generator = {}, torch.Generator().manual_seed(0)
    block = (torch.randn(1 << 22, generator=generator) / 50).bfloat16().view(torch.uint8).numpy().data
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        places |= dict.fromkeys(part, file)
        with Writer(folder / file, part, {"format": "pt"}) as writer:
            for entry in writer.entries.values():
                left, at = entry.nbytes, int(torch.randint(1 << 20, (1,), generator=generator)) * 2
                while left:
                    piece = block[at : at + left]
                    writer.write(piece)
                    left, at = left - len(piece), 0
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def masks(spec: pf.Spec) -> pf.Mask:
    """A quarter of the hidden units and of the heads of each key go, the same number everywhere."""
    generator, out = torch.Generator().manual_seed(0), {}
    for g in spec.groups.values():
        if g.kind == "hidden" or (g.kind == "heads" and g.size == 4):
            gone = torch.randperm(g.size, generator=generator)[: g.size // 4]
            out[g.name] = torch.ones(g.size, dtype=torch.bool).index_fill(0, gone, False)
    return out


def resident(field: str) -> int:
    """Megabytes, of Linux."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) // 1024


def measured(call: Callable[[], Any]) -> dict[str, Any]:
    """Seconds, and megabytes before the call and at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, start = resident("VmRSS"), time.perf_counter()
    result = call()
    return {"result": result, "seconds": time.perf_counter() - start, "before": before, "peak": resident("VmHWM")}


def apply(layers: int, folder: Path) -> Any:
    spec = traced(layers)
    mask = masks(spec)
    done = measured(lambda: pf.apply_checkpoint(folder / "dense", folder / "small", mask, spec=spec))
    again = measured(lambda: pf.apply_checkpoint(folder / "dense", folder / "small", mask, spec=spec))
    assert again["result"].written == 0
    return {**done, "result": [done["result"].nbytes, str(done["result"].config)], "checked again": again["seconds"]}


def compare(layers: int, folder: Path) -> Any:
    """Tensor by tensor."""
    spec = traced(layers)
    mask, equal = masks(spec), 0
    small = {n: s.path for s in shards(folder / "small") for n in s.entries}
    for s in shards(folder / "dense"):
        with Reader(s.path) as dense:
            for name in dense.entries:
                with Reader(small[name]) as other:
                    assert torch.equal(
                        other.tensor(name), take(dense.tensor(name), spec.axes[name], mask, spec.sizes)
                    ), name
                equal += 1
    return equal


def statistics(layers: int, folder: Path) -> Any:
    spec = traced(layers)
    tiny = LlamaForCausalLM(LlamaConfig(**{**config(layers).to_dict(), "num_hidden_layers": 1, "vocab_size": 8}))
    spec = pf.sharded.with_constants(spec, tiny.to(torch.bfloat16))
    params = pf.lazy_params(folder / "dense", spec=spec, verify=False)
    ids = torch.randint(32000, (8, 16), generator=torch.Generator().manual_seed(0))
    done = measured(lambda: pf.collect_stats(params, [{"input_ids": ids}], spec=spec))
    return {**done, "result": len(done["result"].sites)}


STEPS = {"generate": generate, "apply": apply, "compare": compare, "statistics": statistics}


def main() -> None:
    """Each step in its process, or one of them in this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="a folder with 9 GB of room; a new one is made in it")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--step", choices=STEPS)
    chosen = parser.parse_args()
    if chosen.step:
        where = chosen.dir / "dense" if chosen.step == "generate" else chosen.dir
        print(json.dumps(STEPS[chosen.step](chosen.layers, where)))
        return
    size = sum(t.numel() for t in outline(chosen.layers).state_dict().values()) * 2
    free = shutil.disk_usage(chosen.dir).free
    if free < 2.2 * size:
        sys.exit(f"{chosen.dir} has {free / 1e9:.1f} GB free, but {2.2 * size / 1e9:.1f} GB are needed")
    largest = max(t.numel() for t in outline(chosen.layers).state_dict().values()) * 2
    print(f"checkpoint {size / 1e9:.2f} GB, largest tensor {largest / 2**20:.0f} MB")
    folder = chosen.dir / "prunefn_stream"
    folder.mkdir()
    try:
        for step in STEPS:
            call = [sys.executable, __file__, "--dir", str(folder), "--layers", str(chosen.layers), "--step", step]
            done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
            print(step, done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
