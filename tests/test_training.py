"""The loop: what it learns, what it leaves alone, and that a killed run ends as an uninterrupted one."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunefn as pf
from prunefn.train import (
    Distill,
    Recipe,
    Setup,
    evaluate,
    losses,
    optimizer,
    regularizers,
    site_variances,
    stage,
    train,
)
from prunefn.train.feed import Feed, bounds, group_parts
from prunefn.train.seeds import isolate_rng

from .small import close
from .training import ALL, MEASURED, PLAIN, SETUP, calibration, files, net, points, same_weights, spec_of

ROOT = Path(__file__).parent.parent


def run(what: str, folder: Path, *, ranks: int = 1, **environment: Any) -> subprocess.CompletedProcess[str]:
    """A run of tests/ranks/trainer.py."""
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [*start, "tests.ranks.trainer", what, str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in environment.items()},
        capture_output=True,
        text=True,
        timeout=300,
    )


def weights(folder: Path, rank: int = 0) -> dict[str, Tensor]:
    return torch.load(folder / f"state.{rank}", weights_only=True)


# ---- what is trained


def test_it_learns_and_leaves_everything_else_alone() -> None:
    model, before = net(), deepcopy(net())
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    done = train(model, MEASURED, PLAIN)
    assert torch.equal(state, torch.random.get_rng_state())
    assert same_weights(model, before) and model.training
    assert done.metrics["top1"] > 0.8 and not done.model.training
    assert [r["epoch"] for r in done.rows] == [1, 2]
    again = train(model, MEASURED, PLAIN)
    assert same_weights(done.model, again.model) and done.rows == again.rows
    other = train(model, SETUP, PLAIN.model_copy(update={"seed": 1}))
    assert not same_weights(done.model, other.model)


def test_evaluate_is_the_mean_over_all_samples() -> None:
    model, data = net().eval(), points(61)
    x, y = data.tensors
    with torch.no_grad():
        logits = model(x)
    found = evaluate(model, data, batch_size=7, device="cpu")
    assert found["top1"] == float((logits.argmax(1) == y).double().mean())
    assert math.isclose(found["loss"], float(F.cross_entropy(logits, y)), rel_tol=1e-6)


def test_an_update_of_accumulated_batches_is_that_of_one_batch() -> None:
    model = net(norm=False, drop=0.0).double()
    x, y = points(30).tensors
    few = [(x[i : i + 7].double(), y[i : i + 7]) for i in range(0, 30, 7)]  # 7, 7, 7, 7, 2
    one = train(model, Setup([(x.double(), y)], device="cpu"), PLAIN)
    many = train(model, Setup(few, device="cpu"), PLAIN.model_copy(update={"accumulate": 5}))
    assert one.rows[-1]["update"] == many.rows[-1]["update"] == 2
    for name, t in one.model.state_dict().items():
        close(many.model.state_dict()[name], t, 1e-12)


def test_the_rate_rises_and_falls_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up from 1 % of the rate over one epoch of 4 updates; then the cosine of 12 updates in all, to the floor."""
    rates: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **k: (rates.append(self.param_groups[0]["lr"]), step(self, *a, **k))[1],
    )
    recipe = Recipe(epochs=3, lr=0.1, batch_size=16, warmup=1, min_lr=1e-3)
    train(net(), Setup(points(64), device="cpu"), recipe)
    warm = [0.001 + k * (0.1 - 0.001) / 4 for k in range(4)]
    cosine = [1e-3 + (0.1 - 1e-3) * (1 + math.cos(math.pi * k / 12)) / 2 for k in range(4, 12)]
    assert rates == pytest.approx(warm + cosine, rel=1e-9)
    rates.clear()
    stepped = {"schedule": "multistep", "milestones": (2, 3), "gamma": 0.5, "epochs": 4}
    train(net(), Setup(points(64), device="cpu"), Recipe(**{**recipe.model_dump(), **stepped}))
    assert rates == pytest.approx(warm + [0.1] * 4 + [0.05] * 4 + [0.025] * 4, rel=1e-9)
    with pytest.raises(ValueError, match=r"milestones \(3,\) need schedule='multistep'"):
        Recipe(milestones=(3,))


def test_clipping_bounds_the_gradient() -> None:
    model = net(drop=0.0)
    recipe = Recipe(
        epochs=1,
        optimizer="momentum",
        momentum=0.0,
        weight_decay=0.0,
        lr=1.0,
        min_lr=1.0,
        batch_size=203,
        grad_clip=1e-3,
    )
    done = train(model, SETUP, recipe)
    moved = [(a - b).flatten() for a, b in zip(done.model.parameters(), model.parameters(), strict=True)]
    assert float(torch.cat(moved).norm().detach()) == pytest.approx(1e-3, rel=1e-3)


def test_the_average_of_the_weights_is_what_is_measured_and_given() -> None:
    recipe = PLAIN.model_copy(update={"ema": 0.5, "epochs": 1})
    averaged = train(net(), SETUP, recipe).model
    plain = train(net(), SETUP, PLAIN.model_copy(update={"epochs": 1})).model
    assert not same_weights(averaged, plain)
    frozen = PLAIN.model_copy(update={"ema": 0.999999, "epochs": 1})
    for name, t in train(net(), SETUP, frozen).model.named_parameters():
        close(t.detach(), dict(net().named_parameters())[name].detach(), 1e-2)


def test_distillation_towards_a_teacher() -> None:
    """With no weight on the labels, the student goes where the teacher is."""
    teacher = train(net(), SETUP, PLAIN).model
    flipped = TensorDataset(points().tensors[0], 1 - points().tensors[1])
    done = train(net(), Setup(flipped, points(61, 1), loss=Distill(teacher, alpha=0.0), device="cpu"), PLAIN)
    assert done.rows[-1]["top1"] > 0.8  # in spite of wrong labels
    assert train(net(), Setup(flipped, points(61, 1), device="cpu"), PLAIN).rows[-1]["top1"] < 0.2
    assert all(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"mixup": 0.4, "cutmix": 1.0}, {"label_smoothing": 0.2}])
def test_mixed_and_smoothed_labels(options: dict[str, float]) -> None:
    """Images of an odd batch too: the last one is not mixed."""
    generator = torch.Generator().manual_seed(0)
    images = TensorDataset(torch.randn(33, 1, 8, 8, generator=generator), torch.arange(33) % 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    recipe = Recipe(epochs=1, batch_size=11, lr=0.01, **options)
    done = train(model, Setup(images, device="cpu"), recipe)
    assert not same_weights(
        done.model, train(model, Setup(images, device="cpu"), Recipe(epochs=1, batch_size=11, lr=0.01)).model
    )


def test_smoothing_is_that_of_torch() -> None:
    model, data = net(norm=False, drop=0.0), points(32)
    recipe = Recipe(epochs=2, batch_size=16, lr=0.01, label_smoothing=0.2)
    ours = train(model, Setup(data, device="cpu"), recipe)
    theirs = train(
        model,
        Setup(data, loss=lambda y, t: F.cross_entropy(y, t, label_smoothing=0.2), device="cpu"),
        recipe.model_copy(update={"label_smoothing": 0.0}),
    )
    for name, t in ours.model.state_dict().items():
        close(theirs.model.state_dict()[name].float(), t.float(), 1e-5)


def test_the_best_epoch_counts_or_the_last() -> None:
    wild = Recipe(epochs=6, lr=2.0, batch_size=16, optimizer="sgd", grad_clip=None)
    best = train(net(), MEASURED, wild)
    last = train(net(), MEASURED, wild, keep="last")
    quality = [r["top1"] for r in best.rows]
    assert best.best == quality.index(max(quality)) + 1 and last.best is None
    assert evaluate(best.model, points(61, 1), device="cpu")["top1"] == max(quality)
    assert evaluate(last.model, points(61, 1), device="cpu")["top1"] == quality[-1]


def test_stopping_early() -> None:
    """Nothing gets better when the labels are noise; the loss is to be low."""
    noise = TensorDataset(points().tensors[0], torch.randint(0, 2, (203,), generator=torch.Generator().manual_seed(1)))
    recipe = Recipe(epochs=30, lr=0.05, batch_size=64, patience=2)
    done = train(net(), Setup(noise, points(61, 1), better="loss", device="cpu"), recipe)
    assert done.best is not None and len(done.rows) == done.best + 2 < 30
    with pytest.raises(pf.PruneError, match=r"better='f1' is none of the metrics: top1, loss"):
        train(net(), Setup(noise, points(61, 1), better="f1", device="cpu"), recipe)


def test_models_that_say_their_own_loss() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor, labels: Tensor) -> Any:
            class Output(dict):
                pass

            out = Output()
            out.loss = F.cross_entropy(self.net(x), labels)  # type: ignore[attr-defined]
            return out

    batches = [{"x": x, "labels": y} for x, y in calibration()]
    done = train(Own(), Setup(batches, batches, device="cpu"), Recipe(epochs=4, lr=0.05))
    assert done.rows[-1]["loss"] < done.rows[0]["loss"] and "top1" not in done.rows[0]


# ---- setups, and what a training starts from


def test_plain_data_are_a_setup_of_defaults() -> None:
    plain, setup = (train(net(), data, PLAIN) for data in (points(), Setup(points())))
    assert same_weights(plain.model, setup.model) and plain.rows == setup.rows
    model, held = net().eval(), points(61, 1)
    assert evaluate(model, MEASURED) == evaluate(model, held, device="cpu") != evaluate(model, points(), device="cpu")
    assert evaluate(
        model, MEASURED._replace(metrics=lambda y, t: {"wrong": (y.argmax(1) != t).double().mean()})
    ).keys() == {"wrong"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"loss": nn.CrossEntropyLoss}, "loss is the class CrossEntropyLoss; write a function"),
        ({"inputs": 0}, "inputs is 0; it must be 1 or more"),
        ({"data": nn.Linear(1, 1)}, "data is a Linear; write a dataset"),
    ],
)
def test_a_setup_says_which_field_is_wrong(options: dict[str, Any], text: str) -> None:
    with pytest.raises(pf.PruneError, match=text):
        train(net(), SETUP._replace(**options), PLAIN)


def test_held_out_data_and_soft_labels_need_their_fields() -> None:
    with pytest.raises(pf.PruneError, match=r"no held-out data to measure on; write Setup\(data, held_out\)"):
        evaluate(net(), SETUP)
    soft = PLAIN.model_copy(update={"mixup": 0.2})
    with pytest.raises(pf.BatchError, match="mixup, cutmix and label_smoothing make soft labels"):
        train(net(), SETUP._replace(loss=F.cross_entropy), soft)
    x, y = points().tensors
    with pytest.raises(pf.PruneError, match=r"need the number of classes; write Setup\(data, classes=10\)"):
        train(net(), Setup([(x, y)], device="cpu"), soft)


def test_a_result_takes_the_place_of_a_model() -> None:
    """Its moments and masks continue; a model alone starts without them, and masks may be given beside it."""
    masks = optimizer.weight_masks({"0": torch.tensor([True] * 5 + [False] * 3)}, spec=spec_of(net()))
    first = train(net(), SETUP, PLAIN, masks=masks)
    on, without = train(first, SETUP, PLAIN), train(first.model, SETUP, PLAIN, masks=masks)
    assert on.masks.keys() == masks.keys() and all(torch.equal(on.masks[n], m) for n, m in masks.items())
    assert not bool(on.model.get_parameter("0.weight").detach()[5:].any())
    assert on.rows != without.rows and without.masks.keys() == masks.keys()
    assert same_weights(train(first._replace(optimizer={}), SETUP, PLAIN).model, without.model)
    assert train(first, SETUP, PLAIN, masks={}).masks == {}


# ---- sparsity and masks


def test_held_weights_and_moments_are_exactly_zero() -> None:
    model, spec = net(), spec_of(net())
    mask = {"0": torch.tensor([True] * 5 + [False] * 3)}
    masks = optimizer.weight_masks(mask, spec=spec)
    done = train(model, SETUP, ALL, masks=masks)
    for name, kept in masks.items():
        assert not bool(done.model.get_parameter(name).detach()[~kept].any())
        for t in done.optimizer[name].values():
            if isinstance(t, Tensor) and t.shape == kept.shape:
                assert not bool(t[~kept].any())
    assert bool(done.model.get_parameter("0.weight").detach()[:5].all())


@pytest.mark.parametrize(
    "make", [regularizers.l1_group, regularizers.lasso, regularizers.slimming, regularizers.growing]
)
def test_penalties_make_units_small(make: Any) -> None:
    model, spec = net(drop=0.0), spec_of(net())
    plain = train(model, SETUP, PLAIN).model
    sparse = train(model, SETUP, PLAIN, regularizer=make(spec, weight=0.1)).model
    assert sum_of_squares(sparse) < 0.9 * sum_of_squares(plain)


def sum_of_squares(model: nn.Module) -> float:
    return sum(float(p.detach().square().sum()) for p in model.parameters())


def test_variance_gathers_in_few_units() -> None:
    model, spec = net(drop=0.0), spec_of(net())
    entropy = {}
    for rate in (0.0, 0.3):
        done = train(model, SETUP, PLAIN, regularizer=regularizers.concentration(spec, weight=rate))
        _, found = site_variances(pf.params(done.model), points().tensors[0], spec=spec)
        entropy[rate] = float(losses.variance_concentration({n: v.requires_grad_() for n, v in found.items()}).detach())
    assert entropy[0.3] < entropy[0.0] - 0.1


def test_watched_variances_are_those_of_the_pure_function() -> None:
    from prunefn.train.variances import watch

    model, spec, x = net().eval(), spec_of(net()), points().tensors[0]
    y, pure = site_variances(pf.params(model), x, spec=spec)
    found = watch(model, regularizers.concentration(spec).sites)
    assert torch.equal(model(x), y)
    assert found.keys() == pure.keys()
    for name, v in pure.items():
        close(found[name].detach(), v.detach(), 1e-6)
        assert found[name].requires_grad
    names = [n for n, _ in model.named_parameters()]

    def entropy(params: Mapping[str, Tensor]) -> Tensor:
        return losses.variance_concentration(site_variances({**pf.params(model), **params}, x, spec=spec)[1])

    by_func = torch.func.grad(entropy)({n: dict(model.named_parameters())[n].detach() for n in names})
    model.zero_grad()
    losses.variance_concentration(found).backward()
    close(model.get_parameter("0.weight").grad, by_func["0.weight"], 1e-5)


def test_gradual_magnitude_pruning_has_exact_counts() -> None:
    """s = .8 + (0 − .8)(1 − e / 2)³ of the 92 weights: 0, 64, 73."""
    model, spec = net(drop=0.0), spec_of(net())
    gradual = regularizers.gradual(spec, target=0.8, epochs=3)
    assert gradual.masks is not None
    params = dict(model.named_parameters())
    weights = [n for n, p in params.items() if p.ndim > 1]
    total = sum(params[n].numel() for n in weights)
    zeros = [sum(int((~m).sum()) for m in gradual.masks(e, params).values()) for e in range(3)]
    assert total == 92 and zeros == [0, int(0.7 * 92), int(0.8 * 92)]
    done = train(model, SETUP, PLAIN.model_copy(update={"epochs": 3}), regularizer=gradual).model
    assert sum(int((done.get_parameter(n) == 0).sum()) for n in weights) == int(0.8 * 92)


def test_masks_of_an_epoch_outlive_a_stop_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn as the epoch begins, from the weights of then, and not again from those in its middle."""

    def plan(folder: Path | None) -> Any:
        recipe = PLAIN.model_copy(update={"save_every": 5})
        return train(net(drop=0.0), SETUP, recipe, regularizer=upper, folder=folder)

    def largest(epoch: int, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        w = params["0.weight"].detach()
        return {
            "0.weight": w <= w.flatten().median()
        }  # the larger half goes, so that what is held would be drawn otherwise

    upper = regularizers.Regularizer("upper", masks=largest)
    whole = plan(None)
    save, left = stage.Stage._save, [2]

    def stopped(self: Any) -> None:
        save(self)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(stage.Stage, "_save", stopped)
    with pytest.raises(KeyboardInterrupt):
        plan(tmp_path)
    monkeypatch.undo()
    rest = plan(tmp_path)
    assert same_weights(rest.model, whole.model) and rest.rows == whole.rows


def test_ties_in_gradual_go_in_order() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    gradual = regularizers.gradual(pf.trace(model, (torch.randn(2, 2),)), target=0.5, epochs=1)
    assert gradual.masks is not None
    ones = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    found = gradual.masks(0, ones)
    assert found["0.weight"].sum() == 1 and found["2.weight"].sum() == 3  # one stays in each layer


# ---- shares of batches


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_cover_a_batch_once(world: int) -> None:
    for n in range(1, 9):
        parts = [bounds(n, r, world) for r in range(world)]
        assert [i for a, b in parts for i in range(a, b)] == list(range(n))
        assert max(b - a for a, b in parts) - min(b - a for a, b in parts) <= 1


@pytest.mark.parametrize("kind", ["dataset", "loader", "list"])
def test_every_rank_gets_its_share_of_the_same_order(kind: str) -> None:
    data = points(31)
    x, y = data.tensors

    def source() -> Any:
        if kind == "loader":
            return DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator())
        return data if kind == "dataset" else list(zip(x.split(8), y.split(8), strict=True))

    found = []
    for rank in range(3):
        feed = Feed(source(), batch=8, shuffle=True, rank=rank, world=3)
        with isolate_rng(5):
            feed.begin(0, 1)
            found.append(list(feed))
    for parts in zip(*found, strict=True):
        assert sum(p.samples for p in parts) == parts[0].total and {p.total for p in parts} == {parts[0].total}
    seen = torch.cat([p.batch[0][: p.samples] for parts in found for p in parts])
    assert torch.equal(seen.sort(0).values, x.sort(0).values)
    assert [len(g) for g in group_parts(found[0], 3)] == [3, 1]


# ---- errors


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epoch": 3}, "epoch\n  Extra inputs are not permitted"),
        ({"lr": -1}, "lr\n  Input should be greater than 0"),
        ({"precision": "fp8"}, "precision\n  Input should be 'no', 'bf16' or 'fp16'"),
    ],
)
def test_wrong_recipes(options: dict[str, Any], text: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=text):
        Recipe(**options)


def test_wrong_data() -> None:
    x, _ = points().tensors
    with pytest.raises(pf.BatchError, match="no labels"):
        train(net(), Setup([x[:8]], device="cpu"), PLAIN)
    with pytest.raises(pf.BatchError, match="no batch"):
        train(net(), Setup([], device="cpu"), PLAIN)
    with pytest.raises(pf.BatchError, match="a map-style dataset, a DataLoader or a list of batches, not generator"):
        train(net(), Setup((b for b in calibration()), device="cpu"), PLAIN)
    with pytest.raises(pf.PruneError, match=r"the training loss of epoch 1 is nan; lower lr \(0.03\)"):
        train(net(norm=False), Setup([(x[:8] * math.nan, torch.zeros(8).long())], device="cpu"), PLAIN)
    with pytest.raises(pf.PruneError, match="keep is 'first'"):
        train(net(), SETUP, PLAIN, keep="first")


def test_a_folder_of_another_run(tmp_path: Path) -> None:
    train(net(), SETUP, PLAIN, folder=tmp_path)
    with pytest.raises(
        pf.PruneError, match=r"last.safetensors belongs to a run with lr=0.03, now it is 0.04; use another"
    ):
        train(net(), SETUP, PLAIN.model_copy(update={"lr": 0.04}), folder=tmp_path)
    small = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(pf.ParamsError, match=r"has '0.weight' of shape \(8, 4\), but the model's is \(2, 4\)"):
        train(small, SETUP, PLAIN, folder=tmp_path)
    (tmp_path / "last.safetensors").write_bytes(b"no")
    with pytest.raises(pf.PruneError, match="is no file of prunefn, or is damaged"):
        train(net(), SETUP, PLAIN, folder=tmp_path)


# ---- folders, and being killed


def test_what_a_folder_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = train(net(), MEASURED._replace(progress=True), PLAIN, folder=tmp_path)
    assert files(tmp_path) == ["best.safetensors", "last.safetensors", "metrics.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == done.rows and list(rows[0]) == ["epoch", "update", "lr", "train_loss", "top1", "loss"]
    said = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("train 1/2, ") for line in said) == 12  # as many as there are updates
    assert list((tmp_path / "logs").glob("events.*"))
    again = train(net(), MEASURED, PLAIN, folder=tmp_path)
    assert again.rows == rows and same_weights(again.model, done.model)


def test_about_twenty_lines_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    train(net(), SETUP._replace(progress=True), Recipe(epochs=1, batch_size=2, lr=1e-3))
    assert 18 <= sum("loss" in line for line in capsys.readouterr().err.splitlines()) <= 24


def test_killed_in_the_middle_of_writing_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """With all options; two kills, at different files, in the middle of an epoch and at its end."""
    whole = run("stage", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    for n in (3, 4):
        killed = run("stage", tmp_path / "killed", KILL=n)
        assert killed.returncode == -signal.SIGKILL
    assert any(p.suffix == ".part" for p in (tmp_path / "killed").iterdir())
    rest = run("stage", tmp_path / "killed")
    assert rest.returncode == 0, rest.stderr[-3000:]
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(a[n], b[n]) for n in a) and a.keys() == b.keys()
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "killed/metrics.jsonl").read_text()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_rank_that_dies_ends_the_others(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run("mortal", tmp_path, ranks=2, DIE=1)
    assert done.returncode != 0 and "exitcode  : 3" in done.stderr
    assert time.monotonic() - began < 60  # a limit that the design states, not a measurement
    assert not (tmp_path / "state.0").exists()
