"""Predicted against measured latency of randomly pruned networks.

python bench/latency.py [--runtime eager|onnx|openvino] [--only MODEL …] [--masks N] [--rounds N] [--batch N] [--cache FOLDER] [--out]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from timing import CLOCK, interleaved, markdown, seconds, versions, write
from torch import nn
from tqdm import tqdm

import prunefn as pf
from prunefn.costs.timing.runtimes import load

HERE = Path(__file__).parent
MODELS = {
    "eager": ("resnet50", "deit_tiny_patch16_224", "mobilenet_v2"),
    "onnx": ("resnet18", "mobilenet_v2", "vit_small_patch16_224"),
    "openvino": ("resnet18", "mobilenet_v2"),
}
MULTIPLE = 8
"""Outside eager torch, every other mask keeps multiples of this, as a user of such a runtime would."""
EVERY_OTHER = f"Every other mask keeps multiples of {MULTIPLE}, the others any number. "
NAMES = {
    "eager": ("latency", "Latency, predicted and measured"),
    "onnx": ("latency_onnx", "Latency in ONNX Runtime, predicted and measured"),
    "openvino": ("latency_openvino", "Latency in OpenVINO, predicted and measured"),
}
"""Runtime → name of the files and title of the page."""
GOAL = 0.10
HEADER = [
    "model",
    "batch",
    "mask",
    "MACs left",
    "predicted",
    "measured",
    "dense",
    "predicted / measured",
    "the same, raw",
]
SUMMARY = [
    "model",
    "batch",
    "masks",
    "median |error|",
    "worst",
    "goal",
    "met",
    "raw",
    "by MACs alone",
    "table in",
    "predict",
]


class Network(NamedTuple):
    """A traced model with its table."""

    name: str
    spec: pf.Spec
    params: pf.Params
    table: pf.LatencyTable
    took: float
    """Seconds of wall time that the table took."""

    @property
    def load(self) -> Callable[..., Callable[[], Any]]:
        """What makes a forward of the runtime."""
        return {"eager": eager, "onnx": onnx, "openvino": openvino}[self.table.runtime]


class Case(NamedTuple):
    """One mask."""

    macs: float
    """Share that is left."""
    predicted: float
    measured: float
    dense: float
    """Measured in the same rounds."""
    table: float
    """The dense network, when the table was made."""

    @property
    def raw(self) -> float:
        """1: right, and the machine is as busy as when the table was made."""
        return self.predicted / self.measured

    @property
    def ratio(self) -> float:
        """1: right; the dense network says how much slower the machine is now."""
        return self.raw * self.dense / self.table

    @property
    def naive(self) -> float:
        """The same for a prediction from the MACs alone."""
        return self.macs * self.dense / self.measured


def build(name: str) -> nn.Module:
    """A model with random weights: latency does not depend on them."""
    if name == "mobilenet_v2":
        import torchvision

        return torchvision.models.mobilenet_v2().eval()
    import timm

    return timm.create_model(name).eval()


def network(name: str, batch: int, cache: Path | None, runtime: str) -> Network:
    """Trace and measure."""
    model = build(name)
    spec, params = pf.trace(model, (torch.randn(2, 3, 224, 224),)), pf.params(model)
    start = time.perf_counter()
    table = pf.latency_table(params, spec=spec, batch=batch, cache=cache, runtime=runtime)
    return Network(name, spec, params, table, time.perf_counter() - start)


def masks(spec: pf.Spec, n: int, multiple: int = 1) -> Iterator[pf.Mask]:
    """Random units of every group go: a ratio of its own for each group, spread around one of the mask.

    Every other mask keeps multiples.
    """
    for seed in range(n):
        generator = torch.Generator().manual_seed(seed)
        centre = 0.8 * (seed + 0.5) / n
        mask = {}
        for g, units in spec.sizes.items():
            ratio = min(max(centre + 0.4 * (float(torch.rand((), generator=generator)) - 0.5), 0.0), 0.95)
            order = torch.randperm(units, generator=generator)
            removed = min(round(ratio * units), units - 1)
            if seed % 2 and units > multiple:
                removed = units - max(1, round((units - removed) / multiple)) * multiple
            mask[g] = order >= removed
        yield mask


def eager(params: pf.Params, spec: pf.Spec, x: torch.Tensor) -> Callable[[], Any]:
    """A forward in torch."""
    return lambda: pf.forward(params, x, spec=spec)


def onnx(params: pf.Params, spec: pf.Spec, x: torch.Tensor) -> Callable[[], Any]:
    """A forward of the exported file in ONNX Runtime."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = str(pf.export.onnx(params, f"{folder}/net.onnx", spec=spec, batches=(1,), atol=1e-3).path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feeds)


def openvino(params: pf.Params, spec: pf.Spec, x: torch.Tensor) -> Callable[[], Any]:
    """A forward of the exported file in OpenVINO."""
    return load("openvino", params, spec, ((x,), {})).whole


@torch.no_grad()
def measure(net: Network, mask: pf.Mask, batch: int, rounds: int) -> Case:
    """The really pruned network and the dense one take turns."""
    small, spec = pf.apply(net.params, mask, spec=net.spec), pf.shrink(net.spec, mask)
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    both = {"pruned": net.load(small, spec, x), "dense": net.load(net.params, net.spec, x)}
    times = interleaved(both, rounds=rounds, warm_up=2)
    macs = pf.cost(net.spec, mask).macs / pf.cost(net.spec).macs
    return Case(macs, pf.latency(net.table, mask), quiet(times["pruned"]), quiet(times["dense"]), pf.latency(net.table))


def quiet(times: list[float]) -> float:
    """The lower quartile: what else runs on the machine only adds."""
    return sorted(times)[len(times) // 4]


def speed(net: Network) -> float:
    """Seconds of one prediction."""
    start = CLOCK()
    for _ in range(50):
        net.table.predict(net.spec.sizes)
    return (CLOCK() - start) / 50


def rows_of(net: Network, cases: list[Case], batch: int) -> list[list[str]]:
    """One for each mask."""
    return [
        [
            net.name,
            str(batch),
            str(i),
            f"{c.macs:.0%}",
            seconds(c.predicted),
            seconds(c.measured),
            seconds(c.dense),
            f"{c.ratio:.3f}",
            f"{c.raw:.3f}",
        ]
        for i, c in enumerate(cases)
    ]


def summary_of(net: Network, cases: list[Case], batch: int) -> list[str]:
    """All masks together."""
    errors, naive = [abs(c.ratio - 1) for c in cases], median(abs(c.naive - 1) for c in cases)
    middle = median(errors)
    return [
        net.name,
        str(batch),
        str(len(cases)),
        f"{middle:.1%}",
        f"{max(errors):.1%}",
        f"< {GOAL:.0%}",
        "yes" if middle < GOAL else "NO",
        f"{median(abs(c.raw - 1) for c in cases):.1%}",
        f"{naive:.1%}",
        f"{net.took:.0f} s",
        seconds(speed(net)),
    ]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="eager", choices=MODELS)
    parser.add_argument("--only", nargs="+", choices=sorted({name for names in MODELS.values() for name in names}))
    parser.add_argument("--masks", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument(
        "--out", action="store_true", help="write bench/results/latency.md and .csv, or those of the runtime"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, summary = [], []
    multiple = 1 if args.runtime == "eager" else MULTIPLE
    for name in args.only or MODELS[args.runtime]:
        net = network(name, args.batch, args.cache, args.runtime)
        cases = [
            measure(net, mask, args.batch, args.rounds)
            for mask in tqdm(masks(net.spec, args.masks, multiple), total=args.masks, desc=name, leave=False)
        ]
        rows += rows_of(net, cases, args.batch)
        summary.append(summary_of(net, cases, args.batch))
        print(
            f"\n{markdown(HEADER, rows_of(net, cases, args.batch))}\n\n{markdown(SUMMARY, [summary[-1]])}", flush=True
        )
    summary_table = markdown(SUMMARY, summary)
    remarks = (
        "Every group loses random units, each group a share of its own; the table has never seen these sizes. "
        f"{EVERY_OTHER if multiple > 1 else ''}Measured: the "
        f"lower quartile of {args.rounds} forwards of the really pruned network, in turns with the dense one, in CPU seconds "
        "with one thread: what wall time would be on a machine of one's own. Other work on the machine still slows memory "
        "and caches, by another factor when the table is made than when it is checked; the dense network, which takes turns "
        "with the pruned one, says by how much, and that is divided out. Raw: without this. By MACs alone: the median error "
        "of dense latency × share of MACs left. A table that was measured before is read from the cache.\n\n"
        f"{summary_table}"
    )
    print(f"\n{remarks}\n{versions()}")
    if args.out:
        name, title = NAMES[args.runtime]
        write(HERE / "results", name, title, HEADER, rows, remarks)


if __name__ == "__main__":
    main()
