"""The commands, described without importing what they run: `prunefn --help` and Tab need nothing of torch.

Each has a file in this folder with two functions: `run(job)` runs it, `plan(config)` yields its steps.
"""

from __future__ import annotations

from functools import partial

from ..command import Command

COMMANDS = (
    Command(
        "inspect",
        """Show what of a model can be pruned: groups, kinds, costs, and what is frozen and why.

        With --out, the folder gets spec.json and pictures (spec.svg, spec.html). To look at one tensor or group, name it:
        prunefn inspect timm/deit_tiny_patch16_224 blocks.0.attn.qkv.weight
        """,
        ("model", "data"),
        own=("model",),
        files="Tensors or groups to explain.",
        fresh=True,
    ),
    Command(
        "train",
        """Train a model from its start, or from --checkpoint.

        The folder gets best_model.safetensors (the best epoch on held-out images), metrics.yaml, and in train/ checkpoints,
        metrics.jsonl and TensorBoard's logs. The same command resumes a run that was stopped.
        """,
        ("model", "data", "train", "profile"),
        own=("train",),
        out="runs/train",
        fresh=True,
    ),
    Command(
        "eval",
        """Measure a model on held-out images: accuracy, MACs, parameters, latency. With --out, eval_metrics.yaml is written.""",
        ("model", "data", "profile"),
        own=("profile",),
        file="evaluate",
    ),
    Command(
        "prune",
        """Remove units of a trained model, once, with statistics of clean training images. Nothing is trained.

        Without data, only criteria on weights work (--criterion magnitude --compensation none). --layers 24 and --experts 96 keep
        so many whole layers and experts, the best ones, alone or before what a budget such as --macs 0.6 removes.

        The folder gets pruned.safetensors (for --checkpoint of the other commands, in the original class), mask.safetensors,
        summary.json, spec.json, pictures and report.html.
        """,
        ("model", "data", "prune"),
        own=("prune",),
        out="runs/prune",
    ),
    Command(
        "sparsify",
        """Set weights to zero: single ones, n of each m, blocks or slices. Shapes and MACs stay as they are.

        With --rounds, in rounds with training in between (--between.epochs). To train on with the zeros held:
        prunefn finetune --checkpoint …/sparse.safetensors --hold-zeros. The folder gets sparse.safetensors, sparsity.md,
        sparsity.png, summary.json and metrics.yaml.
        """,
        ("model", "data", "sparsify", "between"),
        own=("sparsify",),
        out="runs/sparsify",
    ),
    Command(
        "pat",
        """Prune and train in up to three phases: sparse training, rounds of pruning and training, fine-tuning.

        The folder gets final.safetensors, a mask and a checkpoint for each round, summary.json, metrics.yaml, pictures and
        report.html. The same command resumes a run that was stopped. On several GPUs:
        torchrun --nproc-per-node 8 -m prunefn pat …
        """,
        ("model", "data", "pat", "prune", "sparse", "between", "finetune", "distill"),
        own=("pat", "prune"),
        out="runs/pat",
    ),
    Command(
        "finetune",
        """Train a pruned model on, with its dense self as teacher if --distill.alpha and --distill.teacher are given.

        The folder gets finetuned.safetensors (the best epoch), metrics.yaml (with a teacher, also whether the goal is met beside it:
        40 % fewer MACs for at most 1.5 points), and in train/ the files of the training. The same command resumes a run that was stopped.
        """,
        ("model", "data", "finetune", "distill"),
        own=("finetune",),
        out="runs/finetune",
    ),
    Command(
        "export",
        """Write a model for other runtimes: ONNX, exported program, AOTInductor, TorchScript, plain source, state dict.

        Every file is read back and compared with the network at several batch sizes; one that differs by more than --atol is not
        written.
        """,
        ("model", "data", "export"),
        own=("export",),
        out="runs/export",
    ),
    Command(
        "profile",
        """Time the dense model and pruned checkpoints in turns, and say which layers keep latency from falling with the MACs.

        prunefn profile timm/deit_tiny_patch16_224 runs/prune/pruned.safetensors …
        """,
        ("model", "data", "profile"),
        own=("profile",),
        files="Pruned checkpoints.",
    ),
    Command(
        "analyze",
        """Show how the L2 norms of units spread out over the checkpoints of a run: when there are two humps, it is time to prune.

        prunefn analyze small_vit runs/pat, or a list of checkpoints. Train with --train.keep-every N to have more of them. The
        folder gets norms.png and norms.json.
        """,
        ("model", "data"),
        own=("model",),
        out="runs/analyze",
        files="A run's folder, or checkpoints.",
        fresh=True,
    ),
    Command(
        "sensitivity",
        """Show what it costs to prune each group alone, at several ratios: the predicted error of the next layers, and what is measured.

        Use it to choose max_ratio, where or freeze of prune. The folder gets sensitivity.csv, sensitivity.json and sensitivity.png.

        prunefn sensitivity timm/resnet18 --data DIR --checkpoint resnet18.pth --ratios 0.25,0.5 --metric loss
        """,
        ("model", "data", "sensitivity"),
        own=("sensitivity",),
        out="runs/sensitivity",
    ),
    Command(
        "sweep",
        """Try many settings: prune, fine-tune, measure; accuracy against MACs, importance of the settings.

        Statistics are collected once. The same command resumes a sweep that was stopped; on many machines, give the same --storage.
        The folder gets trials.csv, final_comparison.csv, pareto.png, importance.png, report.html, and each trial's pruned model.
        """,
        ("model", "data", "sweep", "prune", "finetune", "distill"),
        own=("sweep",),
        out="runs/sweep",
    ),
    Command(
        "report",
        """Write report.html into folders of results: everything that is there, on one page that needs nothing beside it.

        A directory of several runs (prunefn report runs) gets the final report: final_comparison.csv and pareto.png, every run
        beside the dense network, and whether the goal is met. With --beside vbp_table_10, published.html sets the runs beside
        published results; a log (metrics.jsonl) gets this page alone.
        """,
        ("report",),
        own=("report",),
        files="Folders of results, or logs.",
        model=False,
    ),
    Command(
        "load-check",
        """Load a checkpoint into its class, run it, and compare the class with the traced program.""",
        ("model", "data"),
        own=("model",),
        file="check",
    ),
)
FOLDER = "Folder of a model of transformers: config.json, safetensors, tokenizer."
_language_model = partial(
    Command, sections=("llm",), own=("llm",), files=FOLDER, files_name="FOLDER", model=False, whole=True
)
LANGUAGE_MODELS = (
    _language_model(
        "prune",
        """Prune a language model from a folder to a smaller folder that transformers loads: layer by layer, never whole in memory.

        Give --params 0.75 (equal sizes in all layers that meet it) or --target intermediate_size=1152,num_hidden_layers=24
        (fields of config.json), and --text for calibration. The folder is loaded afresh and compared in the end. An interrupted
        run resumes when the same command is called again.
        """,
        only=(
            *("text", "params", "macs", "target", "where", "round_to", "criterion", "compensation"),
            *("length", "batch_size", "sequences", "dtype", "out"),
        ),
        file="llm_prune",
    ),
    _language_model(
        "recover",
        """Train a pruned language model in a folder towards the dense one in another, without labels, and write a third folder.

        The distance is the Kullback-Leibler divergence of the tokens' probabilities. Both models are in memory. The weights of the
        lowest distance on held-out sequences are written. An interrupted run resumes when the same command is called again.
        """,
        only=("dense", "text", "steps", "lr", "seed", "length", "batch_size", "sequences", "dtype", "out"),
        file="llm_recover",
    ),
    _language_model(
        "perplexity",
        """Measure the perplexity of a language model in a folder on a text that did not calibrate it.""",
        only=("text", "length", "batch_size", "sequences", "dtype"),
        file="llm_perplexity",
    ),
)
