"""Ops that torch defines by others: they are written out where they have no rule, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunefn as pf

OPS: dict[str, Callable[..., Tensor]] = {
    "log_sigmoid": lambda h, w: F.logsigmoid(h),
    "kron": lambda h, w: torch.kron(h, torch.ones(1, 1)),
    "tensordot": lambda h, w: torch.tensordot(h, w, dims=[[1], [0]]),
    "inner": lambda h, w: torch.inner(h, w.T),
    "multi_dot": lambda h, w: torch.linalg.multi_dot([h, w, w.T]),
    "chain_matmul": lambda h, w: torch.chain_matmul(h, w),
    "vstack": lambda h, w: torch.vstack([h, 2 * h])[: h.shape[0]],
    "hstack": lambda h, w: torch.hstack([h, 2 * h]),
    "column_stack": lambda h, w: torch.column_stack([h, h]),
    "isclose": lambda h, w: torch.where(torch.isclose(h, h + 1), h, 2 * h),
    "ndtr": lambda h, w: torch.special.ndtr(h),
    "round": lambda h, w: torch.special.round(h, decimals=1),
    "norm": lambda h, w: h * torch.linalg.norm(h, dim=1, keepdim=True),
    "matrix_norm": lambda h, w: h * torch.linalg.matrix_norm(w),
    "distance": lambda h, w: h * F.pairwise_distance(h, 2 * h)[:, None],
    "fliplr": lambda h, w: torch.fliplr(h.T).T,
    "broadcast": lambda h, w: torch.broadcast_tensors(h, h[:1])[1],
    "poisson": lambda h, w: h * F.poisson_nll_loss(h, h.exp(), reduction="none"),
    "loss": lambda h, w: h + F.l1_loss(h, 2 * h),
}


class Net(nn.Module):
    def __init__(self, middle: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.w, self.middle = nn.Linear(6, 16), nn.Parameter(torch.randn(16, 8)), middle
        width = middle(torch.zeros(2, 16), self.w).shape[1]
        self.b = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(torch.relu(self.a(x)), self.w))


def _fails(*args: Any, **kwargs: Any) -> None:
    raise pf.TraceError("not today")


@pytest.mark.parametrize("capture", ["exported", "recorded"])
@pytest.mark.parametrize("name", OPS)
def test_a_composite_op_is_written_out(name: str, capture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    if capture == "recorded":
        monkeypatch.setattr("prunefn.tracing.api.capture", _fails)
    model, x = Net(OPS[name]).double().eval(), torch.randn(5, 6).double()
    spec, params = pf.trace(model, (x,)), pf.params(model)
    assert not spec.unknown and spec.capture == capture and "a" in spec.groups
    assert torch.equal(pf.forward(params, x, spec=spec), model(x))
    mask = {g: torch.arange(n) % 3 != 0 for g, n in spec.sizes.items() if spec.groups[g].exact}
    small = pf.forward(pf.apply(params, mask, spec=spec), x, spec=pf.shrink(spec, mask))
    readers = {s.weight: s for s in spec.sites.values()}
    zeroed = pf.zero(params, mask, spec=spec)
    kept = {n: zeroed[n] if n in readers or n == "w" else t for n, t in params.items()}
    torch.testing.assert_close(small, pf.forward(kept, x, spec=spec))


def test_an_op_with_a_rule_of_the_user_stays() -> None:
    called = []

    def rule(call: pf.Call) -> Any:
        called.append(call.op)
        return call.broadcast(call.tensors())

    pf.trace(Net(OPS["log_sigmoid"]).eval(), (torch.randn(5, 6),), rules={"aten::log_sigmoid": rule})
    assert called == ["aten.log_sigmoid.default"]


def test_what_cannot_be_exported_is_recorded_op_by_op() -> None:
    model, x = Net(lambda h, w: torch.corrcoef(h) @ h).eval(), torch.randn(5, 6)
    spec = pf.trace(model, (x,))
    assert (spec.capture, dict(spec.unknown), list(spec.groups)) == ("recorded", {}, ["a"])
    assert torch.equal(pf.forward(pf.params(model), x, spec=spec), model(x))


class Forces(nn.Module):
    """The gradient of an energy by the positions, as networks of molecules return it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 12), nn.LayerNorm(12), nn.Linear(12, 8)
        self.kinds, self.c = nn.Embedding(5, 12), nn.Linear(8, 1)

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            h = F.elu(self.a(x)) * self.kinds(kinds)
            energy = self.c(F.silu(self.b(h))).sum() + self.norm(h).square().sum()
            return torch.autograd.grad(energy, x)[0]


def test_a_gradient_in_forward_is_written_out() -> None:
    model, x = Forces().double().eval(), (torch.randn(5, 4).double(), torch.arange(5))
    spec, params = pf.trace(model, x), pf.params(model)
    assert not spec.unknown and list(spec.groups) == ["a", "b"]
    torch.testing.assert_close(pf.forward(params, *x, spec=spec), model(*x))
    mask = {"b": torch.arange(8) % 3 != 0}
    small = pf.forward(pf.apply(params, mask, spec=spec), *x, spec=pf.shrink(spec, mask))
    torch.testing.assert_close(small, pf.forward({**params, "c.weight": model.c.weight * mask["b"]}, *x, spec=spec))
    again = pf.to_module(pf.apply(params, mask, spec=spec), spec=pf.shrink(spec, mask), model=model)
    torch.testing.assert_close(small, again(*x))
