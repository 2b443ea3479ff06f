"""Weights that are computed from parameters: scores, zeros and exactness are of what the op uses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import prunefn as pf
from prunefn import criteria as c
from prunefn import sparse
from prunefn.train.optimizer import weight_masks

from .small import bits, close, randn


class Standardised(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2), keepdim=True)) / (w.std((1, 2), keepdim=True) + 1e-3)
        return F.conv1d(input, w, self.bias)


class Sum(nn.Module):
    """Two branches with one weight, as RepVGG at inference."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(i, o, 3), nn.Conv1d(i, o, 1)

    @property
    def weight(self) -> Tensor:
        return self.a.weight + F.pad(self.b.weight, (1, 1))

    @property
    def bias(self) -> Tensor:
        return self.a.bias + self.b.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, self.bias)


class Exponential(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.exp()


def masked(m: nn.Module) -> nn.Module:
    return prune.ln_structured(m, "weight", 0.5, n=2, dim=0)


def old_style(how: Callable[..., nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def build(m: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return how(m)

    return build


def conv(i: int, o: int) -> nn.Module:
    return nn.Conv1d(i, o, 3)


WAYS: dict[str, Callable[[int, int], nn.Module]] = {
    "weight norm": lambda i, o: parametrizations.weight_norm(conv(i, o)),
    "weight norm of old": lambda i, o: old_style(nn.utils.weight_norm)(conv(i, o)),
    "spectral norm": lambda i, o: parametrizations.spectral_norm(conv(i, o)),
    "spectral norm of old": lambda i, o: old_style(nn.utils.spectral_norm)(conv(i, o)),
    "prune": lambda i, o: masked(conv(i, o)),
    "sum": Sum,
    "exponential": lambda i, o: parametrize.register_parametrization(conv(i, o), "weight", Exponential()),
}
X, Y = randn(8, 4, 12, seed=3), torch.arange(8) % 2


def net(layer: Callable[[int, int], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(layer(4, 6), nn.LeakyReLU(), layer(6, 5), nn.Tanh(), nn.Conv1d(5, 2, 1)).double()


def loss(out: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(out.mean(2), labels)


@lru_cache
def both(way: str) -> tuple[tuple[pf.Spec, pf.Params], tuple[pf.Spec, pf.Params]]:
    """The network, and the same function with plain weights."""
    model, plain = net(WAYS[way]), net(conv).eval()
    model(X)
    model.eval()
    if way == "weight norm":
        with torch.no_grad():
            model[0].parametrizations.weight.original1.mul_(torch.rand(6, 1, 1) * 9 + 0.1)  # no part of the function
    with torch.no_grad():
        for i in (0, 2, 4):
            plain[i].weight.copy_(model[i].weight)
            plain[i].bias.copy_(model[i].bias)
    a, b = ((pf.trace(m, (X,)), pf.params(m)) for m in (model, plain))
    close(pf.forward(a[1], X, spec=a[0]), pf.forward(b[1], X, spec=b[0]))
    return a, b


CRITERIA = {
    "magnitude": c.magnitude(),
    "magnitude with biases": c.magnitude(1.0, bias=True),
    "lamp": c.lamp(),
    "fpgm": c.fpgm(),
    "dissimilar": c.dissimilar(c.magnitude()),
    "weighted_variance": c.weighted_variance(producer=True),
    "taylor": c.taylor(loss),
    "taylor of weights": c.taylor(loss, weights=True),
    "movement": c.movement(loss),
    "obd_c": c.obd_c(loss),
    "fisher": c.fisher(loss),
    "hessian": c.hessian(loss, probes=2),
}


@pytest.mark.parametrize("way", WAYS)
def test_two_ways_to_write_a_function_score_alike(way: str) -> None:
    for criterion in CRITERIA.values():
        batches = [(X, Y)] if criterion.data else None
        found = [
            pf.score(pf.collect_stats(p, batches, spec=s, criterion=criterion), criterion=criterion)
            for s, p in both(way)
        ]
        assert len(found[0]) == len(found[1]) == 2
        for a, b in zip(found[0].values(), found[1].values(), strict=True):
            assert torch.allclose(a, b, rtol=1e-8, atol=1e-12), criterion.name


def test_a_mask_of_torchs_pruning_is_no_weight() -> None:
    (spec, params), _ = both("prune")
    scores = pf.score(pf.collect_stats(params, None, spec=spec), criterion=c.magnitude(reduction=pf.reduction.first))
    for (g, s), layer in zip(scores.items(), ("0", "2"), strict=True):
        gone = ~params[f"{layer}.weight_mask"].flatten(1).any(1)
        assert torch.equal(s == 0, gone), g


def test_the_weight_of_a_norm_is_the_one_that_it_uses() -> None:
    norm = parametrize.register_parametrization(nn.BatchNorm1d(3), "weight", Exponential())
    model = nn.Sequential(nn.Linear(2, 3), norm, nn.Linear(3, 1)).double().eval()
    spec, gamma = pf.trace(model, (randn(4, 2),)), norm.weight.detach()
    (found,) = pf.score(pf.collect_stats(pf.params(model), None, spec=spec), criterion=c.bn_scale()).values()
    close(found, gamma)


# ---- zeros


@pytest.mark.parametrize("way", [*WAYS, "standardised"])
def test_removal_equals_zeroing_or_is_refused(way: str) -> None:
    if way == "standardised":
        model = net(lambda i, o: Standardised(i, o, 3)).eval()
        spec, params = pf.trace(model, (X,)), pf.params(model)
    else:
        (spec, params), _ = both(way)
    for g, n in spec.sizes.items():
        mask = {g: torch.arange(n) % 3 > 0}
        small = pf.apply(params, mask, spec=spec)
        y = pf.forward(small, X, spec=pf.shrink(spec, mask))
        if way == "exponential":
            for refused in (lambda: pf.zero(params, mask, spec=spec), lambda: weight_masks(mask, spec=spec)):  # noqa: B023
                with pytest.raises(pf.ParamsError, match=r"cannot be set to zero: the weight of .* is computed from"):
                    refused()
            continue
        zeroed = pf.zero(params, mask, spec=spec)
        if way == "standardised" and not spec.groups[g].exact:  # means over fewer units are others
            assert bool(pf.forward(zeroed, X, spec=spec).isfinite().all())
            continue
        close(pf.forward(zeroed, X, spec=spec), y)
        close(pf.forward(pf.expand(small, mask, spec=spec), X, spec=spec), y)
        held = {
            t: v.where(weight_masks(mask, spec=spec)[t], 0) if t in weight_masks(mask, spec=spec) else v
            for t, v in params.items()
        }
        assert all(torch.equal(held[t], zeroed[t]) for t in params)


@pytest.mark.parametrize(
    ("way", "exact"), [("prune", True), ("sum", True), ("spectral norm", False), ("spectral norm of old", False)]
)
def test_units_that_share_a_norm_are_not_exact(way: str, exact: bool) -> None:
    """Exact: without the unit's consumer weights, the others compute what they do without the unit."""
    (spec, params), _ = both(way)
    assert [g.exact for g in spec.groups.values()] == [exact] * 2
    (_, group) = spec.groups
    mask = {group: bits("01101")}
    cut = {**params, "4.weight": params["4.weight"] * mask[group][:, None]}
    y = pf.forward(pf.apply(params, mask, spec=spec), X, spec=pf.shrink(spec, mask))
    assert torch.allclose(pf.forward(cut, X, spec=spec), y, atol=1e-10) is exact


def test_weight_norm_over_rows_is_exact_and_over_columns_not() -> None:
    (spec, _), _ = both("weight norm")
    assert [g.exact for g in spec.groups.values()] == [False, True]  # the first is normed over by the second layer


def test_orthogonal_rows_cannot_be_zero() -> None:
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)).double().eval()
    spec, x = pf.trace(model, (randn(3, 4),)), randn(3, 4)
    for g, n in spec.sizes.items():
        mask = {g: torch.arange(n) > 0}
        with pytest.raises(pf.ParamsError, match="cannot be set to zero"):
            pf.zero(pf.params(model), mask, spec=spec)
        y = pf.forward(pf.apply(pf.params(model), mask, spec=spec), x, spec=pf.shrink(spec, mask))
        assert bool(y.isfinite().all())


# ---- single weights


def test_weights_that_stay_dense_are_named() -> None:
    (spec, params), _ = both("prune")
    with pytest.warns(
        UserWarning, match=r"sparse.score leaves some weights dense \('0': its weight is computed from 0.weight_orig"
    ):
        scores = sparse.score(params, spec=spec)
    assert list(scores) == ["4.weight"]
    with pytest.warns(UserWarning, match=r"sparse.slices leaves some weights dense \('0': .*'2': "):
        sparse.slices(params, 0.5, spec=spec, block=1)


def test_a_product_of_parameters_has_no_weights_of_its_own() -> None:
    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.a, self.b = (
                nn.Linear(4, 6),
                nn.Parameter(torch.randn(2, 4)),
                nn.Parameter(torch.randn(6, 2)),
            )

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.base.weight + self.b @ self.a, self.base.bias)

    model = nn.Sequential(Factors(), nn.ReLU(), nn.Linear(6, 2))
    spec = pf.trace(model, (torch.randn(2, 4),))
    assert list(sparse.weights(spec)) == ["2.weight"]
    scores = pf.score(
        pf.collect_stats(pf.params(model), None, spec=spec), criterion=c.magnitude(reduction=pf.reduction.first)
    )
    assert len(scores) == 1  # the rank of the factors stands in no weight
    (found,) = scores.values()
    close(found.float(), (model[0].base.weight + model[0].b @ model[0].a).square().sum(1), 1e-6)
