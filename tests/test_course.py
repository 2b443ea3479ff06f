"""The course: the commands of its README in order, on digits; the notebooks name the same ones."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from string import Template
from typing import Any

import nbformat
import pytest
import torch
import yaml

import prunefn as pf
from prunefn import sparse

typer_testing = pytest.importorskip("typer.testing")

import prunefn.cli  # noqa: E402

COURSE = Path(__file__).parents[1] / "notebooks" / "course"
WEEKS = ("week_1", "week_2", "week_3")
GOAL = "runs/l1_channels_tuned"
CUT = {
    "train": "--profile.rounds 2",
    "eval": "--rounds 2",
    "sparsify": "--images 200 --batch-size 200 --data.images 200",
    "finetune": "--epochs 1 --data.images 200",
    "prune": "--images 200",
    "pat": "--sparse.epochs 1 --between.epochs 0 --finetune.epochs 1 --data.images 200 --prune.images 200",
    "profile": "--rounds 2",
    "sweep": "--sweep.space '{macs_ratio: [0.4, 0.6], lr: [0.005], epochs: [1]}' --data.images 200 --prune.images 200",
}
"""What makes the commands short; the run that has to meet the goal is trained as it stands."""


def commands() -> list[str]:
    """Of the README, in order."""
    return [
        line for line in (COURSE / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("prunefn")
    ]


def variables() -> dict[str, str]:
    """C and T, as the README sets them."""
    found = re.findall(r'^([CT])=("[^"]*"|\S+)', (COURSE / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {name: value.strip('"') for name, value in found}


def short(line: str) -> list[str]:
    """The arguments, with those of `CUT` at the end."""
    args = shlex.split(Template(line).substitute(variables()))[1:]
    return args if args[-1] == GOAL else args + shlex.split(CUT.get(args[0], ""))


CALLS = """
import json, sys
from typer.testing import CliRunner
import prunefn.cli
for args in json.load(sys.stdin):
    done = CliRunner().invoke(prunefn.cli.app, args)
    if done.exit_code:
        sys.exit(f"{args}: {done.stdout} {done.stderr}")
"""
"""One process for all commands, without the type checks of the tests."""


def test_the_commands_of_the_course(tmp_path: Path) -> None:
    """All in order, in one directory, once; then what they left there."""
    root, calls = str(Path(__file__).parents[1]), json.dumps([short(line) for line in commands()])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        input=calls,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = tmp_path / "runs"
    for check in (files_and_keys, zeros_hold, movement, goal, exports, final_report):
        check(runs)


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_and_keys(runs: Path) -> None:
    """All files, with the keys that the course names."""
    assert (runs / "train/best_model.safetensors").is_file()
    assert list((runs / "train").rglob("logs/**/events.out.tfevents.*"))
    measured = ["accuracy", "flops_g", "params_m", "latency_ms", "throughput_fps"]
    for path in ("train/metrics.yaml", "eval/eval_metrics.yaml", "final/eval_metrics.yaml"):
        found = read(runs / path)
        assert all(found[key] > 0 for key in measured), path
    compared = {"accuracy", "flops_g", "params_m", "flops_reduction_pct", "accuracy_drop", "goal_met"}
    paths = [p for p in runs.glob("*/metrics.yaml") if p.parent.name not in ("train", "variance_alone")]
    assert len(paths) == 15 and [p for p in paths if not compared <= set(read(p))] == []
    assert read(runs / "eval/eval_metrics.yaml")["accuracy"] == pytest.approx(
        read(runs / "train/metrics.yaml")["accuracy"], abs=1e-6
    )
    header = "Method,Params_Removed,FLOPs_Reduction,Accuracy_Drop,Goal_Met"
    for path in ("final_comparison.csv", "sweep/final_comparison.csv"):
        assert (runs / path).read_text(encoding="utf-8").splitlines()[0] == header


def zeros_hold(runs: Path) -> None:
    """Zeros save no MACs, and hold in training."""
    dense = read(runs / "train/metrics.yaml")["flops_g"]
    for run, share in {"l1_layerwise": 0.5, "iterative": 0.95, "two_of_four": 0.5}.items():
        for name in (run, f"{run}_tuned"):
            found = read(runs / name / "metrics.yaml")
            assert found["sparsity"] == pytest.approx(share, abs=0.01), name
            assert (found["flops_g"], found["flops_reduction_pct"], found["goal_met"]) == (dense, 0, False), name


def movement(runs: Path) -> None:
    """Movement is that since the start of training."""
    torch.manual_seed(0)
    start = pf.nets.small_resnet18(10, 1, width=8).eval()
    spec = pf.trace(start, (torch.randn(2, 1, 8, 8),))
    criterion = sparse.criteria.movement_since(pf.params(start))
    trained = pf.params(pf.load(start, runs / "train/best_model.safetensors"))
    scores = sparse.score(pf.collect_stats(trained, None, spec=spec), criterion=criterion)
    want = sparse.select(scores, 0.5, spec=spec, scope=sparse.scope.layerwise())
    now = pf.params(pf.load(pf.nets.small_resnet18(10, 1, width=8).eval(), runs / "movement_since/sparse.safetensors"))
    assert all(torch.equal(now[name] != 0, mask) for name, mask in want.items())


def goal(runs: Path) -> None:
    """Channels and fine-tuning meet it."""
    found, dense = read(runs / "l1_channels_tuned/metrics.yaml"), read(runs / "train/metrics.yaml")
    assert dense["accuracy"] > 0.95
    assert found["goal_met"] is True
    removed, lost = 100 * (1 - found["flops_g"] / dense["flops_g"]), 100 * (dense["accuracy"] - found["accuracy"])
    assert removed >= 40 and lost <= 1.5
    assert (found["flops_reduction_pct"], found["accuracy_drop"]) == pytest.approx((removed, lost), abs=1e-3)
    assert read(runs / "l1_channels/metrics.yaml")["goal_met"] is False
    assert read(runs / "final/eval_metrics.yaml")["accuracy"] == pytest.approx(found["accuracy"], abs=1e-6)


def exports(runs: Path) -> None:
    """Within 1e-5."""
    found = read(runs / "export/export.json")
    assert set(found) == {"onnx", "torchscript"}
    assert max(d for one in found.values() for d in one["differences"].values()) < 1e-5
    assert (runs / "export/model.onnx").is_file() and (runs / "export/model.pt").is_file()


def final_report(runs: Path) -> None:
    """It compares all runs."""
    rows = {row["Method"]: row for row in table(runs / "final_comparison.csv")}
    assert set(rows) == {p.parent.name for p in runs.glob("*/metrics.yaml")} - {"train"}
    assert rows["l1_channels_tuned"]["Goal_Met"] == "True" and rows["taylor"]["Goal_Met"] == "False"
    assert float(rows["taylor"]["Params_Removed"]) == pytest.approx(0.5, abs=0.01)
    text = (runs / "report.html").read_text(encoding="utf-8")
    assert all(name in text for name in rows) and '<rect class="goal"' in text
    assert len(table(runs / "sweep/final_comparison.csv")) == 2 and (runs / "sweep/pareto.png").is_file()


def test_the_notebooks_have_21_days_and_name_the_commands() -> None:
    cells = [c for week in WEEKS for c in nbformat.read(COURSE / f"{week}.ipynb", as_version=4).cells]
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert re.findall(r"^## Day (\d+):", prose, re.MULTILINE) == [str(day) for day in range(1, 22)]
    named = re.findall(r"^    (prunefn .*)", prose, re.MULTILINE)
    assert sorted(set(named)) == sorted(set(commands()))
    readme = (COURSE / "README.md").read_text(encoding="utf-8")
    assert [w for w in WEEKS if f"]({w}.ipynb)" not in readme] == []


def test_one_switch_takes_them_to_full_size() -> None:
    """The commands take the config of CIFAR-10; nothing is opened."""
    for line in commands():
        args = shlex.split(Template(line).substitute(variables() | {"C": "-c cifar10_resnet18"}))[1:]
        if args[0] != "report":
            done = typer_testing.CliRunner().invoke(prunefn.cli.app, [*args, "--dry-run"])
            assert done.exit_code == 0, (line, done.stderr)
