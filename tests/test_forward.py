"""`forward` and `forward_train`: the module's function, under every transform of torch."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jvp, vmap

import prunefn as pf

from .small import Attention, Recurrent, Residual, Tied, Traced, Twice, bits, close, cnn, mlp, randn, same, traced

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:There is a performance drop because we have not yet implemented the batching rule"
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),
]

CASES = {
    "mlp": (lambda: mlp(3, 5, 4, 2), (3,)),
    "cnn": (cnn, (3, 6, 6)),
    "attention": (lambda: Attention(8, 2, 3), (5, 8)),
    "residual": (lambda: Residual(3, 5, 6, 2), (3,)),
    "twice": (Twice, (4,)),
    "recurrent": (Recurrent, (4,)),
}
each = pytest.mark.parametrize("name", CASES)


@lru_cache
def case(name: str) -> tuple[Traced, Tensor]:
    make, shape = CASES[name]
    x = randn(4, *shape)
    return traced(make(), x), x


def pruned(name: str) -> tuple[pf.Params, pf.Spec, Tensor]:
    """A third of every group gone."""
    t, x = case(name)
    mask = {g.name: torch.arange(g.size) % 3 != 1 for g in t.spec.groups.values()}
    assert any(bool((~m).any()) for m in mask.values())
    return pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask), x


def split(params: pf.Params, spec: pf.Spec) -> tuple[pf.Params, pf.Params]:
    """Parameters and buffers."""
    return {n: v for n, v in params.items() if n in spec.parameters}, {
        n: v for n, v in params.items() if n not in spec.parameters
    }


# ---- the same function


@each
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_forward_is_the_module_at_any_batch_size(name: str, batch: int) -> None:
    t, _ = case(name)
    x = randn(batch, *CASES[name][1], seed=batch)
    assert torch.equal(pf.forward(t.params, x, spec=t.spec), t.model(x))


def test_a_spec_traced_with_a_batch_of_one_serves_all() -> None:
    t = traced(mlp(3, 5, 2), randn(1, 3))
    for n in (1, 2, 5):
        x = randn(n, 3)
        assert torch.equal(pf.forward(t.params, x, spec=t.spec), t.model(x))


@each
def test_forward_writes_nothing_and_draws_nothing(name: str) -> None:
    params, spec, x = pruned(name)
    versions, state = [v._version for v in (x, *params.values())], torch.get_rng_state()
    assert torch.equal(pf.forward(params, x, spec=spec), pf.forward(params, x, spec=spec))
    assert versions == [v._version for v in (x, *params.values())]
    assert torch.equal(state, torch.get_rng_state())


def test_extra_params_do_no_harm_and_the_order_does_not_matter() -> None:
    t, x = case("mlp")
    shuffled = {"unused": torch.zeros(3), **dict(reversed(t.params.items()))}
    assert torch.equal(pf.forward(shuffled, x, spec=t.spec), t.model(x))


def test_more_specs_than_the_cache_holds() -> None:
    t, x = case("mlp")
    for seed in range(70):
        g = torch.Generator().manual_seed(seed)
        mask = {name: torch.rand(n, generator=g) < 0.7 for name, n in t.spec.sizes.items()}
        mask = {name: m if bool(m.any()) else ~m for name, m in mask.items()}
        small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
        close(pf.forward(small, x, spec=spec), pf.forward(pf.zero(t.params, mask, spec=t.spec), x, spec=t.spec))


def test_params_of_another_dtype() -> None:
    t, x = case("cnn")
    half = {n: v.bfloat16() if v.is_floating_point() else v for n, v in t.params.items()}
    y = pf.forward(half, x.bfloat16(), spec=t.spec)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, copy.deepcopy(t.model).bfloat16()(x.bfloat16()))


# ---- inputs and outputs of every form

Pair = namedtuple("Pair", "first second")


class Forms(nn.Module):
    """Nested inputs, keywords, an option; a dict with a namedtuple and a constant comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, xs: Any, *, scale: Any, shift: Any = None, loud: bool = False) -> Any:
        h = F.relu(self.a(xs["left"][0]) - self.b(xs["right"]))
        y = self.c(h * scale)
        return {"out": Pair(y, y if shift is None else y + shift), "loud": loud}


def forms() -> tuple[Traced, dict[str, Any], dict[str, Any]]:
    xs = {"left": [randn(4, 3)], "right": randn(4, 2, seed=1)}
    kwargs = {"scale": randn(4, 1, seed=2), "shift": randn(4, 1, seed=3)}
    model = Forms().double().eval()
    return Traced(model, pf.trace(model, (xs,), kwargs), pf.params(model)), xs, kwargs


def test_nested_inputs_keywords_and_outputs() -> None:
    t, xs, kwargs = forms()
    expected = t.model(xs, **kwargs)
    y = pf.forward(t.params, xs, spec=t.spec, **kwargs)
    assert list(y) == ["out", "loud"]
    assert isinstance(y["out"], Pair)
    assert torch.equal(y["out"].first, expected["out"].first)
    assert torch.equal(y["out"].second, expected["out"].second)
    assert y["loud"] is False


def test_keywords_in_any_order() -> None:
    t, xs, kwargs = forms()
    a, b = (pf.forward(t.params, xs, spec=t.spec, **k)["out"].second for k in (kwargs, dict(reversed(kwargs.items()))))
    assert torch.equal(a, b)


class ThreeInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, plus: Tensor, times: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x) + plus)) * times


def test_positional_inputs_by_keyword() -> None:
    x, plus, times = randn(4, 3), randn(4, 4, seed=1), randn(4, 3, seed=2)
    t = traced(ThreeInputs(), x, plus, times)
    expected = t.model(x, plus, times)
    for args, kwargs in (
        ((x, plus, times), {}),
        ((x, plus), {"times": times}),
        ((x,), {"times": times, "plus": plus}),
        ((), {"times": times, "x": x, "plus": plus}),
    ):
        assert torch.equal(pf.forward(t.params, *args, spec=t.spec, **kwargs), expected)


@pytest.mark.parametrize(
    ("inputs", "kwargs", "message"),
    [
        ((), {}, r"the model has 1 tensor inputs \(input\), but 0 were given"),
        (((4, 3), (4, 3)), {}, r"the model has 1 tensor inputs \(input\), but 2 were given"),
        (((4, 2),), {}, r"input 'input' has shape \(4, 2\); the spec was traced with \(batch, 3\)"),
        (((3,),), {}, r"input 'input' has shape \(3,\); the spec was traced with \(batch, 3\)"),
        ((), {"inptu": (4, 3)}, "the model has no input 'inptu'; did you mean 'input'"),
    ],
)
def test_inputs_that_do_not_fit(inputs: tuple, kwargs: dict, message: str) -> None:
    t, _ = case("mlp")
    with pytest.raises(pf.BatchError, match=message):
        pf.forward(t.params, *(randn(*s) for s in inputs), spec=t.spec, **{k: randn(*s) for k, s in kwargs.items()})


# ---- transforms


@each
def test_gradients_are_the_modules(name: str) -> None:
    t, x = case(name)
    parameters, buffers = split(t.params, t.spec)
    g = grad(lambda p: pf.forward({**p, **buffers}, x, spec=t.spec).square().sum())(parameters)
    model = copy.deepcopy(t.model)
    model(x).square().sum().backward()
    for n, p in model.named_parameters():
        close(g[n], p.grad, 1e-10)


@each
def test_per_sample_gradients_of_pruned_params(name: str) -> None:
    params, spec, x = pruned(name)
    parameters, buffers = split(params, spec)

    def loss(p: pf.Params, sample: Tensor) -> Tensor:
        return pf.forward({**p, **buffers}, sample[None], spec=spec).square().sum()

    each_sample = vmap(grad(loss), (None, 0))(parameters, x)
    for i in range(len(x)):
        for n, g in grad(loss)(parameters, x[i]).items():
            close(each_sample[n][i], g, 1e-10)
    whole, value = grad_and_value(lambda p: pf.forward({**p, **buffers}, x, spec=spec).square().sum())(parameters)
    close(value, sum(loss(parameters, s) for s in x), 1e-10)
    for n, g in whole.items():
        close(each_sample[n].sum(0), g, 1e-10)


def test_vmap_over_an_ensemble() -> None:
    t, x = case("mlp")
    ensemble = [{n: v + k for n, v in t.params.items()} for k in range(3)]
    stacked = {n: torch.stack([p[n] for p in ensemble]) for n in t.params}
    y = vmap(lambda p: pf.forward(p, x, spec=t.spec))(stacked)
    for i, p in enumerate(ensemble):
        close(y[i], pf.forward(p, x, spec=t.spec))


def test_forward_mode() -> None:
    t, x = case("mlp")
    tangent = {n: randn(*v.shape) for n, v in t.params.items()}
    _, d = jvp(lambda p: pf.forward(p, x, spec=t.spec), (t.params,), (tangent,))
    h = 1e-6
    up, down = (pf.forward({n: v + s * h * tangent[n] for n, v in t.params.items()}, x, spec=t.spec) for s in (1, -1))
    close(d, (up - down) / (2 * h), 1e-7)


def test_ordinary_autograd_reaches_params_and_inputs() -> None:
    t, x = case("mlp")
    leaves = {n: v.clone().requires_grad_() for n, v in t.params.items()}
    inputs = x.clone().requires_grad_()
    pf.forward(leaves, inputs, spec=t.spec).sum().backward()
    assert all(v.grad is not None for v in (*leaves.values(), inputs))


# ---- torch.compile


@pytest.fixture
def compile_plainly() -> Iterator[None]:
    """Dynamo cannot look through the type checks that the tests put around prunefn's functions."""
    torch._dynamo.reset()
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def counted(function: Any) -> tuple[Any, list]:
    """The compiled function, and the graphs that were made for it."""
    graphs: list = []

    def backend(gm: torch.fx.GraphModule, _: list) -> Any:
        graphs.append(gm)
        return gm.forward

    return torch.compile(function, fullgraph=True, backend=backend), graphs


@pytest.mark.usefixtures("compile_plainly")
@each
def test_compiled_in_one_graph(name: str) -> None:
    params, spec, x = pruned(name)
    run, graphs = counted(lambda p, x: pf.forward(p, x, spec=spec))
    assert torch.equal(run(params, x), pf.forward(params, x, spec=spec))
    run({n: v + 1 if v.is_floating_point() else v for n, v in params.items()}, x)
    assert len(graphs) == 1


@pytest.mark.usefixtures("compile_plainly")
def test_compiled_for_every_spec_and_any_batch() -> None:
    t, x = case("mlp")
    run, graphs = counted(lambda p, x, s: pf.forward(p, x, spec=s))
    mask = {"0": bits("11011")}
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    for _ in range(3):
        assert torch.equal(run(t.params, x, t.spec), pf.forward(t.params, x, spec=t.spec))
        assert torch.equal(run(small, x, spec), pf.forward(small, x, spec=spec))
    assert len(graphs) == 2
    for n in (2, 3, 5, 6):
        assert torch.equal(run(small, randn(n, 3), spec), pf.forward(small, randn(n, 3), spec=spec))
    assert len(graphs) == 3


@pytest.mark.usefixtures("compile_plainly")
def test_two_specs_of_the_same_sizes_are_told_apart() -> None:
    """The same shapes, another function: the guard is on the spec."""
    x = randn(4, 3)
    model = mlp(3, 5, 3)
    other = nn.Sequential(model[0], nn.Tanh(), model[2])
    t, u = traced(model, x), traced(other, x)
    run, graphs = counted(lambda p, x, s: pf.forward(p, x, spec=s))
    assert torch.equal(run(t.params, x, t.spec), t.model(x))
    assert torch.equal(run(t.params, x, u.spec), u.model(x))
    assert len(graphs) == 2


@pytest.mark.usefixtures("compile_plainly")
def test_compiled_gradients() -> None:
    params, spec, x = pruned("cnn")
    parameters, buffers = split(params, spec)

    def gradient(p: pf.Params, x: Tensor) -> pf.Params:
        return grad(lambda q: pf.forward({**q, **buffers}, x, spec=spec).square().sum())(p)

    run, graphs = counted(gradient)
    for n, g in run(parameters, x).items():
        close(g, gradient(parameters, x)[n], 1e-10)
    assert len(graphs) == 1


@pytest.mark.usefixtures("compile_plainly")
def test_compiled_with_keywords_constants_and_nested_outputs() -> None:
    t, xs, kwargs = forms()
    run, graphs = counted(lambda p, xs, k: pf.forward(p, xs, spec=t.spec, **k)["out"].second)
    assert torch.equal(run(t.params, xs, kwargs), t.model(xs, **kwargs)["out"].second)
    assert len(graphs) == 1


@pytest.mark.usefixtures("compile_plainly")
def test_compiled_training_step() -> None:
    t, x = train_case()
    run, graphs = counted(lambda p, x: pf.forward_train(p, x, spec=t.spec))
    (y, new), (expected, buffers) = run(t.params, x), pf.forward_train(t.params, x, spec=t.spec)
    assert torch.equal(y, expected)
    same(new, buffers)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("compile_plainly")
@each
def test_compiled_by_inductor(name: str) -> None:
    params, spec, x = pruned(name)
    run = torch.compile(lambda p, x: pf.forward(p, x, spec=spec), fullgraph=True)
    close(run(params, x), pf.forward(params, x, spec=spec), 1e-9)


# ---- train mode


def train_case() -> tuple[Traced, Tensor]:
    x = randn(5, 3, 6, 6)
    return traced(copy.deepcopy(cnn()), x, train=True), x


def test_training_updates_the_buffers_as_the_module_does() -> None:
    t, x = train_case()
    model, params = copy.deepcopy(t.model), dict(t.params)
    for step in range(3):
        batch = x * (step + 1)
        before = {n: (v, v._version, v.clone()) for n, v in params.items()}
        y, new = pf.forward_train(params, batch, spec=t.spec)
        assert torch.equal(y, model(batch))
        same(new, pf.params(model))
        for n, (v, version, copied) in before.items():
            assert v._version == version
            assert torch.equal(v, copied)
            assert (new[n] is v) == (n in t.spec.parameters)
        params = new
    assert int(params["1.num_batches_tracked"]) == 3


def test_training_pruned_params_updates_pruned_buffers() -> None:
    t, x = train_case()
    mask = {g.name: torch.arange(g.size) % 2 == 0 for g in t.spec.groups.values()}
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    _, new = pf.forward_train(small, x, spec=spec)
    _, dense = pf.forward_train(t.params, x, spec=t.spec)
    assert {n: v.shape for n, v in new.items()} == {n: v.shape for n, v in small.items()}
    first = pf.apply(dense, mask, spec=t.spec)  # the first norm sees the same, whatever goes behind it
    close(new["1.running_mean"], first["1.running_mean"])
    close(new["1.running_var"], first["1.running_var"])


def test_a_step_of_training_with_torch_func() -> None:
    t, x = train_case()
    parameters, buffers = split(t.params, t.spec)

    def loss(p: pf.Params) -> tuple[Tensor, pf.Params]:
        y, new = pf.forward_train({**p, **buffers}, x, spec=t.spec)
        return y.square().mean(), split(new, t.spec)[1]

    g, (value, new) = grad_and_value(loss, has_aux=True)(parameters)
    model = copy.deepcopy(t.model)
    expected = model(x).square().mean()
    expected.backward()
    close(value, expected, 1e-10)
    for n, p in model.named_parameters():
        close(g[n], p.grad, 1e-10)
    same(new, split(pf.params(model), t.spec)[1])


class Dropped(nn.Module):
    """Dropout between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.drop(F.relu(self.a(x))))


def test_dropout_draws_in_train_mode_only() -> None:
    x = randn(4, 3)
    t, u = traced(Dropped(), x, train=True), traced(Dropped(), x)
    torch.manual_seed(1)
    first, _ = pf.forward_train(t.params, x, spec=t.spec)
    assert not torch.equal(first, pf.forward_train(t.params, x, spec=t.spec)[0])
    torch.manual_seed(1)
    assert torch.equal(first, pf.forward_train(t.params, x, spec=t.spec)[0])
    assert torch.equal(pf.forward(u.params, x, spec=u.spec), pf.forward(u.params, x, spec=u.spec))


def test_without_buffers_training_returns_the_same_params() -> None:
    x = randn(4, 3)
    t = traced(mlp(3, 5, 2), x, train=True)
    y, new = pf.forward_train(t.params, x, spec=t.spec)
    assert torch.equal(y, functional_call(t.model, t.params, (x,)))
    assert all(new[n] is v for n, v in t.params.items())


def test_training_needs_a_spec_of_train_mode() -> None:
    t, x = case("mlp")
    with pytest.raises(
        pf.ParamsError, match=r"traced in eval mode; forward_train needs trace\(model, args, train=True\)"
    ):
        pf.forward_train(t.params, x, spec=t.spec)


# ---- tied tensors


def test_tied_tensors_take_the_gradients_of_both_uses() -> None:
    model = Tied().double().eval()
    x = torch.arange(6).reshape(2, 3)
    spec, params = pf.trace(model, (x,)), pf.params(model)
    assert torch.equal(pf.forward(params, x, spec=spec), model(x))
    model(x).square().sum().backward()
    leaf = params["embed.weight"].clone().requires_grad_()
    pf.forward({**params, "embed.weight": leaf, "out.weight": leaf}, x, spec=spec).square().sum().backward()
    close(leaf.grad, model.embed.weight.grad, 1e-10)


def test_an_ordered_dict_will_do() -> None:
    t, x = case("mlp")
    assert torch.equal(pf.forward(OrderedDict(t.params), x, spec=t.spec), t.model(x))


class OwnStatistics(nn.Module):
    """A norm that takes the input's statistics in eval mode, too, and keeps running ones."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm, self.a, self.b = norm, nn.Conv1d(3, 4, 1), nn.Conv1d(4, 2, 1)
        self.register_buffer("mean", torch.rand(4))
        self.register_buffer("var", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x), self.mean, self.var, None, None, True, 0.3).relu())


@pytest.mark.parametrize("norm", [F.instance_norm, F.batch_norm])
def test_running_statistics_are_returned_and_not_written_to(norm: Any) -> None:
    """The schemas of these norms do not say that torch writes to them."""
    model, x = OwnStatistics(norm).double(), torch.randn(3, 3, 5, dtype=torch.float64)
    before = {n: t.clone() for n, t in pf.params(model).items()}
    spec, trained = (pf.trace(model, (x[:2],), train=train) for train in (False, True))
    params = pf.params(model)
    keep = {"a": torch.tensor([True, False, True, True])}
    small, shrunk = pf.apply(params, keep, spec=trained), pf.shrink(trained, keep)
    _, smaller = pf.forward_train(small, x, spec=shrunk)
    y, (z, new) = pf.forward(params, x, spec=spec), pf.forward_train(params, x, spec=trained)
    assert all(torch.equal(t, before[n]) for n, t in params.items())
    expected = model(x)  # this writes
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(z, expected)
    for n in ("mean", "var"):
        written = getattr(model, n)
        assert not torch.equal(written, before[n])
        torch.testing.assert_close(new[n], written)
        torch.testing.assert_close(smaller[n], written[keep["a"]])
