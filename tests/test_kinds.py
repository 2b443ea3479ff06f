"""What is a residual stream and what is the inside of a block, told by structure: x + f(x) against f(x) + g(x)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import timm
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn import functional as F

import prunefn as pf

Run = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """`run` between two linear layers of width 8, with every layer that any of the functions below may call."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.enter, self.leave = nn.Linear(3, 8), nn.Linear(8, 2)
        self.f = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8))
        self.g, self.h, self.low, self.up = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 8)
        self.n, self.k = nn.LayerNorm(8), nn.LayerNorm(8)
        self.wide, self.narrow, self.across = (
            nn.Linear(8, 16),
            nn.Linear(16, 8),
            nn.Conv1d(8, 8, 3, groups=8, padding=1),
        )
        self.token, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.run(self, self.enter(x)))


def kinds(model: nn.Module, *x: Tensor) -> dict[str, str]:
    return {g.name: g.kind for g in pf.trace(model.eval(), x).widths.values()}


def depthwise(m: Any, x: Tensor) -> Tensor:
    return m.across(x.transpose(1, 2)).transpose(1, 2)


def twice(m: Any, x: Tensor) -> Tensor:
    """A projection beside the first block, as where a stage of a ResNet begins, and an identity beside the second."""
    x = (m.g(x) + m.f(x)).relu()
    return (x + m.low(x) @ m.low.weight).relu()


STREAMS: dict[str, Run] = {
    "identity": lambda m, x: x + m.f(x),
    "pre_norm": lambda m, x: x + m.f(m.n(x)),
    "post_norm": lambda m, x: m.n(x + m.f(x)),
    "from_the_norm": lambda m, x: (y := m.n(x)) + m.f(y),
    "a_norm_each": lambda m, x: m.k(x) + m.f(m.n(x)),
    "parallel_blocks": lambda m, x: m.g(y := m.n(x)) + m.f(y) + x,
    "subtracted": lambda m, x: x - m.f(x),
    "scaled": lambda m, x: torch.add(x, m.scale * m.f(x), alpha=0.5),
    "gated_branch": lambda m, x: x + m.f(x) * m.g(x).sigmoid(),
    "highway": lambda m, x: (t := m.g(x).sigmoid()) * m.f(x) + (1 - t) * x,
    "highway_by_lerp": lambda m, x: torch.lerp(x, m.f(x), m.g(x).sigmoid()),
    "addcmul": lambda m, x: torch.addcmul(x, m.f(x), m.scale),
    "addmm": lambda m, x: torch.addmm(x[:, 0], m.f[0](x[:, 0]).relu(), m.f[2].weight.T),
    "stacked": lambda m, x: torch.stack([x, m.f(x)]).sum(0),
    "averaged": lambda m, x: torch.stack([x, m.f(x)], 1).mean(1),
    "scattered": lambda m, x: x.index_add(1, torch.tensor([0, 2]), m.f(x[:, :2])),
    "in_place": lambda m, x: x.relu().add_(m.f(x)),
    "cropped": lambda m, x: x[:, 2:] + m.f(x)[:, 2:],
    "a_token": lambda m, x: x[:, 0] + m.f(x).mean(1),
    "long_skip": lambda m, x: m.g(m.low(x.relu()).relu() @ m.low.weight) + x,
    "projection_then_identity": twice,
    "identity_and_two_kernels": lambda m, x: x + m.g(x) + m.h(x),
    "depthwise": lambda m, x: x + depthwise(m, x),
    "over_tokens": lambda m, x: x + m.token(x.transpose(1, 2)).transpose(1, 2),
    "tied_blocks": lambda m, x: (y := x + m.f(x)) + m.f(y),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_a_value_that_passes_beside_a_block_is_a_stream(name: str) -> None:
    found = kinds(Net(STREAMS[name]), torch.randn(2, 4, 3))
    assert found["g" if name == "projection_then_identity" else "enter"] == "residual"
    assert found.get("f.0", "hidden") == "hidden"


def scan(m: Any, x: Tensor, d: Tensor | None = None) -> Tensor:
    """A selective state space: steps and gates are computed from x, each channel keeps its own state."""
    step, (b, c) = F.softplus(m.up(m.low(x))), m.low(x).split(2, -1)
    state, out = torch.zeros(len(x), 8, 2), []
    for t in range(x.shape[1]):
        now = step[:, t, :, None]
        state = (-now).exp() * state + now * x[:, t, :, None] * b[:, t, None]
        out.append((state * c[:, t, None]).sum(-1))
    return torch.stack(out, 1) + m.scale * x


def state_space(m: Any, x: Tensor) -> Tensor:
    x, z = m.wide(x).chunk(2, -1)
    return m.g(scan(m, depthwise(m, x)) * F.silu(z))


def rnn(m: Any, x: Tensor) -> Tensor:
    inputs, state = m.g(x), torch.zeros(len(x), 8)
    for t in range(x.shape[1]):
        state = torch.tanh(inputs[:, t] + m.h(state))
    return state


def gru(m: Any, x: Tensor) -> Tensor:
    state = torch.zeros(len(x), 8)
    for t in range(x.shape[1]):
        update = torch.sigmoid(m.g(x[:, t]) + m.h(state))
        state = (1 - update) * torch.tanh(m.up(m.low(x[:, t] + 0)) + m.n(state) @ m.g.weight) + update * state
    return state


def lstm(m: Any, x: Tensor) -> Tensor:
    cell = state = torch.zeros(len(x), 8)
    for t in range(x.shape[1]):
        gate, new = m.g(x[:, t]) + m.h(state), m.up(m.low(x[:, t]))
        cell = gate.sigmoid() * cell + (1 - gate).sigmoid() * new.tanh()
        state = cell.tanh()
    return state


INSIDE: dict[str, Run] = {
    "two_branches": lambda m, x: m.g(x) + m.h(x),
    "three_branches": lambda m, x: m.g(x) + m.h(x) + m.f(x),
    "projection_beside_a_block": lambda m, x: m.g(x) + m.f(x),
    "low_rank": lambda m, x: m.g(x) + m.up(m.low(x)),
    "two_low_ranks": lambda m, x: m.f(m.g(x) + m.up(m.low(x))) + m.up(m.low(m.g(x))),
    "spline": lambda m, x: m.g(F.silu(x)) + m.narrow(torch.cat([x.sin(), x.cos()], -1)),
    "stacked": lambda m, x: torch.stack([m.g(x), m.h(x)]).sum(0),
    "gate": lambda m, x: m.g(x) * m.h(x).sigmoid(),
    "squeeze": lambda m, x: m.g(x) * m.f(x.mean(1, keepdim=True)).sigmoid(),
    "own_gate": lambda m, x: x + x * m.g(x).sigmoid(),
    "glu": lambda m, x: F.glu(m.wide(x)),
    "swiglu": lambda m, x: m.g(F.silu(m.g(x)) * m.h(x)),
    "concatenated": lambda m, x: m.narrow(torch.cat([x, m.f(x)], -1)),
    "dense": lambda m, x: m.narrow(torch.cat([x, m.g(x)], -1)),
    "state_space": state_space,
    "rnn": rnn,
    "gru": gru,
    "lstm": lstm,
    "pyramid": lambda m, x: m.up(m.low(m.h(x))) + m.g(x),
    "its_own_pool": lambda m, x: F.avg_pool1d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2) - x,
    "doubled": lambda m, x: x + x.relu(),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_a_sum_of_branches_is_inside_a_block(name: str) -> None:
    found = kinds(Net(INSIDE[name]), torch.randn(2, 4, 3))
    assert found and set(found.values()) == {"hidden"}


def test_the_order_of_additions_does_not_count() -> None:
    def sums(*order: int) -> tuple[Run, Run]:
        def left(m: Any, x: Tensor) -> Tensor:
            terms = [x, m.g(x), m.f(x), x * m.h(x).sigmoid()]
            a, b, c, d = (terms[i] for i in order)
            return ((a + b) + c) + d

        def pairs(m: Any, x: Tensor) -> Tensor:
            terms = [x, m.g(x), m.f(x), x * m.h(x).sigmoid()]
            a, b, c, d = (terms[i] for i in order)
            return (a + b) + (c + d)

        return left, pairs

    x = torch.randn(2, 4, 3)
    for order in list(permutations(range(4)))[::5]:
        for run in sums(*order):
            assert set(kinds(Net(run), x).items()) >= {("enter", "residual"), ("f.0", "hidden")}


class Images(nn.Module):
    """A stem, some layers on images and a head."""

    def __init__(self, run: Run, **layers: nn.Module) -> None:
        super().__init__()
        self.run, self.stem, self.head = run, nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self, self.stem(x)).mean((2, 3)))


def kernels(identity: bool) -> Images:
    """The training form of a RepVGG block."""
    layers = {"three": nn.Conv2d(8, 8, 3, padding=1, bias=False), "one": nn.Conv2d(8, 8, 1, bias=False)}
    norms = {f"norm{i}": nn.BatchNorm2d(8) for i in range(3)}
    beside = (lambda m, x: m.norm2(x)) if identity else (lambda m, x: 0)
    return Images(lambda m, x: (beside(m, x) + m.norm0(m.three(x)) + m.norm1(m.one(x))).relu(), **layers, **norms)


def test_a_repvgg_block_is_a_stream_where_it_has_an_identity() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert kinds(kernels(identity=True), x) == {"stem": "residual"}
    assert kinds(kernels(identity=False), x) == {"stem": "hidden", "three": "hidden"}


def test_additive_and_concatenated_skips_of_a_u() -> None:
    def layers(wide: int) -> dict[str, nn.Module]:
        return {"down": nn.Conv2d(8, 6, 3, 2, 1), "up": nn.ConvTranspose2d(6, 8, 2, 2), "out": nn.Conv2d(wide, 8, 1)}

    x = torch.randn(2, 3, 8, 8)
    added = Images(lambda m, x: m.out(x.relu() + m.up(m.down(x).relu())), **layers(8))
    joined = Images(lambda m, x: m.out(torch.cat([x.relu(), m.up(m.down(x).relu())], 1)), **layers(16))
    assert kinds(added, x) == {"stem": "residual", "down": "hidden", "out": "hidden"}
    assert set(kinds(joined, x).values()) == {"hidden"}


def test_top_down_sums_of_a_pyramid_are_branches() -> None:
    layers = {"next": nn.Conv2d(8, 6, 3, 2, 1), "here": nn.Conv2d(8, 8, 1), "deep": nn.Conv2d(6, 8, 1)}
    model = Images(lambda m, x: m.here(x) + F.interpolate(m.deep(m.next(x).relu()), scale_factor=2.0), **layers)
    assert set(kinds(model, torch.randn(2, 3, 8, 8)).values()) == {"hidden"}


REAL: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet18": (lambda: tv.resnet18(), 4, 8),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(), 5, 20),
    "densenet": (lambda: tv.DenseNet(8, (2, 2), 16), 0, 10),
    "repvgg": (lambda: timm.create_model("repvgg_a0"), 3, 2),
    "vit": (lambda: tv.VisionTransformer(32, 16, 2, 2, 16, 24), 1, 2),
    "convnext": (lambda: timm.models.ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 12, 16, 20)), 4, 5),
    "mixer": (lambda: timm.models.MlpMixer(img_size=32, num_blocks=2, embed_dim=16), 1, 4),
}
"""Architecture, its residual streams and its hidden groups."""


@pytest.mark.parametrize("name", REAL)
def test_kinds_of_real_architectures(name: str) -> None:
    build, streams, hidden = REAL[name]
    found = list(kinds(build(), torch.randn(2, 3, 32, 32)).values())
    assert (found.count("residual"), found.count("hidden")) == (streams, hidden)


class LowRank(nn.Module):
    """A linear layer with a low-rank update beside it."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(i, o), nn.Linear(i, 4), nn.Linear(4, o)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


def test_recipes_prune_an_mlp_with_a_low_rank_update_as_they_prune_one_without() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(LowRank(6, 32), nn.ReLU(), LowRank(32, 3))
    x = torch.randn(16, 6)
    spec = pf.trace(model, (x,))
    assert {g.kind for g in spec.widths.values()} == {"hidden"}
    assert pf.recipes.vbp(0.5)(pf.params(model), [x], spec=spec).info.removed["0.base"][0] > 0
