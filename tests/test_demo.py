"""The command `prunefn demo`, its data, networks, tables and pictures. Small recipes; the whole run is marked slow."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch.utils.data import default_collate

import prunefn as pf
from prunefn.data import digits

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("accelerate")
pytest.importorskip("torchvision")

import prunefn.cli  # noqa: E402
import prunefn.cli.errors  # noqa: E402
from prunefn import tables  # noqa: E402
from prunefn.cli.demo import command, study, write  # noqa: E402
from prunefn.report import axes, plots  # noqa: E402

FILES = ["accuracy_macs.png", "axes_resnet.png", "axes_vit.png", "kept.png", "report.md"]
FILES += ["resnet.safetensors", "vit.safetensors"]
VIT, RESNET = WHOLE = study.networks()
SMALL = {
    "VIT": VIT._replace(
        build=partial(pf.nets.small_vit, dim=16, depth=2, heads=2, mlp_ratio=6.0),
        recipe=VIT.recipe.model_copy(
            update={"epochs": 8, "warmup": 1.0, "lr": 6e-3, "cutmix": 0.0, "mixup": 0.0, "batch_size": 32}
        ),
        min_top1=0.15,
    ),
    "RESNET": RESNET._replace(
        build=partial(pf.nets.small_resnet, widths=(16, 32), depth=1),
        recipe=RESNET.recipe.model_copy(update={"epochs": 3}),
        min_top1=0.5,
    ),
}


class Done(NamedTuple):
    """A run of the command."""

    code: int
    stdout: str
    stderr: str
    out: Path = Path()


def run(*args: str) -> Done:
    done = typer_testing.CliRunner().invoke(prunefn.cli.app, list(args))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """The command with networks and recipes of a second or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "networks", lambda: tuple(SMALL.values()))
        patch.setattr(study, "ROUNDS", 2)
        patch.setattr(study, "SWEEP", (0.8, 0.6))
        yield


@pytest.fixture(scope="module")
def done(small: None, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The command has run, and left torch's generator alone."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    before = torch.get_rng_state()
    done = run("demo", "--seed", "3", "--out", str(out))._replace(out=out)
    assert torch.equal(torch.get_rng_state(), before)
    return done


@pytest.fixture(scope="module")
def studies(small: None) -> dict[str, study.Study]:
    """Seed 1 of both networks, without timing."""
    return {name: untimed(name, 1) for name in SMALL}


@cache
def data() -> pf.data.Data:
    return pf.data.open_data("digits", validation_fraction=command.VALIDATION)


def untimed(name: str, seed: int) -> study.Study:
    def timed(networks: dict[str, object], **_: object) -> SimpleNamespace:
        timing = study.Timing(1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1)
        return SimpleNamespace(networks=[SimpleNamespace(name=n, timing=timing) for n in networks])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pf, "profile", timed)
        return study.study(SMALL[name], data(), seed=seed)


def cells(markdown: str) -> list[dict[str, str]]:
    """Rows of all tables of a report."""
    rows, head = [], None
    for line in markdown.splitlines():
        words = [w.strip() for w in line.strip("|").split("|")] if line.startswith("|") else None
        if words is None:
            head = None
        elif head is None:
            head = words
        elif not words[0].startswith(":"):
            rows.append(dict(zip(head, words, strict=True)))
    return rows


# ---- the command


def test_demo_writes_its_files_and_nothing_else(done: Done) -> None:
    assert done.code == 0
    assert sorted(p.name for p in done.out.iterdir()) == FILES
    report = (done.out / "report.md").read_text()
    assert re.findall(r"!\[.*?\]\((.*?)\)", report) == [
        "axes_vit.png",
        "axes_resnet.png",
        "kept.png",
        "accuracy_macs.png",
    ]
    assert f"prunefn demo --seed 3 --out {done.out} --device cpu --threads 1" in report
    for version in (pf.__version__, torch.__version__, "seed 3"):
        assert version in report
    for method in RESNET.methods:
        assert method.name in done.stdout


def test_demo_pictures_show_something(done: Done) -> None:
    from matplotlib.image import imread

    for name in FILES[:4]:
        image = imread(done.out / name)
        assert min(image.shape[:2]) > 400
        assert image[..., :3].std() > 0.05


def test_demo_table_agrees_with_itself(done: Done) -> None:
    rows = cells((done.out / "report.md").read_text())
    assert [r["method"] for r in rows].count("dense") == 2
    assert len(rows) == 2 + len(VIT.methods) + len(RESNET.methods)
    dense = rows[0]
    for row in rows:
        dense = row if row["method"] == "dense" else dense
        macs = [int(r["MACs"].split()[0].replace(",", "")) for r in (row, dense)]
        assert float(row["retention (%)"]) == pytest.approx(
            100 * float(row["top-1 (%)"]) / float(dense["top-1 (%)"]), abs=0.02
        )
        assert row["MACs"].endswith(f"({macs[0] / macs[1]:.1%})")
        assert float(row["× dense"]) == pytest.approx(
            float(row["ms per batch"]) / float(dense["ms per batch"]), abs=0.02
        )


@pytest.mark.parametrize("name", ["VIT", "RESNET"])
def test_demo_parameters_load_back_to_the_reported_top1(done: Done, name: str) -> None:
    network = SMALL[name]
    spec = pf.trace(network.build().eval(), (torch.zeros(2, 1, 8, 8),))
    images, labels = default_collate([data().held_out[i] for i in range(599)])
    params, shrunk, masks = pf.load_params(done.out / f"{network.name.lower()}.safetensors", spec=spec)
    (mask,) = masks
    guess = pf.forward(params, images, spec=shrunk).argmax(1)
    top1 = int((guess == labels).sum()) / len(guess)
    row = next(
        r
        for r in cells((done.out / "report.md").read_text().partition(f"## {network.name}")[2])
        if r["method"] == study.COMPENSATED.name
    )
    assert row["top-1 (%)"] == f"{100 * top1:.2f}"
    assert int(row["MACs"].split()[0].replace(",", "")) == pf.cost(spec, mask).macs
    assert int(row["params"].replace(",", "")) == sum(params[n].numel() for n in spec.parameters)


def test_demo_loading_example_runs(done: Done, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done.out)
    code = re.search(r"```python\n(.*?)```", (done.out / "report.md").read_text(), re.S)
    assert code is not None
    names: dict = {}
    exec(code.group(1), names)
    assert len(names["data"].held_out) == 599 and f"# {names['top1']:.4f}" in code.group(1)


@pytest.mark.parametrize("name", ["VIT", "RESNET"])
def test_demo_same_seed_same_numbers(studies: dict[str, study.Study], name: str) -> None:
    first, again = studies[name], untimed(name, 1)
    assert write.table(first, exact=True) == write.table(again, exact=True)
    assert first.curves == again.curves and first.mean_fraction == again.mean_fraction
    for a, b in zip(first.pruned, again.pruned, strict=True):
        assert all(torch.equal(t, b.params[n]) for n, t in a.params.items())


def test_demo_other_seed_other_weights(studies: dict[str, study.Study]) -> None:
    other = untimed("RESNET", 2).dense.params
    assert not torch.equal(studies["RESNET"].dense.params["conv1.weight"], other["conv1.weight"])


def test_demo_prunes_as_asked(studies: dict[str, study.Study]) -> None:
    for r in studies["VIT"].pruned:
        assert sum(int(m.sum()) for m in r.mask.values()) * 2 == sum(len(m) for m in r.mask.values())
    for r in studies["RESNET"].pruned:
        assert 0.5 < r.cost.macs / studies["RESNET"].dense.cost.macs <= 0.6
    for s in studies.values():
        assert all(s.dense.spec.groups[g].kind == "hidden" for r in s.pruned for g in r.mask)
        of = {r.name: r for r in s.pruned}
        pairs = zip(of["variance"].mask.values(), of["variance + mean"].mask.values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        for points in s.curves.values():
            kept = [macs / s.dense.cost.macs for macs, _ in points]
            assert all(k <= most for k, most in zip(kept, study.SWEEP, strict=True))
        assert 0 < s.mean_fraction < 1


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), command.fixed_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


# ---- errors


@pytest.mark.parametrize(
    ("device", "says"), [("cuda", "--device cpu always works"), ("tpu", "use cpu or cuda"), ("meta", "use cpu or cuda")]
)
def test_demo_bad_device(device: str, says: str, tmp_path: Path) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    done = run("demo", "--device", device, "--out", str(tmp_path / "out"))
    assert done.code == 2
    assert says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_demo_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "demo"):
        done = run("demo", "--out", str(out))
        assert done.code == 1
        assert str(out) in done.stderr and "--out" in done.stderr and "Traceback" not in done.stderr


def test_demo_too_little_accuracy(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = SMALL["VIT"].recipe.model_copy(update={"epochs": 1})
    monkeypatch.setattr(study, "networks", lambda: (SMALL["VIT"]._replace(min_top1=0.95, recipe=recipe),))
    done = run("demo", "--out", str(tmp_path))
    assert done.code == 1
    assert re.search(r"the dense ViT gets \d+ of 599 .* at least 95%", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_demo_writes_all_or_nothing(
    studies: dict[str, study.Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(study, "study", lambda network, *_, **__: studies["VIT" if network.name == "ViT" else "RESNET"])
    monkeypatch.setattr(plots, "accuracy", full)
    done = run("demo", "--out", str(tmp_path))
    assert done.code == 1 and "no space left" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_demo_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prunefn.cli.errors, "find_spec", lambda name: None if name != "rich" else 1)
    done = run("demo", "--out", str(tmp_path))
    assert done.code == 1
    assert "pip install scikit-learn matplotlib" in done.stderr


def test_command_line_without_typer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("prunefn.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match="pip install typer rich"):
        prunefn.cli._app()()


def test_version() -> None:
    done = run("--version")
    assert (done.code, done.stdout.strip()) == (0, f"prunefn {pf.__version__}")
    assert run("demo", "--seed", "-1").code == 2
    assert run("dmeo").code == 2


# ---- the parts


def test_digits_are_split_within_each_class() -> None:
    state = torch.get_rng_state()
    split, again, other = digits(), digits(), digits(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert (len(split.labels), len(split.held_out_labels)) == (1198, 599)
    share = split.held_out_labels.bincount() / (split.labels.bincount() + split.held_out_labels.bincount())
    assert float((share - 1 / 3).abs().max()) < 0.01
    assert abs(float(split.images.mean())) < 1e-5 and abs(float(split.images.std()) - 1) < 1e-5
    assert split.background == float(split.images.min())
    assert torch.equal(split.images, again.images) and not torch.equal(split.labels, other.labels)
    seen = {tuple(i.flatten().tolist()) for i in split.images}
    assert sum(tuple(i.flatten().tolist()) in seen for i in split.held_out_images) == 0
    with pytest.raises(pf.PruneError, match=r"held_out=0\.0 puts 0 of the 178 images of class 0 aside"):
        digits(held_out=0.0)


def test_networks_have_the_axes_that_they_should() -> None:
    image = torch.zeros(2, 1, 8, 8)
    vit, resnet = (pf.trace(n.build().eval(), (image,)) for n in WHOLE)
    assert vit.einops("blocks.1.attn.qkv.weight") == "(3 heads_1 head_dim_1) residual"
    assert [g.name for g in vit.groups.values() if g.kind == "hidden"] == [f"blocks.{i}.mlp.fc1" for i in range(2)]
    assert [g.name for g in resnet.groups.values() if g.kind == "hidden"] == [
        f"layer{i}.{j}.conv1" for i in (1, 2) for j in range(2)
    ]
    assert not vit.unknown and not resnet.unknown


def test_training_learns_and_ends_in_eval_mode() -> None:
    model = study.trained(SMALL["RESNET"], data(), seed=0)
    assert not model.training
    assert pf.train.evaluate(model, data().held_out, device="cpu")["top1"] > 0.8


def test_held_out_images_are_read_when_nothing_is_left_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither training nor pruning sees them, and the epoch is that of least validation loss."""
    steps: list[str] = []
    parts = data()

    class Watched(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(parts.held_out)  # type: ignore[arg-type]

        def __getitem__(self, index: int) -> object:
            steps.append("held out")
            return parts.held_out[index]

    def prune(*args: object, **options: object) -> object:
        steps.append("prune")
        return vbp(*args, **options)

    vbp = pf.recipes.vbp
    monkeypatch.setattr(pf.recipes, "vbp", prune)
    monkeypatch.setattr(study, "ROUNDS", 2)
    monkeypatch.setattr(study, "SWEEP", (0.6,))
    study.study(SMALL["RESNET"], parts._replace(held_out=Watched()), seed=0)
    assert steps.count("held out") == 599 and "prune" not in steps[steps.index("held out") :]


def test_mean_fraction_by_hand() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Identity(), torch.nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0]]))
        model[0].bias.copy_(torch.tensor([3.0, 0.0]))
    spec = pf.trace(model, (torch.zeros(2, 1),))
    stats = pf.collect_stats(pf.params(model), [torch.tensor([[-1.0], [0.0], [1.0]])], spec=spec)
    assert study.mean_fraction(stats, {"0": torch.tensor([False, True])}) == pytest.approx(9 / 10)  # mean 3, variance 1
    assert study.mean_fraction(stats, {"0": torch.tensor([True, True])}) == 0.0


def test_tables() -> None:
    from rich.console import Console

    table = tables.Table("title", ("method", "top-1\n(%)"), (("dense", "97.50"), ("magnitude", "9.00")))
    assert tables.markdown(table).splitlines()[0] == "| method | top-1 (%) |"
    console = Console(width=60)
    with console.capture() as captured:
        console.print(tables.terminal(table))
    assert re.search(r"magnitude +9\.00", captured.get())


def test_pictures_are_the_same_bytes_again(tmp_path: Path) -> None:
    kept = plots.Kept("net", {"a": 8, "b": 4}, {"variance": {"a": 3, "b": 4}})
    curves = plots.Curves("net", (1e10, 0.9), {"variance": [(5e9, 0.5), (8e9, 0.85)]}, 0.1)
    shuffle = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    spec = pf.trace(shuffle, (torch.zeros(2, 4),))
    for name in ("first", "again"):
        plots.kept([kept], tmp_path / f"kept_{name}")
        plots.accuracy([curves], tmp_path / f"accuracy_{name}")
        axes.axes(spec, tmp_path / f"axes_{name}", title="net", columns=1)
    for kind in ("kept", "accuracy", "axes"):
        assert (tmp_path / f"{kind}_first").read_bytes() == (tmp_path / f"{kind}_again").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_whole_demo(seed: int, tmp_path: Path) -> None:
    done = run("demo", "--seed", str(seed), "--out", str(tmp_path))
    assert done.code == 0, done.stderr
    dense = [float(r["top-1 (%)"]) for r in cells((tmp_path / "report.md").read_text()) if r["method"] == "dense"]
    assert len(dense) == 2 and min(dense) >= 95
