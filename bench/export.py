"""Pruned networks in other formats, each file compared with `forward` at several batch sizes: python -m bench.export [--only …]

Half of the hidden units are removed. YOLO is among them where ultralytics is installed. Rows are kept as they are made, so that a
run that is interrupted goes on where it was (--fresh: from the start).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import nn

import prunefn as pf
from prunefn import export
from prunefn.export.verify import ATOL, BATCHES
from prunefn.trees import tensors
from prunefn.types import Where
from tests.zoo import randomize

from .rows import CACHE, Key, work
from .timing import markdown, versions, write

HERE = Path(__file__).parent
HEADER = ["network", "format", "MB", *(f"largest Δ, batch {b}" for b in BATCHES), "limit", "largest output", "seconds"]
TEXT = (
    "Largest difference of any output to `forward`, by batch size, of what was read back from the file, beside the largest output; "
    "random weights and running statistics that leave no branch dead, half of each group of hidden units removed (of YOLO, "
    "whose class cuts its layers into equal halves, half of every group but heads). A file that differs by more than the limit, "
    f"{ATOL:g} times the largest output (but not less than {ATOL:g}), is not written. Images of 224 pixels (YOLO: 160), 32 "
    "tokens. Seconds of CPU time, compilers included, with one thread: the export and the comparison. "
    "ONNX: torch's exporter over torch.export, read by ONNX Runtime."
)


class Case(NamedTuple):
    """A model with what it is traced with, and which groups lose units."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    where: Where = pf.kind("hidden")


class Network(NamedTuple):
    """A pruned network, and the model that it was."""

    model: nn.Module
    params: pf.Params
    spec: pf.Spec
    largest: float
    """Output."""


def vision(name: str) -> Callable[[], Case]:
    """A network of torchvision, or else of timm, with random weights."""

    def make() -> Case:
        found = getattr(torchvision.models, name, None)
        model = found() if found else timm.create_model(name)
        return Case(model.eval(), (torch.randn(2, 3, 224, 224),), {})

    return make


def bert() -> Case:
    """BERT of the base size."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig()).eval()
    ids = torch.randint(0, 30_000, (2, 32))
    return Case(model, (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def yolo() -> Case:
    """YOLO11 nano, as ultralytics builds it."""
    from ultralytics import YOLO  # type: ignore[import-not-found]

    model = YOLO("yolo11n.yaml", verbose=False).model.eval()
    return Case(model, (torch.rand(2, 3, 160, 160),), {}, ~pf.kind("heads"))


NETWORKS: dict[str, Callable[[], Case]] = {
    **{
        n: vision(n)
        for n in ("resnet18", "resnet50", "mobilenet_v2", "convnext_tiny", "deit_tiny_patch16_224", "swin_t")
    },
    "bert_base": bert,
    **({"yolo11n": yolo} if find_spec("ultralytics") else {}),
}
FORMATS: dict[str, tuple[Callable[..., export.Exported], str]] = {
    "ONNX": (export.onnx, "onnx"),
    "exported program": (export.program, "pt2"),
    "AOTInductor": (export.aoti, "pt2"),
    "TorchScript": (export.torchscript, "pt"),
    "state dict": (export.state_dict, "safetensors"),
}


@lru_cache(maxsize=1)
def network(name: str) -> Network:
    """Traced and pruned."""
    torch.manual_seed(0)
    model, args, kwargs, where = NETWORKS[name]()
    spec = pf.trace(randomize(model, 1), args, kwargs)
    half = {"ratio": 0.5, "scope": pf.scope.local(), "compensation": pf.compensation.none()}
    prune = pf.pipeline(criterion=pf.criteria.magnitude(), where=where, **half)
    params, small, *_ = prune(pf.params(model), None, spec=spec)
    args, kwargs = small.example.draw(batch=1)
    with torch.no_grad():
        outputs = tensors(pf.forward(params, *args, spec=small, **kwargs))
    return Network(model, params, small, max(float(y.abs().max()) for y in outputs))


def spent() -> float:
    """CPU seconds of this process and of those that it waited for."""
    return sum(os.times()[:4])


def row(key: Key) -> list[str]:
    """A network in a format; an error is a row, too."""
    name, kind = map(str, key)
    net = network(name)
    exporter, ending = FORMATS[kind]
    known = {"model": net.model} if exporter is export.state_dict else {}
    with tempfile.TemporaryDirectory() as folder:
        start = spent()
        try:
            done = exporter(net.params, f"{folder}/{name}.{ending}", spec=net.spec, **known)
        except Exception as error:
            text = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
            return ["", text, *[""] * (len(BATCHES) + 2)]
        seconds = spent() - start
        megabytes = sum(f.stat().st_size for f in Path(folder).iterdir()) / 1e6
    differences = [f"{d:.1e}" for d in done.differences.values()]
    return [f"{megabytes:.1f}", *differences, f"{done.limit:.1e}", f"{net.largest:.2g}", f"{seconds:.0f}"]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs found")
    parser.add_argument("--out", action="store_true", help="write bench/results/export.{md,csv}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = CACHE / "export.jsonl"
    if args.fresh:
        kept.unlink(missing_ok=True)
    found = work(kept, [(n, f) for n in args.only for f in args.formats], row, "exports")
    table = [[*map(str, key), *cells] for key, cells in found.items()]
    print(f"{markdown(HEADER, table)}\n\n{TEXT}\n\n{versions()}")
    if args.out:
        write(HERE / "results", "export", "Exports", HEADER, table, TEXT)


if __name__ == "__main__":
    main()
