"""Statistics on disk, their fingerprints, and passes that go on where they were interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import prunefn as pf
from prunefn.files.tensors import save_sealed
from prunefn.frozen_dict import FrozenDict
from prunefn.stats import saved
from prunefn.stats.fingerprint import PARTS, fingerprint, origin

from .ranks.nets import batches, collect, identical, net, sharing, sums
from .small import bits, mlp, randn, same, traced

ROOT = Path(__file__).parent.parent


def measured(name: str = "cnn") -> pf.Stats:
    return collect(name, batches(name)[:2])


def load(path: Path, like: pf.Stats) -> pf.Stats:
    assert like.spec is not None
    return pf.load_stats(path, spec=like.spec, params=dict(like.params))


# ---- round trips


@pytest.mark.parametrize("name", ["cnn", "shared"])
def test_a_round_trip_keeps_every_bit_and_what_is_shared(name: str, tmp_path: Path) -> None:
    stats = measured(name)
    if name == "cnn":
        assert any(m.taps is not None for m in stats.sites.values())
    else:
        assert sharing(stats) == [["q", "k", "v"]]
    pf.save_stats(stats, tmp_path / "stats")
    identical(load(tmp_path / "stats", stats), stats)
    assert os.listdir(tmp_path) == ["stats"]


def test_a_shared_covariance_takes_its_place_once(tmp_path: Path) -> None:
    pf.save_stats(measured("shared"), tmp_path / "stats")
    assert [n for n in load_file(tmp_path / "stats") if n.endswith("scatter")] == ["sites/q/scatter"]


def test_odd_sums_and_numbers(tmp_path: Path) -> None:
    stats = measured("mlp")
    base, count = randn(4, 4), 2**60 + 1
    odd = {
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "empty": torch.zeros(0, 3),
        "turned": base.T,
        "row": base[1],
        "same row": base[1:2],
        "bool": torch.tensor([True, False]),
        "trained": torch.ones(2, requires_grad=True),
    }
    m = stats.sites["2"]._replace(count=count)
    stats = stats._replace(sites={"2": m}, sums={"odd": odd, "none": {}}, batches=count)
    pf.save_stats(stats, tmp_path / "stats")
    again = load(tmp_path / "stats", stats)
    identical(again, stats)
    assert "none" in again.sums and not again.sums["none"]


def test_what_is_loaded_does_not_follow_the_file(tmp_path: Path) -> None:
    stats = measured()
    pf.save_stats(stats, tmp_path / "stats")
    again = load(tmp_path / "stats", stats)
    with open(tmp_path / "stats", "r+b") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(0)
        f.write(b"\0" * size)
    identical(again, stats)


def test_statistics_of_weights_alone(tmp_path: Path) -> None:
    t = net("mlp")
    stats = pf.collect_stats(t.params, None, spec=t.spec)
    pf.save_stats(stats, tmp_path / "stats")
    identical(load(tmp_path / "stats", stats), stats)


def test_empty_statistics_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(pf.StatsError, match="the statistics are empty; use collect_stats"):
        pf.save_stats(pf.Stats(), tmp_path / "stats")


def test_a_failed_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = measured("mlp")
    pf.save_stats(stats, tmp_path / "stats")

    def half(path: str, tensors: Any, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(saved, "save_sealed", half)
    with pytest.raises(OSError, match="no space left"):
        pf.save_stats(collect("mlp", batches("mlp")), tmp_path / "stats")
    assert os.listdir(tmp_path) == ["stats"]
    identical(load(tmp_path / "stats", stats), stats)


# ---- what is refused


def test_another_spec_is_named(tmp_path: Path) -> None:
    stats, t, other = measured("mlp"), net("mlp"), net("shared")
    pf.save_stats(stats, tmp_path / "stats")
    with pytest.raises(
        pf.StatsError, match=r"was measured on another spec: program, axes, sizes and \d more differ; load"
    ):
        pf.load_stats(tmp_path / "stats", spec=other.spec, params=other.params)
    mask = {"0": bits("11011")}
    with pytest.raises(pf.StatsError, match=r"another spec: sizes, groups differ; load"):
        pf.load_stats(tmp_path / "stats", spec=pf.shrink(t.spec, mask), params=pf.apply(t.params, mask, spec=t.spec))


def test_other_parameters_are_named(tmp_path: Path) -> None:
    stats, t = measured("mlp"), net("mlp")
    pf.save_stats(stats, tmp_path / "stats")
    nudged = t.params["2.bias"] + 1e-15
    with pytest.raises(pf.StatsError, match=r"was measured on other parameters: '2.bias' differs"):
        pf.load_stats(tmp_path / "stats", spec=t.spec, params=t.params | {"2.bias": nudged})
    fewer = {n: p for n, p in t.params.items() if n != "0.bias"}
    with pytest.raises(pf.StatsError, match=r"other parameters: '0.bias' differs"):
        pf.load_stats(tmp_path / "stats", spec=t.spec, params=fewer)


def test_a_spec_of_another_version_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stats, wide = measured("mlp"), net("wide")
    with monkeypatch.context() as m:
        m.setattr(saved, "_versions", lambda: {"prunefn": pf.__version__, "torch": "1.0"})
        pf.save_stats(stats, tmp_path / "stats")
    identical(load(tmp_path / "stats", stats), stats)
    with pytest.raises(pf.StatsError, match=r"sizes, groups differ \(by torch 1.0 instead of \d"):
        pf.load_stats(tmp_path / "stats", spec=wide.spec, params=wide.params)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file(share: float, tmp_path: Path) -> None:
    stats = measured()
    pf.save_stats(stats, tmp_path / "stats")
    data = (tmp_path / "stats").read_bytes()
    (tmp_path / "stats").write_bytes(data[: int(share * len(data))])
    with pytest.raises(pf.StatsError, match=r"stats is damaged, or no file of pf.save_stats: .*; measure again"):
        load(tmp_path / "stats", stats)


def test_foreign_files(tmp_path: Path) -> None:
    stats = measured("mlp")
    (tmp_path / "text").write_text("mean: 1.0\n" * 100)
    with pytest.raises(pf.StatsError, match=r"text is damaged, or no file of pf.save_stats"):
        load(tmp_path / "text", stats)
    torch.save({"a": randn(3)}, tmp_path / "pickle")
    with pytest.raises(pf.StatsError, match=r"pickle is damaged, or no file of pf.save_stats"):
        load(tmp_path / "pickle", stats)
    save_file({"a": randn(3)}, tmp_path / "plain")
    with pytest.raises(pf.StatsError, match="plain holds no statistics that this version can read: it has no format"):
        load(tmp_path / "plain", stats)
    pf.save(mlp(3, 4, 2), tmp_path / "model.safetensors")
    with pytest.raises(pf.StatsError, match="its format is '2' instead of 'stats 3'"):
        load(tmp_path / "model.safetensors", stats)
    save_file({"a": randn(3)}, tmp_path / "newer", {"prunefn": "stats 4"})
    with pytest.raises(pf.StatsError, match="its format is 'stats 4' instead of 'stats 3'"):
        load(tmp_path / "newer", stats)
    for header in ("{}", "[]", "1", "{", '{"spec": 1, "params": {}}'):
        save_sealed(tmp_path / "broken", {"a": randn(3)}, {"prunefn": "stats 3", "header": header})
        with pytest.raises(pf.StatsError, match="broken is damaged"):
            load(tmp_path / "broken", stats)
    save_file({"a": randn(3)}, tmp_path / "unsealed", {"prunefn": "stats 3", "header": "{}"})
    with pytest.raises(pf.StatsError, match=r"unsealed is damaged.*it has no seal"):
        load(tmp_path / "unsealed", stats)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere", stats)


def test_every_bit_of_a_file_counts(tmp_path: Path) -> None:
    stats, path = measured("mlp"), tmp_path / "stats"
    pf.save_stats(stats, path)
    good = path.read_bytes()
    pf.save_stats(stats, path)
    assert path.read_bytes() == good
    for n in range(0, 8 * len(good), 397):
        bad = bytearray(good)
        bad[n // 8] ^= 1 << n % 8
        path.write_bytes(bad)
        with pytest.raises(pf.StatsError, match=str(path)):
            load(path, stats)


def test_a_file_of_statistics_is_no_model(tmp_path: Path) -> None:
    pf.save_stats(measured("mlp"), tmp_path / "stats.safetensors")
    with pytest.raises(pf.ParamsError, match="has format 'stats 3'"):
        pf.load(mlp(3, 4, 2), tmp_path / "stats.safetensors")


# ---- fingerprints


def test_specs_are_compared_by_the_same_parts() -> None:
    spec = net("cnn").spec
    assert tuple(getattr(spec, part) for part in PARTS) == spec._key()


def test_values_that_differ_have_different_fingerprints() -> None:
    values = [
        None, 0, False, 0.0, "", "0", (), [], {}, frozenset(), (0,), (0, 0), ((0,), 0), (0, (0,)), ("a", "b"), ("ab",),
        {"a": 1}, {"a": "1"}, {"b": 1}, {1, 2}, randn(2), randn(2).float(), randn(2, 1), randn(1, 2), randn(2, seed=1),
        torch.zeros(0), torch.zeros(0, 1), torch.tensor(0.0), torch.tensor(-0.0), torch.tensor(False), torch.float32,
    ]  # fmt: skip
    assert len({fingerprint(v) for v in values}) == len(values)


def test_values_that_are_alike_have_the_same_fingerprint() -> None:
    x = randn(3, 4)
    assert fingerprint(x) == fingerprint(x.T.contiguous().T) == fingerprint(x.clone().requires_grad_())
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"x", "y", "z"}) == fingerprint({"z", "y", "x"})
    assert fingerprint(FrozenDict({"a": (object,)})) == fingerprint(FrozenDict({"a": (object,)}))
    assert fingerprint(object()) == fingerprint(object())


def test_a_spec_has_the_same_fingerprint_in_every_process() -> None:
    code = (
        "import json; from prunefn.stats.fingerprint import origin; from tests.ranks.nets import net\n"
        "print(json.dumps([origin(net(n).spec, net(n).params) for n in ('cnn', 'shared')]))"
    )
    env = os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert json.loads(done.stdout) == [list(origin(net(n).spec, net(n).params)) for n in ("cnn", "shared")]


# ---- going on in the middle


class Stop(Exception):
    pass


def until(n: int, data: list[Tensor]) -> Iterator[Tensor]:
    yield from data[:n]
    raise Stop


def untouched() -> Iterator[Tensor]:
    raise AssertionError("a batch was asked for")
    yield randn(1)


def go(data: Any, path: Path | None, **kwargs: Any) -> pf.Stats:
    return collect("cnn", data, **({} if path is None else {"resume": path}), **kwargs)


@pytest.mark.parametrize("every", [1, 2, 4, 50])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 6])
def test_an_interrupted_pass_goes_on_to_the_same_bits(every: int, stop: int, tmp_path: Path) -> None:
    data, path = batches("cnn"), tmp_path / "stats"
    with pytest.raises(Stop):
        go(until(stop, data), path, save_every=every)
    assert path.exists() == (stop >= every)
    if path.exists():
        assert load(path, measured()).batches == stop // every * every
    seen = []
    count = pf.Collector("some", lambda p, b, s: seen.append(1) or sums().collectors[0].collect(p, b, s))
    again = go(data, path, save_every=every, criterion=sums()._replace(collectors=(count,)))
    identical(again, go(data, None))
    assert len(seen) == len(data) - stop // every * every
    identical(load(path, again), again)


def test_it_is_interrupted_again_and_again(tmp_path: Path) -> None:
    data, path = batches("shared"), tmp_path / "stats"
    for stop in (2, 3, 5, 6):
        with pytest.raises(Stop):
            collect("shared", until(stop, data), resume=path, save_every=1)  # type: ignore[arg-type]
    identical(collect("shared", data, resume=path, save_every=1), collect("shared", data))


def test_a_killed_process_is_gone_on_with(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "tests.ranks.killed", str(tmp_path / "stats")]
    done = subprocess.run(run, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == -signal.SIGKILL
    whole = go(batches("cnn"), None)
    assert load(tmp_path / "stats", whole).batches == 4
    identical(go(batches("cnn"), tmp_path / "stats"), whole)


def test_a_finished_file_returns_at_once(tmp_path: Path) -> None:
    data, path = batches("cnn"), tmp_path / "stats"
    stats = go(data, path)
    before = path.stat().st_mtime_ns
    identical(go(untouched(), path), stats)
    assert path.stat().st_mtime_ns == before


def test_a_pass_that_ended_at_max_batches_goes_on_to_more(tmp_path: Path) -> None:
    data, path = batches("cnn"), tmp_path / "stats"
    two = go(data, path, max_batches=2)
    identical(two, go(data[:2], None))
    identical(go(untouched(), path, max_batches=2), two)
    with pytest.raises(
        pf.StatsError, match="stats is of 2 batches, but max_batches=1; ask for as many, or save elsewhere"
    ):
        go(data, path, max_batches=1)
    identical(go(data, path, max_batches=4), go(data[:4], None))
    identical(go(data, path, max_batches=40), go(data, None))
    identical(go(untouched(), path, max_batches=50), go(data, None))


def test_a_file_of_save_stats_is_gone_on_with(tmp_path: Path) -> None:
    data = batches("cnn")
    pf.save_stats(go(data[:2], None), tmp_path / "stats")
    identical(go(data, tmp_path / "stats"), go(data, None))


def test_batches_in_another_order_are_refused(tmp_path: Path) -> None:
    data, path = batches("cnn"), tmp_path / "stats"
    go(data, path, max_batches=3)
    with pytest.raises(
        pf.StatsError, match=r"batch 1 is not the one that .*stats was measured on, so that some samples would"
    ):
        go(data[::-1], path)
    with pytest.raises(pf.StatsError, match="stats is of 3 batches, but there are only 2"):
        go(data[:2], path)
    identical(go(data, path), go(data, None))


def test_each_batch_that_is_skipped_is_checked(tmp_path: Path) -> None:
    data, path = batches("cnn"), tmp_path / "stats"
    go(data, path, max_batches=3)
    with pytest.raises(pf.StatsError, match=r"batch 2 is not the one that .*stats was measured on"):
        go([data[0], data[1] + 1, *data[2:]], path)
    identical(go(data, path), go(data, None))


def taylor() -> pf.Criterion:
    collector = pf.Collector("taylor", lambda p, b, s: {"0": torch.ones(2)})
    return pf.Criterion("taylor", lambda s: {}, collectors=(collector,))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"covariance": False}, r"stats has what was measured for 'covariance' at site '3'"),
        ({"criterion": ()}, r"stats has sums of collectors such as 'some'; give the criterion"),
        ({"criterion": (sums(), taylor())}, r"stats lacks sums of collectors such as 'taylor'"),
        ({"criterion": sums()._replace(needs=())}, r"stats has what was measured for 'absolute' at site '3'"),
        ({"where": "0.*"}, r"stats has sites such as '10'; give the criterion and `where` that it was started with"),
    ],
)
def test_another_plan_is_refused(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = tmp_path / "stats"
    go(batches("cnn"), path, max_batches=2)
    with pytest.raises(pf.StatsError, match=text):
        go(untouched(), path, **change)


def test_a_plan_that_asks_for_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats"
    go(batches("cnn"), path, max_batches=2, covariance=False, where="0.*")
    with pytest.raises(pf.StatsError, match="stats lacks what was measured for 'covariance' at site '3'"):
        go(untouched(), path, where="0.*")
    with pytest.raises(pf.StatsError, match="stats lacks sites such as '10'"):
        go(untouched(), path, covariance=False)


def test_a_file_of_something_else_is_refused_before_any_batch(tmp_path: Path) -> None:
    path = tmp_path / "stats"
    collect("mlp", batches("mlp"), resume=path)
    with pytest.raises(pf.StatsError, match="was measured on another spec"):
        go(untouched(), path)
    path.write_text("what is this")
    with pytest.raises(pf.StatsError, match="stats is damaged"):
        go(untouched(), path)
    assert path.read_text() == "what is this"


@pytest.mark.parametrize(
    ("path", "every", "text"),
    [("stats", 0, "save_every must be 1 or more, not 0"), ("no/stats", 1, "there is no folder .*no to save")],
)
def test_wrong_arguments_are_refused_before_any_batch(path: str, every: int, text: str, tmp_path: Path) -> None:
    with pytest.raises(pf.StatsError, match=text):
        go(untouched(), tmp_path / path, save_every=every)


def test_batches_of_any_form_are_recognised(tmp_path: Path) -> None:
    t = traced(mlp(3, 4, 2), randn(2, 3))
    forms: list[Callable[[Tensor, int], Any]] = [
        lambda x, i: (x, torch.tensor(i)),
        lambda x, i: {"input": x, "name": f"batch {i}"},
        lambda x, i: [x, {"weight": float(i)}],
    ]
    for n, form in enumerate(forms):
        data = [form(x, i) for i, x in enumerate(randn(8, 3).split(2))]
        path = tmp_path / str(n)
        pf.collect_stats(t.params, data, spec=t.spec, resume=path, max_batches=2)
        stats = pf.collect_stats(t.params, data, spec=t.spec, resume=path)
        identical(stats, pf.collect_stats(t.params, data, spec=t.spec))
        other = [form(x, i + 1) for i, x in enumerate(randn(8, 3).split(2))]
        pf.collect_stats(t.params, data, spec=t.spec, resume=tmp_path / f"{n}b", max_batches=2)
        with pytest.raises(pf.StatsError, match="batch 1 is not the one"):
            pf.collect_stats(t.params, other, spec=t.spec, resume=tmp_path / f"{n}b")


def test_nothing_changes(tmp_path: Path) -> None:
    t, data = net("cnn"), batches("cnn")
    params, copies = {n: v.clone() for n, v in t.params.items()}, [x.clone() for x in data]
    stats = go(data, tmp_path / "stats", save_every=1)
    pf.save_stats(stats, tmp_path / "again")
    identical(load(tmp_path / "again", stats), load(tmp_path / "stats", stats))
    same(t.params, params)
    assert all(torch.equal(a, b) for a, b in zip(data, copies, strict=True))
