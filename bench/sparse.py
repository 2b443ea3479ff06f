"""Zeros in the weights of trained networks, without any training: what is left of top-1; and 2:4 on a GPU, what it gains.

python -m bench.sparse [--only NETWORK …] [--images N] [--calibration N] [--fresh] [--out]
python -m bench.sparse --gpu [--batch N] [--rounds N] [--out]

The networks are those of bench/retention, trained on Fashion-MNIST. What is computed is kept in bench/cache/sparse.jsonl, so that a
run that is interrupted goes on where it was. `--gpu` needs a device with sparse tensor cores: DeiT-B's MLPs in float16, dense and
with torch's semi-structured weights, with and without torch.compile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import prunefn as pf
from prunefn import sparse
from prunefn.sparse import criteria, pattern, scope

from .retention import data, networks
from .rows import CACHE, Key, work
from .timing import markdown, versions, write

HERE = Path(__file__).parent
NETWORKS = ("vit", "resnet")
SHARES = ("50 %", "70 %", "2:4")
SCOPES = {"layerwise": scope.layerwise(), "global": scope.global_(), "LAMP": scope.lamp(), "ERK": scope.erk()}
DENSE = "dense"
HEADER = ["network", "zeros", "scope", "of all weights"]
HEADER += [f"{c}{how}" for how in ("", ", updated") for c in ("magnitude", "Wanda", "OBS")]
CRITERIA = {"magnitude": criteria.magnitude(), "Wanda": criteria.wanda(), "OBS": criteria.obs()}
GPU_HEADER = ["what", "dense (ms)", "2:4 (ms)", "speed-up", "largest difference"]


# ---- top-1


class Case(NamedTuple):
    """A network with its statistics, and the images that it is measured on."""

    spec: pf.Spec
    params: pf.Params
    stats: pf.Stats
    held_out: data.Images


def prepare(name: str, images: int, calibration: int) -> Case:
    """Trained, and measured in one pass."""
    model, given, every = networks.load(name).model, data.calibration(calibration), data.test()
    spec, params = pf.trace(model, (given.images[:2],)), pf.params(model)
    stats = pf.collect_stats(params, list(given.batches(128)), spec=spec, covariance=True)
    return Case(spec, params, stats, data.Images(every.images[:images], every.labels[:images]))


def masked(case: Case, share: str, among: str, criterion: str) -> sparse.Masks:
    """Of the weights whose inputs are measured: those that every criterion scores."""
    scored = [n for n, w in sparse.weights(case.spec).items() if w.site in case.stats.sites]
    scores = sparse.score(case.stats, criterion=CRITERIA[criterion], weights=scored)
    if share == "2:4":
        return sparse.select(scores, spec=case.spec, pattern=pattern.n_m(2, 4))
    return sparse.select(scores, int(share[:-2]) / 100, spec=case.spec, scope=SCOPES[among])


def measure(case: Case, share: str, among: str, criterion: str) -> list[float]:
    """Top-1 with zeros, the same after the other weights were updated, and the share of zeros among all weights."""
    masks = masked(case, share, among, criterion)
    plain = sparse.apply_sparse(case.params, masks)
    updated = sparse.reconstruct(case.params, case.stats, masks, spec=case.spec)
    every = [case.params[n].numel() for n in sparse.weights(case.spec)]
    return [*(top1(case, p) for p in (plain, updated)), sum(int((~m).sum()) for m in masks.values()) / sum(every)]


def top1(case: Case, params: pf.Params) -> float:
    """On the held-out images."""
    return data.accuracy(lambda x: pf.forward(params, x, spec=case.spec), case.held_out)


def settings() -> list[tuple[str, str]]:
    """2:4 knows no scope."""
    return [(s, a) for s, a in product(SHARES, SCOPES) if s != "2:4" or a == "layerwise"]


def table(found: dict[Key, list[float]], names: list[str]) -> list[list[str]]:
    """A row for each network, share and scope."""
    rows = []
    for name in names:
        by = {key[-4:]: numbers for key, numbers in found.items() if name in key}
        rows.append([name, "none", "", "0.0 %", *[f"{100 * by[name, DENSE, '', ''][0]:.1f}"] * 3, *["–"] * 3])
        for share, among in settings():
            cells = [by[name, share, among, c] for c in CRITERIA]
            top = [f"{100 * c[i]:.1f}" for i in (0, 1) for c in cells]
            rows.append([name, share, "" if share == "2:4" else among, f"{100 * cells[0][2]:.1f} %", *top])
    return rows


def agreement(args: argparse.Namespace) -> None:
    """The table of top-1."""
    kept = CACHE / "sparse.jsonl"
    if args.fresh:
        kept.unlink(missing_ok=True)
    case = cache(lambda name: prepare(name, args.images, args.calibration))
    given = (args.images, args.calibration)
    jobs: list[Key] = [(*given, n, DENSE, "", "") for n in args.only]
    jobs += [(*given, n, *s, c) for n, s, c in product(args.only, settings(), CRITERIA)]

    def run(job: Key) -> list[float]:
        *_, name, share, among, criterion = map(str, job)
        one = case(name)
        return [top1(one, one.params)] if share == DENSE else measure(one, share, among, criterion)

    rows = table(work(kept, jobs, run, "sparse"), args.only)
    text = (
        f"Top-1 (%) on the first {args.images} test images of Fashion-MNIST right after weights were set to zero, without any training. "
        "`zeros`: share of the weights whose inputs are measured, that is of all but the layers that read the image; `of all "
        "weights` counts those, too. `updated`: `sparse.reconstruct` (least squares on the kept weights, ridge 1e-2) from the "
        f"covariances over {args.calibration} training images; with OBS: the saliency of SparseGPT, with the optimum in place of its "
        "sweep. MACs are those of the dense network in every row."
    )
    print(f"{markdown(HEADER, rows)}\n\n{text}\n\n{versions()}")
    if args.out:
        write(HERE / "results", "sparse", "Zeros in weights", HEADER, rows, text)


# ---- 2:4 on a GPU


class Mlps(nn.Module):
    """The MLPs of a vision transformer, one after the other, with what the residual stream would add left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.mlps = nn.ModuleList([block.mlp for block in model.blocks])  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [batch, tokens, width]."""
        for mlp in self.mlps:
            x = mlp(x)
        return x


def milliseconds(functions: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Median of each by CUDA events, in turns."""
    times: dict[str, list[float]] = {n: [] for n in functions}
    for _ in tqdm(range(rounds + 5), leave=False):
        for name, f in functions.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            f()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    return {n: median(t[5:]) for n, t in times.items()}


@torch.inference_mode()
def compare(what: str, dense: nn.Module, fast: nn.Module, x: Tensor, rounds: int) -> list[str]:
    """A row: eager, or compiled, dense against 2:4 of the same weights."""
    difference = float((dense(x) - fast(x)).abs().max() / dense(x).abs().max())
    times = milliseconds({"dense": lambda: dense(x), "2:4": lambda: fast(x)}, rounds)
    speed = f"{times['dense'] / times['2:4']:.2f} ×"
    return [what, f"{times['dense']:.2f}", f"{times['2:4']:.2f}", speed, f"{difference:.1e}"]


def gpu(args: argparse.Namespace) -> None:
    """DeiT-B with random weights: times do not depend on them."""
    import timm

    if not torch.cuda.is_available():
        raise SystemExit("--gpu needs a CUDA device of compute capability 8.0 or more")
    torch.manual_seed(0)
    model = timm.create_model("deit_base_patch16_224").eval()
    rows = []
    cases = {
        "MLPs": (Mlps(model).eval(), torch.randn(2, 197, 768), torch.randn(args.batch, 197, 768)),
        "whole network": (model, torch.randn(2, 3, 224, 224), torch.randn(args.batch, 3, 224, 224)),
    }
    for name, (module, example, x) in cases.items():
        spec, params = pf.trace(module, (example,)), pf.params(module)
        scores = sparse.score(params, spec=spec, weights="*mlp*.fc?.weight")
        masks = sparse.select(scores, spec=spec, pattern=pattern.n_m(2, 4))
        dense = pf.to_module(sparse.apply_sparse(params, masks), spec=spec, model=module).eval().cuda().half()
        fast, x = sparse.to_semi_structured(dense, masks), x.cuda().half()
        rows.append(compare(f"{name}, eager", dense, fast, x, args.rounds))
        compiled = [torch.compile(m, mode="max-autotune-no-cudagraphs") for m in (dense, fast)]
        rows.append(compare(f"{name}, torch.compile", compiled[0], compiled[1], x, args.rounds))  # type: ignore[arg-type]
    text = (
        f"DeiT-B, the fc1 and fc2 of all blocks with 2:4 weights, float16, batch {args.batch}, {args.rounds} rounds in turns, medians by "
        f"CUDA events, on {torch.cuda.get_device_name()}. `largest difference`: of the outputs, over the largest output."
    )
    print(f"{markdown(GPU_HEADER, rows)}\n\n{text}\n\n{versions()}")

    if args.out:
        write(HERE / "results", "sparse_gpu", "2:4 on a GPU", GPU_HEADER, rows, text)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=5000, help="test images that are measured on")
    parser.add_argument("--calibration", type=int, default=1024, help="training images")
    parser.add_argument("--fresh", action="store_true", help="compute everything anew")
    parser.add_argument("--gpu", action="store_true", help="time 2:4 on the CUDA device instead")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", action="store_true", help="write bench/results/sparse.{md,csv}, or sparse_gpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    (gpu if args.gpu else agreement)(args)


if __name__ == "__main__":
    main()
