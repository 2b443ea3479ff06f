"""Top-1 of pruned networks after some training, at the same MACs: ours beside magnitude, VBP, CORP and Torch-Pruning.

python -m bench.after [--only NETWORK …] [--methods METHOD …] [--keep SHARE …] [--steps N …] [--seeds N] [--report]

First `python -m bench.retention.train --only small_resnet --only small_vit`. Each method prunes in the variant, and is trained at
the learning rate, that is best on validation images (at 35 % of the MACs, after 200 steps without distillation). Rows are kept in
bench/results/after.jsonl as they come, so that an interrupted run goes on where it was; `--report` only writes the page and the
picture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any

from torch import nn
from tqdm import tqdm

import prunefn as pf

from ..retention import data, networks
from .methods import METHODS, Method, Pruned, case, in_rounds, prune
from .report import report
from .rows import DENSE, Job, Row, add, rows
from .tuning import train

KEEP, STEPS, RATES = (0.65, 0.5, 0.35, 0.2), (0, 200, 2000), (1e-3, 2e-4)
CHOSEN_KEEP, CHOSEN_STEPS = 0.35, 200
"""Where variants and learning rates are chosen."""
VALIDATION, TEST = 2000, 5000
"""So many validation images choose; so many test images are measured on, and nothing else is done with them."""
BY_NAME = {m.name: m for m in METHODS}


class Bench:
    """Dense networks and pruned ones, made when a job needs them."""

    def __init__(self, calibration: int) -> None:
        self.case = cache(lambda name, seed: case(name, seed, calibration))
        self.pruned = cache(self._pruned)
        self.trained = cache(self._trained)
        held = data.validation()
        self.images = {
            "validation": data.Images(held.images[:VALIDATION], held.labels[:VALIDATION]),
            "test": data.Images(*(t[:TEST] for t in data.test())),
        }

    def _pruned(self, name: str, seed: int, method: str, variant: str, keep: float) -> tuple[Pruned | None, float]:
        start = time.perf_counter()
        return prune(self.case(name, seed), BY_NAME[method], variant, keep), time.perf_counter() - start

    def _trained(self, job: Job) -> tuple[nn.Module, int, float]:
        """Return the trained network of a job, its MACs, and the seconds of training, with those of pruning in rounds."""
        dense, method, start = self.case(job.network, job.seed), BY_NAME[job.method], time.perf_counter()
        teacher = dense.model if job.distilled else None
        learn = partial(train, job.network, lr=job.lr, teacher=teacher, seed=job.seed)
        if method.rounds == 1:
            pruned, _ = self.pruned(job.network, job.seed, job.method, job.variant, job.keep)
            assert pruned is not None
            model, macs = learn(pruned.model, job.steps), pruned.macs
        else:
            model, macs = in_rounds(dense, method, job.variant, job.keep, job.steps, learn)
        return model, macs, time.perf_counter() - start

    def run(self, job: Job) -> Row:
        """Prune, train and measure."""
        spent = 0.0
        if BY_NAME[job.method].rounds == 1:
            pruned, spent = self.pruned(job.network, job.seed, job.method, job.variant, job.keep)
            if pruned is None:
                return Row(job, 0, None, round(spent, 1), 0.0)
        model, macs, seconds = self.trained(job._replace(part=""))
        top1 = data.accuracy(model, self.images[job.part])
        return Row(job, macs, top1, round(spent, 1), round(seconds, 1))


def work(bench: Bench, jobs: Iterable[Job], done: dict[Job, Row], text: str) -> None:
    """Do the jobs that are not done, and append their rows."""
    for job in tqdm([j for j in jobs if j not in done], desc=text, mininterval=10):
        done[job] = bench.run(job)
        add(done[job])


def trial(network: str, method: str, variant: str, steps: int, lr: float) -> Job:
    """Return a job that is run to choose."""
    return Job(network, method, variant, CHOSEN_KEEP, steps, False, lr, 0, "validation")


def chosen_variant(bench: Bench, network: str, method: Method, done: dict[Job, Row]) -> str:
    """Return the variant that is best on validation images, at the first learning rate."""
    if method.same_as is not None:
        return chosen_variant(bench, network, BY_NAME[method.same_as], done)
    jobs = {v: trial(network, method.name, v, CHOSEN_STEPS, RATES[0]) for v in method.variants(bench.case(network, 0))}
    if len(jobs) > 1:
        work(bench, jobs.values(), done, f"{network}, variants of {method.name}")
    return max(jobs, key=lambda v: _top1(done, jobs[v])) if len(jobs) > 1 else next(iter(jobs))


def chosen_lr(bench: Bench, network: str, method: Method, variant: str, steps: int, done: dict[Job, Row]) -> float:
    """Return the learning rate that is best on validation images."""
    if not steps:
        return 0.0
    name, steps = method.same_as or method.name, min(steps, CHOSEN_STEPS)
    jobs = {lr: trial(network, name, variant, steps, lr) for lr in RATES}
    work(bench, jobs.values(), done, f"{network}, learning rate of {name}")
    return max(jobs, key=lambda lr: _top1(done, jobs[lr]))


def _top1(done: dict[Job, Row], job: Job) -> float:
    return done[job].top1 or 0.0


def measuring(network: str, method: str, variant: str, lrs: dict[int, float], args: Any) -> Iterator[Job]:
    """Yield the jobs on test images."""
    for seed in range(args.seeds):
        for keep in args.keep:
            for steps, lr in lrs.items():
                for distilled in args.distilled if steps else (False,):
                    yield Job(network, method, variant, keep, steps, distilled, lr, seed, "test")


def run(bench: Bench, args: argparse.Namespace, done: dict[Job, Row]) -> None:
    """Choose and measure."""
    for network in args.only:
        dense = Job(network, DENSE, "", 1.0, 0, False, 0.0, 0, "test")
        if dense not in done:
            done[dense] = _measure_dense(bench, dense)
            add(done[dense])
        for name in args.methods:
            method = BY_NAME[name]
            variant = chosen_variant(bench, network, method, done)
            steps = [s for s in args.steps if s or method.rounds == 1]
            lrs = {s: chosen_lr(bench, network, method, variant, s, done) for s in steps}
            work(bench, measuring(network, name, variant, lrs, args), done, f"{network}, {name}")


def _measure_dense(bench: Bench, job: Job) -> Row:
    found = bench.case(job.network, job.seed)
    return Row(job, pf.cost(found.spec).macs, data.accuracy(found.model, bench.images[job.part]), 0.0, 0.0)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(BY_NAME)
    small = [f.__name__ for f in networks.SMALL]
    parser.add_argument("--only", nargs="+", choices=list(networks.NETWORKS), default=small)
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--keep", nargs="+", type=float, default=list(KEEP), help="shares of the MACs")
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS), help="of training")
    parser.add_argument("--plain", dest="distilled", action="store_const", const=(False,), default=(False, True))
    parser.add_argument("--seeds", type=int, default=1, help="of calibration images and training")
    parser.add_argument("--calibration", type=int, default=1024, help="training images for the statistics")
    parser.add_argument("--report", action="store_true", help="only write the page and the picture")
    return parser.parse_args(argv)


def main() -> None:
    """Run and write."""
    args, done = arguments(), rows()
    if not args.report:
        run(Bench(args.calibration), args, done)
    report(list(done.values()))


if __name__ == "__main__":
    main()
