"""Three phases: what each leaves, under a mask or for real, in one process or two, interrupted or not."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prunefn as pf
from prunefn.files.nest import read_nest
from prunefn.train import Phases, Result, Setup, fine_tune, pat, regularizers, schedule, sparse_train
from prunefn.train.run import PRUNED

from .small import close
from .test_training import run, weights
from .training import MEASURED, PLAIN, SETUP, calibration, files, net, points, same_weights, spec_of


def vbp(ratio: Any) -> Any:
    return pf.recipes.vbp(ratio, where=None, recalibrate=True)


def plan(*, model: torch.nn.Module | None = None, folder: Path | None = None, **options: Any) -> Result:
    batches = options.pop("calibration", calibration())
    phases = Phases(**{"prune": vbp, "schedule": schedule.geometric(0.5, 2)} | options)
    return pat(model or net(drop=0.0), MEASURED, phases, calibration=batches, folder=folder)


def units(result: Result) -> dict[str, tuple[int, int]]:
    return {g: (int(m.sum()), len(m)) for g, m in result.mask.items()}


def test_one_shot_is_the_pipeline() -> None:
    """Without training, nothing but pruning happens; the model that was given is as it was."""
    model = net(drop=0.0)
    before, spec = deepcopy(model), spec_of(model)
    done = plan(schedule=0.5)
    once = vbp(0.5)(pf.params(before.eval()), calibration(), spec=spec)
    assert {g: m.tolist() for g, m in done.mask.items()} == {g: m.tolist() for g, m in once.mask.items()}
    assert all(torch.equal(done.params[n], t) for n, t in once.params.items())
    assert same_weights(model, before)
    assert [r["phase"] for r in done.rows] == ["dense", "prune 1"]
    assert done.summary["macs"] == pf.cost(spec, once.mask).macs and done.summary["macs_dense"] == pf.cost(spec).macs


def test_by_default_the_best_recipe_prunes_at_once() -> None:
    """`Phases()` is one step of `recipes.best` without training."""
    model = net(drop=0.0).eval()
    done = pat(model, MEASURED, Phases(), calibration=calibration())
    once = pf.recipes.best(0.5)(pf.params(model), calibration(), spec=spec_of(model))
    assert all(torch.equal(done.params[n], t) for n, t in once.params.items())
    assert [r["phase"] for r in done.rows] == ["dense", "prune 1"] and Phases().advice() is None


def test_a_run_in_rounds_says_that_one_step_is_as_good(capsys: pytest.CaptureFixture[str]) -> None:
    in_rounds = Phases(vbp, schedule.geometric(0.5, 2), between=PLAIN.model_copy(update={"epochs": 1}))
    said = in_rounds.advice()
    assert said is not None and said.startswith("2 rounds train 2 epochs before the final shape is known")
    pat(net(drop=0.0), MEASURED._replace(progress=True), in_rounds, calibration=calibration())
    assert capsys.readouterr().out.startswith(said)
    assert in_rounds._replace(between=None).advice() is None


def test_all_phases_in_order_and_in_one_folder(tmp_path: Path) -> None:
    done = plan(
        sparse=(lambda spec: regularizers.slimming(spec, where="0"), PLAIN),
        between=PLAIN.model_copy(update={"epochs": 1}),
        tuning=PLAIN,
        distill=(0.7, 2.0),
        folder=tmp_path,
    )
    phases = [r["phase"] for r in done.rows]
    assert phases == [
        "dense",
        *["sparse"] * 2,
        "prune 1",
        "round_1",
        "prune 2",
        "round_2",
        *["tuning"] * 2,
        "tuning, best",
    ]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == done.rows
    stages = ["sparse", "round_1", "round_2", "tuning"]
    wanted = [f"{s}/{f}" for s in stages for f in ("best.safetensors", "last.safetensors", "metrics.jsonl")]
    wanted += [f"round_{n}/{PRUNED}" for n in (1, 2)]
    wanted += [f"round_{n}/scores.png" for n in (1, 2)]
    wanted += [
        "accuracy.png",
        "config.json",
        "final.safetensors",
        "layers.png",
        "mask.safetensors",
        "metrics.jsonl",
        "norms.png",
        "report.html",
        "residuals.png",
        "spec.json",
        "spec.svg",
        "summary.json",
    ]
    assert files(tmp_path) == sorted([*wanted, "widths.png"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["schedule"] == {"name": "geometric", "shares": [0.0, 0.292893, 0.5]} and config["of"] == "units"
    assert config["tuning"]["lr"] == 0.03 and config["prune"] == "vbp"
    text = (tmp_path / "report.html").read_text()
    assert "of the MACs removed by vbp" in text and text.count("data:image/png;base64,") == 7
    assert "http" not in text.replace("http-equiv", "")  # nothing is loaded from anywhere
    assert json.loads((tmp_path / "summary.json").read_text()) == done.summary
    again = pf.load(net(drop=0.0), tmp_path / "final.safetensors")
    assert same_weights(again, done.model)
    assert read_nest(tmp_path / "mask.safetensors")["mask"].keys() == done.mask.keys()


def test_best_is_among_the_final_architecture() -> None:
    done = plan(tuning=PLAIN, between=PLAIN)
    tuned = [r for r in done.rows if r["phase"] == "tuning"]
    assert done.rows[-1]["top1"] == max(r["top1"] for r in tuned)
    assert done.summary["top1"] == done.rows[-1]["top1"] and done.summary["top1_dense"] == done.rows[0]["top1"]


@pytest.mark.parametrize(
    ("options", "left"), [({}, 0.5), ({"budget": pf.budget.macs}, 0.5), ({"budget": pf.budget.params}, 0.5)]
)
def test_what_the_share_is_of(options: dict[str, Any], left: float) -> None:
    done, spec = plan(between=PLAIN, **options), spec_of(net())
    if not options:
        assert sum(k for k, _ in units(done).values()) == 7  # of 14
        return
    quantity = options["budget"](0.5).quantity
    share = getattr(pf.cost(done.spec), quantity) / getattr(pf.cost(spec), quantity)
    assert left - 0.15 < share <= left


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_rounds_add_up_to_what_one_shot_removes(ratio: float) -> None:
    """Rounding at each step is made up for at the next."""
    once, often = plan(schedule=ratio), plan(schedule=schedule.linear(ratio, 5))
    assert sum(k for k, _ in units(once).values()) == sum(k for k, _ in units(often).values())


def test_a_mask_does_what_removing_does() -> None:
    """Training with zeros is training without; the state of the optimizer goes along in both. (In front of a BatchNorm, a bias
    has no gradient but rounding, of which Adam makes steps of full size: so there is none here.)"""
    options: dict[str, Any] = {"between": PLAIN, "budget": pf.budget.macs, "model": net(norm=None, drop=0.0)}
    real, masked = plan(**options), plan(masked=True, **options)
    assert units(real) == units(masked)
    assert masked.rows[-1]["phase"] == "removed" and masked.summary["macs"] == real.summary["macs"]
    x = points(61, 1).tensors[0]
    with torch.no_grad():
        close(masked.model(x), real.model(x), 1e-3)


def test_the_state_of_the_optimizer_goes_on_or_starts_anew() -> None:
    """Nothing is remembered before the first training; after the second pruning there is something to go on with."""
    on, anew = plan(between=PLAIN).rows, plan(between=PLAIN, carry=False).rows
    second = [r["phase"] for r in on].index("round_2")
    assert on[:second] == anew[:second]
    assert [r["train_loss"] for r in on[second:]] != [r["train_loss"] for r in anew[second:]]


def test_an_optimizer_of_another_kind_starts_anew() -> None:
    """What SGD remembers means nothing to AdamW."""
    spec = spec_of(net())
    momentum = PLAIN.model_copy(update={"optimizer": "momentum"})
    on, anew = (
        plan(sparse=(regularizers.l1_group(spec), momentum), between=PLAIN, carry=c).rows for c in (True, False)
    )
    second = [r["phase"] for r in on].index("prune 2")
    assert on[second - 1]["phase"] == "round_1" and on[:second] == anew[:second]


@pytest.mark.parametrize("masked", [False, True])
def test_as_if_everything_were_to_go_until_the_target(masked: bool) -> None:
    spec = spec_of(net())
    done = plan(schedule=schedule.linear(1.0, 4), target=0.4, masked=masked, between=PLAIN)
    share = pf.cost(done.spec).macs / pf.cost(spec).macs
    assert 0.3 < share <= 0.4
    assert [r["phase"] for r in done.rows if r["phase"].startswith("prune")] == ["prune 1", "prune 2"]


def test_a_target_that_the_schedule_does_not_reach_is_met_by_the_last_step() -> None:
    done = plan(schedule=schedule.linear(0.1, 2), target=0.5)
    assert pf.cost(done.spec).macs <= 0.5 * pf.cost(spec_of(net())).macs


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"schedule": schedule.linear(1.0, 2)}, "the schedule removes everything; give target="),
        ({"target": 1.5}, r"target is 1.5; it is the fraction of the MACs that is left"),
        ({"calibration": []}, "there is no calibration batch to trace the model with"),
        ({"schedule": "linear"}, "schedule is 'linear'; write a schedule"),
        ({"between": {"epochs": 1}}, "between is a dict; write a recipe"),
    ],
)
def test_settings_that_contradict_each_other(options: dict[str, Any], text: str) -> None:
    with pytest.raises(pf.PruneError, match=text):
        plan(**options)


def test_a_setup_that_does_not_fit_the_phases() -> None:
    with pytest.raises(pf.PruneError, match=r"pat measures after every phase; give Setup\(data, held_out\)"):
        pat(net(), SETUP, Phases(vbp), calibration=calibration())
    with pytest.raises(pf.PruneError, match=r"setup.loss and phases.distill are two losses"):
        lossy = MEASURED._replace(loss=torch.nn.functional.cross_entropy)
        pat(net(), lossy, Phases(vbp, distill=(0.7, 2.0)), calibration=calibration())


def test_a_folder_of_another_run(tmp_path: Path) -> None:
    plan(folder=tmp_path)
    with pytest.raises(pf.PruneError, match=r"config.json belongs to a run with masked=False, now it is True"):
        plan(folder=tmp_path, masked=True)


def test_sparse_training_alone_and_fine_tuning_alone() -> None:
    model = net(drop=0.0)
    spec = spec_of(model)
    sparse = sparse_train(model, SETUP, regularizers.l1_group(spec, weight=0.3), PLAIN)
    plain = fine_tune(model, SETUP, PLAIN)

    def norm(net: torch.nn.Module) -> float:
        return float(sum(p.detach().abs().sum() for p in net.parameters()))

    assert norm(sparse.model) < 0.9 * norm(plain.model)
    assert sparse.best is None


def test_killed_between_and_within_phases_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = run("phases", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    for n in (9, 12):
        assert run("phases", tmp_path / "killed", KILL=n).returncode == -signal.SIGKILL
    assert run("phases", tmp_path / "killed").returncode == 0
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "killed/metrics.jsonl").read_text()


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_do_what_one_does(tmp_path: Path, ranks: int, one_process: Callable[[], Path]) -> None:
    """All phases with uneven shares of batches and calibration: the same masks on every rank, the result of one process."""
    alone = one_process()
    together = run("shared", tmp_path, ranks=ranks)
    assert together.returncode == 0, together.stderr[-3000:]
    reference, found = weights(alone), [weights(tmp_path, r) for r in range(ranks)]
    for other in found[1:]:
        assert all(torch.equal(found[0][n], t) for n, t in other.items())
    for name, t in reference.items():
        close(found[0][name], t, 1e-10)
    assert masks(tmp_path) == masks(alone)
    assert files(tmp_path) == sorted({*files(alone), *(f"state.{r}" for r in range(ranks))})


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    folder = tmp_path_factory.mktemp("alone")

    def made() -> Path:
        if not (folder / "state.0").exists():
            done = run("shared", folder)
            assert done.returncode == 0, done.stderr[-3000:]
        return folder

    return made


def masks(folder: Path) -> dict[str, list[bool]]:
    found: dict[str, Tensor] = read_nest(folder / "mask.safetensors")["mask"]
    return {g: m.tolist() for g, m in found.items()}


def test_schedules_of_any_size() -> None:
    """No epoch is counted one by one, and no run begins that could never end."""
    for start, end, rate in ((0, 1, 1), (1, 6, 2), (3, 17, 5), (2, 8, 2)):
        at = [i for i in range(start, end) if i % rate == 0]
        made = schedule.epochs(0.6, start, end, rate)
        want = [0.6 if (done := sum(i <= e for i in at)) == len(at) else 0.6 * done / len(at) for e in range(20)]
        assert [made(e) for e in range(20)] == want
    huge = schedule.epochs(0.5, 0, 2**50)
    assert huge(2**49 - 1) == 0.25 and huge(2**60) == 0.5 and huge(-1) == huge(0)
    for wrong in ((0.5, 0, 10**400), (0.5, 0, 0), (0.5, 5, -3), (0.5, 0, 5, 0)):
        with pytest.raises(pf.PruneError, match=r"schedule|no epoch|(end|period) is -?\d+; it must be"):
            schedule.epochs(*wrong)
    with pytest.raises(pf.PruneError, match="10000 are the most"):
        pat(net(), Setup(points(), points()), Phases(pf.recipes.l1_channels, huge), calibration=[])
