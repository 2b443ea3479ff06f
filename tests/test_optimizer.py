"""Optimizer states follow their parameters; what a mask removes stays zero through any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunefn as pf
from prunefn.train.optimizer import hold_zero, slice_optimizer, weight_masks

from .small import bits, cnn, mlp, randn, same, traced

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


def trained(
    net: nn.Module, x: Tensor, build: Callable[[Any], torch.optim.Optimizer], steps: int = 3
) -> torch.optim.Optimizer:
    optimizer = build(net.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_sliced_as_parameters_are(name: str) -> None:
    t, x = traced(mlp(4, 6, 5, 2), randn(2, 4)), randn(8, 4)
    optimizer = trained(t.model, x, OPTIMIZERS[name])
    mask = {"0": bits("110101"), "2": bits("01111")}
    names = [n for n, _ in t.model.named_parameters()]
    before = optimizer.state_dict()
    copy = {i: {k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()} for i, s in before["state"].items()}
    small = slice_optimizer(optimizer, mask, spec=t.spec, model=t.model)
    for i, of in copy.items():
        for key, value in of.items():
            assert not isinstance(value, Tensor) or torch.equal(before["state"][i][key], value)
            if isinstance(value, Tensor) and value.ndim:
                full = {**pf.params(t.model), names[i]: value}
                assert torch.equal(small["state"][i][key], pf.apply(full, mask, spec=t.spec)[names[i]])
            else:
                assert small["state"][i][key] == value
    module = pf.to_module(pf.apply(pf.params(t.model), mask, spec=t.spec), spec=pf.shrink(t.spec, mask))
    again = OPTIMIZERS[name](module.parameters())
    again.load_state_dict(small)
    module(x).square().mean().backward()
    again.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruning_then_a_step_is_a_masked_step_then_pruning(name: str) -> None:
    """What was removed plays no part: both ways give the same weights."""
    t, x = traced(mlp(4, 6, 5, 2), randn(2, 4)), randn(8, 4)
    optimizer = trained(t.model, x, OPTIMIZERS[name])
    mask = {"0": bits("110101"), "2": bits("01111")}
    masks, parameters = weight_masks(mask, spec=t.spec), dict(t.model.named_parameters())
    names = list(parameters)
    hold_zero(parameters, optimizer, masks)
    module = pf.to_module(pf.apply(pf.params(t.model), mask, spec=t.spec), spec=pf.shrink(t.spec, mask))
    small = OPTIMIZERS[name](module.parameters())
    assert [n for n, _ in module.named_parameters()] == names
    small.load_state_dict(slice_optimizer(optimizer, mask, spec=t.spec, model=t.model, names=names))
    for _ in range(4):
        for net, opt in ((t.model, optimizer), (module, small)):
            opt.zero_grad()
            net(x).square().mean().backward()
            opt.step()
        hold_zero(parameters, optimizer, masks)
    left = pf.apply(pf.params(t.model), mask, spec=t.spec)
    for n, p in module.named_parameters():
        torch.testing.assert_close(p.detach(), left[n], rtol=1e-9, atol=1e-12)
    for n, kept in masks.items():
        assert bool((parameters[n][~kept] == 0).all())
        for s in optimizer.state.get(parameters[n], {}).values():
            assert not isinstance(s, Tensor) or not s.ndim or bool((s[~kept] == 0).all())


def test_weight_masks_are_what_zero_zeroes() -> None:
    t = traced(cnn(), randn(2, 3, 6, 6))
    mask = {g.name: torch.arange(g.size) % 2 == 0 for g in t.spec.groups.values()}
    ones = {n: torch.ones_like(v) if n in t.spec.parameters else v for n, v in t.params.items()}
    zeroed = pf.zero(ones, mask, spec=t.spec)
    found = weight_masks(mask, spec=t.spec)
    for n in t.spec.parameters:
        kept = found.get(n, torch.ones(t.spec.shape(n), dtype=torch.bool))
        assert torch.equal(kept, zeroed[n] != 0)
    same(t.params, pf.params(t.model))


def test_what_does_not_fit() -> None:
    t = traced(mlp(4, 6, 2), randn(2, 4))
    optimizer, names = trained(t.model, randn(8, 4), OPTIMIZERS["Adam"]), [n for n, _ in t.model.named_parameters()]
    mask, known = {"0": bits("110101")}, {"spec": t.spec, "model": t.model}
    with pytest.raises(pf.ParamsError, match="names has 3 names, but the optimizer 4 parameters"):
        slice_optimizer(optimizer, mask, **known, names=names[:3])
    with pytest.raises(
        pf.ParamsError, match=r"names\[0\] is 'a\.weight', but this parameter of the optimizer is '0\.weight'"
    ):
        slice_optimizer(optimizer, mask, **known, names=["a.weight", *names[1:]])
    with pytest.raises(pf.MaskError, match="no"):
        slice_optimizer(optimizer, {"9": bits("1")}, **known)
    with pytest.raises(pf.ParamsError, match="needs the optimizer's model"):
        slice_optimizer(optimizer, mask, spec=t.spec)
    with pytest.raises(pf.ParamsError, match=r"group 0 of the optimizer has a tensor of shape \(6, 4\).*no parameter"):
        slice_optimizer(optimizer, mask, spec=t.spec, model=mlp(4, 6, 2))
    with pytest.raises(pf.ParamsError, match="has no names of parameters"):
        slice_optimizer(optimizer.state_dict(), mask, spec=t.spec, names=names)
    with pytest.raises(pf.ParamsError, match=r"'0.weight' has shape \(6, 4\), but the spec says \(4, 4\)"):
        slice_optimizer(optimizer, {}, spec=pf.shrink(t.spec, mask), model=t.model)
    weight = t.model.get_parameter("0.weight")
    optimizer.state[weight]["exp_avg_row"] = torch.zeros(6)
    with pytest.raises(pf.ParamsError, match=r"'exp_avg_row' of '0.weight' has shape \(6,\).*start a new optimizer"):
        slice_optimizer(optimizer, mask, **known)
    optimizer.state[weight]["exp_avg_row"] = [torch.zeros(6, 4)]
    with pytest.raises(pf.ParamsError, match=r"'exp_avg_row' of '0.weight' is a list of tensors"):
        slice_optimizer(optimizer, mask, **known)
    with pytest.raises(pf.ParamsError, match=r"no parameter '0\.weight' to mask"):
        hold_zero({}, torch.optim.SGD(t.model.parameters(), lr=1), weight_masks(mask, spec=t.spec))


def test_the_order_of_parameter_groups_is_that_of_the_optimizer() -> None:
    """Two square layers, the second first; the first layer's bias is not trained."""
    t = traced(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), randn(2, 4))
    ends = [t.model.get_parameter(n) for n in ("2.weight", "2.bias", "0.weight")]
    optimizer = torch.optim.Adam([{"params": ends[:2]}, {"params": ends[2:], "lr": 1e-4}])
    t.model(randn(8, 4)).square().mean().backward()
    optimizer.step()
    mask, moment = (
        {"0": bits("0111")},
        {n: optimizer.state[p]["exp_avg"] for n, p in zip(("2", "2b", "0"), ends, strict=True)},
    )
    small = slice_optimizer(optimizer, mask, spec=t.spec, model=t.model, names=["2.weight", "2.bias", "0.weight"])
    found = [small["state"][i]["exp_avg"] for i in range(3)]
    assert torch.equal(found[0], moment["2"][:, 1:])
    assert torch.equal(found[1], moment["2b"])
    assert torch.equal(found[2], moment["0"][1:])
    assert small["param_groups"][1]["lr"] == 1e-4
    with pytest.raises(
        pf.ParamsError, match=r"names\[0\] is '0.weight', but this parameter of the optimizer is '2.weight'"
    ):
        slice_optimizer(optimizer, mask, spec=t.spec, model=t.model, names=["0.weight", "2.bias", "2.weight"])


def test_a_state_with_names_needs_no_model() -> None:
    t = traced(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), randn(2, 4))
    optimizer = torch.optim.SGD(reversed(list(t.model.named_parameters())), lr=0.1, momentum=0.9)
    t.model(randn(8, 4)).square().mean().backward()
    optimizer.step()
    mask = {"0": bits("0111")}
    a = slice_optimizer(optimizer.state_dict(), mask, spec=t.spec)
    b = slice_optimizer(optimizer, mask, spec=t.spec, model=t.model)
    assert [tuple(s["momentum_buffer"].shape) for s in a["state"].values()] == [(4,), (4, 3), (3,), (3, 4)]
    for i, s in a["state"].items():
        assert torch.equal(s["momentum_buffer"], b["state"][i]["momentum_buffer"])
