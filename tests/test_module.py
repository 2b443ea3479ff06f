"""`to_module`: the same outputs under the original names; it trains, copies, pickles, exports and compiles."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunefn as pf

from .small import Attention, Recurrent, Residual, Tied, Traced, bits, close, cnn, mlp, randn, same, traced

CASES = {
    "mlp": (lambda: mlp(3, 5, 4, 2), (3,)),
    "cnn": (cnn, (3, 6, 6)),
    "attention": (lambda: Attention(8, 2, 3), (5, 8)),
    "residual": (lambda: Residual(3, 5, 6, 2), (3,)),
    "recurrent": (Recurrent, (4,)),
}
each = pytest.mark.parametrize("name", CASES)


def dense(name: str) -> tuple[Traced, nn.Module, Tensor]:
    make, shape = CASES[name]
    x = randn(4, *shape)
    t = traced(make(), x)
    return t, pf.to_module(t.params, spec=t.spec), x


def small(name: str) -> tuple[pf.Params, pf.Spec, nn.Module, Tensor]:
    make, shape = CASES[name]
    x = randn(4, *shape)
    t = traced(make(), x)
    mask = {g.name: torch.arange(g.size) % 3 != 1 for g in t.spec.groups.values()}
    params, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    return params, spec, pf.to_module(params, spec=spec), x


# ---- the same function, the same names


@each
def test_same_outputs_at_any_batch_size(name: str) -> None:
    t, module, x = dense(name)
    params, spec, pruned, _ = small(name)
    for batch in (x, x[:1], torch.cat([x, x])):
        assert torch.equal(module(batch), t.model(batch))
        assert torch.equal(pruned(batch), pf.forward(params, batch, spec=spec))


@each
def test_original_names_shapes_and_kinds(name: str) -> None:
    t, module, _ = dense(name)
    for m in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        same(dict(sorted(m.state_dict().items())), dict(sorted(t.model.state_dict().items())))
        assert [n for n, _ in m.named_parameters()] == [n for n, _ in t.model.named_parameters()]
        assert [n for n, _ in m.named_buffers()] == [n for n, _ in t.model.named_buffers()]
    assert all(p.requires_grad for p in module.parameters())
    params, _, pruned, _ = small(name)
    assert {n: v.shape for n, v in pruned.state_dict().items()} == {n: v.shape for n, v in params.items()}


@each
def test_state_dicts_load_both_ways(name: str) -> None:
    t, module, x = dense(name)
    other = copy.deepcopy(t.model)
    for p in other.parameters():
        p.detach().add_(0.1)
    assert not torch.equal(module(x), other(x))
    module.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(module(x), other(x))
    t.model.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(t.model(x), other(x))


@each
def test_its_params_are_params_of_the_spec(name: str) -> None:
    params, spec, module, x = small(name)
    same({n: pf.params(module)[n] for n in params}, params)
    assert torch.equal(pf.forward(pf.params(module), x, spec=spec), module(x).detach())


# ---- a module like any other


@each
def test_training_it_does_not_change_the_params(name: str) -> None:
    params, _, module, x = small(name)
    before = {n: v.clone() for n, v in params.items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    first = module(x).square().mean()
    first.backward()
    assert all(p.grad is not None for p in module.parameters())
    optimizer.step()
    assert bool(module(x).square().mean() < first)
    same(params, before)


@each
def test_copies_and_pickles(name: str) -> None:
    _, _, module, x = small(name)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), module(x))
        next(twin.parameters()).detach().add_(1)
        assert not torch.equal(twin(x), module(x))


@each
def test_export_of_it(name: str) -> None:
    _, _, module, x = small(name)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    for batch in (x, x[:2]):
        assert torch.equal(program.module()(batch), module(batch))
    assert set(program.state_dict) <= set(module.state_dict())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::torch.jit.TracerWarning")
@each
def test_jit_trace_of_it(name: str) -> None:
    _, _, module, x = small(name)
    script = torch.jit.trace(module, (x,))
    assert torch.equal(script(2 * x), module(2 * x))


@each
def test_compile_of_it(name: str) -> None:
    _, _, module, x = small(name)
    run = torch.compile(module, fullgraph=True, backend="eager")
    assert torch.equal(run(x), module(x))


@each
def test_trace_of_it_finds_the_same_groups(name: str) -> None:
    t, module, x = dense(name)
    again = pf.trace(module, (x,))
    assert [(g.kind, g.size, g.members) for g in again.groups.values()] == [
        (g.kind, g.size, g.members) for g in t.spec.groups.values()
    ]
    assert pf.cost(again) == pf.cost(t.spec)
    _, spec, module, x = small(name)
    assert pf.cost(pf.trace(module, (x,))) == pf.cost(spec)


def test_it_moves_to_another_dtype() -> None:
    _, _, module, x = small("cnn")
    assert module.float()(x.float()).dtype == torch.float32


def test_the_mode_is_the_traced_one() -> None:
    t, module, x = dense("cnn")
    buffers = {n: v.clone() for n, v in module.named_buffers()}
    assert torch.equal(module.train()(x), t.model(x))
    assert torch.equal(module.eval()(x), t.model(x))
    same(dict(module.named_buffers()), buffers)


def test_in_train_mode_it_updates_its_buffers() -> None:
    x = randn(5, 3, 6, 6)
    t = traced(cnn(), x, train=True)
    module, model = pf.to_module(t.params, spec=t.spec), copy.deepcopy(t.model)
    for step in range(2):
        assert torch.equal(module(x + step), model(x + step))
        same(dict(module.named_buffers()), dict(model.named_buffers()))
    assert int(module.get_buffer("1.num_batches_tracked")) == 2
    assert int(t.params["1.num_batches_tracked"]) == 0
    module(x).square().sum().backward()
    model(x).square().sum().backward()
    gradients = dict(model.named_parameters())
    for n, p in module.named_parameters():
        close(p.grad, gradients[n].grad)


# ---- tied tensors, unused tensors, constants


@pytest.mark.parametrize("source", ["params", "state_dict"])
def test_tied_parameters_stay_tied(source: str) -> None:
    model = Tied().double().eval()
    x = torch.arange(6).reshape(2, 3)
    spec = pf.trace(model, (x,))
    params = pf.params(model) if source == "params" else dict(model.state_dict())
    (group,) = spec.groups
    mask = {group: bits("110101")}
    for p, s in ((params, spec), (pf.apply(params, mask, spec=spec), pf.shrink(spec, mask))):
        module = pf.to_module(p, spec=s)
        assert module.get_parameter("out.weight") is module.get_parameter("embed.weight")
        assert len(list(module.parameters())) == 3
        assert set(module.state_dict()) == set(p)
        assert torch.equal(module(x), pf.forward(p, x, spec=s))
        twin = copy.deepcopy(module)
        assert twin.get_parameter("out.weight") is twin.get_parameter("embed.weight")


class Spare(nn.Module):
    """A layer and a buffer that forward does not use, a buffer that is in no state dict, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.spare, self.b = nn.Linear(3, 4), nn.Linear(5, 6), nn.Linear(4, 2)
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("table", torch.randn(4), persistent=False)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x) + self.table) * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)) * self.frozen


def test_unused_tensors_are_kept_and_constants_are_not_in_the_state_dict() -> None:
    x = randn(5, 3)
    t = traced(Spare(), x)
    module = pf.to_module(t.params, spec=t.spec)
    assert set(module.state_dict()) == set(t.model.state_dict())
    assert torch.equal(module(x), t.model(x))
    mask = {"a": bits("1011")}
    small, spec = pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)
    pruned = pf.to_module(small, spec=spec)
    close(pruned(x), pf.forward(pf.zero(t.params, mask, spec=t.spec), x, spec=t.spec))
    t.model.load_state_dict(module.state_dict(), strict=True)
    module.load_state_dict(t.model.state_dict(), strict=True)


# ---- signatures


class Forms(nn.Module):
    """A list and keywords in; a dict with a tuple out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, xs: list[Tensor], *, scale: Tensor, shift: Tensor) -> dict[str, Any]:
        h = F.relu(self.a(xs[0]) - self.b(xs[1])) * scale
        return {"out": self.c(h), "pair": (h.sum(-1), self.c(h) + shift)}


def test_dict_outputs_and_keyword_inputs() -> None:
    xs, kwargs = [randn(4, 3), randn(4, 3, seed=1)], {"scale": randn(4, 1, seed=2), "shift": randn(4, 1, seed=3)}
    model = Forms().double().eval()
    spec, params = pf.trace(model, (xs,), kwargs), pf.params(model)
    module, expected = pf.to_module(params, spec=spec), model(xs, **kwargs)
    for given in (kwargs, dict(reversed(kwargs.items()))):
        y = module(xs, **given)
        assert list(y) == ["out", "pair"]
        assert torch.equal(y["out"], expected["out"])
        assert all(torch.equal(a, b) for a, b in zip(y["pair"], expected["pair"], strict=True))


def test_params_that_do_not_fit() -> None:
    t, _, _ = dense("mlp")
    with pytest.raises(pf.ParamsError, match=r"'0.weight' has shape \(4, 3\), but the spec says \(5, 3\)"):
        pf.to_module(pf.apply(t.params, {"0": bits("11101")}, spec=t.spec), spec=t.spec)
