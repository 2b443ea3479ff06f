"""Small models, masks and comparisons for the tests of single transforms."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunefn as pf

laws = settings(max_examples=30)


class Traced(NamedTuple):
    """A model with its spec and params."""

    model: nn.Module
    spec: pf.Spec
    params: pf.Params


def traced(model: nn.Module, *inputs: Any, train: bool = False, **kwargs: Any) -> Traced:
    """In float64 and eval mode, unless the inputs are narrower."""
    model = model.to(inputs[0].dtype).train(train)
    return Traced(model, pf.trace(model, inputs, kwargs, train=train), pf.params(model))


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bits(text: str) -> Tensor:
    """`bits("101")` keeps the first and the last of three units."""
    return torch.tensor([c == "1" for c in text])


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    """Equal up to a tolerance that is relative to the largest number."""
    assert a.shape == b.shape
    a, b = a.detach(), b.detach()
    assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


def same(a: pf.Params, b: pf.Params) -> None:
    """The same names and bits."""
    assert list(a) == list(b)
    for n in a:
        assert a[n].dtype == b[n].dtype
        assert torch.equal(a[n], b[n])


@st.composite
def masks(draw: st.DrawFn, spec: pf.Spec, some: bool = False) -> pf.Mask:
    """Any mask that keeps a unit of each group; `some`: groups may be left out."""
    out = {}
    for g in spec.groups.values():
        if not some or draw(st.booleans()):
            kept = draw(st.lists(st.booleans(), min_size=g.size, max_size=g.size).filter(any))
            out[g.name] = torch.tensor(kept)
    return out


def mlp(*widths: int) -> nn.Sequential:
    """Linear, ReLU, Linear, ReLU, …, Linear."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def identity(model: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> nn.Module:
    """The layer passes its input on."""
    with torch.no_grad():
        model.weight.copy_(torch.eye(len(model.weight)).reshape(model.weight.shape))
        if model.bias is not None:
            model.bias.zero_()
    return model


class Attention(nn.Module):
    """Self-attention with a fused qkv."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, self.heads * self.head_dim))


class Residual(nn.Module):
    """A stream to which a block adds."""

    def __init__(self, inputs: int, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.down(F.relu(self.up(x))))


class Twice(nn.Module):
    """The units of `a` stand at two positions of `b`'s input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.b(torch.cat([h, 2 * h], -1))


class Recurrent(nn.Module):
    """The layer `b` is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.b(F.relu(self.a(x)))))))


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder transposed, and an output layer tied to the input layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(self.embed(x))))


def cnn() -> nn.Sequential:
    """Convolutions with BatchNorm (statistics that are not trivial), a grouped one, and a linear head after a flatten."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 9, 4),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    for m in net:
        if isinstance(m, nn.BatchNorm2d):
            for t, low in ((m.weight, 0.5), (m.bias, -0.5), (m.running_mean, -0.5), (m.running_var, 0.5)):
                t.detach().copy_(torch.rand(t.shape, generator=generator) + low)
    return net
