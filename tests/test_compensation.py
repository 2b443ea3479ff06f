"""Compensation of the mean: exact for constant units (law 9), mean-preserving for all, at every kind of consumer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import prunefn as pf
from prunefn import compensation
from prunefn.types import Moments

from .small import Attention, Recurrent, Residual, Tied, Traced, Twice, bits, close, mlp, randn, same, traced

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

# ---- consumers of six channels: what follows a producer and an activation


class RawRight(nn.Module):
    """x @ W"""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W


class RawLeft(nn.Module):
    """W @ x, channels second to last"""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.W @ x.transpose(-1, -2)


class Einsum(nn.Module):
    """A product with a parameter of three outputs by its letters."""

    def __init__(self, equation: str, *shape: int) -> None:
        super().__init__()
        self.equation, self.W = equation, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, self.W)


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised over its inputs: without some, the others change, too."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Scaled(nn.Linear):
    """A linear layer whose weight is multiplied by a parameter per output."""

    def __init__(self) -> None:
        super().__init__(6, 3, bias=False)
        self.scale = nn.Parameter(torch.randn(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale)


class Double(nn.Module):
    """Each channel stands at two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([x, x.square()], 1))


class Fork(nn.Module):
    """The convolution's output goes to a BatchNorm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 3, 1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


def seq(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


TOKENS, LINE, MAP, VOLUME = (4, 5), (5, 8), (5, 7, 6), (5, 3, 4, 4)
"""Shapes of one sample before the producer, which makes five channels six."""

EXACT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 3), (5,)),
    "linear on tokens": (lambda: nn.Linear(6, 3), TOKENS),
    "linear without bias": (lambda: nn.Linear(6, 3, bias=False), TOKENS),
    "linear, batch norm": (lambda: seq(nn.Linear(6, 3, bias=False), nn.BatchNorm1d(3)), (5,)),
    "computed weight": (Scaled, TOKENS),
    "x @ W": (RawRight, TOKENS),
    "W @ x": (RawLeft, TOKENS),
    "einsum": (lambda: Einsum("bti,io->bto", 6, 3), TOKENS),
    "einsum, transposed": (lambda: Einsum("...i,oi->...o", 3, 6), TOKENS),
    "einsum over channels": (lambda: Einsum("bihw,oi->bohw", 3, 6), MAP),
    "1x1": (lambda: nn.Conv2d(6, 3, 1), MAP),
    "1x1 without bias": (lambda: nn.Conv2d(6, 3, 1, bias=False), MAP),
    "1x1 strided": (lambda: nn.Conv2d(6, 3, 1, stride=2), MAP),
    "1d": (lambda: nn.Conv1d(6, 3, 3), LINE),
    "3x3": (lambda: nn.Conv2d(6, 3, 3), MAP),
    "3x3, batch norm": (lambda: seq(nn.Conv2d(6, 3, 3, bias=False), nn.BatchNorm2d(3)), MAP),
    "3x3 strided": (lambda: nn.Conv2d(6, 3, 3, stride=(2, 3)), MAP),
    "3x3 dilated": (lambda: nn.Conv2d(6, 3, (3, 2), dilation=2), MAP),
    "patches": (lambda: nn.Conv2d(6, 3, 2, stride=2), MAP),
    "3d": (lambda: nn.Conv3d(6, 3, (1, 2, 3)), VOLUME),
    "reflect": (lambda: nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect"), MAP),
    "grouped": (lambda: seq(nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(4, 3, 1)), MAP),
    "grouped in three": (lambda: seq(nn.Conv2d(6, 9, 2, groups=3, bias=False), nn.Conv2d(9, 3, 1)), MAP),
    "depthwise, then 1x1": (lambda: seq(nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 3, 1)), MAP),
    "weight norm": (lambda: weight_norm(nn.Conv2d(6, 3, 3), dim=1), MAP),
    "cat([x, x²])": (Double, MAP),
    "fork": (Fork, MAP),
    "flatten": (lambda: seq(nn.Flatten(), nn.Linear(6 * 42, 3)), MAP),
    "pool": (lambda: seq(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)), MAP),
    "transposed, no border": (lambda: nn.ConvTranspose2d(6, 3, 3, padding=2), MAP),
}  # fmt: skip
"""Here a constant channel contributes the same at every position."""

BORDERED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d same": (lambda: nn.Conv1d(6, 3, 4, padding="same", bias=False), LINE),
    "3x3 padded": (lambda: nn.Conv2d(6, 3, 3, padding=1), MAP),
    "3x3 padded, batch norm": (lambda: seq(nn.Conv2d(6, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)), MAP),
    "3x3 padded, without bias": (lambda: nn.Conv2d(6, 3, 3, padding=1, bias=False), MAP),
    "5x3 strided": (lambda: nn.Conv2d(6, 3, (5, 3), stride=2, padding=(2, 1)), MAP),
    "7x7 dilated": (lambda: nn.Conv2d(6, 3, 7, padding=6, dilation=2, stride=3), MAP),
    "grouped padded": (lambda: seq(nn.Conv2d(6, 4, 3, padding=1, groups=2), nn.Conv2d(4, 3, 1)), MAP),
    "weight norm, padded": (lambda: weight_norm(nn.Conv2d(6, 3, 3, padding=1, bias=False), dim=1), MAP),
    "3d padded": (lambda: nn.Conv3d(6, 3, 3, padding=1, stride=(1, 2, 2)), VOLUME),
    "transposed": (lambda: nn.ConvTranspose2d(6, 3, 3), MAP),
    "transposed strided": (lambda: nn.ConvTranspose2d(6, 3, 4, stride=2, padding=1), MAP),
    "transposed without bias": (lambda: nn.ConvTranspose2d(6, 3, 3, stride=2, output_padding=1, bias=False), MAP),
    "transposed, batch norm": (lambda: seq(nn.ConvTranspose2d(6, 3, 2, stride=2, bias=False), nn.BatchNorm2d(3)), MAP),
    "transposed grouped": (
        lambda: seq(nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2, dilation=2), nn.Conv2d(4, 3, 1)), MAP,
    ),
    "transposed 1d": (lambda: nn.ConvTranspose1d(6, 3, 3, stride=3, output_padding=2), LINE),
}  # fmt: skip


def chain(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[Traced, Tensor]:
    """Producer, activation, consumer; and inputs."""
    torch.manual_seed(0)
    rank = {5: len(shape) - 1}.get(shape[0], 0)
    producer = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank](5, 6, *([1] if rank else []))
    net = nn.Sequential(producer, nn.Tanh(), make())
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_mean.copy_(torch.randn(3))
            m.running_var.copy_(torch.rand(3) + 0.5)
    x = randn(8, *shape)
    return traced(net, x), x


def half(spec: pf.Spec) -> pf.Mask:
    """Two of six, or one of two or three, units of every group go."""
    return {g.name: torch.tensor([i % 3 != 1 for i in range(g.size)]) for g in spec.groups.values()}


def compensated(t: Traced, batches: list[Tensor], mask: pf.Mask) -> tuple[pf.Params, pf.Spec]:
    stats = pf.collect_stats(t.params, batches, spec=t.spec)
    filled = pf.compensate(t.params, stats, mask, spec=t.spec)
    return pf.apply(filled, mask, spec=t.spec), pf.shrink(t.spec, mask)


def make_constant(t: Traced, mask: pf.Mask) -> Traced:
    """The removed units of the producer do not look at the input."""
    kept = pf.zero(t.params, mask, spec=t.spec)["0.weight"]
    return t._replace(params={**t.params, "0.weight": kept})


@pytest.mark.parametrize("name", EXACT)
def test_law_9_constant_units_are_removed_without_loss(name: str) -> None:
    t, x = chain(*EXACT[name])
    mask = half(t.spec)
    assert mask
    producers = {g: m for g, m in mask.items() if g.split(".")[0] == "0"}
    t = make_constant(t, producers)
    small, spec = compensated(t, [x], producers)
    fresh = 3 * randn(2, *x.shape[1:], seed=9)
    expected = pf.forward(t.params, fresh, spec=t.spec)
    close(pf.forward(small, fresh, spec=spec), expected, 1e-10)
    gone = pf.forward(pf.apply(t.params, producers, spec=t.spec), fresh, spec=spec)
    assert float((gone - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("name", [*EXACT, *BORDERED])
def test_the_mean_of_the_outputs_is_preserved(name: str) -> None:
    """For any units: what is added is the mean over samples and positions of what is lost."""
    t, x = chain(*({**EXACT, **BORDERED}[name]))
    mask = half(t.spec)
    small, spec = compensated(t, [x[:3], x[3:]], mask)
    y, z = pf.forward(t.params, x, spec=t.spec), pf.forward(small, x, spec=spec)
    assert float((y - z).abs().max()) > 1e-3
    over = [d for d in range(y.ndim) if d != channel_dim(name, y)]
    close(z.mean(over), y.mean(over), 1e-10)


def channel_dim(name: str, y: Tensor) -> int:
    """Where the three outputs of a consumer are."""
    return next(d for d in range(1, y.ndim) if y.shape[d] == 3 and (d == y.ndim - 1 or name not in LAST))


LAST = {n for n, (_, shape) in EXACT.items() if shape == TOKENS and n != "W @ x"}


@pytest.mark.parametrize("name", [n for n in BORDERED if n not in ("grouped padded", "transposed grouped")])
def test_the_shift_at_a_border_is_the_best_constant(name: str) -> None:
    """Brute force: the mean over outputs of the consumer applied to the removed channels alone."""
    t, x = chain(*BORDERED[name])
    mask = half(t.spec)
    after = pf.compensate(t.params, pf.collect_stats(t.params, [x], spec=t.spec), mask, spec=t.spec)
    consumer = t.model[2][0] if isinstance(t.model[2], nn.Sequential) else t.model[2]
    with torch.no_grad():
        h = t.model[1](t.model[0](x))
        alone = consumer(h * ~mask["0"].reshape(-1, *(1,) * (h.ndim - 2))) - consumer(0 * h)
    (target,) = changed(t.params, after)
    shift = after[target] - t.params.get(target, torch.zeros(3))
    close(shift, alone.movedim(1, -1).flatten(0, -2).mean(0) * (-1 if "running_mean" in target else 1), 1e-10)


def test_the_shift_of_a_standardised_weight_is_that_of_the_weight_before_removal() -> None:
    t, x = chain(lambda: Standardised(6, 3, 3, padding=1, bias=False), MAP)
    mask = half(t.spec)
    after = pf.compensate(t.params, pf.collect_stats(t.params, [x], spec=t.spec), mask, spec=t.spec)
    assert changed(t.params, after) == {"2.bias"}
    with torch.no_grad():
        alone = t.model[2](t.model[1](t.model[0](x)) * ~mask["0"][:, None, None])
    close(after["2.bias"], alone.mean((0, 2, 3)), 1e-10)


# ---- where the shift goes


def changed(before: pf.Params, after: pf.Params) -> set[str]:
    return {n for n, v in after.items() if n not in before or v is not before[n]}


def test_golden_shift_into_a_bias() -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).double()
    params = {**t.params, "2.weight": weight, "2.bias": torch.tensor([0.5, -0.5]).double()}
    after = pf.compensate(params, {"2": torch.tensor([10.0, 100.0, 1000.0])}, {"0": bits("010")}, spec=t.spec)
    assert changed(params, after) == {"2.bias"}
    assert after["2.bias"].tolist() == [0.5 + 3010.0, -0.5 + 6040.0]
    assert params["2.bias"].tolist() == [0.5, -0.5]


def test_golden_shift_into_a_running_mean() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    t = traced(net, randn(2, 2))
    params = {
        **t.params,
        "2.weight": torch.tensor([[2.0, 3.0]]).double(),
        "3.running_mean": torch.tensor([1.0]).double(),
    }
    after = pf.compensate(params, {"2": torch.tensor([10.0, 100.0])}, {"0": bits("01")}, spec=t.spec)
    assert changed(params, after) == {"3.running_mean"}
    assert after["3.running_mean"].tolist() == [1.0 - 20.0]


def test_golden_shift_of_a_convolution_from_means_by_hand() -> None:
    """A mean per channel: the kernel's sum; a mean per tap: tap by tap."""
    t = traced(nn.Sequential(nn.Conv1d(1, 2, 1), nn.Conv1d(2, 1, 3, padding=1)), randn(2, 1, 5))
    params = {
        **t.params,
        "1.weight": torch.tensor([[[1.0, 2.0, 4.0], [9.0, 9.0, 9.0]]]).double(),
        "1.bias": torch.zeros(1).double(),
    }
    mask = {"0": bits("01")}
    by_channel = {"1": torch.tensor([10.0, 7.0])}
    by_tap = {"1": torch.tensor([[10.0, 100.0, 1000.0], [7.0, 7.0, 7.0]])}
    assert pf.compensate(params, by_channel, mask, spec=t.spec)["1.bias"].tolist() == [70.0]
    assert pf.compensate(params, by_tap, mask, spec=t.spec)["1.bias"].tolist() == [4210.0]


def test_golden_shift_of_a_strided_transposed_convolution() -> None:
    """With stride 2, an output meets one of two taps: a mean per channel contributes half the kernel's sum."""
    t = traced(nn.Sequential(nn.Conv1d(1, 2, 1), nn.ConvTranspose1d(2, 1, 2, stride=2)), randn(2, 1, 5))
    params = {
        **t.params,
        "1.weight": torch.tensor([[[1.0, 3.0]], [[9.0, 9.0]]]).double(),
        "1.bias": torch.zeros(1).double(),
    }
    after = pf.compensate(params, {"1": torch.tensor([10.0, 7.0])}, {"0": bits("01")}, spec=t.spec)
    assert after["1.bias"].tolist() == [20.0]


def test_means_by_hand_may_be_moments() -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    mean = torch.tensor([10.0, 100.0, 1000.0])
    mask = {"0": bits("010")}
    moments = {"2": Moments(1, mean, torch.zeros(3))}
    same(pf.compensate(t.params, moments, mask, spec=t.spec), pf.compensate(t.params, {"2": mean}, mask, spec=t.spec))


def test_means_of_kept_units_do_not_matter() -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    mask = {"0": bits("011")}
    a, b = (
        pf.compensate(t.params, {"2": torch.tensor([10.0, *rest])}, mask, spec=t.spec)
        for rest in ((1.0, 2.0), (float("nan"), float("inf")))
    )
    same(a, b)


@pytest.mark.parametrize("mask", [{}, {"0": bits("111")}])
def test_nothing_removed_nothing_changed(mask: pf.Mask) -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    assert not changed(t.params, pf.compensate(t.params, {}, mask, spec=t.spec))


def test_no_compensation() -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    after = pf.compensate(t.params, {}, {"0": bits("010")}, spec=t.spec, method=compensation.none())
    assert after is not t.params
    assert not changed(t.params, after)


def test_the_dtype_of_the_params_stays() -> None:
    t = traced(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)), torch.randn(2, 2).bfloat16())
    after = pf.compensate(t.params, {"2": torch.ones(3)}, {"0": bits("010")}, spec=t.spec)
    assert {v.dtype for v in after.values()} == {torch.bfloat16}
    assert changed(t.params, after) == {"2.bias"}


# ---- a bias where there was none


def bare() -> tuple[Traced, Tensor]:
    """Three layers without biases: the second gets one when the first is pruned."""
    layers = [
        nn.Linear(3, 6, bias=False),
        nn.Tanh(),
        nn.Linear(6, 5, bias=False),
        nn.Tanh(),
        nn.Linear(5, 2, bias=False),
    ]
    x = randn(40, 3) + 1
    return traced(nn.Sequential(*layers), x), x


def test_a_created_bias_is_carried_everywhere() -> None:
    t, x = bare()
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    first = {"0": bits("101101")}
    p = pf.compensate(t.params, stats, first, spec=t.spec)
    assert changed(t.params, p) == {"2.bias"}
    close(p["2.bias"], t.params["2.weight"] @ (stats.sites["2"].mean * ~first["0"]))
    w0, w2, w4 = (t.params[f"{i}.weight"] for i in (0, 2, 4))
    expected = (((x @ w0.T).tanh() * first["0"]) @ w2.T + p["2.bias"]).tanh() @ w4.T
    small, spec = pf.apply(p, first, spec=t.spec), pf.shrink(t.spec, first)
    close(pf.forward(small, x, spec=spec), expected)
    close(pf.forward(pf.zero(p, first, spec=t.spec), x, spec=t.spec), expected)
    assert torch.equal(pf.to_module(small, spec=spec)(x), pf.forward(small, x, spec=spec))
    assert "2.bias" in pf.to_module(small, spec=spec).state_dict()


def test_a_created_bias_is_pruned_with_its_rows() -> None:
    t, x = bare()
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    mask = {"0": bits("101101"), "2": bits("10110")}
    p = pf.compensate(t.params, stats, mask, spec=t.spec)
    assert changed(t.params, p) == {"2.bias", "4.bias"}
    small, spec = pf.apply(p, mask, spec=t.spec), pf.shrink(t.spec, mask)
    assert {n: tuple(v.shape) for n, v in small.items()} == {
        "0.weight": (4, 3), "2.weight": (3, 4), "2.bias": (3,), "4.weight": (2, 3), "4.bias": (2,),
    }  # fmt: skip
    zeroed = pf.zero(p, mask, spec=t.spec)
    assert torch.equal(zeroed["2.bias"] == 0, ~mask["2"])
    close(pf.forward(small, x, spec=spec), pf.forward(zeroed, x, spec=t.spec))


def test_a_created_bias_is_seen_by_later_statistics_and_added_to_in_the_next_round() -> None:
    t, x = bare()
    first = {"0": bits("101101")}
    small, spec = compensated(t, [x], first)
    stats = pf.collect_stats(small, [x], spec=spec)
    with torch.no_grad():
        h = (F.linear(x, small["0.weight"])).tanh()
        close(stats.sites["4"].mean, F.linear(h, small["2.weight"], small["2.bias"]).tanh().mean(0))
    second = {"0": bits("0111")}
    p = pf.compensate(small, stats, second, spec=spec)
    close(p["2.bias"], small["2.bias"] + small["2.weight"][:, 0] * stats.sites["2"].mean[0])
    both, all_at_once = pf.apply(p, second, spec=spec), compensated(t, [x], pf.compose(first, second))[0]
    assert {n: v.shape for n, v in both.items()} == {n: v.shape for n, v in all_at_once.items()}
    for n, v in both.items():
        close(v, all_at_once[n])


def test_a_created_bias_takes_gradients() -> None:
    t, x = bare()
    p = pf.compensate(t.params, {"2": torch.ones(6)}, {"0": bits("101101")}, spec=t.spec)
    g = torch.func.grad(lambda q: pf.forward(q, x, spec=t.spec).sum())(p)
    assert float(g["2.bias"].abs().min()) > 0


# ---- units at several places


def test_heads_of_an_attention_layer() -> None:
    x = randn(6, 5, 8)
    t = traced(Attention(8, 3, 2), x)
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    mask = {"qkv.heads": bits("101")}
    p = pf.compensate(t.params, stats, mask, spec=t.spec)
    assert changed(t.params, p) == {"proj.bias"}
    close(p["proj.bias"] - t.params["proj.bias"], t.params["proj.weight"][:, 2:4] @ stats.sites["proj"].mean[2:4])
    y = pf.forward(pf.apply(p, mask, spec=t.spec), x, spec=pf.shrink(t.spec, mask))
    close(y.mean((0, 1)), pf.forward(t.params, x, spec=t.spec).mean((0, 1)))


def test_two_groups_of_one_axis() -> None:
    """A position goes if its head or its place in the head goes, and it is counted once."""
    x = randn(6, 5, 8)
    t = traced(Attention(8, 2, 3), x)
    means = torch.tensor([1.0, 10.0, 100.0, 1e3, 1e4, 1e5])
    weight = {**t.params, "proj.weight": torch.ones(8, 6).double(), "proj.bias": torch.zeros(8).double()}
    p = pf.compensate(weight, {"proj": means}, {"qkv.heads": bits("01"), "qkv.head_dim": bits("101")}, spec=t.spec)
    assert p["proj.bias"].tolist() == [10111.0] * 8


def test_units_that_stand_twice() -> None:
    t = traced(Twice(), randn(2, 4))
    params = {**t.params, "b.weight": torch.ones(2, 6).double(), "b.bias": torch.zeros(2).double()}
    p = pf.compensate(params, {"b": torch.tensor([1.0, 10.0, 100.0, 1e3, 1e4, 1e5])}, {"a": bits("011")}, spec=t.spec)
    assert p["b.bias"].tolist() == [1001.0, 1001.0]


def test_constant_units_of_a_residual_stream() -> None:
    x = randn(9, 3)
    t = traced(Residual(3, 5, 6, 2), x)
    mask = {"stem": bits("11010")}
    dead = pf.zero(t.params, mask, spec=t.spec)
    params = {**t.params, "stem.weight": dead["stem.weight"], "down.weight": dead["down.weight"]}
    t = t._replace(params=params)
    small, spec = compensated(t, [x], mask)
    fresh = randn(4, 3, seed=1)
    close(pf.forward(small, fresh, spec=spec), pf.forward(params, fresh, spec=t.spec))


def test_a_layer_that_is_called_twice_is_shifted_by_the_mean_of_both_calls() -> None:
    x = randn(9, 4)
    t = traced(Recurrent(), x)
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    mask = {"a": bits("10111")}
    p = pf.compensate(t.params, stats, mask, spec=t.spec)
    assert changed(t.params, p) == {"b.bias", "c.bias"}
    close(p["b.bias"], t.params["b.bias"] + t.params["b.weight"][:, 1] * stats.sites["b"].mean[1])


class CalledTwice(nn.Module):
    """One convolution without bias, called twice, each call with a BatchNorm of its own (or both with the same)."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 4, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(norms)])
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.norms[0](self.conv(x)))
        return self.last(F.relu(self.norms[-1](self.conv(x))))


@pytest.mark.parametrize("norms", [1, 2])
def test_every_call_of_a_layer_is_compensated(norms: int) -> None:
    x = randn(5, 3, 4, 4)
    t = traced(CalledTwice(norms), x)
    (group,) = t.spec.groups
    mask = {group: bits("1011")}
    # the unit is 3/4 after the first layer and after each norm: constant, and the same in both calls
    params = {n: v.clone() for n, v in t.params.items()}
    params["first.weight"][1] = params["conv.weight"][1] = 0
    for n in ("first.bias", *(f"norms.{i}.bias" for i in range(norms))):
        params[n][1] = 0.75
    small, spec = compensated(t._replace(params=params), [x], mask)
    close(pf.forward(small, x, spec=spec), pf.forward(params, x, spec=t.spec), 1e-10)


def constant_unit(t: Traced) -> pf.Params:
    """Unit 1 of the stem is 1."""
    params = {**t.params, "stem.weight": t.params["stem.weight"].clone(), "stem.bias": torch.ones(4).double()}
    params["stem.weight"][1] = 0
    return params


class SharedNorm(nn.Module):
    """Two convolutions without biases before the same BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.a, self.b = nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.norm(self.a(x)) * self.norm(self.b(x))


def test_a_norm_that_serves_two_layers_is_left_alone() -> None:
    x = randn(5, 3, 4, 4)
    t = traced(SharedNorm(), x)
    mask = {"stem": bits("1011")}
    t = t._replace(params=constant_unit(t))
    small, spec = compensated(t, [x], mask)
    close(pf.forward(small, x, spec=spec), pf.forward(t.params, x, spec=t.spec))


class TwoBiases(nn.Module):
    """One weight with two biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.a(x) * self.b(2 * x)


def test_one_weight_with_two_biases() -> None:
    x = randn(5, 3)
    t = traced(TwoBiases(), x)
    mask = {"stem": bits("1011")}
    t = t._replace(params=constant_unit(t))
    small, spec = compensated(t, [x], mask)
    close(pf.forward(small, x, spec=spec), pf.forward(t.params, x, spec=t.spec))


class ComputedBias(nn.Module):
    """A bias that is computed from parameters cannot take a shift: another one does."""

    def __init__(self, conv: bool) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 4, 1)
        self.layer = nn.Conv1d(4, 2, 1) if conv else nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(2) * 2)
        self.function = F.conv1d if conv else F.linear

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x if self.function is F.conv1d else x.transpose(1, 2)
        return self.function(x, self.layer.weight, self.layer.bias * self.scale)


@pytest.mark.parametrize("conv", [True, False])
def test_a_computed_bias(conv: bool) -> None:
    x = randn(5, 3, 6)
    t = traced(ComputedBias(conv), x)
    t = t._replace(params=constant_unit(t))
    small, spec = compensated(t, [x], {"stem": bits("1011")})
    assert len(set(small) - set(t.params)) == 1
    close(pf.forward(small, x, spec=spec), pf.forward(t.params, x, spec=t.spec))
    close(pf.to_module(small, spec=spec)(x), pf.forward(t.params, x, spec=t.spec))


class CalledTwiceComputed(nn.Module):
    """A computed weight without bias, called twice on different inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.layer = Scaled()
        self.layer.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.layer(x) * self.layer(2 * x)


def test_a_computed_weight_that_is_called_twice() -> None:
    x = randn(5, 3)
    t = traced(CalledTwiceComputed(), x)
    t = t._replace(params=constant_unit(t))
    small, spec = compensated(t, [x], {"stem": bits("1011")})
    close(pf.forward(small, x, spec=spec), pf.forward(t.params, x, spec=t.spec))
    close(pf.to_module(small, spec=spec)(x), pf.forward(t.params, x, spec=t.spec))


class Alpha(nn.Module):
    """addmm with a factor on the product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.W, self.b = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b, F.relu(self.stem(x)), self.W, alpha=3)


class SumsTokens(nn.Module):
    """An einsum that also sums over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.W = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bti,io->bo", F.relu(self.stem(x)), self.W)


@pytest.mark.parametrize(("model", "shape"), [(Alpha(), (5, 3)), (SumsTokens(), (5, 7, 3))])
def test_a_product_whose_shift_would_have_to_be_scaled_has_no_site(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Better no shift than a wrong one."""
    t = traced(model, randn(*shape))
    assert set(t.spec.groups) == {"stem"}
    assert not t.spec.sites


def test_tied_weights() -> None:
    model = Tied().double().eval()
    x = torch.arange(6).reshape(2, 3)
    t = Traced(model, pf.trace(model, (x,)), pf.params(model))
    (group,) = t.spec.groups
    small, spec = compensated(t, [x], {group: bits("110111")})
    assert small["out.weight"] is small["embed.weight"]
    assert small["out.bias"].shape == (7,)
    y, z = pf.forward(t.params, x, spec=t.spec), pf.forward(small, x, spec=spec)
    assert y.shape == z.shape == (2, 3, 7)


# ---- errors


def test_a_site_without_a_mean_is_named() -> None:
    t = traced(mlp(2, 3, 4, 2), randn(2, 2))
    with pytest.raises(
        pf.StatsError, match="site '4' loses inputs, but there is no mean for it; collect statistics for it"
    ):
        pf.compensate(t.params, {"2": torch.ones(3)}, {"0": bits("101"), "2": bits("1011")}, spec=t.spec)


@pytest.mark.parametrize("shape", [(2,), (3, 1, 1), (3, 2), ()])
def test_a_mean_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    with pytest.raises(pf.StatsError, match=r"the mean of site '2' has shape .*; its axis has 3 positions"):
        pf.compensate(t.params, {"2": torch.ones(shape)}, {"0": bits("101")}, spec=t.spec)


def test_a_mean_with_the_wrong_number_of_taps() -> None:
    t = traced(nn.Sequential(nn.Conv1d(1, 2, 1), nn.Conv1d(2, 1, 3, padding=1)), randn(2, 1, 5))
    with pytest.raises(pf.StatsError, match=r"the mean of site '1' has shape \(2, 2\).*\[2\] or \[2, 3\]"):
        pf.compensate(t.params, {"1": torch.ones(2, 2)}, {"0": bits("01")}, spec=t.spec)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_mean_of_a_removed_unit_that_is_not_finite(bad: float) -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    with pytest.raises(pf.StatsError, match="the mean of site '2' is not finite"):
        pf.compensate(t.params, {"2": torch.tensor([1.0, bad, 1.0])}, {"0": bits("101")}, spec=t.spec)


class SharedBias(nn.Module):
    """Two layers, one bias; the other one reads the removed units, or does not."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both = both
        self.stem = nn.Linear(3, 4)
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4 if both else 3, 2)
        self.b.bias = self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        return self.a(h) + self.b(h if self.both else x)


@pytest.mark.parametrize("both", [True, False])
def test_a_bias_that_serves_two_layers(both: bool) -> None:
    x = randn(5, 3)
    t = traced(SharedBias(both), x)
    stats = pf.collect_stats(t.params, [x], spec=t.spec)
    with pytest.raises(
        pf.ParamsError, match=r"bias '[ab].bias' serves 'a' and 'b', .* use method=compensation.none\(\)"
    ):
        pf.compensate(t.params, stats, {"stem": bits("1011")}, spec=t.spec)
    after = pf.compensate(t.params, stats, {"stem": bits("1011")}, spec=t.spec, method=compensation.none())
    assert not changed(t.params, after)


def test_what_does_not_fit_the_spec() -> None:
    t = traced(mlp(2, 3, 2), randn(2, 2))
    u = traced(mlp(2, 4, 2), randn(2, 2))
    mask = {"0": bits("101")}
    with pytest.raises(pf.StatsError, match="statistics are of another spec"):
        pf.compensate(t.params, pf.collect_stats(u.params, [randn(2, 2)], spec=u.spec), mask, spec=t.spec)
    with pytest.raises(pf.StatsError, match="statistics are empty"):
        pf.compensate(t.params, pf.Stats(), mask, spec=t.spec)
    with pytest.raises(pf.MaskError, match="group '0' has shape"):
        pf.compensate(t.params, {}, {"0": bits("1011")}, spec=t.spec)
    with pytest.raises(pf.ParamsError, match=r"'0.weight' has shape \(4, 2\)"):
        pf.compensate(u.params, {}, mask, spec=t.spec)
