"""Latency tables: which ops are measured at which sizes, what is kept on disk, what is predicted. No test looks at a real time."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache as cache_results
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.costs.timing import measure
from prunefn.costs.timing.clock import WARM_UP, clock_for, device_name, quiet, typical
from prunefn.costs.timing.compiled_forwards import program_parts
from prunefn.costs.timing.fit import Row, fit
from prunefn.costs.timing.onnx_parts import write_marked
from prunefn.costs.timing.points import coordinates, mesh
from prunefn.costs.timing.runtimes import check_runtime
from prunefn.costs.timing.table import Grid, Op
from prunefn.costs.timing.walk import machine, walk
from prunefn.files import cache
from prunefn.spec.axis import Concat, Fixed, Leaf, Product
from tests.small import bits

DEVICE = torch.device("cpu")


@contextmanager
def raises(error: type[Exception], *words: str) -> Iterator[None]:
    """An error with all of these words in its message."""
    with pytest.raises(error) as e:
        yield
    assert all(w in str(e.value) for w in words), str(e.value)


# ---- a clock that counts instead of waiting


def tensors(x: Any) -> list[Tensor]:
    """In a nest of lists and tuples."""
    if isinstance(x, Tensor):
        return [x]
    return [t for y in x for t in tensors(y)] if isinstance(x, (list, tuple)) else []


def work(call: pf.Call, result: Any) -> float:
    """MACs and elements written: linear in the size of each group of the nets below; a view is free."""
    if "conv" in call.op or "linear" in call.op:
        return float(result.numel() * call.args[1][0].numel() + result.numel())
    view = any(
        w in call.op for w in ("reshape", "flatten", "permute", "transpose", "unbind", "getitem", "slice", "sym")
    )
    return 0.0 if view else float(sum(t.numel() for t in tensors(result)))


class Fake:
    """Says that a call takes what `cost` says, and remembers what it was asked."""

    def __init__(
        self,
        cost: Callable[[pf.Call, Any], float] = work,
        *,
        place: float = 1.0,
        whole: float = 1.0,
        fail_after: int | None = None,
    ) -> None:
        self.cost, self.place, self.whole, self.fail_after = cost, place, whole, fail_after
        self.alone: list[tuple[Any, ...]] = []
        self.others = 0
        self.sum = 0.0

    @property
    def clock(self) -> pf.Clock:
        """As latency_table takes it."""
        return pf.Clock("fake", self.run)

    def run(self, call: pf.Call) -> tuple[Any, float]:
        """In place it takes `place` times what it takes alone; whole, `whole` times the sum of that."""
        result = call()
        if call.stage == "alone":
            self.alone.append(described(call))
            if self.fail_after is not None and len(self.alone) > self.fail_after:
                raise KeyboardInterrupt
            return result, self.cost(call, result)
        self.others += 1
        if call.stage == "in place":
            self.sum += (seconds := self.place * self.cost(call, result))
            return result, seconds
        seconds, self.sum = self.whole * self.sum, 0.0
        return result, seconds


def described(call: pf.Call) -> tuple[Any, ...]:
    """What tells calls apart."""
    static = repr([a for a in call.args if not tensors(a)]) + repr(call.kwargs)
    return (call.op, *((tuple(t.shape), t.stride()) for a in call.args for t in tensors(a)), static)


# ---- networks


class Attention(nn.Module):
    """A block of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 3 * 4 * 40), nn.Linear(4 * 40, 12)
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 48), nn.Linear(48, 12)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, 40).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 160)
        x = x + self.out(y)
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Branches(nn.Module):
    """Two convolutions side by side, and a third that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 3), nn.Conv2d(3, 16, 3), nn.Conv2d(48, 20, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x).relu(), self.b(x)], 1)).mean((2, 3))


class Grouped(nn.Module):
    """A grouped convolution, whose seconds depend on three groups, and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 64, 3, groups=4)
        self.c, self.d = nn.Conv2d(64, 64, 3, groups=64, padding=1), nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x)))).mean((2, 3))


def plain() -> nn.Module:
    """Three equal layers in the middle."""
    middle = [layer for _ in range(3) for layer in (nn.Linear(40, 40), nn.ReLU())]
    return nn.Sequential(nn.Linear(8, 40), nn.ReLU(), *middle, nn.Linear(40, 4))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 24, 3), nn.Flatten(), nn.Linear(24 * 16, 5)
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (plain, (8,)),
    "convolutions": (convolutions, (3, 8, 8)),
    "branches": (Branches, (3, 8, 8)),
    "grouped": (Grouped, (3, 8, 8)),
    "attention": (Attention, (5, 12)),
}


@cache_results
def traced(name: str) -> tuple[pf.Spec, pf.Params]:
    """Spec and params of a net."""
    build, shape = NETS[name]
    model = build().eval()
    return pf.trace(model, (torch.randn(2, *shape),)), pf.params(model)


def table_of(name: str, folder: Path, fake: Fake, **options: Any) -> pf.LatencyTable:
    """Measured by a fake clock."""
    spec, params = traced(name)
    return pf.latency_table(
        params,
        spec=spec,
        cache=folder,
        progress=False,
        clock=fake.clock,
        **{"repeats": 1, "grid": (1.0, 0.5), **options},
    )


def masks(spec: pf.Spec, n: int = 6) -> Iterable[pf.Mask]:
    """Random ones."""
    for seed in range(n):
        generator = torch.Generator().manual_seed(seed)
        mask = {}
        for g, units in spec.sizes.items():
            m = torch.rand(units, generator=generator) < torch.rand((), generator=generator)
            m[0] = True
            mask[g] = m
        yield mask


def really(spec: pf.Spec, params: pf.Params, mask: pf.Mask, batch: int, cost: Callable[..., float] = work) -> float:
    """The same cost, counted on the program of what a mask leaves."""
    small, small_spec = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    (x,), _ = spec.example.draw(batch=batch)
    total = 0.0

    def run(ins: Any, call: pf.Call, env: Any) -> Any:
        nonlocal total
        result = call()
        total += cost(call, result)
        return result

    with torch.no_grad():
        walk(machine(small_spec, small, [x], DEVICE), run)
    return total


# ---- predictions


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETS)
def test_what_is_linear_in_each_size_is_predicted_exactly(name: str, batch: int, tmp_path: Path) -> None:
    spec, params = traced(name)
    table = table_of(name, tmp_path, Fake(), batch=batch)
    assert table.batch == batch
    assert table.predict({}) == pytest.approx(really(spec, params, {}, batch), rel=1e-9)
    for mask in masks(spec):
        exact = really(spec, params, mask, batch)
        assert table.of(mask) == pytest.approx(exact, rel=1e-9)
        assert pf.latency(table, mask) == table.of(mask) == table.predict({g: int(m.sum()) for g, m in mask.items()})


def square(call: pf.Call, result: Any) -> float:
    """Of no size is it a linear function."""
    return work(call, result) ** 2


def test_between_the_sizes_of_the_grid_it_is_linear_and_at_them_exact(tmp_path: Path) -> None:
    spec, params = traced("plain")
    table = table_of("plain", tmp_path, Fake(square))
    first = next(iter(spec.sizes))

    def both(n: int) -> tuple[float, float]:
        mask = {first: torch.arange(40) < n}
        return table.of(mask), really(spec, params, mask, 1, square)

    for n in (1, 16, 19, 39, 40):  # 16: of the even grid; others: odd, and whole
        predicted, exact = both(n)
        assert predicted == pytest.approx(exact, rel=1e-9)
    middle, exact = both(10)
    assert middle == pytest.approx((both(1)[0] + both(19)[0]) / 2, rel=1e-9)
    assert middle > exact * 1.01


def blocks(call: pf.Call, result: Any) -> float:
    """Kernels that work in blocks of 16 output channels."""
    if "conv" not in call.op:
        return 0.0
    channels = result.shape[1]
    return float(
        call.args[1][0].numel() * (-(-channels // measure.MULTIPLE) * measure.MULTIPLE if channels < 40 else 40)
    )


def test_even_sizes_are_predicted_from_even_ones(tmp_path: Path) -> None:
    spec, params = traced("convolutions")
    table = table_of("convolutions", tmp_path, Fake(blocks))
    mask = {"0": torch.arange(40) < 16}
    assert table.of(mask) == pytest.approx(really(spec, params, mask, 1, blocks), rel=1e-9)
    assert table.of({"0": torch.arange(40) < 17}) > 1.1 * table.of(mask)


def test_ops_are_scaled_to_what_they_take_in_place_and_together(tmp_path: Path) -> None:
    spec, _ = traced("convolutions")
    base = table_of("convolutions", tmp_path / "1", Fake())
    other = table_of("convolutions", tmp_path / "2", Fake(place=2.0, whole=1.5))
    for mask in masks(spec):
        assert other.of(mask) == pytest.approx(3.0 * base.of(mask), rel=1e-9)


def test_what_grows_as_ops_get_smaller_is_measured_in_place(tmp_path: Path) -> None:
    """A cost of each call that is there only in place: exact for the networks that were timed."""

    def cost(call: pf.Call, result: Any) -> float:
        return work(call, result) + (1000.0 if call.stage == "in place" and "linear" in call.op else 0.0)

    spec, params = traced("plain")
    table = table_of("plain", tmp_path, Fake(cost))
    for n in (19, 40):
        mask = {g: torch.arange(40) < n for g in spec.sizes}
        assert table.of(mask) == pytest.approx(really(spec, params, mask, 1) + 5000, rel=1e-9)


def test_ops_add_up(tmp_path: Path) -> None:
    spec, _ = traced("attention")
    table = table_of("attention", tmp_path, Fake())
    sizes = {g: max(1, n // 3) for g, n in spec.sizes.items()}
    found = table.by_op(sizes)
    assert list(found) == [i.name for i in spec.program.instructions]
    assert sum(found.values()) == pytest.approx(table.predict(sizes), rel=1e-12)
    assert len(table.merged) < len(table.ops)


def test_a_budget_takes_the_table(tmp_path: Path) -> None:
    spec, _ = traced("convolutions")
    table = table_of("convolutions", tmp_path, Fake())
    scores = {g: torch.rand(n, generator=torch.Generator().manual_seed(0)) for g, n in spec.sizes.items()}
    mask = pf.select(scores, pf.budget.latency(0.5, table), spec=spec)
    assert table.of(mask) <= 0.5 * table.predict({})
    _, group, unit = max((float(scores[g][u]), g, u) for g in mask for u in (~mask[g]).nonzero()[:, 0].tolist())
    mask[group][unit] = True
    assert table.of(mask) > 0.5 * table.predict({})  # the last unit was needed


def test_the_table_is_a_value(tmp_path: Path) -> None:
    table = table_of("plain", tmp_path, Fake())
    again = pickle.loads(pickle.dumps(table))
    assert again == table
    assert again.predict({"0": 7}) == table.predict({"0": 7})
    assert (table.device, table.version, table.threads, table.clock) == (
        device_name(DEVICE),
        f"torch {torch.__version__}",
        torch.get_num_threads(),
        "fake",
    )
    assert "batch 1" in repr(table)


# ---- what is measured


def test_alike_ops_are_measured_once(tmp_path: Path) -> None:
    fake = Fake()
    table_of("plain", tmp_path, fake)
    counts = {c: fake.alone.count(c) for c in fake.alone}
    assert set(counts.values()) == {WARM_UP + 1}
    line = {1, 19, 20 - 1, 39, 40}  # odd ones: half of 40 is 20, made odd; even ones: 16 and 32 near half, and whole
    even = {16, 32, 40}
    widths = [c[1][0] for c in counts if c[0] == "aten.relu.default"]
    assert {w[-1] for w in widths} <= line | even
    assert len(widths) == len({w[-1] for w in widths})
    squares = [c for c in counts if c[0] == "aten.linear.default" and c[1][0][-1] != 8 and c[2][0][0] != 4]
    pairs = {c[2][0] for c in squares}
    assert len(squares) == len(pairs)  # three layers alike: each size once
    assert {(a, b) for a in line for b in line} <= pairs


def test_a_second_table_measures_only_what_is_new(tmp_path: Path) -> None:
    first, second, third = Fake(), Fake(), Fake()
    a, b = table_of("plain", tmp_path, first), table_of("plain", tmp_path, second)
    assert first.alone
    assert first.others
    assert not second.alone
    assert not second.others
    assert a == b
    spec, params = traced("plain")
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 9))
    spec, params = pf.trace(model, (torch.randn(2, 8),)), pf.params(model)
    pf.latency_table(params, spec=spec, cache=tmp_path, progress=False, clock=third.clock, repeats=1, grid=(1.0, 0.5))
    assert third.alone
    assert not set(third.alone) & set(first.alone)
    assert {c[2][0][0] for c in third.alone} == {9}  # the last layer; the first and the ReLU are known


def test_a_measurement_that_was_stopped_goes_on(tmp_path: Path) -> None:
    everything, stopped, resumed = Fake(), Fake(fail_after=50), Fake()
    reference = table_of("plain", tmp_path / "a", everything)
    with pytest.raises(KeyboardInterrupt):
        table_of("plain", tmp_path / "b", stopped)
    (file,) = (tmp_path / "b").iterdir()
    done = json.loads(file.read_text())["seconds"]
    assert len(done) == 50 // (WARM_UP + 1)
    assert table_of("plain", tmp_path / "b", resumed) == reference
    assert len(set(resumed.alone)) == len(set(everything.alone)) - len(done)
    assert [p.name for p in (tmp_path / "b").iterdir()] == [file.name]  # nothing is left lying about


def test_it_is_written_while_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "EVERY", 0.0)
    seen: list[int] = []

    def cost(call: pf.Call, result: Any) -> float:
        if call.stage == "alone":
            seen.append(sum(len(json.loads(f.read_text())["seconds"]) for f in tmp_path.glob("*.json")))
        return work(call, result)

    table_of("plain", tmp_path, Fake(cost))
    assert seen[-1] > seen[0] == 0
    assert seen == sorted(seen)


@pytest.mark.parametrize("what", ["device", "torch", "threads", "dtype", "clock"])
def test_what_the_seconds_depend_on_has_a_file_of_its_own(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Fake(), Fake()
    table_of("plain", tmp_path, first)
    spec, params = traced("plain")
    clock = second.clock
    if what == "device":
        monkeypatch.setattr(measure, "device_name", lambda device: "another one")
    elif what == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0")
    elif what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    elif what == "clock":
        clock = clock._replace(name="sundial")
    else:
        model = plain().double()
        spec, params = pf.trace(model, (torch.randn(2, 8, dtype=torch.float64),)), pf.params(model)
    pf.latency_table(params, spec=spec, cache=tmp_path, progress=False, clock=clock, repeats=1, grid=(1.0, 0.5))
    assert len(list(tmp_path.iterdir())) == 2
    assert len(second.alone) == len(first.alone)


def test_the_default_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNEFN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec, params = traced("plain")
    pf.latency_table(params, spec=spec, progress=False, clock=Fake().clock, repeats=1, grid=(1.0,))
    assert len(list((tmp_path / "prunefn" / "latency").glob("*.json"))) == 1


def test_coordinates_and_their_sizes() -> None:
    a, b, c, d, e = map(Leaf, "abcde")
    groups = {"a": 64, "b": 64, "c": 64, "d": 10, "e": 10}
    found = coordinates([(Product((Fixed(3), a, d)), Leaf("batch")), (b,)], [a], groups)
    assert [x.axis for x in found] == [a, d, b]
    joined = coordinates([(Concat((a, b)),), (Concat((b, c)), d)], [], groups)
    assert [x.leaves for x in joined] == [("a", "b", "c"), ("d",)]
    line = coordinates([(a, b), (c, d), (e,)], [], groups)
    assert [x.leaves for x in line] == [("a", "b", "c", "d", "e")]
    one = coordinates([(a,)], [], groups)
    assert mesh(one, groups, (0.5,), 16, even=False).sizes == ((1, 31, 63, 64),)
    assert mesh(one, groups, (0.5, 0.25), 16, even=True).sizes == ((16, 32, 64),)
    two = mesh(coordinates([(d, e)], [], groups), groups, (0.5,), 16, even=False)
    assert two.sizes == ((1, 5, 10), (1, 5, 10))
    assert [p.where for p in two.points][:4] == [(1, 1), (1, 5), (1, 10), (5, 1)]
    assert [dict(p.sizes) for p in two.points][1] == {"d": 1, "e": 5}
    both = mesh(coordinates([(Concat((a, d)),)], [], groups), groups, (0.5,), 16, even=False)
    assert both.sizes == ((2, 36, 73, 74),)


# ---- clocks


def test_the_lower_quartile_after_warming_up() -> None:
    times = iter([100.0, 100.0, 5.0, 1.0, 2.0, 9.0])
    call = pf.Call("alone", "op", lambda: None)
    clock = pf.Clock("fake", lambda c: (c(), next(times) / 1000))
    assert typical(clock, call, 4) == 2.0 / 1000
    assert quiet([3.0]) == 3.0
    slow = pf.Clock("slow", lambda c: (c(), 7.0))
    assert typical(slow, call, 10**6) == 7.0  # it does not go on for long


def test_the_clock_of_a_device() -> None:
    assert clock_for(DEVICE).name == ("CPU time" if torch.get_num_threads() == 1 else "wall time")
    assert clock_for(torch.device("cuda")).name == "CUDA events"
    result, seconds = clock_for(DEVICE).run(pf.Call("alone", "add", torch.add, (torch.ones(2), 1)))
    assert result.tolist() == [2.0, 2.0]
    assert seconds >= 0


def test_the_real_clock_and_the_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, params = traced("convolutions")
    before = {n: t.clone() for n, t in params.items()}
    table = pf.latency_table(params, spec=spec, cache=tmp_path, repeats=1, grid=(1.0,))
    assert table.predict({}) > 0
    assert all(s >= 0 for o in table.ops for g in (o.grid, o.even) if g for s in g.seconds)
    assert "latency of ops" in capsys.readouterr().err
    assert all(torch.equal(before[n], params[n]) for n in params)


# ---- errors


def test_a_damaged_cache_is_named_and_left_alone(tmp_path: Path) -> None:
    table_of("plain", tmp_path, Fake())
    (file,) = tmp_path.iterdir()
    for text in ("{", '{"format": 7, "seconds": {}}', '{"format": 1, "seconds": {"a": -1.0}}', "[]", '{"format": 1}'):
        file.write_text(text)
        with raises(pf.PruneError, str(file), "delete it"):
            table_of("plain", tmp_path, Fake())
        assert file.read_text() == text


def test_errors(tmp_path: Path) -> None:
    spec, params = traced("plain")
    with raises(pf.PruneError, "grid=(0.0,)"):
        pf.latency_table(params, spec=spec, grid=(0.0,), cache=tmp_path)
    with raises(pf.PruneError, "batch is 0; it must be 1 or more"):
        pf.latency_table(params, spec=spec, batch=0, cache=tmp_path)
    with raises(pf.ParamsError, "0.weight"):
        pf.latency_table({n: t for n, t in params.items() if n != "0.weight"}, spec=spec, cache=tmp_path)
    with raises(pf.ParamsError, "meta"):
        pf.latency_table(params, "meta", spec=spec, cache=tmp_path)
    table = table_of("plain", tmp_path, Fake())
    with raises(pf.MaskError, "'0'"):
        table.of({"0": bits("101")})


class Wandering(nn.Module):
    """Its control flow depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y if float(y.sum()) > 0 else -y)


def test_a_recorded_spec_has_no_program(tmp_path: Path) -> None:
    model = Wandering()
    spec = pf.trace(model, (torch.randn(2, 4),))
    assert spec.capture == "recorded"
    with raises(pf.TraceError, "recorded from one run"):
        pf.latency_table(pf.params(model), spec=spec, cache=tmp_path)


# ---- other runtimes


def test_a_grid_is_fitted_to_what_is_linear_in_each_size() -> None:
    def cost(n: int, m: int) -> float:
        return 1e-3 + 1e-6 * n + 2e-7 * n * m

    rows = [Row((n, m), cost(n, m)) for n in (16, 48, 96, 128) for m in (16, 32, 64)]
    grid = fit(rows, (128, 64), 16, even=True)
    assert grid.sizes == ((16, 64, 128), (16, 32, 64))
    for n, m in ((16, 16), (80, 48), (128, 64)):
        assert grid.at((n, m)) == pytest.approx(cost(n, m), rel=1e-6)
    assert min(fit([Row((16,), 0.0), Row((32,), 1.0), Row((64,), 0.1)], (64,), 16, even=True).seconds) >= 0.0


RUNTIMES = {"onnx": "ONNX Runtime ", "openvino": "OpenVINO ", "compiled": "torch.compile "}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_table_of_another_runtime(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (
        runtime == "compiled"
    ):  # five networks would compile for half a minute; the table does not depend on the compiler
        monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    else:
        pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    spec, params = traced("convolutions")
    options: dict[str, Any] = {"spec": spec, "cache": tmp_path, "progress": False, "grid": (0.5,), "repeats": 2}
    table = pf.latency_table(params, runtime=runtime, **options)
    assert table.runtime == runtime and table.version.startswith(RUNTIMES[runtime])
    named = {o.name for o in table.ops if o.name}
    assert named == {n for n, t in params.items() if n.endswith("weight") and t.ndim > 1}
    assert all(s > 0 for n, s in table.by_op({}).items() if n)  # the last layer, too, whose result is the file's output
    assert sum(table.by_op({}).values()) == pytest.approx(table.of(), rel=1e-9) and table.of() > 0
    assert pf.latency_table(params, runtime=runtime, **options) == table  # everything was cached
    half = pf.budget.latency(table, ms=500 * table.of())
    assert half.keep == pytest.approx(0.5) and half.quantity == "latency"
    assert pf.budget.latency(table, ms=1e9).keep == 1.0
    with raises(pf.BudgetError, "milliseconds must be above 0"):
        pf.budget.latency(table, ms=-1.0)
    with raises(pf.BudgetError, "budget.latency(table, ms=8)"):
        pf.budget.latency(table)
    with raises(pf.PruneError, "'tensorrt'", "'onnx'", "'openvino'", "'compiled'"):
        pf.latency_table(params, runtime="tensorrt", **options)


def test_a_runtime_that_is_not_installed_or_not_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, params = traced("plain")
    for module, runtime, extra in (("openvino", "openvino", "openvino"), ("onnxruntime", "onnx", "export")):
        monkeypatch.setitem(sys.modules, module, None)
        with raises(ModuleNotFoundError, f'runtime={runtime!r} needs {module}: pip install "prunefn[{extra}]"'):
            pf.latency_table(params, spec=spec, runtime=runtime)
        with raises(ModuleNotFoundError, f'pip install "prunefn[{extra}]"'):
            pf.profile({"dense": (params, spec)}, runtime=runtime)
        with raises(pf.PruneError, f"runtime={runtime!r} measures on the CPU", "'cuda'"):
            check_runtime(runtime, torch.device("cuda"))
    check_runtime("compiled", torch.device("cuda"))


def test_parts_of_a_program_are_those_of_its_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    spec, params = traced("attention")
    parts, numbers = program_parts(spec)
    marked = write_marked(params, spec, tmp_path / "network.onnx")
    assert sorted(p.weight for p in parts) == sorted(p.weight for p in marked.parts)
    assert set(numbers) == {i.name for i in spec.program.instructions}
    last = spec.program.instructions[-1].name
    assert [parts[numbers[last]].weight] == [marked.parts[n].weight for n in marked.outputs.values()] == ["down.weight"]


def test_kernels_fill_up_multiples_of_four() -> None:
    grid, even = Grid(((1, 64),), (10.0, 73.0)), Grid(((16, 64),), (16.0, 64.0))
    op = Op("", "", "", (Leaf("a"),), grid, even)
    assert [op.at((n,), (64,), 16, 4) for n in (36, 48, 35, 64)] == pytest.approx([48.0, 48.0, 44.0, 64.0])
    assert op.at((36,), (64,), 16) == 45.0  # without filling up, it is no multiple
