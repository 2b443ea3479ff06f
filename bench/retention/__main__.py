"""Top-1 right after pruning, without any training, at the same MACs: ours beside Torch-Pruning's.

python -m bench.retention [--only NETWORK …] [--seeds N] [--calibration N] [--report]

First `python -m bench.retention.train`. What is computed is kept in bench/results/retention.jsonl, so that a run that is
interrupted goes on where it was; a network is measured afresh when its lines there are deleted. `--report` only writes the
table and the plot.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache

import torch
from tqdm import tqdm

import prunefn as pf

from . import data
from .methods import METHODS, PEERS, VARIANTS, Case, Result, collect, ours, theirs
from .networks import NETWORKS, load
from .report import report
from .rows import DENSE, Job, Row, add, rows

KEEP = (0.8, 0.65, 0.5, 0.35)
CHOICES = (0.65, 0.5)
"""The budgets at which the variant of each method is chosen."""
VALIDATION, TEST = 1000, 5000
"""So many validation images choose; so many test images are measured on, and nothing else is done with them."""


class Bench:
    """Networks and statistics, made when a job needs them."""

    def __init__(self, calibration: int) -> None:
        self.calibration = calibration
        self.case = cache(self._case)
        self.stats = cache(lambda network, seed: collect(self.case(network, seed)))
        self.images = {
            "validation": data.Images(*(t[:VALIDATION] for t in data.validation())),
            "test": data.Images(*(t[:TEST] for t in data.test())),
        }

    def _case(self, network: str, seed: int) -> Case:
        model, train = load(network).model, data.training()
        chosen = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))[: self.calibration]
        images = data.Images(train.images[chosen], train.labels[chosen])
        return Case(model, pf.trace(model, (images.images[:2],)), pf.params(model), images)

    def run(self, job: Job) -> Row:
        """Prune and measure."""
        case = self.case(job.network, job.seed)
        if job.method == DENSE:
            return Row(job, pf.cost(case.spec).macs, load(job.network).accuracy, None)
        try:
            result = self._prune(case, job)
        except ValueError as error:
            tqdm.write(str(error))
            return Row(job, 0, None, None)
        images = self.images[job.part]
        norms = any("running_mean" in name for name in case.params)
        top1 = data.accuracy(result.network, images)
        anew = data.accuracy(result.recalibrated(), images) if norms and job.part == "test" else None
        return Row(job, result.macs, top1, anew)

    def _prune(self, case: Case, job: Job) -> Result:
        for m in METHODS:
            if m.name == job.method:
                return ours(case, self.stats(job.network, job.seed), m, job.variant, job.keep)
        method = next(m for m in PEERS if m.name == f"{job.method.removeprefix('Torch-Pruning ')}, {job.variant}")
        return theirs(case, method, job.keep)


def variants(network: str) -> dict[str, list[str]]:
    """Method → its variants: those of attention only where there is some."""
    mine = [v for v in VARIANTS if network == "vit" or "head_dim" not in v]
    out = {m.name: mine for m in METHODS}
    for m in PEERS:
        importance, variant = m.name.split(", ", 1)
        out.setdefault(f"Torch-Pruning {importance}", []).append(variant)
    return out


def seeded(method: str) -> bool:
    """Whether the calibration images play a part."""
    return method not in ("magnitude", "LAMP", "Torch-Pruning magnitude")


def choosing(network: str) -> Iterator[Job]:
    """Every variant on validation images."""
    for method, names in variants(network).items():
        for variant in names:
            yield from (Job(network, method, variant, keep, 0, "validation") for keep in CHOICES)


def measuring(network: str, done: dict[Job, Row], seeds: int) -> Iterator[Job]:
    """The best variant of each method, on the test images."""
    yield Job(network, DENSE, "", 1.0, 0, "test")
    for method, names in variants(network).items():
        best = max(
            names, key=lambda v: sum(done[Job(network, method, v, k, 0, "validation")].top1 or 0 for k in CHOICES)
        )
        for seed in range(seeds if seeded(method) else 1):
            yield from (Job(network, method, best, keep, seed, "test") for keep in KEEP)


def work(bench: Bench, jobs: Iterator[Job], done: dict[Job, Row], text: str) -> None:
    """Those that are not done."""
    for job in tqdm([j for j in jobs if j not in done], desc=text):
        done[job] = bench.run(job)
        add(done[job])


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calibration", type=int, default=1024, help="training images for the statistics")
    parser.add_argument("--report", action="store_true", help="only write the table and the plot")
    args = parser.parse_args()
    done = rows()
    if not args.report:
        bench = Bench(args.calibration)
        for network in args.only:
            work(bench, choosing(network), done, f"{network}, choosing")
            work(bench, measuring(network, done, args.seeds), done, network)
    report(list(done.values()), args.calibration)


if __name__ == "__main__":
    main()
