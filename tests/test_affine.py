"""Affine compensation, variance rescaling, predicted residuals and the sequential mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunefn as pf
from prunefn import compensation
from prunefn.compensation.fits import Task, collect_fits
from prunefn.compensation.sequential import steps
from prunefn.types import Moments

from .small import Attention, Recurrent, Residual, Tied, Traced, Twice, bits, close, cnn, mlp, randn, traced

# most networks here are measured on few samples; that it is said has a test of its own
pytestmark = pytest.mark.filterwarnings("ignore:compensation 'affine' estimates weights from few samples")


def drop(t: Traced, x: Tensor, mask: pf.Mask, method: compensation.Compensation) -> Tensor:
    """The output on x after pruning with statistics of x."""
    stats = pf.collect_stats(t.params, [x], spec=t.spec, covariance=True)
    params = pf.compensate(t.params, stats, mask, spec=t.spec, method=method)
    small = pf.shrink(t.spec, mask)
    return pf.forward(pf.apply(params, mask, spec=t.spec), x, spec=small)


# ---- law 9: what is an affine combination of the rest goes without loss

CONSUMERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 3), (7,)),
    "linear without bias": (lambda: nn.Linear(6, 3, bias=False), (7,)),
    "conv": (lambda: nn.Conv2d(6, 3, 3), (7, 8, 8)),
    "conv, strided": (lambda: nn.Conv2d(6, 3, 3, stride=2), (7, 9, 9)),
    "conv, BatchNorm": (lambda: nn.Sequential(nn.Conv2d(6, 3, 3, bias=False), nn.BatchNorm2d(3)), (7, 8, 8)),
    "conv, grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), (7, 8, 8)),
    "conv, pointwise": (lambda: nn.Conv2d(6, 3, 1), (7, 5, 5)),
    "conv 1d": (lambda: nn.Conv1d(6, 3, 3), (7, 9)),
}


@pytest.mark.parametrize("name", CONSUMERS)
def test_law_9_affine_combinations_are_removed_without_loss(name: str) -> None:
    build, shape = CONSUMERS[name]
    first: nn.Module = (
        nn.Linear(7, 6) if len(shape) == 1 else nn.Conv1d(7, 6, 1) if len(shape) == 2 else nn.Conv2d(7, 6, 1)
    )
    torch.manual_seed(0)
    t = traced(nn.Sequential(first, build()), x := randn(40, *shape))
    w, b = t.params["0.weight"].clone(), t.params["0.bias"].clone()
    for gone, kept in ((1, (0, 2)), (4, (3, 5))):  # within a group of the grouped convolution
        w[gone] = 2 * w[kept[0]] - 0.5 * w[kept[1]]
        b[gone] = 2 * b[kept[0]] - 0.5 * b[kept[1]] + 3
    t = t._replace(params={**t.params, "0.weight": w, "0.bias": b})
    expected = pf.forward(t.params, x, spec=t.spec)
    mask = {"0.hidden": bits("101")} if "grouped" in name else {"0": bits("101101")}
    close(drop(t, x, mask, compensation.affine(0.0)), expected, 1e-9)
    assert float((drop(t, x, mask, compensation.mean()) - expected).abs().max()) > 1e-2


def test_affine_is_least_squares() -> None:
    """Of all weights and biases on the kept inputs, none gives the outputs better."""
    t = traced(mlp(5, 8, 3), x := randn(200, 5))
    mask = {"0": bits("11010110")}
    dense = pf.forward(t.params, x, spec=t.spec)
    h = F.relu(F.linear(x, t.params["0.weight"], t.params["0.bias"]))[:, mask["0"]]
    design = torch.cat([h, torch.ones(200, 1, dtype=h.dtype)], 1)
    best = design @ torch.linalg.lstsq(design, dense).solution
    close(drop(t, x, mask, compensation.affine(0.0)), best, 1e-9)


def test_affine_is_the_optimal_brain_update() -> None:
    """δW = −W_P ([C⁻¹]_PP)⁻¹ [C⁻¹]_P,: (Hassibi and Stork, 1993), on the kept columns."""
    t = traced(mlp(5, 6, 3), x := randn(300, 5))
    stats = pf.collect_stats(t.params, [x], spec=t.spec, covariance=True)
    kept = bits("101101")
    got = pf.compensate(t.params, stats, {"0": kept}, spec=t.spec, method=compensation.affine(0.0))["2.weight"]
    inverse = torch.linalg.inv(stats.sites["2"].covariance)
    w = t.params["2.weight"]
    update = -w[:, ~kept] @ torch.linalg.inv(inverse[~kept][:, ~kept]) @ inverse[~kept]
    close((w + update)[:, kept], got[:, kept], 1e-9)
    close((w + update)[:, ~kept], torch.zeros(3, 2, dtype=w.dtype), 1e-9)


def test_an_infinite_ridge_is_the_mean() -> None:
    t = traced(mlp(5, 6, 3), x := randn(50, 5))
    mask = {"0": bits("101101")}
    close(drop(t, x, mask, compensation.affine(1e12)), drop(t, x, mask, compensation.mean()), 1e-9)


def test_golden_affine() -> None:
    """Two inputs, the second twice the first plus one: W' = w1 + 2 w2, b' = b + w2."""
    t = traced(nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1)), randn(4, 1))
    x = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    scatter = torch.tensor([[2.0, 4.0], [4.0, 8.0]], dtype=torch.float64)
    m = Moments(3, torch.stack([x.mean(), 2 * x.mean() + 1]), scatter.diagonal(), scatter=scatter)
    out = pf.compensate(t.params, {"1": m}, {"0": bits("10")}, spec=t.spec, method=compensation.affine(0.0))
    w, b = t.params["1.weight"][0], t.params["1.bias"]
    close(out["1.weight"][0, 0], w[0] + 2 * w[1])
    close(out["1.bias"], b + w[1])


def test_a_border_gets_its_own_constants() -> None:
    """On a padded convolution, affine beats the mean, the mean nothing; and the mean of the outputs stays."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    t = traced(net, x := randn(30, 3, 6, 6))
    mask = {"0": bits("110101")}
    dense = pf.forward(t.params, x, spec=t.spec)
    error = {m.name: float((drop(t, x, mask, m) - dense).square().mean()) for m in METHODS}
    assert error["affine"] < error["mean"] < error["none"]
    close(drop(t, x, mask, compensation.affine()).mean((0, 2, 3)), dense.mean((0, 2, 3)), 1e-9)


METHODS = (compensation.none(), compensation.mean(), compensation.affine(0.0), compensation.variance_rescale())


@pytest.mark.parametrize("kind", ["heads", "head_dim", "hidden", "residual"])
def test_every_kind_of_group(kind: str) -> None:
    """Also heads and residual streams, where a site is: affine is better than the mean, the mean than nothing."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.attention, self.head = nn.Linear(5, 8), Attention(8, 4, 4), nn.Linear(8, 3)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.attention(x)
            return self.head(x + self.down(F.gelu(self.up(x))))

    t = traced(Block(), x := randn(20, 9, 5))
    group = next(g for g in t.spec.groups.values() if g.kind == kind and g.sites)
    mask = {group.name: torch.arange(group.size) % 4 != 1}
    dense = pf.forward(t.params, x, spec=t.spec)
    error = {m.name: float((drop(t, x, mask, m) - dense).square().mean()) for m in METHODS}
    assert error["affine"] < error["mean"] < error["none"]


# ---- variance rescaling


def test_outputs_keep_mean_and_variance() -> None:
    t = traced(mlp(5, 8, 3), x := randn(400, 5))
    mask = {"0": bits("11010010")}
    dense, y = pf.forward(t.params, x, spec=t.spec), drop(t, x, mask, compensation.variance_rescale())
    close(y.mean(0), dense.mean(0), 1e-9)
    close(y.var(0), dense.var(0), 1e-9)
    assert float((drop(t, x, mask, compensation.mean()).var(0) - dense.var(0)).abs().max()) > 1e-3


def test_rescaling_by_variances_alone() -> None:
    """w = (3, 4), σ² = (1, 1): the first alone has 9 of 25, so it is scaled by 5/3."""
    t = traced(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1)), randn(4, 1))
    params = {**t.params, "1.weight": torch.tensor([[3.0, 4.0]]).double()}
    m = Moments(10, torch.zeros(2).double(), 10 * torch.ones(2).double())
    out = pf.compensate(params, {"1": m}, {"0": bits("10")}, spec=t.spec, method=compensation.variance_rescale())
    close(out["1.weight"][0, 0], torch.tensor(5.0).double())
    with pytest.raises(pf.StatsError, match="variances are needed"):
        pf.compensate(params, {"1": m.mean}, {"0": bits("10")}, spec=t.spec, method=compensation.variance_rescale())


# ---- residuals


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("covariance", [True, False])
def test_the_predicted_error_is_the_error(method: compensation.Compensation, covariance: bool) -> None:
    """Of one layer, over the samples that were measured."""
    if method.name == "affine" and not covariance:
        return
    t = traced(mlp(5, 8, 3), x := randn(100, 5))
    mask = {"0": bits("11010110")}
    stats = pf.collect_stats(t.params, x.split(30), spec=t.spec, covariance=covariance)
    found = pf.residual(stats, mask, spec=t.spec, method=method)["2"]
    params = pf.compensate(t.params, stats, mask, spec=t.spec, method=method)
    y = pf.forward(pf.apply(params, mask, spec=t.spec), x, spec=pf.shrink(t.spec, mask))
    dense = pf.forward(t.params, x, spec=t.spec)
    real = float((y - dense).square().sum(1).mean())
    assert found.error == pytest.approx(real, rel=1e-9 if covariance else 1.0)
    if covariance:
        assert found.signal == pytest.approx(float(dense.var(0, correction=0).sum()), rel=1e-9)
        assert found.relative == pytest.approx(found.expected / found.signal)
        assert (found.expected > found.error) == (method.name == "affine")  # a fit does worse on new samples


def test_the_error_of_affine_is_that_of_the_formula() -> None:
    """tr(W_P (C_PP − C_PS C_SS⁻¹ C_SP) W_Pᵀ)"""
    t = traced(mlp(5, 8, 3), x := randn(100, 5))
    kept = bits("11010110")
    stats = pf.collect_stats(t.params, [x], spec=t.spec, covariance=True)
    m = stats.sites["2"]
    assert m.scatter is not None
    c, w = m.scatter / m.count, t.params["2.weight"][:, ~kept]
    inner = c[~kept][:, ~kept] - c[~kept][:, kept] @ torch.linalg.inv(c[kept][:, kept]) @ c[kept][:, ~kept]
    found = pf.residual(stats, {"0": kept}, spec=t.spec, method=compensation.affine(0.0))["2"]
    assert found.error == pytest.approx(float((w @ inner @ w.T).trace()), rel=1e-9)


def test_a_pipeline_reports_residuals() -> None:
    t = traced(cnn(), x := randn(20, 3, 6, 6))
    small = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.3, scope=pf.scope.local())(t.params, [x], spec=t.spec)
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    assert dict(small.info.residuals) == pf.residual(stats, small.mask, spec=t.spec)
    assert small.info.residuals and all(r.error >= 0 for r in small.info.residuals.values())


# ---- what cannot be rewritten


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.weight, self.scale = (
            nn.Linear(4, 6),
            nn.Parameter(torch.randn(3, 6)),
            nn.Parameter(torch.ones(3, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.a(x)), self.weight * self.scale)


@pytest.mark.parametrize(
    "model, x, why",
    [
        (Computed(), randn(9, 4), "it is computed from other tensors"),
        (Tied(), torch.arange(7).reshape(1, 7), "also serves 'embed'"),
    ],
)
def test_a_weight_that_is_not_the_layers_own(model: nn.Module, x: Tensor, why: str) -> None:
    t = (
        traced(model.double(), x)
        if x.is_floating_point()
        else Traced(model, pf.trace(model.eval(), (x,)), pf.params(model))
    )
    stats = pf.collect_stats(t.params, [x], spec=t.spec, covariance=True)
    site = next(
        s
        for s in t.spec.sites.values()
        if s.weight not in t.spec.parameters or "embed" in s.weight or "out" in s.weight
    )
    group = next(g for g in t.spec.groups.values() if site.name in g.sites)
    mask = {group.name: torch.arange(group.size) % 3 != 0}
    with pytest.raises(pf.ParamsError, match=why):
        pf.compensate(t.params, stats, mask, spec=t.spec, method=compensation.affine())
    mean = pf.compensate(t.params, stats, mask, spec=t.spec)
    other = pf.compensate(t.params, stats, mask, spec=t.spec, method=compensation.affine(fallback=compensation.mean()))
    for tensor in mean:
        if tensor == (site.bias or site.slot):
            assert torch.equal(mean[tensor], other[tensor])


def test_what_was_not_measured_is_named() -> None:
    t = traced(mlp(5, 8, 3), x := randn(20, 5))
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    with pytest.raises(pf.StatsError, match=r"'affine' needs the covariance of site '2'.*covariance=True"):
        pf.compensate(t.params, stats, {"0": bits("11110000")}, spec=t.spec, method=compensation.affine())
    with pytest.raises(ValueError, match="ridge is -1"):
        compensation.affine(-1.0)


def test_dead_inputs_and_few_samples() -> None:
    """Inputs that are always zero, and fewer samples than inputs: finite, and exact on the samples."""
    t = traced(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), x := randn(4, 5))
    w, b = t.params["0.weight"].clone(), t.params["0.bias"].clone()
    b[:3] = -100
    t = t._replace(params={**t.params, "0.bias": b, "0.weight": w})
    mask = {"0": bits("10111101")}
    dense = pf.forward(t.params, x, spec=t.spec)
    close(drop(t, x, mask, compensation.affine(0.0)), dense, 1e-6)
    assert bool(torch.isfinite(drop(t, x, mask, compensation.affine())).all())
    none_alive = {"0": bits("11100000")}
    assert bool(torch.isfinite(drop(t, x, none_alive, compensation.affine())).all())


def test_a_layer_that_is_called_twice() -> None:
    t = traced(Recurrent(), x := randn(50, 4))
    group = next(iter(t.spec.groups))
    y = drop(t, x, {group: bits("11011")}, compensation.affine())
    dense = pf.forward(t.params, x, spec=t.spec)
    assert float((y - dense).square().mean()) < float(
        (drop(t, x, {group: bits("11011")}, compensation.none()) - dense).square().mean()
    )


def test_units_that_stand_twice_are_estimated_from_others() -> None:
    t = traced(Twice(), x := randn(50, 4))
    dense = pf.forward(t.params, x, spec=t.spec)
    errors = [float((drop(t, x, {"a": bits("101")}, m) - dense).square().mean()) for m in METHODS[1:3]]
    assert errors[1] < errors[0]


def test_the_dtype_stays_and_nothing_is_written_to() -> None:
    t = traced(mlp(5, 8, 3), x := randn(50, 5).bfloat16())
    before = {n: v.clone() for n, v in t.params.items()}
    stats = pf.collect_stats(t.params, [x], spec=t.spec, covariance=True)
    out = pf.compensate(t.params, stats, {"0": bits("11110000")}, spec=t.spec, method=compensation.affine())
    assert out["2.weight"].dtype == torch.bfloat16
    assert all(torch.equal(before[n], v) for n, v in t.params.items())


# ---- the sequential mode


def test_steps_go_from_the_input_on() -> None:
    t = traced(Residual(4, 6, 8, 3), randn(2, 4))
    half = {g.name: torch.arange(g.size) % 2 == 0 for g in reversed(list(t.spec.groups.values()))}
    assert [list(part) for part in steps(t.spec, half)] == [["stem"], ["up"]]
    assert steps(t.spec, {"up": torch.ones(8, dtype=torch.bool)}) == []


def test_heads_and_head_dims_of_a_site_go_together() -> None:
    t = traced(Attention(6, 4, 4), randn(2, 5, 6))
    half = {g.name: torch.arange(g.size) % 2 == 0 for g in t.spec.groups.values()}
    joint = [sorted(t.spec.groups[g].kind for g in part) for part in steps(t.spec, half)]
    assert ["head_dim", "heads"] in joint


def fed(widths: list[int], x: Tensor, seed: int) -> Traced:
    """An MLP whose activations keep their size."""
    torch.manual_seed(seed)
    net = mlp(*widths)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.3)
    return traced(net, x)


def test_sequential_is_block_by_block() -> None:
    """By hand: each layer is fitted by least squares, from what is left of its inputs to its dense outputs."""
    t = fed([5, 8, 8, 8, 3], x := randn(100, 5), 0)
    prune = pf.pipeline(
        criterion=pf.criteria.variance(),
        ratio=0.5,
        scope=pf.scope.local(),
        compensation=compensation.affine(0.0),
        sequential=True,
    )
    small = prune(t.params, x.split(30), spec=t.spec)
    assert list(small.info.residuals) == ["2", "4", "6"]
    dense, y, first = x, x, True
    for i in (0, 2, 4, 6):
        out = F.linear(dense, t.params[f"{i}.weight"], t.params[f"{i}.bias"])
        if first:
            y = out
        else:
            design = torch.cat([y, torch.ones(100, 1, dtype=y.dtype)], 1)
            fit = torch.linalg.lstsq(design, out).solution
            y = design @ fit
            rows = small.mask.get(str(i), torch.ones(3, dtype=torch.bool))
            close(small.params[f"{i}.weight"], fit[:-1].T[rows], 1e-7)
            error = float((y - out).square().sum(1).mean())
            assert small.info.residuals[str(i)].error == pytest.approx(error, rel=1e-7)
        dense, first = F.relu(out), False
        if i < 6:
            y = F.relu(y)[:, small.mask[str(i)]]
    close(pf.forward(small.params, x, spec=small.spec), y, 1e-7)


@pytest.mark.parametrize("method", METHODS[1:], ids=lambda m: m.name)
def test_errors_do_not_pile_up(method: compensation.Compensation) -> None:
    """Deep networks: layer by layer towards the dense outputs is better than all layers at once."""
    error = {True: 0.0, False: 0.0}
    for seed in range(5):
        t = fed([6, *[24] * 8, 3], x := randn(300, 6, seed=seed), seed)
        dense = pf.forward(t.params, x, spec=t.spec)
        for sequential in error:
            prune = pf.pipeline(
                criterion=pf.criteria.variance(),
                ratio=0.3,
                scope=pf.scope.local(),
                compensation=method,
                sequential=sequential,
            )
            small = prune(t.params, [x], spec=t.spec)
            y = pf.forward(small.params, x, spec=small.spec)
            error[sequential] += float((y - dense).square().mean() / dense.var())
            if sequential:
                close(y.mean(0), dense.mean(0), 1e-9)
    assert error[True] < error[False]


def test_fits_are_merged_over_batches() -> None:
    """Inputs of the pruned network, outputs of the dense one; the halves are those of each batch."""
    t = fed([5, 8, 8, 3], x := randn(90, 5), 0)
    small = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.5, where="0")(t.params, [x], spec=t.spec)
    weight = small.params["4.weight"][None, ..., None]
    task = Task(
        t.spec.sites["4"],
        t.params["4.weight"][None, ..., None],
        weight,
        torch.arange(3),
        slice(None),
        "",
        (0, 1),
        weight,
    )
    networks = (t.params, t.spec), (small.params, small.spec)
    ((first,), (second,)) = collect_fits(*networks, x.split([50, 39, 1]), [task], covariance=True)[0]
    with torch.no_grad():
        dense = F.linear(t.model[:4](x), t.params["4.weight"])
    hidden = F.relu(F.linear(x, small.params["0.weight"], small.params["0.bias"]))
    pruned = F.relu(F.linear(hidden, small.params["2.weight"], small.params["2.bias"]))
    lacking = dense - pruned @ t.params["4.weight"].T
    rows = torch.cat([torch.arange(25), torch.arange(50, 69), torch.tensor([89])])
    others = torch.tensor([n for n in range(90) if n not in rows.tolist()])
    for fit, chosen in ((first, rows), (second, others)):
        both = torch.cov(torch.cat([pruned, lacking], 1)[chosen].T, correction=0) * len(chosen)
        close(fit.inputs.scatter, both[:8, :8], 1e-9)
        close(fit.cross, both[8:, :8], 1e-9)
        close(fit.outputs.m2, dense[chosen].var(0, correction=0) * len(chosen), 1e-9)
        assert fit.inputs.count == len(chosen)


def test_sequential_over_a_real_network() -> None:
    """BatchNorm, padding, groups, tap means: the mean of every logit stays, whatever was removed before."""
    t = traced(cnn(), x := randn(40, 3, 6, 6))
    for method in (compensation.mean(), compensation.affine()):
        prune = pf.pipeline(
            criterion=pf.criteria.variance(), ratio=0.3, scope=pf.scope.local(), compensation=method, sequential=True
        )
        small = prune(t.params, x.split(15), spec=t.spec)
        y, dense = (pf.forward(p, x, spec=s) for p, s in ((small.params, small.spec), (t.params, t.spec)))
        close(y.mean(0), dense.mean(0), 1e-9)


def test_iterators_cannot_be_read_twice() -> None:
    t = traced(mlp(5, 8, 3), x := randn(20, 5))
    for option in ("sequential", "recalibrate"):
        with pytest.raises(pf.BatchError, match=f"{option}=True reads the batches several times"):
            pf.pipeline(criterion=pf.criteria.variance(), **{option: True})(t.params, iter([x]), spec=t.spec)
    with pytest.raises(pf.BatchError, match="recalibrate=True needs batches"):
        pf.pipeline(criterion=pf.criteria.magnitude(), compensation=compensation.none(), recalibrate=True)(
            t.params, None, spec=t.spec
        )


def test_recalibration_at_the_end() -> None:
    t = traced(cnn(), x := randn(20, 3, 6, 6))
    plain = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.3, scope=pf.scope.local())(t.params, [x], spec=t.spec)
    anew = pf.pipeline(criterion=pf.criteria.variance(), ratio=0.3, scope=pf.scope.local(), recalibrate=True)(
        t.params, [x], spec=t.spec
    )
    expected = pf.recalibrate(plain.params, [x], spec=plain.spec)
    assert all(torch.equal(expected[n], v) for n, v in anew.params.items())


def test_few_samples_are_noticed_once_a_call() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    spec, params = pf.trace(net, (torch.randn(2, 3),)), pf.params(net)
    mask, affine = {"0": torch.arange(8) < 4}, pf.compensation.affine()
    few, many = (pf.collect_stats(params, [torch.randn(n, 3)], spec=spec, covariance=True) for n in (5, 8))
    said = r"site '2' has 5 samples for 4 kept inputs; give collect_stats more batches"
    with pytest.warns(UserWarning, match=said) as caught:
        pf.compensate(params, few, mask, spec=spec, method=affine)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=said):
        pf.residual(few, mask, spec=spec, method=affine)
    pf.compensate(params, few, mask, spec=spec)  # means need no more
    pf.compensate(params, many, mask, spec=spec, method=affine)
