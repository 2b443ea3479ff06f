"""The command line: options in layers, every command on digits, models by name, errors, the paper's commands on a folder of images."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import nn

import prunefn as pf

typer_testing = pytest.importorskip("typer.testing")

import prunefn.cli  # noqa: E402
from prunefn.by_name import tables as words  # noqa: E402
from prunefn.cli import networks, pipelines  # noqa: E402
from prunefn.cli.layers import merge, resolve, shipped_configs  # noqa: E402
from prunefn.cli.networks import open_network  # noqa: E402
from prunefn.cli.sections import Config, Model  # noqa: E402
from prunefn.cli.streams import Stopped  # noqa: E402
from prunefn.files.nest import read_nest  # noqa: E402

SIZES = {"dim": 16, "depth": 1, "heads": 2, "mlp_ratio": 4.0}
VIT = ["-c", "digits_vit", "--options", json.dumps(SIZES)]
SHORT = ["--profile.rounds", "2"]


class Done(NamedTuple):
    """A run of the command."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict:
        """What `--json` printed."""
        return json.loads(self.stdout)


def run(*args: str | Path, code: int = 0) -> Done:
    done = typer_testing.CliRunner().invoke(prunefn.cli.app, [str(a) for a in args])
    assert done.exit_code == code, (args, done.stdout, done.stderr, done.exception)
    return Done(done.exit_code, done.stdout, done.stderr)


def little() -> nn.Module:
    """What the tests build by module:function."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10)
    )


def wide() -> nn.Module:
    """A network of digits whose time is in its matrices."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


# ---- options


def test_flags_win_over_files_and_files_over_defaults(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("{data: digits, prune: {ratio: 0.3, scope: local}, seed: 3}")
    second.write_text("{data: {image_size: 16}, prune: {scope: global}}")
    found = resolve([str(first), str(second)], {"prune": {"ratio": "0.4"}})
    assert (found.data.name, found.data.image_size, found.seed) == ("digits", 16, 3)
    assert (found.prune.ratio, found.prune.scope, found.prune.batch_size) == (0.4, "global", 64)
    said = run("prune", "resnet18", "-c", first, "--ratio", "0.2", "--dry-run", "--json").json["config"]["prune"]
    assert (said["ratio"], said["scope"]) == (0.2, "local")
    assert (
        run("prune", "resnet18", "--prune.ratio", "0.25", "--dry-run", "--json").json["config"]["prune"]["ratio"]
        == 0.25
    )


def test_every_key_is_a_flag() -> None:
    """Of the sections that a command reads, under the name of the section."""
    from prunefn.cli.commands import COMMANDS
    from prunefn.cli.flags import flags_of
    from prunefn.settings import section_of

    pat = next(c for c in COMMANDS if c.name == "pat")
    flags = {f.path: f.names for f in flags_of(pat.sections, pat.own)}
    for section in pat.sections:
        inner = section_of(Config.model_fields[section])
        assert inner is not None
        for name, field in inner.model_fields.items():
            assert f"--{section}.{name.replace('_', '-')}" in flags[f"{section}.{name}"]
            assert field.description, f"{section}.{name} says nothing of itself"
    assert {"seed", "device", "out"} <= set(flags)


@pytest.mark.parametrize("name", list(shipped_configs()))
def test_configs_that_come_with_the_package_are_valid(name: str) -> None:
    assert resolve([name], {}).model.name
    for command in ("train", "prune", "sparsify", "pat", "finetune", "export", "profile"):
        steps = run(command, "-c", name, "--dry-run", "--json").json["steps"]
        assert len(steps) >= 2 and all(steps)
    assert run("config", name).stdout == shipped_configs()[name]


def test_schema_is_that_of_the_config() -> None:
    schema = run("config", "--schema").json
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["$defs"]["Prune"]["properties"]["ratio"]["description"].startswith("fraction of the units to remove")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{prune: {criterio: x}}", "prune.criterio is no option of prune; did you mean 'criterion'"),
        ("{prun: {}}", "prun is no option; did you mean 'prune'"),
        (
            "{prune: {ratio: 2}}",
            "prune.ratio is 2; it is the fraction of the units to remove and must be at least 0 and below 1",
        ),
        ("{train: {epochs: -1}}", "train.epochs is -1; it must be at least 0"),
        ("[1, 2]", "is a list; a config has sections"),
        ("{a: [", "is no YAML"),
    ],
    ids="key section range negative list syntax".split(),
)
def test_wrong_configs_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert message in run("config", "--check", path, code=1).stderr
    assert message in run("prune", "resnet18", "-c", path, code=2).stderr


def test_merging_keeps_what_is_not_said() -> None:
    assert merge({"model": "a"}, {"model": {"checkpoint": "b"}}) == {"model": {"name": "a", "checkpoint": "b"}}
    assert merge({"sweep": {"space": {"lr": [1]}}}, {"seed": 1}) == {"sweep": {"space": {"lr": [1]}}, "seed": 1}


# ---- words


def test_words_are_the_values_of_python() -> None:
    c = pf.criteria
    assert words.criterion_of("mac_aware(magnitude(1.0), alpha=0.5)").name == c.mac_aware(c.magnitude(1.0)).name
    net = little().eval()
    spec, params = pf.trace(net, (torch.randn(2, 1, 8, 8),)), pf.params(net)
    stats = pf.collect_stats(params, None, spec=spec)
    text = "normalized(magnitude(1.0, reduction=reduction.max), normalizer.quantile(0.3))"
    want = c.normalized(c.magnitude(1.0, reduction=pf.reduction.max), pf.normalizer.quantile(0.3))
    found, same = pf.score(stats, criterion=words.criterion_of(text)), pf.score(stats, criterion=want)
    assert all(torch.equal(found[g], same[g]) for g in same)
    groups = spec.groups.values()
    where, by_hand = words.where_of("hidden & ~module('3')"), pf.kind("hidden") & ~pf.module("3")
    assert callable(where) and [where(g) for g in groups] == [by_hand(g) for g in groups]


def test_words_are_values_that_can_be_sent() -> None:
    """To other processes, as sweeps do; what comes out there is what went in."""
    room = [(words.criterion_of, n) for n in ("variance", "taylor", "lamp", "mac_aware(normalized(magnitude), 0.9)")]
    room += [(words.compensation_of, n) for n in words.COMPENSATIONS]
    room += [(words.scope_of, n) for n in words.SCOPES] + [(words.weight_scope_of, n) for n in words.WEIGHT_SCOPES]
    room += [(words.weight_criterion_of, n) for n in words.WEIGHT_CRITERIA]
    room += [(words.pattern_of, n) for n in ("unstructured", "n_m(2, 4)", "blocks(2, 2)", "slices(2)")]
    for read, text in room:
        value = read(text)
        assert pickle.loads(pickle.dumps(value)).name == value.name
    spec = pf.trace(little().eval(), (torch.randn(2, 1, 8, 8),))
    for text in ("hidden", "~hidden & module('0') | glob('3*')", "touches('5.weight') | exact"):
        where = words.where_of(text)
        again = pickle.loads(pickle.dumps(where))
        assert callable(where) and [where(g) for g in spec.groups.values()] == [again(g) for g in spec.groups.values()]
        assert repr(again) == repr(where)


@pytest.mark.parametrize(
    "text", ["open('x')", "__import__('os')", "variance.__class__", "(lambda: 1)()", "[variance][0]"]
)
def test_words_execute_nothing_else(text: str) -> None:
    with pytest.raises(pf.PruneError, match="criterion"):
        words.criterion_of(text)


# ---- models


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("timm/resnet10t", {}, "ResNet"),
        ("torchvision/squeezenet1_1", {}, "SqueezeNet"),
        ("transformers/BertModel", {"num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2}, "BertModel"),
        (
            "transformers/ViTForImageClassification",
            {"num_hidden_layers": 1, "image_size": 32},
            "ViTForImageClassification",
        ),
        ("small_resnet18", {"width": 4}, "ResNet"),
    ],
    ids="timm torchvision text image ours".split(),
)
def test_models_by_name(name: str, options: dict, kind: str) -> None:
    network = open_network(Model(name=name, options=options))
    assert type(network.model).__name__ == kind and not network.model.training
    assert network.spec().groups
    again = open_network(Model(name=name, options=options)).model.state_dict()
    assert all(torch.equal(t, again[n]) for n, t in network.model.state_dict().items())


def test_inspect_says_what_is_frozen_and_why() -> None:
    asked = ["inspect", "small_vit", "--options", "{depth: 1}"]
    text, found = run(*asked).stdout, run(*asked, "--json").json
    assert "blocks.0.mlp.fc1" in text and "2 × it is an output: head.weight dim 0" in text
    assert found["groups"]["blocks.0.mlp.fc1"]["kind"] == "hidden"
    assert {"tensor": "head.weight", "dim": 0, "why": ["it is an output"]} in found["frozen"]
    assert "dim 0, size 10: frozen: it is an output" in run(*asked, "head.weight").stdout


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    found = open_network(Model(name=str(tmp_path))).model
    assert type(found) is type(model)
    assert all(torch.equal(t, found.state_dict()[n]) for n, t in model.state_dict().items())


def test_a_function_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef net(num_classes):\n    return nn.Linear(4, num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = ["mine:net", "--options", "{num_classes: 3}", "--model.input-shape", "4"]
    found = run("inspect", *asked, "--json").json
    assert found["params"] == 15
    assert "cannot be built with no options" in run("inspect", "mine:net", code=1).stderr
    assert "mine:net does not take inputs of (5,)" in run("inspect", *asked[:-1], "5", code=1).stderr


@pytest.mark.parametrize(
    ("args", "message", "code"),
    [
        (["inspect"], "give a model: timm/NAME", 2),
        (["inspect", "resnt18"], "there is no model 'resnt18'; did you mean 'resnet18'", 1),
        (["inspect", "timm/resnt18"], "timm has no model 'resnt18'", 1),
        (["inspect", "nowhere:net"], "there is no module 'nowhere'", 1),
        (
            ["prune", "timm/resnet10t", "--recipe", "vbp"],
            "needs batches: give --data, or --criterion magnitude --compensation none",
            1,
        ),
        (["prune", "timm/resnet10t", "--criterion", "varance"], "there is no 'varance'; did you mean 'variance'", 1),
        (["prune", "timm/resnet10t", "--recipe", "vbpp"], "there is no recipe 'vbpp'; did you mean 'vbp'", 1),
        (["prune", "timm/resnet10t", "--ratio", "0.5", "--macs", "0.5"], "give one of the two", 1),
        (["eval", "timm/resnet10t"], "this needs data: --data digits, mnist", 1),
        (["eval", "timm/resnet10t", "--data", "digts"], "no data 'digts'; did you mean 'digits'", 1),
        (
            ["load-check", "timm/resnet10t", "--checkpoint", "no.safetensors"],
            "there is no checkpoint no.safetensors",
            1,
        ),
        (
            ["finetune", "timm/resnet10t", "--data", "digits"],
            "finetune needs a checkpoint; give --checkpoint",
            1,
        ),
        (["report", "."], "has no files of a run", 1),
    ],
    ids="model name timm module batches criterion recipe budgets data digits checkpoint finetune report".split(),
)
def test_errors_are_a_line(
    args: list[str], message: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*args, code=code)
    assert message in done.stderr and "Traceback" not in done.stderr and not done.stdout


# ---- the commands


def test_from_training_to_a_file_for_other_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command on what the one before it wrote; the numbers are those of the functions."""
    monkeypatch.chdir(tmp_path)
    trained = run("train", *VIT, *SHORT, "--epochs", "2", "--data.images", "600", "--json").json
    best = tmp_path / "runs/train/best_model.safetensors"
    assert yaml.safe_load((tmp_path / "runs/train/metrics.yaml").read_text()) == trained
    assert list((tmp_path / "runs/train/train/logs").iterdir())
    checkpoint = ["--checkpoint", best]
    found = run("eval", *VIT, *SHORT, *checkpoint, "--out", "e", "--json").json
    assert found["accuracy"] == pytest.approx(trained["accuracy"], abs=1e-6)
    assert set(found) == {"accuracy", "loss", "flops_g", "params_m", "latency_ms", "throughput_fps"}
    assert (tmp_path / "e/eval_metrics.yaml").exists()

    pruned = run("prune", *VIT, *checkpoint, "--ratio", "0.4", "--json").json
    small = tmp_path / "runs/prune/pruned.safetensors"
    assert pruned["top1_dense"] == pytest.approx(trained["accuracy"]) and 0 < pruned["macs_removed"] < 0.5
    assert {p.name for p in (tmp_path / "runs/prune").iterdir()} >= {"report.html", "mask.safetensors", "widths.png"}
    by_hand = _by_hand(best)
    loaded = open_network(Model(name="small_vit", options=SIZES, checkpoint=str(small)))
    assert all(torch.equal(t, by_hand[n]) for n, t in loaded.model.state_dict().items())

    tuned = run("finetune", *VIT, "--epochs", "1", "--checkpoint", small, "--distill.teacher", best, "--json").json
    assert tuned["accuracy_before"] == pytest.approx(pruned["top1"])
    final = tmp_path / "runs/finetune/finetuned.safetensors"
    checked = run("load-check", *VIT, "--checkpoint", final, "--json").json
    assert checked["macs"] == pruned["macs"] and checked["difference"] < 1e-5

    exported = run(
        "export", *VIT, "--checkpoint", final, "--formats", "torchscript,source", "--batches", "1,3", "--json"
    ).json
    assert set(exported) == {"torchscript", "source"} and Path(exported["source"]["path"]).name == "model_source.py"
    assert Path(exported["torchscript"]["path"]).exists()
    timed = run("profile", *VIT, small, "--rounds", "2", "--json").json
    assert list(timed["networks"]) == ["dense", "pruned"]
    assert timed["networks"]["pruned"]["macs"] == pruned["macs"]
    assert "Written" in run("report", "runs/prune").stdout


def _by_hand(best: Path) -> dict[str, torch.Tensor]:
    """The pruned state dict, by the functions of Python."""
    model = pf.nets.small_vit(dim=16, depth=1, heads=2)
    model = pf.load(model.eval(), best)
    data = pf.data.open_data("digits", augment=False)
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:1024]  # type: ignore[arg-type]
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(data.train, chosen.tolist()), batch_size=64)
    spec = pf.trace(model, (torch.randn(2, 1, 8, 8),))
    pruned = pf.recipes.vbp(0.4)(pf.params(model), list(loader), spec=spec)
    return pf.to_module(pruned.params, spec=pruned.spec, model=model).state_dict()


def test_sparsify_and_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sparsified = run("sparsify", *VIT, "--pattern", "n_m(2, 4)", "--criterion", "wanda", "--json")
    assert "'wanda' needs statistics of its inputs, and there are none" in sparsified.stderr
    found = sparsified.json
    assert found["sparsity"] == pytest.approx(0.5) and (tmp_path / "runs/sparsify/sparsity.md").exists()
    held = [
        "finetune",
        *VIT,
        "--checkpoint",
        "runs/sparsify/sparse.safetensors",
        "--epochs",
        "1",
        "--distill.alpha",
        "none",
    ]
    note = run(*held)
    assert "are trained like all others without --hold-zeros" in note.stderr
    kept = run(*held, "--hold-zeros", "--out", "held", "--json").json["sparsity"]
    free = yaml.safe_load((tmp_path / "runs/finetune/metrics.yaml").read_text())["sparsity"]
    assert kept > 0.4 and free < 0.01


def test_pat_in_three_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once more: what is done is read."""
    monkeypatch.chdir(tmp_path)
    asked = ["pat", *VIT, "--steps", "2", "--sparse.epochs", "1", "--between.epochs", "1", "--finetune.epochs", "1"]
    found = run(*asked, "--macs", "0.8", "--json").json
    assert found["macs_removed"] == pytest.approx(0.2, abs=0.03) and found["flops_reduction_pct"] > 15
    folder = tmp_path / "runs/pat"
    assert {"final.safetensors", "report.html", "round_1", "round_2", "sparse", "tuning"} <= {
        p.name for p in folder.iterdir()
    }
    assert run(*asked, "--of", "macs", "--ratio", "0.2", "--json").json == found  # the same in other words
    before = (folder / "config.yaml").read_text()
    assert "belongs to a run with" in run(*asked, "--ratio", "0.3", code=1).stderr
    assert (folder / "config.yaml").read_text() == before
    both = ["--macs", "0.8", "--params", "0.8"]
    assert "give --ratio, and --of macs or --of params" in run(*asked, *both, "--dry-run", code=1).stderr


def test_sweep_analyze_and_the_final_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of runs beside the dense one; a failed trial is shown, and the others go on."""
    monkeypatch.chdir(tmp_path)
    run("train", *VIT, *SHORT, "--epochs", "2", "--data.images", "300", "--train.keep-every", "1")
    checkpoint = ["--checkpoint", "runs/train/best_model.safetensors"]
    norms = run("analyze", *VIT, "runs/train/train", "--json").json
    assert list(norms) == ["epoch 1", "epoch 2"] and (tmp_path / "runs/analyze/norms.png").exists()
    run("prune", *VIT, *checkpoint, "--ratio", "0.3")
    run("sparsify", *VIT, *checkpoint, "--ratio", "0.25")
    compared = run("report", "runs", "--json").json
    assert set(compared["goal_met"]) == {"prune", "sparsify"} and (tmp_path / "runs/report.html").exists()
    rows = [line.split(",") for line in (tmp_path / "runs/final_comparison.csv").read_text().splitlines()]
    assert rows[0] == ["Method", "Params_Removed", "FLOPs_Reduction", "Accuracy_Drop", "Goal_Met"]
    by_name = {r[0]: r for r in rows[1:]}
    summary = json.loads((tmp_path / "runs/prune/summary.json").read_text())
    assert float(by_name["prune"][2]) == pytest.approx(100 * summary["macs_removed"], abs=0.01)
    assert float(by_name["sparsify"][2]) == 0 and float(by_name["sparsify"][1]) > 0.2

    space = "{macs_ratio: [0.1, 0.2], criterion: ['magnitude(1.0)', fisher], epochs: [0]}"
    asked = ["sweep", *VIT, *checkpoint, "--sampler", "grid", "--space", space, "--prune.images", "64"]
    found = run(*asked, "--json").json
    assert found["finished"] == 4 and found["failed"] == 0 and found["best"] is None
    assert {t["criterion"] for t in found["front"]} <= {"magnitude(1.0)", "fisher"}
    assert run(*asked, "--json").json == found  # nothing is tried twice
    assert {"trials.csv", "pareto.png", "report.html"} <= {p.name for p in (tmp_path / "runs/sweep").iterdir()}


def test_sensitivity_of_each_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of the Python function, and its files."""
    monkeypatch.chdir(tmp_path)
    asked = ["sensitivity", *VIT, "--images", "256", "--held-out", "100", "--ratios", "0.5,0.25", "--where", "hidden"]
    found = run(*asked, "--metric", "loss", "--json").json
    assert (found["criterion"], found["compensation"], found["metric"]) == ("obs", "affine", "loss")
    assert [(e["ratio"], e["removed"]) for e in found["effects"]] == [(0.25, 16), (0.5, 32)]
    assert all(0 < e["predicted"] < 1 and e["estimated"] > 0 and e["measured"] for e in found["effects"])
    assert sorted(p.name for p in Path("runs/sensitivity").iterdir()) == [
        "config.yaml",
        *(f"sensitivity.{end}" for end in ("csv", "json", "png")),
    ]
    shown = run(*asked, "--held-out", "0", "--compensation", "none", "--criterion", "weighted_variance").stdout
    assert "compensation none" in shown and "measured" not in shown and "25" in shown
    assert "must be above 0 and below 1" in run(*asked, "--ratios", "1.5", code=2).stderr


def test_what_somebody_may_not_have_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advice works as it is given, `none` is not the mean, and remarks say what is easily missed."""
    monkeypatch.chdir(tmp_path)
    plain = ["prune", *VIT, "--ratio", "0.3", "--prune.images", "64"]
    done = run(*plain)
    assert "the weights are random" in done.stderr and "results of other options" not in done.stderr
    again = run(*plain, "--compensation", "none", "--out", "plain")
    with_mean, without = (
        pf.load(pf.nets.small_vit(dim=16, depth=1, heads=2), tmp_path / name / "pruned.safetensors").state_dict()
        for name in ("runs/prune", "plain")
    )
    bias = "blocks.0.mlp.fc2.bias"
    assert not torch.equal(with_mean[bias], without[bias])
    assert torch.equal(without[bias], open_network(Model(name="small_vit", options=SIZES)).model.state_dict()[bias])
    assert "results of other options" in run(*plain, "--round-to", "2").stderr and "note" not in again.stdout
    asked = ["prune", "timm/resnet10t", "--model.input-shape", "3,32,32", "--criterion", "magnitude"]
    assert run(*asked, "--compensation", "none", "--out", "weights", "--json").json["macs_removed"] > 0.1
    failed = run("prune", "timm/resnet10t", "--recipe", "vbp", "--json", code=1)
    assert failed.json["error"] in failed.stderr
    planned = run(
        "finetune", *VIT, "--distill.teacher", "t.safetensors", "--distill.alpha", "0.5", "--dry-run", "--json"
    )
    assert "teacher: t.safetensors, alpha 0.5" in planned.json["steps"]
    named = ["finetune", "small_vit", "--data", "digits", "--distill.teacher", "t.safetensors", "--dry-run", "--json"]
    assert "teacher: t.safetensors, alpha 0.7" in run(*named).json["steps"]
    assert "there is a config of that name: -c digits_vit" in run("prune", "digits_vit", "--dry-run", code=1).stderr
    assert "did you mean 'deit_tiny_vbp'?" in run("prune", "-c", "deit_tiny_vpb", code=2).stderr
    assert (
        'prune.macs is "50"; it must be at most 1 (0.5 is half)'
        in run("prune", "small_vit", "--macs", "50", code=2).stderr
    )


def test_a_model_that_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its costs are those of one sample, too; it is pruned by its weights."""
    text = (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)\n"
        "    def forward(self, x):\n        y = self.a(x).relu()\n        return self.b(y * 2 if {} else y)\n"
    )
    (tmp_path / "dynamic.py").write_text(text.format("bool(y.sum() > 0)"))
    (tmp_path / "static.py").write_text(text.format("True"))
    monkeypatch.chdir(tmp_path)
    shape = ["--model.input-shape", "4"]
    macs = [run("inspect", f"{name}:Net", *shape, "--json").json["macs"] for name in ("dynamic", "static")]
    assert macs == [48, 48]
    assert run("inspect", "dynamic:Net", *shape, "--json").json["capture"] == "recorded"
    asked = ["prune", "dynamic:Net", *shape, "--criterion", "magnitude", "--compensation", "none", "--json"]
    assert run(*asked).json["macs"] == 24


def test_a_language_model_is_built_to_be_traced() -> None:
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
    }
    spec = open_network(Model(name="transformers/LlamaForCausalLM", options={**small, "intermediate_size": 48})).spec()
    assert spec.capture == "exported" and {g.kind for g in spec.groups.values()} >= {"heads", "head_dim", "hidden"}


def test_down_to_a_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As measured in ONNX Runtime and in eager torch, in one shot and in rounds; the table is measured once for each."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEFN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pipelines, "latency_table", partial(pf.latency_table, grid=(0.25,), repeats=2))
    asked = ["tests.test_cli:wide", "--data", "digits", "--criterion", "magnitude", "--compensation", "none"]
    asked += ["--prune.images", "64", "--device", "cpu", "--json"]
    found = run("prune", *asked, "--latency", "0.6", "--runtime", "onnx").json
    assert 0 < found["latency_ms"] <= 0.6 * found["latency_ms_dense"] and found["macs_removed"] > 0.2
    assert found["runtime"].startswith("ONNX Runtime ")
    mask = read_nest(tmp_path / "runs/prune/mask.safetensors")["mask"]
    assert len(mask) == 2 and all(int(m.sum()) % 16 == 0 for m in mask.values())
    assert json.loads((tmp_path / "runs/prune/summary.json").read_text())["latency_ms"] == found["latency_ms"]
    assert '<div class="card">Latency<b>' in (tmp_path / "runs/prune/report.html").read_text()
    whole = run("prune", *asked, "--latency", "1000ms", "--runtime", "onnx", "--out", "whole").json
    assert whole["latency_ms"] == whole["latency_ms_dense"] == found["latency_ms_dense"] and whole["macs_removed"] == 0
    rounds = ["--steps", "2", "--sparse.epochs", "0", "--between.epochs", "0", "--finetune.epochs", "0"]
    done = run("pat", *asked, "--latency", "0.6", *rounds).json
    assert done["latency_ms"] <= 0.6 * done["latency_ms_dense"] and done["runtime"].startswith("torch ")
    rows = [json.loads(line) for line in (tmp_path / "runs/pat/metrics.jsonl").read_text().splitlines()]
    assert [r["phase"] for r in rows] == ["dense", "prune 1", "prune 2"]
    assert rows[0]["macs"] > rows[1]["macs"] > rows[2]["macs"] == done["macs"]
    assert json.loads((tmp_path / "runs/pat/config.json").read_text())["of"] == "latency"


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("prune", ["--latency", "1.5"], "write a fraction to keep, such as 0.5, or milliseconds, such as 8ms"),
        ("prune", ["--latency", "0.5", "--macs", "0.5"], "prune.macs is another amount; give one of the two"),
        ("prune", ["--runtime", "onnx"], "prune.runtime is 'onnx', and there is no latency to measure; give --latency"),
        ("prune", ["--latency", "0.5", "--runtime", "tvm"], "it must be 'eager', 'compiled', 'onnx' or 'openvino'"),
        ("pat", ["--latency", "0.5", "--pat.ratio", "0.3"], "prune.latency '0.5' is another amount"),
        ("sweep", ["--prune.latency", "0.5"], "a sweep removes MACs: give macs_ratio in --space"),
    ],
)
def test_a_latency_that_cannot_be(command: str, flags: list[str], message: str) -> None:
    done = typer_testing.CliRunner().invoke(prunefn.cli.app, [command, *VIT, *flags, "--dry-run"])
    assert done.exit_code in (1, 2) and message in done.stderr


def test_profiles_in_another_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    asked = ["profile", "tests.test_cli:wide", "--data", "digits", "--rounds", "2", "--json", "--runtime"]
    found = run(*asked, "onnx").json
    assert found["runtime"].startswith("ONNX Runtime ")
    assert list(found["networks"]["dense"]["layers"]) == ["", "1", "3", "5"]  # before the first weight: Flatten
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert 'needs openvino: pip install "prunefn[openvino]"' in run(*asked, "openvino", code=1).stderr


def test_a_latency_is_measured_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "which one process measures, but 2 run" in run("pat", *VIT, "--latency", "0.5", "--dry-run", code=1).stderr


def test_a_new_amount_replaces_a_latency() -> None:
    old = {"prune": {"latency": "0.5", "runtime": "onnx"}}
    assert merge(old, {"prune": {"macs": 0.6}}) == {"prune": {"macs": 0.6}}
    assert resolve(["digits_vit"], {"prune": {"latency": "0.5"}}).prune.ratio is None  # the config has one


def test_images_set_apart_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reported is of images that nothing was chosen by."""
    monkeypatch.chdir(tmp_path)
    apart = ["--data.validation-fraction", "0.3"]
    trained = run("train", *VIT, *SHORT, "--epochs", "2", *apart, "--json").json
    rows = [json.loads(line) for line in (tmp_path / "runs/train/train/metrics.jsonl").read_text().splitlines()]
    asked = ["eval", *VIT, *SHORT, "--checkpoint", "runs/train/best_model.safetensors", "--json"]
    assert run(*asked).json["accuracy"] == pytest.approx(trained["accuracy"], abs=1e-6)
    assert trained["accuracy"] not in [r["top1"] for r in rows]


def test_a_report_needs_a_dense_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.yaml").write_text("{accuracy: 0.5, flops_g: 1.0, params_m: 1.0}")
    assert "has 0 runs with best_model.safetensors" in run("report", tmp_path, code=1).stderr


def test_debug_shows_where() -> None:
    done = typer_testing.CliRunner().invoke(prunefn.cli.app, ["inspect", "resnt18", "--debug"])
    assert isinstance(done.exception, pf.PruneError)


# ---- what is kept from command to command


def test_only_the_first_command_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEFN_CACHE", str(tmp_path / "cache"))
    traces: list[int] = []

    def counted(*args: Any, **options: Any) -> pf.Spec:
        traces.append(1)
        return pf.trace(*args, **options)

    monkeypatch.setattr(networks, "trace", counted)
    ask = ["inspect", "small_vit"]
    first = run(*ask).stdout
    assert run(*ask).stdout == first and len(traces) == 1
    kept = list((tmp_path / "cache" / "specs").iterdir())
    assert len(kept) == 1
    kept[0].write_bytes(kept[0].read_bytes()[:-1])  # a damaged file costs a trace
    assert run(*ask).stdout == first and len(traces) == 2
    run("inspect", "small_vit", "--options", "{depth: 2}")
    assert len(traces) == 3
    for _ in range(2):  # the code of a function may depend on anything
        run("inspect", "prunefn.nets:small_vit", "--input-shape", "1,8,8")
    assert len(traces) == 5


def test_heads_and_widths_of_equal_shapes_are_not_confused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the heads and half of every head_dim leave the same shapes; the checkpoints tell them apart."""
    monkeypatch.setenv("PRUNEFN_CACHE", str(tmp_path / "cache"))
    out = []
    for kind in ("heads", "head_dim", "heads"):
        run(
            "prune",
            "small_vit",
            "--data",
            "digits",
            "--criterion",
            "magnitude",
            "--where",
            kind,
            "--out",
            tmp_path / kind,
        )
        out.append(run("inspect", "small_vit", "--checkpoint", tmp_path / kind / "pruned.safetensors").stdout)
    assert out[0] != out[1] and out[0] == out[2]


# ---- a config is data


@pytest.mark.parametrize("name", ["mine:net", "mine.py:net", "os:system", "torchvision:os.system", "timm/hf-hub:a/b"])
def test_a_config_names_no_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the command line has the same text, or --trust."""
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath('ran').touch()\ndef net():\n    return nn.Linear(4, 3)\n"
    )
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump({"model": {"name": name, "input_shape": [4]}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for command in ("inspect", "prune", "train"):
        said = run(command, "-c", "shared.yaml", code=2).stderr
        assert repr(name) in said and "--trust" in said and not Path("ran").exists()
    if name == "mine:net":
        assert "does not say" not in run("inspect", "-c", "shared.yaml", "mine:net").stderr
        assert run("inspect", "-c", "shared.yaml", "--trust", "--json").json["params"] == 15


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm/resnet10t", {"checkpoint_path": "evil.pth"}),
        ("timm/resnet10t", {"pretrained_cfg": {"file": "evil.pth"}}),
        ("transformers/TimmWrapperModel", {"model_args": {"checkpoint_path": "evil.pth"}}),
        ("transformers/ViTModel", {"trust_remote_code": True}),
        ("transformers/ViTModel", {"attn_implementation": "someone/kernel"}),
    ],
)
def test_options_run_no_code(name: str, options: dict) -> None:
    with pytest.raises(pf.PruneError, match=r"model\.options\..* foreign code"):
        open_network(Model(name=name, options=options))


@pytest.mark.parametrize("name", ["os", "sys", "pipeline", "AutoModel", "__class__", "ViTConfig", "ViTImageProcessor"])
def test_only_model_classes_of_transformers(name: str) -> None:
    with pytest.raises(pf.PruneError, match="transformers has no model"):
        open_network(Model(name=f"transformers/{name}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\ntrain: {epochs: 3}\nseed: 2", "the key 'seed' stands twice, in lines 1 and 3"),
        ("train:\n  epochs: 3\n  epochs: 4", "the key 'epochs' stands twice, in lines 2 and 3"),
        ('{"seed": 1, "seed": 2}', "the key 'seed' stands twice, in lines 1 and 1"),
        ("a: &a {<<: {x: 1}, <<: {y: 1}}", "the key '<<' stands twice"),
        ("a: &a [*a]", "contains itself"),
        ("a0: &a0 [1, 1]\n" + "".join(f"a{i + 1}: &a{i + 1} [{f'*a{i}, ' * 9}]\n" for i in range(9)), "by its anchors"),
        ("out: 2020-99-99", "is no YAML"),
        ("[" * 5000, "is no YAML"),
        ("# " + "x" * 2_000_000, "characters"),
        ("a: \x00", "is no YAML"),
    ],
    ids="top section json merge itself bomb date deep long null".split(),
)
def test_yaml_that_is_not_what_it_seems(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert message in run("config", "--check", path, code=1).stderr


def test_a_config_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is no text in UTF-8" in run("config", "--check", tmp_path / "c.yaml", code=1).stderr
    assert "stands twice" in run("inspect", "small_vit", "--options", "{depth: 1, depth: 2}", code=1).stderr


# ---- how every command ends


def every_command() -> list[str]:
    from typer.main import get_command

    found: Any = get_command(prunefn.cli.app)
    inner = {f"llm {n}" for n in found.commands["llm"].commands}
    return sorted((found.commands.keys() - {"llm"}) | inner)


@pytest.mark.parametrize("name", every_command())
@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (Stopped(), 143), (RuntimeError("x"), 1)])
def test_every_command_ends_in_a_line(
    name: str, error: BaseException, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its midst, or by an error that nobody expected; what it has not finished is not there."""

    def raises(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.chdir(tmp_path)
    for place in ("prunefn.cli.networks.torch.manual_seed", "prunefn.cli.commands.config.shipped_configs"):
        monkeypatch.setattr(place, raises)
    monkeypatch.setattr("prunefn.cli.commands.report.is_results", raises)
    monkeypatch.setattr("prunefn.cli.demo.study.study", raises)
    for place in ("api", "evaluation", "recovered"):
        monkeypatch.setattr(f"prunefn.pretrained.{place}.config_of", raises)
    words = ["x", "--out", "y", "--text", "w", "--params", "0.5"]
    special = {
        "report": ["x"],
        "config": [],
        "demo": [],
        "llm prune": words,
        "llm recover": ["x", "--out", "y", "--text", "w", "--dense", "d"],
        "llm perplexity": ["x", "--text", "w"],
    }
    asked = special.get(name, ["small_vit", "--data", "digits"])
    asked += ["--checkpoint", "w"] if name in ("finetune", "load-check") else []
    asked += ["x"] if name == "analyze" else []
    Path("w").touch()
    done = run(*name.split(), *asked, code=code)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note:")]
    assert "Traceback" not in done.stderr and len(lines) == (2 if code == 1 else 1), done.stderr
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} <= {"w", "config.yaml"}


@pytest.mark.parametrize(
    "name", [c for c in every_command() if c not in ("config", "demo", "report", "llm perplexity")]
)
def test_out_on_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    said = run(*name.split(), "small_vit", "--out", tmp_path / "file", code=2).stderr
    assert "is a file; give a folder" in said and (tmp_path / "file").read_text() == "mine"


SHELL = """
import os, signal, subprocess, sys
{setup}
import prunefn.cli
{then}
sys.argv = ["prunefn", *{args!r}]
prunefn.cli.app()
"""


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("closed", 0, ""),
        ("full", 1, "No space left"),
        ("pipe", 141, ""),
        ("ascii", 0, ""),
        ("term", 143, "stopped"),
    ],
)
def test_streams_of_the_process(how: str, code: int, message: str, tmp_path: Path) -> None:
    """A process of each kind; what it prints is more than a pipe holds."""
    setup = {"closed": "os.close(0); os.close(1)", "full": "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"}
    setup["pipe"] = "r, w = os.pipe(); os.close(r); os.dup2(w, 1)"
    then = {"term": "prunefn.cli.commands.config.shipped_configs = lambda: os.kill(os.getpid(), signal.SIGTERM)"}
    text = SHELL.format(setup=setup.get(how, ""), then=then.get(how, ""), args=["config"])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONIOENCODING": "ascii", "COLUMNS": "20"} if how == "ascii" else {}
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == code, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert bool(done.stderr) == bool(message) and not list(tmp_path.iterdir())


# ---- the paper's commands, on a folder of images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise, in ImageNet's layout."""
    from PIL import Image

    where = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 6), ("val", 4)):
        for c in range(3):
            (where / part / f"class_{c}").mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (48, 56, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(where / part / f"class_{c}" / f"{i}.jpg")
    return where


def test_vbp_of_the_paper_runs_to_the_end(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One-shot, and the three phases, by the shipped config; the sizes are cut down."""
    monkeypatch.chdir(tmp_path)
    small = ["--options", "{embed_dim: 24, depth: 2, num_heads: 3}", "--data", folder, "--data.image-size", "32"]
    found = run("prune", "-c", "deit_tiny_vbp", *small, "--images", "12", "--batch-size", "4", "--json").json
    assert 0 < found["macs_removed"] < 0.45
    phases = ["--pat.steps", "2", "--sparse.epochs", "1", "--between.epochs", "1", "--finetune.epochs", "1"]
    batches = [
        "--sparse.batch-size",
        "6",
        "--between.batch-size",
        "6",
        "--finetune.batch-size",
        "6",
        "--prune.images",
        "12",
    ]
    workers = [f"--{s}.workers=0" for s in ("sparse", "between", "finetune")]
    done = run("pat", "-c", "deit_tiny_vbp", *small, *phases, *batches, *workers, "--device", "cpu", "--json").json
    assert done["macs_removed"] == pytest.approx(found["macs_removed"], abs=0.05)


def test_torchrun_gives_what_one_process_gives(folder: Path, tmp_path: Path) -> None:
    """`torchrun -m prunefn pat`: the same masks and the same cost."""
    small = [
        "small_resnet18",
        "--options",
        "{width: 4}",
        "--data",
        str(folder),
        "--data.image-size",
        "16",
        "--data.no-augment",
    ]
    asked = [
        "pat",
        *small,
        "--steps",
        "1",
        "--ratio",
        "0.3",
        "--device",
        "cpu",
        "--prune.images",
        "12",
        "--prune.batch-size",
        "6",
    ]
    asked += ["--between.epochs", "0", "--finetune.epochs", "1", "--finetune.batch-size", "6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PRUNEFN_CACHE": str(tmp_path / "cache")}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "prunefn"]
    for how, out in ((start, "two"), ([sys.executable, "-m", "prunefn"], "one")):
        command = [*how, *asked, "--out", str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Written to") == 1
    one, two = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two"))
    assert one["macs"] == two["macs"] and one["top1"] == pytest.approx(two["top1"])
    masks = [(tmp_path / n / "mask.safetensors").read_bytes() for n in ("one", "two")]
    assert masks[0] == masks[1]


# ---- classes of data and of checkpoints


def headed(num_classes: int = 10) -> nn.Module:
    """Built for any number of classes; a hidden width is that of the digits' classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, num_classes))


HEADED = ["tests.test_cli:headed", "--data", "digits"]


@pytest.mark.parametrize("command", ["eval", "prune", "finetune", "pat", "profile"])
def test_a_checkpoint_of_fewer_classes_than_the_data_is_refused(command: str, tmp_path: Path) -> None:
    pf.save(headed(7), tmp_path / "seven.safetensors")
    args = [command, *HEADED, "--checkpoint", tmp_path / "seven.safetensors"]
    done = run(*args, *([] if command in ("eval", "profile") else ["--out", tmp_path / "out"]), code=1)
    assert "the data have 10 classes, the checkpoint 7" in done.stderr


def test_a_teacher_of_fewer_classes_is_refused_and_narrower_hidden_units_are_not(tmp_path: Path) -> None:
    pf.save(headed(7), tmp_path / "seven.safetensors")
    model = headed()
    spec = pf.trace(model, (torch.randn(2, 1, 8, 8),))
    mask = {"1": torch.arange(10) < 7}
    small = pf.to_module(pf.apply(pf.params(model), mask, spec=spec), spec=pf.shrink(spec, mask), model=model)
    pf.save(small, tmp_path / "pruned.safetensors")
    args = ["finetune", *HEADED, "--checkpoint", tmp_path / "pruned.safetensors", "--epochs", "1"]
    args += ["--out", tmp_path / "out"]
    done = run(*args, "--distill.teacher", tmp_path / "seven.safetensors", code=1)
    assert "the data have 10 classes, the checkpoint 7" in done.stderr and "seven" in done.stderr
    run(*args)


def test_more_outputs_than_classes_are_kept_by_options(tmp_path: Path) -> None:
    pf.save(headed(12), tmp_path / "twelve.safetensors")
    args = ["eval", *HEADED, "--checkpoint", tmp_path / "twelve.safetensors", *SHORT]
    done = run(*args, code=1)
    assert "the data have 10 classes, the checkpoint 12" in done.stderr and "num_classes: 12" in done.stderr
    assert run(*args, "--options", "{num_classes: 12}", "--json").json["accuracy"] >= 0


# ---- what failed runs leave


PAT = ["pat", "tests.test_cli:little", "--data", "digits", "--data.images", "64", "--ratio", "0.3", "--steps", "1"]
PAT += [
    "--between.epochs",
    "1",
    "--finetune.epochs",
    "1",
    "--sparse.epochs",
    "0",
    "--prune.images",
    "32",
    "--recipe",
    "l1_channels",
]


@pytest.mark.parametrize("stop", [RuntimeError("the GPU is gone"), KeyboardInterrupt()])
def test_a_run_that_fails_before_its_first_round_leaves_nothing(
    stop: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise stop

    out = tmp_path / "runs" / "pat"
    with monkeypatch.context() as patch:
        patch.setattr("prunefn.train.run.Run.prune", interrupted)
        run(*PAT, "--out", out, code=130 if isinstance(stop, KeyboardInterrupt) else 1)
    assert list(tmp_path.iterdir()) == []
    (out / "notes").mkdir(parents=True)
    (out / "notes" / "mine.md").write_text("kept")
    run("pat", *HEADED, "--checkpoint", tmp_path / "nosuch.pth", "--out", out, code=1)
    assert [p.name for p in out.rglob("*")] == ["notes", "mine.md"]


def test_a_run_that_fails_in_the_middle_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "pat"
    with monkeypatch.context() as patch:
        patch.setattr("prunefn.train.run.Run.fine_tune", interrupted)
        run(*PAT, "--out", out, code=130)
    left = out / "round_1" / "pruned.safetensors"
    before = left.stat().st_mtime_ns
    assert (out / "config.json").exists() and (out / "spec.json").exists()
    assert "another folder" in run(*PAT, "--steps", "2", "--out", out, code=1).stderr and left.exists()
    run(*PAT, "--out", out)
    assert (out / "final.safetensors").exists() and left.stat().st_mtime_ns == before
