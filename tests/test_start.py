"""What starting costs: the package and the command line import what they use, when they use it."""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

import prunefn as pf

pytest.importorskip("typer")

from prunefn.by_name import tables
from prunefn.cli import app, completion, sections
from prunefn.cli.classes import check_refused
from prunefn.cli.commands import COMMANDS, LANGUAGE_MODELS
from prunefn.cli.devices import DEVICES
from prunefn.cli.networks import NETS
from prunefn.cli.waiting import silent_libraries, spinner, spinners
from prunefn.costs.timing.runtimes import RUNTIMES
from prunefn.data.api import open_data
from prunefn.data.sources import SOURCES
from prunefn.display.progress import progress_bar
from prunefn.errors import nearest
from prunefn.train import Recipe, Setup, train
from prunefn.where import KINDS

HEAVY = {
    "torch",
    "numpy",
    "optree",
    "timm",
    "torchvision",
    "transformers",
    "sympy",
    "matplotlib",
    "sklearn",
    "accelerate",
}
CALL = """
import json, sys
sys.argv = ["prunefn", *{args!r}]
try:
    from prunefn.cli import app
    app()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def process(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, check=False)


def completed(line: str) -> tuple[list[str], set[str]]:
    """Return the words that Tab offers at the end of a line, and the modules that it took."""
    words = line.split(" ")
    done = process(
        CALL.format(args=[]), _PRUNEFN_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), set(json.loads(done.stderr))


def test_the_package_imports_nothing_until_it_is_used() -> None:
    text = "import sys; sys.path[:] = {path!r}; import prunefn as pf; print(*sys.modules); pf.PruneError; pf.trace"
    assert not HEAVY & set(process(text.format(path=sys.path)).stdout.split())


@pytest.mark.parametrize(
    ("args", "shown"), [(["--version"], pf.__version__), (["--help"], "sweep"), (["prune", "--help"], "--criterion")]
)
def test_help_imports_no_torch(args: list[str], shown: str) -> None:
    done = process(CALL.format(args=args))
    assert done.returncode == 0 and shown in done.stdout
    assert not HEAVY & set(json.loads(done.stderr))


def test_tab_imports_no_torch() -> None:
    words, modules = completed("prunefn prune --crit")
    assert words == ["--criterion"] and not HEAVY & modules


def test_type_checkers_see_the_names_that_are_imported_at_their_first_use() -> None:
    tree = ast.parse(Path(str(pf.__file__)).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    imports = [n for n in block.body if isinstance(n, ast.ImportFrom)]
    seen = {a.name: f".{n.module or ''}" for n in imports for a in n.names}
    names = {n: module.rpartition(".")[0] or "." for n, module in pf._NAMESPACES.items()} | pf._MODULE_OF
    assert seen == names and {*names, "__version__"} == set(pf.__all__)


def test_every_command_has_a_file() -> None:
    for command in (*COMMANDS, *LANGUAGE_MODELS):
        module = import_module(f"prunefn.cli.commands.{command.file or command.name}")
        assert callable(module.run) and callable(module.plan)


# ---- Tab


def test_tab_offers_what_the_menus_have() -> None:
    offered = {path: set(words) for path, words in completion.WORDS.items()}
    menus = {
        "prune.criterion": {n for n in tables.CRITERIA if "." not in n},
        "prune.compensation": set(tables.COMPENSATIONS),
        "prune.scope": {n.rstrip("_") for n in tables.SCOPES},
        "prune.recipe": set(tables.RECIPES),
        "prune.where": {tables.EVERY, *KINDS},
        "sparsify.criterion": {*tables.WEIGHT_CRITERIA, "movement_since"},
        "sparsify.scope": {n.rstrip("_") for n in tables.WEIGHT_SCOPES},
        "sparsify.pattern": set(tables.PATTERNS),
        "pat.regularizer": set(tables.PENALTIES),
        "data.name": set(SOURCES),
        "device": set(DEVICES),
    }
    assert offered == menus | {f"sensitivity.{n}": menus[f"prune.{n}"] for n in ("criterion", "compensation", "where")}
    assert set(completion.NETS) == set(NETS)
    assert get_args(sections.Runtime) == RUNTIMES  # the options state them without importing torch


def test_tab_knows_all_models_of_the_libraries() -> None:
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    assert completion.registered_models("timm") == set(timm.list_models())
    assert completion.registered_models("torchvision") == set(torchvision.models.list_models())
    classes = completion.classes_of_transformers()
    assert len(classes) > 300 and {"BertModel", "ViTForImageClassification"} <= set(classes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("prunefn prune --criterion fl", ["flap"]),
        ("prunefn pat --prune.scope is", ["isomorphic"]),
        ("prunefn prune timm/convnext_tiny_", ["timm/convnext_tiny_hnf"]),
        ("prunefn prune -c vit_", ["vit_base_vbp"]),
        ("prunefn export --formats onnx,so", ["onnx,source"]),
    ],
)
def test_values_complete(line: str, words: list[str]) -> None:
    offered, modules = completed(line)
    assert offered == words and not HEAVY & modules


# ---- what is shown in the meantime


def test_progress_is_lines_where_nothing_can_be_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        progress_bar(total=4, text="outer", show=True) as outer,
        progress_bar(range(3), text="inner", show=True) as bar,
    ):
        outer.mininterval = 0.0
        for _ in bar:
            outer.update()
    shown = capsys.readouterr().err
    assert "\r" not in shown and "\x1b" not in shown and not shown.startswith("\n")
    lines = shown.splitlines()
    assert lines[:2] == ["outer: 0/4", "inner: 0/3"] and lines[-1].startswith("outer: 3/4, 00:00 left")


def test_warnings_of_libraries_are_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with silent_libraries(), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn_explicit("of another", FutureWarning, "x.py", 1)
        warnings.warn_explicit("of ours", pf.PruneWarning, "x.py", 1)
        logging.getLogger("another").warning("of another")
    assert capfd.readouterr().err.count("of another") == 0
    assert logging.root.manager.disable == 0


def test_a_spinner_is_a_line_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        with spinners(shown), spinner("tracing it"):
            pass
    assert capsys.readouterr().err == "tracing it\n"


def test_commands_show_no_warnings_of_libraries() -> None:
    done = process(CALL.format(args=["inspect", "small_resnet"]), PRUNEFN_CACHE="/dev/null/none")
    said = done.stderr.splitlines()[:-1]  # the last line has the modules
    assert done.returncode == 0 and said == ["tracing small_resnet"]


# ---- names of namespaces that nobody has used yet


def test_names_are_read_where_their_namespace_is_not_imported_yet() -> None:
    done = process("import prunefn as pf; print(pf.pipeline(scope='local')); pf.pipeline(scope='lokal')")
    assert "by local()" in done.stdout, done.stderr
    assert "pf.scope has no 'lokal'; did you mean 'local'" in done.stderr


# ---- small things


def test_a_failed_run_leaves_nothing_that_the_next_one_remarks_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for criterion in ("nosuch", "nosuch_either"):
        with pytest.raises(SystemExit):
            app(["prune", "small_vit", "--data", "digits", "--criterion", criterion, "--out", str(tmp_path / "out")])
        assert "results of other options" not in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_checkpoint_with_another_number_of_classes(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(64, 7)).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(pf.PruneError, match="the data have 10 classes, the checkpoint 7"):
        check_refused(nn.Sequential(nn.Linear(64, 10)), str(tmp_path / "seven.pth"), open_data("digits"))


def test_a_suggestion_comes_once() -> None:
    assert nearest("resnet", ["resnet18", "resnet18", "vit"]) == "; did you mean 'resnet18'?"


def test_the_warm_up_is_over_by_half_of_the_epochs() -> None:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    points = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    recipe = Recipe(epochs=4, batch_size=4, lr=0.1, warmup=20)
    rows = train(nn.Sequential(nn.Linear(4, 2)), Setup(points, device="cpu"), recipe).rows
    lrs = [row["lr"] for row in rows]
    assert lrs[0] < lrs[1] and lrs[1] > lrs[2] > lrs[3] and lrs[1] > 0.05
