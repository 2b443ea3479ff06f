"""Networks of linear layers: norms over tuples, halves, parameters of kept sizes, recurrences."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..small import randn
from .case import Case, tokens, vectors


class NormOfTuple(nn.Module):
    """A norm by function, whose shape is kept as a tuple."""

    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.shape, self.eps = (d,), 1e-5
        self.a, self.b = nn.Linear(6, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.layer_norm(self.a(x), self.shape, None, None, self.eps))


class NormWithoutWeights(nn.Module):
    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, d), nn.LayerNorm(d, elementwise_affine=False), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


class OwnNorm(nn.Module):
    """A norm of the user's own that divides by its width."""

    class Norm(nn.Module):
        def __init__(self, d: int) -> None:
            super().__init__()
            self.g, self.d = nn.Parameter(torch.ones(d)), d

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(x, dim=-1) * self.g * self.d**0.5

    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, d), self.Norm(d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


class Gated(nn.Module):
    """SwiGLU of one projection, split at half of an attribute."""

    def __init__(self, d: int = 6, hidden: int = 16) -> None:
        super().__init__()
        self.hidden_dim = 2 * hidden
        self.w12, self.w3 = nn.Linear(d, self.hidden_dim), nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        h = self.w12(x)
        a, b = h[..., : self.hidden_dim // 2], h[..., self.hidden_dim // 2 :]
        return self.w3(F.silu(a) * b)


class Mixture(nn.Module):
    """A stack of weights in one parameter, with the sizes kept as numbers."""

    def __init__(self, d: int = 6, f: int = 16, n: int = 3) -> None:
        super().__init__()
        self.n, self.d, self.f = n, d, f
        self.w1, self.w2 = nn.Parameter(torch.randn(n * f, d)), nn.Parameter(torch.randn(n * f, d))
        self.gate = nn.Linear(d, n)

    def forward(self, x: Tensor) -> Tensor:
        w1, w2 = self.w1.view(self.n, self.f, self.d), self.w2.view(self.n, self.f, self.d)
        h = torch.einsum("bd,nfd->bnf", x, w1).relu()
        return torch.einsum("bnf,nfd,bn->bd", h, w2, self.gate(x).softmax(-1))


class Expand(nn.Module):
    """Expands a learned vector to its kept width."""

    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.width = d
        self.a, self.b = nn.Linear(6, d), nn.Linear(2 * d, 3)
        self.token = nn.Parameter(torch.randn(1, d))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cat([self.a(x).relu(), self.token.expand(x.shape[0], self.width)], -1))


class Zeros(nn.Module):
    """Creates a state of its kept width."""

    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.state_size = d
        self.cell, self.out = nn.GRUCell(6, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.state_size)
        for t in range(3):
            h = self.cell(x[:, t], h)
        return self.out(h)


class LstmCell(nn.Module):
    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.hidden_size = d
        self.cell, self.out = nn.LSTMCell(6, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], self.hidden_size, dtype=x.dtype)
        for t in range(3):
            h, c = self.cell(x[:, t], (h, c))
        return self.out(h)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(6, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class OwnLstm(nn.Module):
    """The gates of a cell of the user's own, split by the kept width."""

    def __init__(self, n: int = 10) -> None:
        super().__init__()
        self.n_hidden = n
        self.x2h, self.h2h, self.out = nn.Linear(6, 4 * n), nn.Linear(n, 4 * n), nn.Linear(n, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], self.n_hidden, dtype=x.dtype)
        for t in range(2):
            i, f, g, o = (self.x2h(x[:, t]) + self.h2h(h)).split(self.n_hidden, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


class Positions(nn.Module):
    """A learned table of positions, checked against the kept width."""

    def __init__(self, d: int = 12, n: int = 12) -> None:
        super().__init__()
        self.dim, self.max_len = d, n
        self.inp, self.pos, self.out = nn.Linear(6, d), nn.Embedding(n, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x) + self.pos(torch.arange(x.shape[1]))
        if h.shape[-1] != self.dim:
            raise ValueError(f"width {h.shape[-1]} is not {self.dim}")
        assert x.shape[1] <= self.max_len
        return self.out(h.relu())


class Sine(nn.Module):
    """A table of sines as a buffer, and the root of the width as a scale."""

    pos: Tensor

    def __init__(self, d: int = 16, n: int = 5) -> None:
        super().__init__()
        self.d_model = d
        angles = torch.arange(n)[:, None] / 100 ** (torch.arange(d // 2) / (d // 2))
        self.register_buffer("pos", torch.stack([angles.sin(), angles.cos()], -1).flatten(1), persistent=False)
        self.inp, self.out = nn.Linear(6, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.inp(x) * math.sqrt(self.d_model) + self.pos).relu())


class Shared(nn.Module):
    """A layer that runs twice, and a weight that another layer reads transposed."""

    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.inp, self.mid, self.d = nn.Linear(6, d), nn.Linear(d, d), d

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid(self.mid(self.inp(x)).relu()).relu().view(-1, self.d)
        return F.linear(h, self.inp.weight.t())


class Autoencoder(nn.Module):
    """Sequentials with slices, and latent sizes in attributes of a name of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.ndf, self.nz = 16, 4
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 8)
        )
        self.dec = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.net[:2](x).view(-1, self.ndf)
        mean, log = self.net[2:](h).chunk(2, 1)
        return self.dec((mean + log.exp()).view(-1, self.nz))


class Wide(nn.Module):
    """A capsule-like layer: the numbers of capsules and their width are one-letter attributes."""

    def __init__(self, k: int = 4, m: int = 6) -> None:
        super().__init__()
        self.k, self.m = k, m
        self.a, self.b = nn.Linear(6, k * m), nn.Linear(k * m, 3)
        self.w = nn.Parameter(torch.randn(k, m))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).view(-1, self.k, self.m) * self.w
        return self.b(h.relu().view(-1, self.k * self.m))


class PerChannel(nn.Module):
    """Reads its width from parameters and loops over it."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        self.a, self.scale, self.b = nn.Linear(6, d), nn.Parameter(torch.randn(d)), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        assert h.size(1) == self.scale.numel()
        return self.b((h * self.scale).relu())


class Time(nn.Module):
    """A sine of time steps whose width equals, by coincidence, that of another stream."""

    class Sinusoid(nn.Module):
        def __init__(self, num_channels: int) -> None:
            super().__init__()
            self.num_channels = num_channels

        def forward(self, t: Tensor) -> Tensor:
            f = torch.exp(-torch.arange(self.num_channels // 2, dtype=t.dtype) / 2)
            a = t[:, None] * f[None]
            return torch.cat([a.sin(), a.cos()], -1)

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.time, self.mlp = self.Sinusoid(c), nn.Sequential(nn.Linear(c, 24), nn.ReLU(), nn.Linear(24, 24))
        self.inp, self.shift, self.out = nn.Linear(6, c), nn.Linear(24, c), nn.Linear(c, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out((self.inp(x) + self.shift(self.mlp(self.time(t)))).relu())


class Literal(nn.Module):
    """The width is written down in forward: no attribute can change it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().view(-1, 32))


class Varying(nn.Module):
    """Arguments by position and by name, of any number."""

    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.d = d
        self.a, self.b, self.out = nn.Linear(6, d), nn.Linear(6, d), nn.Linear(d, 3)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x, y = args
        return self.out((self.a(x) + self.b(y)).view(-1, self.d).relu())


CASES = [
    *(
        Case(cls, vectors(6))
        for cls in (
            NormOfTuple,
            NormWithoutWeights,
            OwnNorm,
            Gated,
            Mixture,
            Expand,
            Shared,
            Autoencoder,
            Wide,
            PerChannel,
        )
    ),
    *(Case(cls, tokens(6)) for cls in (Zeros, LstmCell, Lstm, OwnLstm, Positions, Sine)),
    Case(Time, lambda b: (randn(b, 6), randn(b, seed=1).abs() * 5)),
    Case(Literal, vectors(6), refused="self.b(self.a(x).relu().view(-1, 32))"),
    Case(Varying, lambda b: (randn(b, 6), randn(b, 6, seed=1))),
]
