"""A ResNet-18, dense and pruned, in float32 and in int8, in ONNX Runtime: python -m bench.int8 [--epochs N] [--out]

The network is trained on scikit-learn's digits, pruned with the same images, written as ONNX, and quantised statically by
`onnxruntime.quantization`. All four files take turns.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

import prunefn as pf
from prunefn.train import Recipe, Setup, train

from .timing import interleaved, markdown, versions, write

HERE = Path(__file__).parent
SIDE, WIDTH, KEEP, MULTIPLE = 32, 64, 0.5, 16
CALIBRATION, BATCH = 256, 64
HEADER = [
    "network",
    "MACs",
    "MB",
    "median ms",
    "× dense float",
    "top-1",
    "agrees with dense float",
    "agrees with its float",
]
TEXT = (
    "ResNet-18 as for CIFAR (width 64, images of 32 pixels), trained on scikit-learn's digits; pruned to half of the MACs by "
    "`recipes.best` in multiples of 16 units, without training afterwards; written by `pf.export.onnx`, quantised by "
    f"`onnxruntime.quantization.quantize_static` (QDQ, int8 weights per channel, uint8 activations, the range of {CALIBRATION} "
    "training images). Agreement: the same class on the held-out images. Latency: batch 1, the median of the rounds in which all "
    "four take turns, in CPU seconds with one thread."
)


class Images(NamedTuple):
    """Digits as tensors."""

    train: Tensor
    held_out: Tensor
    labels: Tensor
    """Of the held-out ones."""
    setup: Setup


class Reader(CalibrationDataReader):
    """Batches for the ranges of activations."""

    def __init__(self, name: str, images: Tensor) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter([{name: x.numpy()} for x in images.split(BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        return next(self.batches, None)


def digits() -> Images:
    """Held-out images are those of the package."""
    data = pf.data.open_data("digits", image_size=SIDE, augment=False)
    train_x = torch.stack([x for x, _ in data.train])  # type: ignore[misc]
    held, labels = zip(*data.held_out, strict=True)  # type: ignore[misc]
    return Images(train_x, torch.stack(held), torch.tensor(labels), Setup(data.train, data.held_out, device="cpu"))


def trained(images: Images, epochs: int) -> nn.Module:
    """The dense network."""
    torch.manual_seed(0)
    model = pf.nets.small_resnet18(in_chans=images.train.shape[1], width=WIDTH)
    recipe = Recipe(epochs=epochs, lr=2e-3, batch_size=64)
    return train(model, images.setup, recipe).model.eval()


def quantised(source: Path, images: Tensor) -> Path:
    """The file in int8, beside it."""
    prepared, target = source.with_suffix(".prepared.onnx"), source.with_suffix(".int8.onnx")
    quant_pre_process(str(source), str(prepared))
    name = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    quantize_static(
        str(prepared),
        str(target),
        Reader(name, images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return target


def runner(file: Path) -> Callable[[Tensor], np.ndarray]:
    """A forward of a file, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})[0]


def files_of(folder: Path, images: Images, epochs: int) -> tuple[dict[str, Path], dict[str, int]]:
    """Name of a network → its file, and its MACs."""
    model = trained(images, epochs)
    spec, params = pf.trace(model, (images.train[:2],)), pf.params(model)
    prune = pf.recipes.best(pf.budget.macs(KEEP), round_to=MULTIPLE)
    small = prune(params, list(images.train.split(BATCH)), spec=spec)
    files, macs = {}, {}
    for name, (p, s) in {"dense": (params, spec), "pruned": (small.params, small.spec)}.items():
        float_file = folder / f"{name}.onnx"
        pf.export.onnx(p, float_file, spec=s)
        files |= {f"{name} float32": float_file, f"{name} int8": quantised(float_file, images.train[:CALIBRATION])}
        macs |= {f"{name} {kind}": pf.cost(s).macs for kind in ("float32", "int8")}
    return files, macs


def table(files: dict[str, Path], macs: dict[str, int], images: Images, rounds: int) -> list[list[str]]:
    """A row for each file."""
    run = {name: runner(file) for name, file in files.items()}
    one = images.held_out[:1].contiguous()
    calls: dict[str, Callable[[], Any]] = {name: lambda r=r: r(one) for name, r in run.items()}
    times = {name: median(t) for name, t in interleaved(calls, rounds=rounds, warm_up=10, text="rounds").items()}
    classes = {name: torch.from_numpy(r(images.held_out)).argmax(1) for name, r in run.items()}
    dense, rows = "dense float32", []
    for name, file in files.items():
        top1 = float((classes[name] == images.labels).float().mean())
        same = [
            float((classes[name] == classes[other]).float().mean())
            for other in (dense, name.replace("int8", "float32"))
        ]
        cells = [f"{macs[name] / 1e6:.0f} M", f"{file.stat().st_size / 1e6:.1f}", f"{1e3 * times[name]:.2f}"]
        cells += [f"{times[name] / times[dense]:.2f}", *(f"{x:.1%}" for x in (top1, *same))]
        rows.append([name, *cells])
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", action="store_true", help="write bench/results/int8.{md,csv}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser recommends what was done
    images = digits()
    with tempfile.TemporaryDirectory() as folder:
        rows = table(*files_of(Path(folder), images, args.epochs), images, args.rounds)
    print(f"{markdown(HEADER, rows)}\n\n{TEXT}\n\n{versions()}")
    if args.out:
        write(HERE / "results", "int8", "Pruned and quantised", HEADER, rows, TEXT)


if __name__ == "__main__":
    main()
