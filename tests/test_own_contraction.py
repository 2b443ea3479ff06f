"""A contraction of the user's own: an op of torch.library, whose rule reaches statistics, compensation, sparse weights and costs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn import sparse
from prunefn.tracing.rules import Axes, Call

from .small import randn


@torch.library.custom_op("prunefn_tests::project", mutates_args=())
def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [in, out] → [..., out]."""
    y = x @ weight
    return y if bias is None else y + bias


@project.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


def rule(call: Call) -> Axes:
    x, w, b = call["x"], call["weight"], call["bias"]
    inner, out = call.unify(x.axes[-1], w.axes[0]), w.axes[1]
    if b is not None:
        call.unify(out, b.axes[0])
    axes = (*x.axes[:-1], out)
    call.contract(
        macs=(*axes, inner), x=x, dim=-1, weight=w, pattern="i o -> 1 o i 1", bias=b, bias_arg="bias", out=out
    )
    return axes


class Own(nn.Module):
    """A layer of the op between two of torch's."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 8), nn.Linear(6, 2)
        self.weight = nn.Parameter(randn(8, 6).float())
        self.bias = nn.Parameter(randn(6).float()) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.relu(project(torch.relu(self.enter(x)), self.weight, self.bias)))


def test_its_rule_reaches_everything() -> None:
    for bias in (True, False):
        model, x = Own(bias=bias).double(), randn(64, 3)
        spec, params = pf.trace(model, (x[:2],), rules={"prunefn_tests::project": rule}), pf.params(model)
        assert list(spec.groups) == ["enter", "weight"] and not spec.unknown
        assert spec.sites["weight"].pattern == "i o -> 1 o i 1"
        # costs
        assert pf.cost(spec).macs == 3 * 8 + 8 * 6 + 6 * 2
        mask = {"enter": torch.arange(8) < 5}
        small = pf.shrink(spec, mask)
        assert pf.cost(small).macs == 3 * 5 + 5 * 6 + 6 * 2
        # statistics and compensation: a unit that is constant goes without a loss
        params["enter.weight"] = torch.cat([params["enter.weight"][:5], torch.zeros(3, 3)]).double()
        params["enter.bias"] = torch.cat([params["enter.bias"][:5], torch.tensor([1.0, 2.0, 3.0])]).double()
        stats = pf.collect_stats(params, [x], spec=spec)
        assert stats.sites["weight"].mean.shape == (8,)
        repaired = pf.apply(pf.compensate(params, stats, mask, spec=spec), mask, spec=spec)
        torch.testing.assert_close(pf.forward(repaired, x, spec=small), pf.forward(params, x, spec=spec))
        # sparse weights: laid out as the rule says, with their inputs measured
        weight = sparse.weights(spec)["weight"]
        assert (weight.pattern, weight.site) == ("i o -> 1 o i 1", "weight")
        scores = sparse.score(stats, criterion=sparse.criteria.wanda(), weights="weight")
        norm = (stats.sites["weight"].m2 / 64 + stats.sites["weight"].mean.square()).sqrt()
        torch.testing.assert_close(scores["weight"] / params["weight"].abs(), norm[:, None].expand(8, 6))
        masks = sparse.select(scores, spec=spec, pattern=sparse.pattern.n_m(2, 4))
        assert masks["weight"].T.reshape(6, 2, 4).sum(-1).eq(2).all()
