"""Speed of prunefn as ratios against what it replaces, each beside its goal.

python bench/speed.py [--only NAME …] [--rounds N] [--out]
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from timing import CLOCK, HEADER, Row, interleaved, markdown, ratio_row, seconds, versions, write
from torch import Tensor, nn
from torch.export import Dim, export
from tqdm import tqdm

import prunefn as pf

HERE = Path(__file__).parent
RATIOS = [round(0.05 * k, 2) for k in range(1, 11)]


# ---- models


def timm_model(name: str) -> nn.Module:
    """A timm model with random weights."""
    import timm

    return timm.create_model(name).eval()


def torchvision_model(name: str) -> nn.Module:
    """A torchvision model with random weights."""
    import torchvision

    return getattr(torchvision.models, name)().eval()


def hf_swin() -> nn.Module:
    """Swin-T of transformers: the one that the peer's examples prune; torchvision's never returns in it."""
    from transformers import SwinConfig, SwinForImageClassification

    return SwinForImageClassification(SwinConfig(num_labels=1000)).eval()


def images(n: int, seed: int = 0) -> Tensor:
    """Noise in the shape of images."""
    return torch.randn(n, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


# ---- goals


def trace(rounds: int) -> Iterator[Row]:
    """Trace against `torch.export` alone."""
    cases: dict[str, Callable[[], nn.Module]] = {
        "timm deit_tiny": partial(timm_model, "deit_tiny_patch16_224"),
        "torchvision resnet50": partial(torchvision_model, "resnet50"),
        "torchvision swin_t": partial(torchvision_model, "swin_t"),
    }
    for name, build in cases.items():
        model, x = build(), images(2)
        both = {
            "trace": lambda model=model, x=x: pf.trace(model, (x,)),
            "export": lambda model=model, x=x: _export(model, x),
        }
        yield ratio_row("trace / export", name, interleaved(both, rounds=rounds, text=f"trace {name}"), 1.3)


@torch.no_grad()
def _export(model: nn.Module, x: Tensor) -> Any:
    return export(model, (x,), dynamic_shapes=({0: Dim.AUTO},), strict=False)


def prune(rounds: int) -> Iterator[Row]:
    """Ten ratios from one trace against ten pruners of Torch-Pruning."""
    cases: dict[str, tuple[Callable[[], nn.Module], float]] = {
        "timm vit_base_patch16_224": (partial(timm_model, "vit_base_patch16_224"), 5.0),
        "torchvision densenet121": (partial(torchvision_model, "densenet121"), 5.0),
        "transformers Swin-T": (hf_swin, 5.0),
        "torchvision resnet50": (partial(torchvision_model, "resnet50"), 1.0),
    }
    for name, (build, goal) in cases.items():
        yield _ten_ratios(name, build(), goal)


def _ten_ratios(name: str, model: nn.Module, goal: float) -> Row:
    x = images(1)
    ours = theirs = 0.0
    ran, left = 0, (0, 0)
    pf.trace(model, (x,))  # warm-up: torch.export imports a lot at first use
    peers.prune(model, x, RATIOS[0])
    start = CLOCK()
    spec = pf.trace(model, (x,))
    traced = CLOCK() - start
    scores = _scores(model, spec)
    ours = CLOCK() - start
    for ratio in tqdm(RATIOS, desc=f"ten ratios {name}", leave=False):
        start = CLOCK()
        small, small_spec = _prune(model, spec, scores, ratio)
        middle = CLOCK()
        other = peers.prune(model, x, ratio)
        ours, theirs = ours + middle - start, theirs + CLOCK() - middle
        ran += peers.runs(other, x)
        left = (sum(small[n].numel() for n in small_spec.parameters - small_spec.tied.keys()), peers.parameters(other))
        pf.forward(small, x, spec=small_spec)
        gc.collect()
    note = (
        f"trace {seconds(traced)} counted; at ratio {RATIOS[-1]} {left[0] / 1e6:.2f} M parameters are left, by the peer "
        f"{left[1] / 1e6:.2f} M; pruned models that run: ours {len(RATIOS)} of {len(RATIOS)}, the peer's {ran}"
    )
    return Row(
        "Torch-Pruning / ours, ten ratios", name, seconds(ours), seconds(theirs), theirs / ours, goal, True, note=note
    )


def _scores(model: nn.Module, spec: pf.Spec) -> pf.Scores:
    """As the peer does: magnitude; heads keep their number. One scoring serves all ratios."""
    stats = pf.collect_stats(pf.params(model), None, spec=spec)
    scores = pf.score(stats, criterion=pf.criteria.magnitude())
    return pf.only(scores, pf.kind("hidden", "residual", "head_dim"), spec=spec)


def _prune(model: nn.Module, spec: pf.Spec, scores: pf.Scores, ratio: float) -> tuple[pf.Params, pf.Spec]:
    """The same ratio everywhere."""
    params = pf.params(model)
    mask = pf.select(scores, ratio, spec=spec, scope=pf.scope.local())
    return pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)


@torch.no_grad()
def forward(rounds: int) -> Iterator[Row]:
    """The traced program against the module."""
    for name, model in [
        ("torchvision resnet18", torchvision_model("resnet18")),
        ("timm deit_tiny", timm_model("deit_tiny_patch16_224")),
    ]:
        x, params = images(8), pf.params(model)
        spec = pf.trace(model, (x,))
        both = {
            "forward": lambda x=x, params=params, spec=spec: pf.forward(params, x, spec=spec),
            "module": lambda x=x, model=model: model(x),
        }
        times = interleaved(both, rounds=3 * rounds, warm_up=2, text=f"forward {name}")
        yield ratio_row("forward / module", f"{name}, batch 8", times, 1.05)


@torch.no_grad()
def statistics(rounds: int) -> Iterator[Row]:
    """Moments of all sites, and of hidden ones only, against a plain forward over the same batches."""
    batches = [images(8, seed) for seed in range(2)]
    for name, model in [
        ("timm deit_tiny", timm_model("deit_tiny_patch16_224")),
        ("torchvision resnet50", torchvision_model("resnet50")),
        ("torchvision convnext_tiny", torchvision_model("convnext_tiny")),
    ]:
        params, spec = pf.params(model), pf.trace(model, (batches[0],))
        three = {
            "all": lambda p=params, s=spec: pf.collect_stats(p, batches, spec=s),
            "hidden": lambda p=params, s=spec: pf.collect_stats(p, batches, spec=s, where=pf.kind("hidden")),
            "plain": lambda m=model: [m(x) for x in batches],
        }
        times = interleaved(three, rounds=2 * rounds, warm_up=2, text=f"collect_stats {name}")
        for what in ("all", "hidden"):
            pair = {what: times[what], "plain": times["plain"]}
            yield ratio_row("collect_stats / forward", f"{name}, {what} sites", pair, 1.15)


@torch.no_grad()
def covariances(rounds: int) -> Iterator[Row]:
    """With covariances of the hidden sites, against what their multiplications alone would cost beside those of a forward."""
    batches = [images(16, seed) for seed in range(2)]
    for name, model in [
        ("timm deit_tiny", timm_model("deit_tiny_patch16_224")),
        ("torchvision resnet50", torchvision_model("resnet50")),
        ("torchvision convnext_tiny", torchvision_model("convnext_tiny")),
    ]:
        params, spec = pf.params(model), pf.trace(model, (batches[0],))
        run = partial(pf.collect_stats, params, batches, spec=spec, where=pf.kind("hidden"), covariance=True)
        stats = run()
        widths = {id(m.scatter): (m.count // stats.samples, len(m.mean)) for m in stats.sites.values()}
        products = sum(n * d * (d + 1) // 2 for n, d in widths.values())
        bound = 1 + products / pf.cost(spec).macs
        both = {"covariance": run, "plain": lambda m=model: [m(x) for x in batches]}
        times = interleaved(both, rounds=rounds, warm_up=1, text=f"covariances {name}")
        row = ratio_row(
            "collect_stats with covariance / forward", f"{name}, hidden sites, batch 16", times, 1.3 * bound
        )
        yield row._replace(note=f"the multiplications alone make {bound:.2f} ×; {row.value / bound:.2f} of that")


def apply(rounds: int) -> Iterator[Row]:
    """Indexing half of everything away against a copy of the same tensors."""
    for name, model in [
        ("timm deit_base", timm_model("deit_base_patch16_224")),
        ("torchvision resnet50", torchvision_model("resnet50")),
    ]:
        params, spec = pf.params(model), pf.trace(model, (images(2),))
        scores = pf.score(pf.collect_stats(params, None, spec=spec), criterion=pf.criteria.random())
        for what, where in [("all groups", lambda _: True), ("hidden", pf.kind("hidden"))]:
            mask = pf.select(pf.only(scores, where, spec=spec), 0.5, spec=spec, scope=pf.scope.local())
            both = {
                "apply": lambda p=params, m=mask, s=spec: pf.apply(p, m, spec=s),
                "clone": lambda p=params: {n: t.clone() for n, t in p.items()},
            }
            times = interleaved(both, rounds=4 * rounds, warm_up=2, text=f"apply {name}")
            yield ratio_row("apply / clone", f"{name}, half of {what}", times, 3.0)


class Chain(nn.Module):
    """Wide linears one after the other."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        """[n, width] → [n, width]"""
        return self.layers(x)


def select(rounds: int) -> Iterator[Row]:
    """A MAC budget over a million units."""
    for layers, width in [(63, 16_384), (513, 2048)]:
        with torch.device("meta"):
            model = Chain(layers, width)
        spec = pf.trace(model, (torch.empty(2, width, device="meta"),))
        generator = torch.Generator().manual_seed(0)
        scores = {g: torch.rand(n, generator=generator) for g, n in spec.sizes.items()}
        units = sum(map(len, scores.values()))
        for scope in (pf.scope.global_(), pf.scope.local()):
            run = partial(pf.select, scores, pf.budget.macs(0.5), spec=spec, scope=scope)
            took = interleaved({"select": run}, rounds=rounds, text=f"select {layers} groups")["select"]
            case = f"{units:,} units in {len(scores)} groups, {scope.name}, budget.macs(0.5)"
            value = sorted(took)[len(took) // 2]
            yield Row("select", case, seconds(value), "", value, 2.0, unit="s")


def llama(rounds: int) -> Iterator[Row]:
    """A Llama of 70 B parameters on `meta`, in a process of its own."""
    done = subprocess.run([sys.executable, HERE / "llama_meta.py"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"llama_meta.py failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    kinds = ", ".join(f"{n} {kind}" for kind, n in found["kinds"].items())
    case = f"Llama, {found['parameters'] / 1e9:.1f} B parameters on meta"
    note = f"{found['groups']} groups: {kinds}; {found['capture']}"
    memory = f"{found['before']:.0f} MB of it before the trace (torch, transformers and the model)"
    yield Row("trace, time", case, seconds(found["seconds"]), "", found["seconds"], 60.0, unit="s", note=note)
    yield Row(
        "trace, peak memory", case, f"{found['peak']:.0f} MB", "", found["peak"] / 1024, 2.0, unit="GB", note=memory
    )


GOALS: dict[str, Callable[[int], Iterator[Row]]] = {
    "trace": trace,
    "forward": forward,
    "statistics": statistics,
    "covariances": covariances,
    "apply": apply,
    "select": select,
    "llama": llama,
    "prune": prune,
}


def main() -> None:
    """Run the goals and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GOALS, default=list(GOALS), help="goals to run; default all")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each interleaved comparison")
    parser.add_argument("--out", action="store_true", help="write bench/results/speed.{md,csv}")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; default 1, so that CPU seconds mean something"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # of the libraries that are measured
    torch.manual_seed(0)
    rows = []
    for name in tqdm(args.only, desc="goals"):
        for row in GOALS[name](args.rounds):
            rows.append(row.cells())
            tqdm.write("  ".join(filter(None, row.cells())))
            gc.collect()
    remarks = (
        "Each ratio is the median over rounds of interleaved calls, in CPU seconds of the process: the machine is shared. "
        "Only the Llama's time is wall time."
    )
    print(f"\n{markdown(HEADER, rows)}\n\n{remarks}\n{versions()}")
    if args.out:
        write(HERE / "results", "speed", "Speed", HEADER, rows, remarks)


if __name__ == "__main__":
    main()
