"""Sweeps: exact covers, resumed to the same settings, failures kept, many processes, and networks pruned as by hand."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn

import prunefn as pf
from prunefn.errors import PruneError
from prunefn.stats import collect
from prunefn.sweep import Goal, Sweep, Trial, read_sweep, sweep, write_results
from prunefn.sweep.places import DEATHS, mend
from prunefn.sweep.run import Job, _run
from prunefn.sweep.store import Place, open_study
from prunefn.train import Recipe

from . import sweeps
from .training import same_weights

ROOT = Path(__file__).parents[1]


def found(done: Sweep) -> list[tuple[int, Mapping[str, Any], Mapping[str, float], str]]:
    """All but times."""
    return [(t.number, t.settings, t.results, t.state) for t in done.trials]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def interrupted_at(*numbers: int) -> Callable[[Mapping[str, Any], Path], dict[str, float]]:
    """A trial that the user interrupts in these, once each."""
    left = {f"{n:04d}" for n in numbers}

    def trial(settings: Mapping[str, Any], folder: Path) -> dict[str, float]:
        if folder.name in left:
            left.remove(folder.name)
            raise KeyboardInterrupt
        return sweeps.smooth(settings, folder)

    return trial


# ---- spaces


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "the space is empty"),
        ({"lr": []}, "'lr' has no choices"),
        ({"lr": "0.1"}, "'lr' is '0.1'; give a list"),
        ({"lr": [0.1, 0.1]}, "'lr' has a choice twice"),
        ({"lr": [[0.1]]}, "'lr' has the choice [0.1]"),
        ({"lr": {"low": 0.1}}, "the range of 'lr' has no 'high'"),
        ({"lr": {"low": 0.1, "hihg": 1.0}}, "'hihg'; did you mean 'high'"),
        ({"lr": {"low": "1e-3", "high": 1.0}}, "must be numbers"),
        ({"lr": {"low": 1.0, "high": 0.1}}, "the range of 'lr' is {'low': 1.0, 'high': 0.1}"),
        ({"lr": {"low": 0.0, "high": 0.1, "log": True}}, "the range of 'lr'"),
    ],
    ids="empty none text twice list high misspelt string reversed log".split(),
)
def test_a_wrong_space_is_named(space: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PruneError) as error:
        sweep(sweeps.smooth, space, folder=tmp_path, trials=1)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "tpee"}, "no sampler 'tpee'; did you mean 'tpe'"),
        ({"sampler": "grid"}, "a grid needs choices, but 'macs_ratio' is the range"),
        ({"trials": None}, "give the number of trials by trials="),
        ({"trials": 0}, "trials is 0; it must be 1 or more"),
        ({"workers": 0}, "workers is 0; it must be 1 or more"),
        ({"objectives": {}}, "there is no objective"),
        ({"objectives": {"top1": "max"}}, "'top1' is 'max'"),
        ({"workers": 2, "trial": lambda settings, folder: {}}, "cannot be pickled"),
    ],
    ids="sampler range forever none workers objectives direction pickle".split(),
)
def test_wrong_options_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"trial": sweeps.smooth, "trials": 1, **options}
    with pytest.raises(PruneError) as error:
        sweep(given.pop("trial"), sweeps.SPACE, folder=tmp_path, **given)
    assert message in str(error.value)


# ---- one process


def test_a_grid_is_covered_exactly_and_once(tmp_path: Path) -> None:
    first = sweep(sweeps.smooth, sweeps.GRID, folder=tmp_path, sampler="grid", trials=5)
    assert len(first.finished) == 5
    done = sweep(sweeps.smooth, sweeps.GRID, folder=tmp_path, sampler="grid")
    assert done.trials[:5] == first.trials  # not run again, to the second
    points = Counter((t.settings["macs_ratio"], t.settings["kind"]) for t in done.finished)
    assert points == Counter((s, k) for s in sweeps.GRID["macs_ratio"] for k in sweeps.GRID["kind"])
    assert sweep(interrupted_at(*range(12)), sweeps.GRID, folder=tmp_path, sampler="grid") == done


@pytest.mark.parametrize(
    ("sampler", "trials"), [("tpe", 16), ("nsga2", 18), ("random", 5)], ids="tpe nsga2 random".split()
)
def test_a_sweep_that_was_stopped_tries_what_it_would_have_tried(sampler: str, trials: int, tmp_path: Path) -> None:
    def parts(trial: Any, name: str, trials: int, seed: int = 3) -> Sweep:
        storage = f"journal://{tmp_path}/{name}.log"
        return sweep(
            trial, sweeps.SPACE, folder=tmp_path / name, storage=storage, sampler=sampler, trials=trials, seed=seed
        )

    whole = parts(sweeps.smooth, "whole", trials)
    trial = interrupted_at(1, trials - 3, trials - 2)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            parts(trial, "parts", trials - 1)
    stopped = read_sweep(tmp_path / "parts", storage=f"journal://{tmp_path}/parts.log")
    assert [t.state for t in stopped.trials] == ["finished"] * (trials - 2) + ["stopped"]
    parts(trial, "parts", trials - 1)
    assert found(parts(trial, "parts", trials)) == found(whole)
    assert len({json.dumps(t.settings) for t in whole.trials}) >= 0.8 * trials
    assert found(parts(sweeps.smooth, "other", 2, seed=4)) != found(whole)[:2]


def test_a_sweep_that_was_killed_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "tests.sweeps", str(tmp_path / "killed")], cwd=ROOT)
    begun = tmp_path / "killed" / "trials" / "0002" / "begun"
    for _ in range(600):
        if begun.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.poll() is None
    assert [t.state for t in read_sweep(tmp_path / "killed").trials] == ["finished"] * 2 + ["running"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    options: dict[str, Any] = {"sampler": "random", "trials": 6}
    killed = sweep(sweeps.stuck, sweeps.SPACE, folder=tmp_path / "killed", **options)
    whole = sweep(sweeps.smooth, sweeps.SPACE, folder=tmp_path / "whole", **options)
    assert found(killed) == found(whole)


def test_trials_that_raise_are_kept_and_the_sweep_goes_on(tmp_path: Path) -> None:
    broken = {"c": ZeroDivisionError("all is lost"), "b": None}

    def trial(settings: Mapping[str, Any], folder: Path) -> dict[str, float]:
        if settings["kind"] == "c" and broken["c"]:
            raise broken["c"]
        if settings["kind"] == "b":
            return {"top1": float("nan") if settings["macs_ratio"] > 0.1 else 1.0, "macs": 1.0}
        return {"top1": 0.5} if settings["macs_ratio"] > 0.4 else {"top1": 0.5, "macs": 1.0}

    options: dict[str, Any] = {"sampler": "grid", "storage": f"journal://{tmp_path}/log"}
    done = sweep(trial, sweeps.GRID, folder=tmp_path, **options)
    errors = {(t.settings["kind"], t.settings["macs_ratio"]): t.error for t in done.failed}
    assert len(done.trials) == 12 and len(done.finished) == 4
    assert all(errors["c", s] == "ZeroDivisionError: all is lost" for s in sweeps.GRID["macs_ratio"])
    assert "top1=nan" in errors["b", 0.8] and "returned no 'macs'" in errors["a", 0.8]
    number = done.failed[0].number
    assert "Traceback" in (tmp_path / "trials" / f"{number:04d}" / "error.txt").read_text()
    assert sum(r["state"] == "failed" and bool(r["error"]) for r in rows(tmp_path / "trials.csv")) == 8
    assert sweep(trial, sweeps.GRID, folder=tmp_path, **options) == done  # failed ones count as tried
    broken["c"] = None
    again = sweep(trial, sweeps.GRID, folder=tmp_path, retry_failed=True, **options)
    assert len(again.trials) == 12 and len(again.finished) == 7
    mended = next(t for t in again.finished if t.settings["kind"] == "c")
    assert not (tmp_path / "trials" / f"{mended.number:04d}" / "error.txt").exists()


def test_another_sweep_in_the_same_folder_is_an_error_that_names_both(tmp_path: Path) -> None:
    space = {"macs_ratio": [0.1, 0.2], "kind": ["a"]}
    sweep(sweeps.smooth, space, folder=tmp_path, sampler="grid")
    with pytest.raises(PruneError, match=r"space=\{'macs_ratio': \[0.1, 0.2\].*now it is \{'macs_ratio': \[0.1, 0.3\]"):
        sweep(sweeps.smooth, space | {"macs_ratio": [0.1, 0.3]}, folder=tmp_path, sampler="grid")
    with pytest.raises(PruneError, match="seed=0, now it is 1"):
        sweep(sweeps.smooth, space, folder=tmp_path, sampler="grid", seed=1)
    with pytest.raises(PruneError, match="sampler='grid', now it is 'tpe'"):
        sweep(sweeps.smooth, space, folder=tmp_path, trials=2)
    with pytest.raises(PruneError, match="there is no sweep"):
        read_sweep(tmp_path / "elsewhere")


def test_the_same_settings_are_run_once(tmp_path: Path) -> None:
    ran: list[str] = []

    def trial(settings: Mapping[str, Any], folder: Path) -> dict[str, float]:
        ran.append(json.dumps(settings))
        return sweeps.smooth(settings, folder)

    done = sweep(trial, {"macs_ratio": [0.1, 0.5], "kind": ["a"]}, folder=tmp_path, sampler="random", trials=9)
    assert sorted(ran) == sorted({json.dumps(t.settings) for t in done.trials}) and len(ran) == 2
    copies = [t for t in done.finished if t.same_as is not None]
    assert len(copies) == 7 and all(t.results == done.trials[t.same_as or 0].results for t in copies)
    assert all(t.same_as is None for t in done.front)


def test_nsga2_finds_the_front_of_a_small_grid(tmp_path: Path) -> None:
    space = {"macs_ratio": [round(0.1 * i, 1) for i in range(10)], "width": list(range(1, 7)), "kind": ["a", "b"]}
    whole = [
        {"macs_ratio": s, "width": w, "kind": k} for s in space["macs_ratio"] for w in space["width"] for k in "ab"
    ]
    values = [sweeps.smooth(p, tmp_path) for p in whole]
    best = max(v["top1"] for v in values)
    optimum = next(p for p, v in zip(whole, values, strict=True) if v["top1"] == best)
    journal = f"journal://{tmp_path}/journal.log"
    done = sweep(sweeps.smooth, space, folder=tmp_path / "a", sampler="nsga2", trials=60, storage=journal)
    assert optimum in [dict(t.settings) for t in done.front]
    beaten = [
        any(a.results["top1"] > b.results["top1"] and a.results["macs"] <= b.results["macs"] for a in done.finished)
        for b in done.front
    ]
    assert not any(beaten)


# ---- many processes and machines


def test_two_workers_share_a_grid(tmp_path: Path) -> None:
    done = sweep(sweeps.noted, sweeps.GRID, folder=tmp_path, sampler="grid", workers=2)
    points = Counter((t.settings["macs_ratio"], t.settings["kind"]) for t in done.finished)
    assert points == Counter((s, k) for s in sweeps.GRID["macs_ratio"] for k in sweeps.GRID["kind"])
    ran = [p.read_text().split() for p in sorted((tmp_path / "trials").glob("*/ran"))]
    assert [len(r) for r in ran] == [1] * 12 and len({r[0] for r in ran}) == 2
    assert not list((tmp_path / "workers").iterdir())
    assert len(rows(tmp_path / "trials.csv")) == 12


def test_machines_with_folders_of_their_own_share_a_storage(tmp_path: Path) -> None:
    options: dict[str, Any] = {"sampler": "grid", "storage": f"sqlite:///{tmp_path}/study.db"}
    sweep(sweeps.smooth, sweeps.GRID, folder=tmp_path / "a", trials=7, **options)
    done = sweep(sweeps.smooth, sweeps.GRID, folder=tmp_path / "b", **options)
    assert len(done.finished) == 12 and len(list((tmp_path / "b" / "trials").iterdir())) == 5
    with pytest.raises(PruneError, match="the study 'sweep' belongs to a sweep with seed=0"):
        sweep(sweeps.smooth, sweeps.GRID, folder=tmp_path / "c", seed=5, **options)


def begun(folder: Path) -> tuple[optuna.Study, Job]:
    sweep(sweeps.smooth, sweeps.GRID, folder=folder, sampler="grid", trials=2)
    study, asked = open_study(Place(folder, None, "sweep"))
    return study, Job(sweeps.smooth, Place(folder, None, "sweep"), asked, 2)


def test_a_trial_too_many_leaves_no_trace(tmp_path: Path) -> None:
    study, job = begun(tmp_path)
    study.optimize(lambda t: _run(study, job, "me", t), n_trials=1, catch=(Exception,))
    assert len(study.trials) == 3 and len(read_sweep(tmp_path).trials) == 2
    done = sweep(sweeps.smooth, sweeps.GRID, folder=tmp_path, sampler="grid")
    assert len(done.finished) == 12 and len({json.dumps(t.settings) for t in done.trials}) == 12


def test_a_trial_whose_process_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    study, _ = begun(tmp_path)
    for _ in range(DEATHS):  # nobody has the lock of this worker
        study.ask().set_user_attr("worker", "gone")
        mend(study, lambda t: False)
    last = read_sweep(tmp_path).trials[-1]
    assert (last.number, last.state, last.error) == (2, "failed", "its process died, 3 times")
    done = sweep(sweeps.smooth, sweeps.GRID, folder=tmp_path, sampler="grid", retry_failed=True)
    assert len(done.finished) == 12


# ---- results


def of(*trials: tuple[dict[str, Any], dict[str, float]], folder: Path) -> Sweep:
    kept = tuple(Trial(i, s, r, "finished" if r else "failed", "" if r else "E") for i, (s, r) in enumerate(trials))
    space = {"macs_ratio": [0.3, 0.5], "criterion": ["variance", "taylor"], "lr": [0.01, 0.001]}
    return Sweep(folder, "small", space, {"top1": "maximize", "macs": "minimize"}, kept)


def result(top1: float, macs: float) -> dict[str, float]:
    removed = {"macs_removed": 1 - macs / 100, "params_removed": (1 - macs / 100) / 2}
    return {"top1": top1, "macs": macs, **removed, "points_lost": 100 * (0.95 - top1)}


def test_tables_front_and_best_by_eye(tmp_path: Path) -> None:
    made = of(
        ({"macs_ratio": 0.5, "criterion": "variance", "lr": 0.01}, result(0.94, 50.0)),
        ({"macs_ratio": 0.5, "criterion": "taylor", "lr": 0.01}, result(0.90, 50.0)),
        ({"macs_ratio": 0.3, "criterion": "variance", "lr": 0.01}, result(0.95, 70.0)),
        ({"macs_ratio": 0.3, "criterion": "taylor", "lr": 0.001}, {}),
        ({"macs_ratio": 0.3, "criterion": "variance", "lr": 0.001}, result(0.93, 75.0)),
        folder=tmp_path,
    )
    assert [t.number for t in made.front] == [0, 2]
    assert getattr(made.best(), "number", None) == 0
    assert made.best(Goal(0.6, 1.0)) is None
    assert write_results(made) == {}
    assert (tmp_path / "final_comparison.csv").read_text() == (
        "Method,Params_Removed,FLOPs_Reduction,Accuracy_Drop,Goal_Met\n"
        '"variance, lr 0.001",0.1250,25.00,2.00,False\n'
        '"variance, lr 0.01",0.1500,30.00,0.00,False\n'
        '"variance, lr 0.01",0.2500,50.00,1.00,True\n'
        '"taylor, lr 0.01",0.2500,50.00,5.00,False\n'
    )
    assert [r["state"] for r in rows(tmp_path / "trials.csv")] == ["finished"] * 3 + ["failed", "finished"]
    summary = json.loads((tmp_path / "sweep.json").read_text())
    assert summary["best"]["trial"] == 0 and [t["trial"] for t in summary["front"]] == [0, 2]
    assert summary["trials"] == {"finished": 4, "failed": 1, "running": 0, "stopped": 0}
    shares = made.importances()
    assert max(shares["macs"], key=lambda n: shares["macs"][n]) == "macs_ratio"
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {
        *("trials.csv", "final_comparison.csv", "pareto.png", "importance.png", "sweep.json"),
    }
    write_results(made)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    nothing = of(folder=tmp_path)
    assert (
        set(write_results(nothing)) == {"final_comparison.csv", "pareto.png", "importance.png"} and nothing.front == []
    )
    one = of(({"macs_ratio": 0.3, "criterion": "taylor", "lr": 0.01}, {"top1": 0.9, "macs": 1.0}), folder=tmp_path)
    assert (
        set(write_results(one)) == {"final_comparison.csv", "importance.png"}
        and not (tmp_path / "importance.png").exists()
    )
    with pytest.raises(PruneError, match="trial 0 gave no macs_removed"):
        one.best()


def test_objectives_of_any_name(tmp_path: Path) -> None:
    objectives: Any = {"points_lost": "minimize", "macs_removed": "maximize"}
    done = sweep(sweeps.smooth, sweeps.GRID, folder=tmp_path, sampler="grid", objectives=objectives)
    assert write_results(done) == {}
    assert {(t.settings["macs_ratio"], t.settings["kind"]) for t in done.front} == {(0.4, "b"), (0.8, "b")}
    assert (tmp_path / "pareto.png").stat().st_size > 5000


# ---- networks


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


SHORT = Recipe(epochs=1, lr=3e-3, batch_size=128)


def test_networks_are_pruned_as_by_hand_and_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = pf.data.open_data("digits", augment=False)
    calibration = list(torch.utils.data.DataLoader(digits.train, batch_size=400))
    model = pf.train.train(cnn(), pf.train.Setup(digits.train, device="cpu"), SHORT).model.eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    passes: list[int] = []
    measure = collect.measure
    monkeypatch.setattr(collect, "measure", lambda *given: passes.append(1) or measure(*given))
    setup = pf.train.Setup(digits.train, digits.held_out, device="cpu")
    trial = pf.sweep.prune_trial(model, setup, calibration=calibration, recipe=SHORT)
    space = {"macs_ratio": [0.3, 0.5], "criterion": ["variance", "taylor"], "compensation": ["affine"], "lr": [0.001]}
    done = sweep(trial, space, folder=tmp_path, sampler="grid")
    assert len(done.finished) == 4 and len(passes) == len(calibration)
    resumed = pf.sweep.prune_trial(model, setup, calibration=calibration, recipe=SHORT)
    assert sweep(resumed, space, folder=tmp_path, sampler="grid") == done and len(passes) == len(calibration)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())

    params, spec = pf.params(model), pf.trace(model, (calibration[0][0],))
    taylor = pf.criteria.taylor()
    stats = pf.collect_stats(params, calibration, spec=spec, criterion=taylor, covariance=True)
    mask = pf.select(pf.score(stats, criterion=taylor), pf.budget.macs(0.5), spec=spec)
    affine = pf.compensation.affine(fallback=pf.compensation.mean())
    small = pf.apply(pf.compensate(params, stats, mask, spec=spec, method=affine), mask, spec=spec)
    pruned = pf.to_module(small, spec=pf.shrink(spec, mask), model=model)
    recipe = SHORT.model_copy(update={"lr": 0.001})
    tuned = pf.train.fine_tune(pruned, setup, recipe).model
    by_hand = pf.train.evaluate(tuned, setup)

    same = next(t for t in done.finished if t.settings["criterion"] == "taylor" and t.settings["macs_ratio"] == 0.5)
    cost, dense = pf.cost(spec, mask), pf.train.evaluate(model, digits.held_out, device="cpu")
    assert same.results == {
        **by_hand,
        "macs": cost.macs,
        "params": cost.params,
        "macs_removed": 1 - cost.macs / pf.cost(spec).macs,
        "params_removed": 1 - cost.params / pf.cost(spec).params,
        "points_lost": 100 * (dense["top1"] - by_hand["top1"]),
    }
    again = pf.load(cnn().eval(), tmp_path / "trials" / f"{same.number:04d}" / "pruned.safetensors")
    assert same_weights(again, tuned)
    assert write_results(done) == {}
    assert len(rows(tmp_path / "final_comparison.csv")) == 4


def test_trials_that_differ_in_training_prune_alike(tmp_path: Path) -> None:
    digits = pf.data.open_data("digits", augment=False)
    calibration = [next(iter(torch.utils.data.DataLoader(digits.train, batch_size=200)))]
    setup = pf.train.Setup(digits.train, digits.held_out, device="cpu")
    trial = pf.sweep.prune_trial(cnn(), setup, calibration=calibration)
    space = {"macs_ratio": [0.4], "criterion": ["magnitude"], "compensation": ["none"], "epochs": [0], "seed": [0, 1]}
    done = sweep(trial, space, folder=tmp_path, sampler="grid")
    files = [(tmp_path / "trials" / f"{t.number:04d}" / "pruned.safetensors").read_bytes() for t in done.finished]
    assert len(files) == 2 and files[0] == files[1]
    assert not (tmp_path / "stats.safetensors").exists()  # weights alone were asked
    with pytest.raises(PruneError, match=r"dense\.json was measured on other parameters"):
        other = cnn()
        nn.init.zeros_(other[0].bias)
        wrong = pf.sweep.prune_trial(other, setup, calibration=calibration)
        sweep(wrong, space, folder=tmp_path, sampler="grid")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"criterion": ["variance"]}, "the space has no 'macs_ratio'"),
        ({"macs_ratio": [1.0]}, "macs_ratio is 1.0"),
        ({"macs_ratio": [0.5], "criterion": ["varience"]}, "there is no 'varience'; did you mean 'variance'"),
        (
            {"macs_ratio": [0.5], "criterion": ["normalized"]},
            "criterion 'normalized': missing a required argument: 'criterion'",
        ),
        ({"macs_ratio": [0.5], "compensation": ["avine"]}, "there is no 'avine'; did you mean 'affine'"),
        ({"macs_ratio": [0.5], "epoch": [3]}, "no setting 'epoch'; did you mean 'epochs'"),
        ({"macs_ratio": [0.5], "epochs": [-1]}, "epochs is -1"),
        ({"macs_ratio": [0.5], "lr": [0.0]}, "lr is 0.0"),
        ({"macs_ratio": [0.5], "criterion": {"low": 0, "high": 1}}, "'criterion' is {'low': 0, 'high': 1}"),
    ],
    ids="missing all criterion arguments compensation setting epochs lr range".split(),
)
def test_a_space_that_networks_do_not_know_is_named(space: dict[str, Any], message: str, tmp_path: Path) -> None:
    x = torch.randn(4, 1, 8, 8)
    setup = pf.train.Setup([(x, torch.zeros(4).long())], [], device="cpu")
    trial = pf.sweep.prune_trial(cnn(), setup, calibration=[x])
    with pytest.raises(PruneError) as error:
        sweep(trial, space, folder=tmp_path, trials=1)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())  # so that the same folder will do for the right one
