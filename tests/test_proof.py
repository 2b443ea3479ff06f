"""`trace` proves its program: where it does not stand for the module it is recorded, or refused at those sizes."""

from __future__ import annotations

import pickle
import random
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.frozen_dict import FrozenDict
from prunefn.spec.domain import Domain, Guard, Limit, refusal
from prunefn.spec.expressions import value, written
from prunefn.tracing.unchanged import Writes, unchanged


class Net(nn.Module):
    """Two linear layers; subclasses say what happens around them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Unbound(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.b(self.a(row).relu()) for row in x])


class Ranged(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        order = torch.stack([h[i].argsort() for i in range(len(h))])
        return self.b(h.gather(1, order))


class Chunked(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cat([self.a(part).relu() for part in x.split(1)]))


class Halves(Net):
    def forward(self, x: Tensor) -> Tensor:
        n = len(x) // 2
        return self.b(self.a(x[:n]).relu() * self.a(x[n : 2 * n]).relu())


class TimeFirst(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        state = h[0]
        for t in range(1, x.shape[0]):
            state = torch.tanh(state + h[t])
        return self.b(state)


class Divided(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() / sum(1 for _ in x))  # a number that Python counted


class Small(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h.relu() if x.shape[0] <= 4 else h.tanh())


class Even(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h.relu() if x.shape[0] % 2 == 0 else h.tanh())


class AloneElse(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h.tanh() if x.shape[0] == 1 else h.relu())


class Eager(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h.tanh() if torch.compiler.is_compiling() else h.relu())


class Nested(Net):
    """The fault is in a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inner, self.after = nn.Linear(3, 3), Eager(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.before(x)).relu())


class Counts(Net):
    """Writes another number to a buffer when it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(2 if torch.compiler.is_compiling() else 1)
        return super().forward(x)


class Edges(Net):
    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        h = self.a(x).relu()
        return self.b(torch.zeros_like(h).index_add(0, target, h[source]))


def traced(model: nn.Module, *inputs: Tensor, **options: Any) -> tuple[pf.Spec, pf.Params]:
    return pf.trace(model.eval(), inputs, **options), pf.params(model)


def limit(spec: pf.Spec) -> Limit:
    return spec.program.domain.limits["batch"]


@pytest.mark.parametrize("cls", [Unbound, Ranged, TimeFirst, Divided])
def test_an_unrolled_loop_holds_for_the_traced_size_only(cls: type[Net]) -> None:
    model, shape = cls(), (6, 2, 3) if cls is TimeFirst else (4, 3)
    spec, params = traced(model, torch.randn(shape))
    x = torch.randn(shape)
    assert torch.equal(pf.forward(params, x, spec=spec), model(x))
    assert (limit(spec).low, limit(spec).high) == (shape[0], shape[0])
    module = pf.to_module(params, spec=spec)
    assert torch.equal(module(x), model(x))
    for n in (1, 2, 5, 7):
        other = torch.randn(n, *shape[1:])
        with pytest.raises(pf.BatchError, match=rf"batch = {n}, but the program holds for {shape[0]} only"):
            pf.forward(params, other, spec=spec)
        with pytest.raises(pf.BatchError, match="holds for"):
            pf.collect_stats(params, [other], spec=spec)
        with pytest.raises(AssertionError, match=rf"batch must be {shape[0]} only"):
            module(other)
    assert f"batch is {shape[0]} only" in str(spec)
    assert pf.collect_stats(params, [x], spec=spec).samples == (
        2 if cls is TimeFirst else shape[0]
    )  # dim 0 of the output


@pytest.mark.parametrize("cls", [Chunked, Halves])
def test_a_size_that_is_cut_stays(cls: type[Net]) -> None:
    model = cls()
    spec, params = traced(model, torch.randn(4, 3))
    module, x = pf.to_module(params, spec=spec), torch.randn(4, 3)
    assert torch.equal(module(x), model(x))
    for n in (2, 5, 8):
        with pytest.raises(pf.BatchError, match=r"the spec was traced with \(4, 3\)|holds for 4 only"):
            pf.forward(params, torch.randn(n, 3), spec=spec)
        with pytest.raises(AssertionError, match=r"must be 4"):
            module(torch.randn(n, 3))


def test_the_line_of_the_loop_is_named() -> None:
    spec, _ = traced(Unbound(), torch.randn(4, 3))
    assert "aten.unbind.int at" in limit(spec).reason
    assert "test_proof.py:" in limit(spec).reason
    assert "at batch = 3" in limit(spec).reason


def test_pruned_specs_keep_the_limits() -> None:
    model = Unbound()
    spec, params = traced(model, torch.randn(4, 3))
    mask = pf.mask(spec, {"a": [0, 1]})
    small, spec = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    with pytest.raises(pf.BatchError, match="holds for 4 only"):
        pf.forward(small, torch.randn(3, 3), spec=spec)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec.to_dict()["limits"]["batch"]["high"] == 4
    whole = pf.to_module(small, spec=spec, model=model)  # the class itself takes any size
    assert whole(torch.randn(7, 3)).shape == (7, 2)


@pytest.mark.parametrize(
    ("cls", "fine", "refused", "guard"),
    [(Small, (1, 2, 4), (5, 9), "batch <= 4"), (Even, (2, 4, 10), (1, 3, 5), "batch % 2 == 0")],
)
def test_a_branch_on_a_size_is_a_guard(
    cls: type[Net], fine: tuple[int, ...], refused: tuple[int, ...], guard: str
) -> None:
    model = cls()
    spec, params = traced(model, torch.randn(4, 3))
    module = pf.to_module(params, spec=spec)
    for n in fine:
        x = torch.randn(n, 3)
        assert torch.equal(pf.forward(params, x, spec=spec), model(x))
        assert torch.equal(module(x), model(x))
    for n in refused:
        with pytest.raises(
            pf.BatchError, match=rf"batch = {n}, but the program holds where {guard} \(.*test_proof.py:\d+\)"
        ):
            pf.forward(params, torch.randn(n, 3), spec=spec)
        with pytest.raises(AssertionError, match=guard):
            module(torch.randn(n, 3))
    assert f"holds where {guard}" in str(spec)
    assert spec.to_dict()["guards"][0].startswith(guard)
    args, _ = spec.example.draw(batch=3)
    assert args[0].shape[0] in (3, 4)  # the nearest size that the program takes
    pf.forward(params, *args, spec=spec)


def test_a_size_of_one_may_be_another_program() -> None:
    model = AloneElse()
    spec, params = traced(model, torch.randn(4, 3))
    assert (limit(spec).low, limit(spec).high) == (2, None)
    with pytest.raises(pf.BatchError, match="batch = 1, but the program holds for 2 or more"):
        pf.forward(params, torch.randn(1, 3), spec=spec)
    x = torch.randn(9, 3)
    assert torch.equal(pf.forward(params, x, spec=spec), model(x))


def test_most_models_have_no_limits() -> None:
    spec, params = traced(Net(), torch.randn(1, 3))
    assert spec.program.domain == Domain(
        FrozenDict({"batch": 2}),
        batch=frozenset({"batch"}),
        fixed=FrozenDict({"x dim 1": "3: a matrix product needs this size"}),
    )
    assert [pf.forward(params, torch.randn(n, 3), spec=spec).shape[0] for n in (1, 2, 5)] == [1, 2, 5]


@pytest.mark.parametrize("cls", [Eager, Counts, Nested])
def test_a_program_that_differs_at_the_traced_size_is_recorded(cls: type[Net]) -> None:
    model = cls()
    spec, _ = traced(model, torch.randn(4, 3))
    assert spec.capture == "recorded"
    assert "the program captured by torch.export differs from the module" in spec.capture_reason
    if cls is Nested:
        assert "from 'inner.b' on (" in spec.capture_reason
        assert "test_proof.py" in spec.capture_reason
    assert traced(model, torch.randn(4, 3), check=False)[0].capture == "exported"
    if cls is Counts:
        assert float(model.seen) == 0


def test_two_inputs_of_one_size() -> None:
    class Two(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.b(self.a(x).relu() * self.a(y).sigmoid())

    spec, params = traced(Two(), torch.randn(4, 3), torch.randn(4, 3))
    with pytest.raises(pf.BatchError, match="input 'y' has batch = 1, but the inputs before it have batch = 4"):
        pf.forward(params, torch.randn(4, 3), torch.randn(1, 3), spec=spec)  # it would be broadcast


def test_a_dim_that_is_no_batch_stays() -> None:
    model = Edges()
    spec, params = traced(model, torch.randn(5, 3), torch.randint(0, 5, (2, 9)))
    x, edges = torch.randn(8, 3), torch.randint(0, 8, (2, 4))
    assert torch.equal(pf.forward(params, x, edges, spec=spec), model(x, edges))
    assert dict(spec.input_sizes) == {"nodes": 5, "edges": 9}
    with pytest.raises(pf.BatchError, match=r"has shape \(3, 9\); the spec was traced with \(2, edges\)"):
        pf.forward(params, x, torch.randint(0, 8, (3, 9)), spec=spec)
    asked = {"edges": ("pair", None)}
    spec = pf.trace(model, (torch.randn(5, 3), torch.randint(0, 5, (2, 9))), dynamic=asked)
    assert "the module itself was not seen to run at another size" in spec.program.domain.limits["pair"].reason
    with pytest.raises(pf.BatchError, match="pair = 3"):
        pf.forward(params, x, torch.randint(0, 8, (3, 9)), spec=spec)


def test_nothing_is_run_on_meta() -> None:
    with torch.device("meta"):
        model = Net()
    assert pf.trace(model, (torch.randn(2, 3),)).capture == "exported"


def test_a_module_that_does_not_run() -> None:
    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                raise RuntimeError("only on Tuesdays")
            return super().forward(x)

    with pytest.raises(
        pf.TraceError, match="does not run on the example inputs: RuntimeError: only on Tuesdays; check=False"
    ):
        traced(Broken(), torch.randn(2, 3))
    assert traced(Broken(), torch.randn(2, 3), check=False)[0].capture == "exported"


def test_train_mode_compares_buffers_and_takes_dropout() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    before = {n: b.clone() for n, b in model.named_buffers()}
    spec = pf.trace(model, (torch.randn(6, 3),), train=True)
    assert spec.capture == "exported"
    assert not spec.program.domain.limits
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


# ---- what trace leaves behind


class Untidy(Net):
    """Leaves traces in everything that it can reach."""

    def __init__(self, how: str = "export") -> None:
        super().__init__()
        self.how = how
        self.kept: list[Any] = []
        self.seen, self.last = {0}, deque([1], maxlen=3)
        self.table: dict[str, Any] = {"inner": [1, (2, [])]}
        self.config = SimpleNamespace(calls=0, names=["a"])
        self.generators = [torch.Generator(), random.Random(0), np.random.default_rng(0), np.random.RandomState(0)]
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        self.kept.append(h)
        self.seen.add(len(self.kept))
        self.last.append(len(self.kept))
        self.table["inner"][1][1].append(h)
        self.table["more"] = h
        self.config.calls += 1
        self.config.names.append("b")
        self.mean = self.mean + 1
        t, p, n, r = self.generators
        torch.rand(1, generator=t), p.random(), n.random(), r.rand()
        if self.how == "record" and float(h.sum()) > 1e9:  # data decides
            return h
        if self.how == "write":
            self.a.weight.data = self.a.weight.data + 1
            with torch.no_grad():
                self.b.weight.mul_(2)
                self.b.bias[:1].add_(float(h.sum() * 0 + 1))
        if self.how in ("raise", "interrupt"):
            raise KeyboardInterrupt if self.how == "interrupt" else RuntimeError("no")
        return self.b(h)

    def state(self) -> Any:
        t, p, n, r = self.generators
        states = (t.get_state().tolist(), p.getstate(), n.bit_generator.state, [str(x) for x in r.get_state()])
        plain = [self.kept, self.seen, self.last, self.table, vars(self.config), states]
        return repr(plain), {k: v.tolist() for k, v in self.state_dict().items()}


@pytest.mark.parametrize("how", ["export", "record", "write", "raise", "interrupt"])
def test_trace_leaves_the_model_as_it_was(how: str) -> None:
    model = Untidy(how).eval()
    before, lists = model.state(), (model.kept, model.table["inner"], model.config.names)
    memory = model.a.weight.data_ptr()
    torch.manual_seed(1)
    torch.rand(3)
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist()
    try:
        pf.trace(model, (torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),))
    except (pf.TraceError, KeyboardInterrupt):
        assert how in ("raise", "interrupt")
    assert model.state() == before
    assert all(a is b for a, b in zip(lists, (model.kept, model.table["inner"], model.config.names), strict=True))
    assert model.a.weight.data_ptr() == memory
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (
        np.random.get_state()[1].tolist() == generators[1]
    )  # Python's own is drawn from by the type checker of the tests


def test_writes_undoes_views_and_shared_memory() -> None:
    model = nn.Linear(4, 4)
    model.register_buffer("rows", model.weight.detach()[2:])
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="later"), torch.no_grad(), Writes(model):
        model.rows.zero_()
        model.weight.t().add_(1)
        raise RuntimeError("later")
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: random.choice([1, 2, 3])])
def test_numbers_that_forward_draws_outside_of_torch_are_reported(draw: Any) -> None:
    class Draws(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(draw())

    with pytest.warns(UserWarning, match="Draws draws random numbers outside of torch: .* output 0 differs by"):
        pf.trace(Draws().eval(), (torch.randn(2, 3),))


def test_a_run_leaves_all_generators() -> None:
    model = Net()
    states = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
    with unchanged(model):
        random.random(), np.random.rand(), torch.rand(2)
        random.seed(3)
    assert (random.getstate(), np.random.get_state()[2]) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])


# ---- expressions


def test_guards_read_as_python_does() -> None:
    expr = ("==", ("//", ("*", 3, ("+", "n", 1)), ("max", 2, "m")), ("**", 2, 2))
    assert written(expr) == "(3 * (n + 1)) // max(2, m) == 2 ** 2"
    for n in range(6):
        for m in range(6):
            assert value(expr, {"n": n, "m": m}) == eval(written(expr), {"n": n, "m": m, "max": max})
    assert refusal({"n": 1}, [("n", Limit(2, None, "why"))], []) == "n = 1, but the program holds for 2 or more: why"
    assert not refusal({"n": 2}, [("n", Limit(2, None, ""))], [Guard(("or", ("==", "n", 2), ("==", "n", 4)))])
