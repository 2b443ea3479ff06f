"""Functions in the graph: ops that call functions are frozen and run, levels of torch.func are decomposed, regions inlined."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over
from torch._higher_order_ops.while_loop import while_loop

import prunefn as pf

Middle = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two layers before a function of [batch, 16], and two after it."""

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.w, self.u = nn.Parameter(torch.randn(3, 16, 20)), nn.Parameter(torch.randn(3, 20, 16))
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(self.middle(self, torch.relu(self.a(x))))))


def branches(net: Net, h: Tensor) -> Tensor:
    return torch.cond(h.sum() > 4, lambda h: torch.sin(net.b(h)), torch.cos, (h,))


def nested(net: Net, h: Tensor) -> Tensor:
    inner = lambda h: torch.cond(h.sum() > 8, torch.sin, torch.cos, (h,))  # noqa: E731
    return torch.cond(h.sum() > 4, inner, lambda h: h * 2, (h,))


def loop(net: Net, h: Tensor) -> Tensor:
    return while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, torch.sin(h)), (torch.tensor(0), h))[1]


def mapped(net: Net, h: Tensor) -> Tensor:
    return map_over(lambda w, h: torch.relu(h @ w), net.w, h).mean(0) @ net.u[0]


def scanned(net: Net, h: Tensor) -> Tensor:
    from torch._higher_order_ops.scan import scan

    return scan(lambda c, x: (c + x, c * x), torch.zeros_like(h[0]), h)[1]


def flex(net: Net, h: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    q = h.reshape(-1, 1, 4, 4)
    return flex_attention(q, q, q, score_mod=lambda score, b, head, i, j: score + i - j).reshape(-1, 16)


def batched(net: Net, h: Tensor) -> Tensor:
    return torch.func.vmap(lambda a, b: torch.relu(h @ a) @ b)(net.w, net.u).sum(0)


def tangent(net: Net, h: Tensor) -> Tensor:
    return torch.func.jvp(torch.sin, (h,), (h,))[1]


def gradient(net: Net, h: Tensor) -> Tensor:
    return torch.func.grad(lambda z: torch.sin(z).sum())(h)


def casting(net: Net, h: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = h @ net.b.weight
    return y.float()


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def own_gradient(net: Net, h: Tensor) -> Tensor:
    return Swish.apply(h)


def checked(net: Net) -> pf.Spec:
    """Check forward against the module, bit for bit, and removing exact groups against zeroing."""
    x = torch.randn(5, 6)
    spec, params = pf.trace(net, (x,)), pf.params(net)
    with torch.no_grad():
        for batch in (x, torch.randn(5, 6) * 3, *([torch.randn(7, 6)] if spec.capture == "exported" else [])):
            assert torch.equal(pf.forward(params, batch, spec=spec), net(batch))
    mask = {g.name: torch.arange(spec.sizes[g.name]) % 2 == 0 for g in spec.groups.values() if g.exact}
    small = pf.forward(pf.apply(params, mask, spec=spec), x, spec=pf.shrink(spec, mask))
    torch.testing.assert_close(small, pf.forward(pf.zero(params, mask, spec=spec), x, spec=spec), rtol=1e-4, atol=1e-5)
    return spec


@pytest.mark.parametrize(
    ("middle", "op"),
    [
        (branches, "cond"),
        (nested, "cond"),
        (loop, "while_loop"),
        (mapped, "map_impl"),
        (scanned, "scan"),
        (flex, "flex_attention"),
    ],
)
def test_an_op_that_calls_functions_is_frozen_and_runs(middle: Middle, op: str) -> None:
    torch.manual_seed(0)
    net = Net(middle).eval()
    spec = checked(net)
    assert list(spec.unknown) == [op] and "test_higher_order.py" in spec.unknown[op]
    assert "a" not in spec.groups and ("b" in spec.groups) == (middle is not branches)
    assert pickle.loads(pickle.dumps(spec)) == spec and hash(spec.program) == hash(
        pickle.loads(pickle.dumps(spec)).program
    )


@pytest.mark.parametrize("middle", [batched, tangent, casting, own_gradient])
def test_levels_and_regions_are_written_out(middle: Middle) -> None:
    torch.manual_seed(0)
    spec = checked(Net(middle).eval())
    assert not spec.unknown and "a" in spec.groups and spec.capture == "exported"


def test_a_vmap_over_stacked_weights_has_their_groups() -> None:
    net = Net(batched).eval()
    spec = pf.trace(net, (torch.randn(5, 6),))
    assert set(spec.groups) == {"a", "w", "w.1", "u", "b"}
    assert spec.sizes["w.1"] == 3 and spec.sizes["w"] == 20


def test_what_torch_cannot_decompose_is_recorded_without_a_replay() -> None:
    torch.manual_seed(0)
    net, x = Net(gradient).eval(), torch.randn(5, 6)
    spec, params = pf.trace(net, (x,)), pf.params(net)
    assert list(spec.groups) == ["b"]
    with pytest.raises(pf.TraceError, match=r"inside torch\.func"):
        pf.forward(params, x, spec=spec)
    mask = {"b": torch.arange(16) % 2 == 0}
    small = pf.to_module(pf.apply(params, mask, spec=spec), spec=pf.shrink(spec, mask), model=net)
    zeroed = torch.func.functional_call(net, pf.zero(params, mask, spec=spec), (x,))
    torch.testing.assert_close(small(x), zeroed)


def test_a_higher_order_op_is_part_of_the_module_that_is_built() -> None:
    torch.manual_seed(0)
    net, x = Net(branches).eval(), torch.randn(5, 6)
    spec = pf.trace(net, (x,))
    module = pf.to_module(pf.params(net), spec=spec)
    assert torch.equal(module(x), net(x))
    assert torch.equal(pf.forward(pf.params(net), -3 * x, spec=spec), net(-3 * x))
