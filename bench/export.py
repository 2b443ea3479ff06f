"""Pruned networks in other formats, each file compared with `forward` at several batch sizes: python -m bench.export [--only …]

Half of all hidden units are removed. YOLO is among them where ultralytics is installed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from tqdm import tqdm

import prunefn as pf
from prunefn import export

from .timing import markdown, versions, write

HERE = Path(__file__).parent
HEADER = ["network", "format", "MB", "batch 1", "batch 2", "batch 5", "seconds"]
Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def image(name: str) -> Callable[[], Case]:
    """A network of timm with random weights."""

    def make() -> Case:
        model = timm.create_model(name).eval()
        return model, (torch.randn(2, *model.default_cfg["input_size"]),), {}

    return make


def bert() -> Case:
    """BERT of four layers."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(num_hidden_layers=4)).eval()
    ids = torch.randint(0, 30_000, (2, 32))
    return model, (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def yolo() -> Case:
    """YOLOv8 nano, as ultralytics builds it."""
    from ultralytics import YOLO

    model = YOLO("yolov8n.yaml").model.eval()
    return model, (torch.rand(2, 3, 160, 160),), {}


NETWORKS: dict[str, Callable[[], Case]] = {
    **{n: image(n) for n in ("resnet18", "resnet50", "mobilenetv2_100", "convnext_tiny", "deit_tiny_patch16_224")},
    "swin_tiny_patch4_window7_224": image("swin_tiny_patch4_window7_224"),
    "bert": bert,
    **({"yolov8n": yolo} if find_spec("ultralytics") else {}),
}
FORMATS = {
    "ONNX": (export.onnx, "onnx"),
    "exported program": (export.program, "pt2"),
    "AOTInductor": (export.aoti, "pt2"),
} | {"TorchScript": (export.torchscript, "pt")}


def rows(name: str, folder: Path, formats: list[str]) -> list[list[str]]:
    """A network in all formats; an error is a row."""
    torch.manual_seed(0)
    model, args, kwargs = NETWORKS[name]()
    spec = pf.trace(model, args, kwargs)
    prune = pf.pipeline(
        criterion=pf.criteria.magnitude(), where=pf.kind("hidden"), ratio=0.5, compensation=pf.compensation.none()
    )
    pruned = prune(pf.params(model), None, spec=spec)
    out = []
    for kind in formats:
        exporter, ending = FORMATS[kind]
        start = time.perf_counter()
        try:
            done = exporter(pruned.params, folder / f"{name}.{ending}", spec=pruned.spec)
        except Exception as error:
            out.append([name, kind, "", f"{type(error).__name__}: {str(error).splitlines()[0][:90]}", "", "", ""])
            continue
        spent = f"{time.perf_counter() - start:.0f}"
        found = [f"{d:.1e}" for d in done.differences.values()]
        out.append([name, kind, f"{done.path.stat().st_size / 1e6:.1f}", *found, spent])
    return out


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--out", action="store_true", help="write bench/results/export.{md,csv}")
    args = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for name in tqdm(args.only, desc="networks"):
            table += rows(name, Path(folder), args.formats)
    text = "Largest difference of any output to `forward`, by batch size; random weights, half of the hidden units removed."
    print(f"{markdown(HEADER, table)}\n\n{text}\n\n{versions()}")
    if args.out:
        write(HERE / "results", "export", "Exports", HEADER, table, text)


if __name__ == "__main__":
    main()
