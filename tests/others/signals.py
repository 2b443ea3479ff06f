"""Sequences and fields: state spaces, speech, waves, operators, latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ..toys.base import Case, tokens


class Selective(nn.Module):
    """Mamba: a causal depthwise convolution, a scan whose steps depend on its input, and a gate."""

    def __init__(self, width: int = 6, inner: int = 8, state: int = 3, rank: int = 2) -> None:
        super().__init__()
        self.sizes = (rank, state, state)
        self.enter, self.norm, self.leave = nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 2)
        self.in_proj, self.out_proj = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.conv = nn.Conv1d(inner, inner, 3, groups=inner, padding=2)
        self.x_proj, self.dt_proj = nn.Linear(inner, sum(self.sizes), bias=False), nn.Linear(rank, inner)
        self.rates, self.skip = nn.Parameter(torch.rand(inner, state)), nn.Parameter(torch.ones(inner))

    def scan(self, x: Tensor) -> Tensor:
        step, b, c = self.x_proj(x).split(self.sizes, -1)
        step = F.softplus(self.dt_proj(step))
        decay = torch.exp(-step[..., None] * self.rates.exp())
        inputs = (step * x)[..., None] * b[:, :, None]
        state, out = torch.zeros_like(inputs[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + inputs[:, t]
            out.append((state * c[:, t, None]).sum(-1))
        return torch.stack(out, 1) + self.skip * x

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y, z = self.in_proj(self.norm(x)).chunk(2, -1)
        y = F.silu(self.conv(y.transpose(1, 2))[..., : y.shape[1]].transpose(1, 2))
        return self.leave(x + self.out_proj(self.scan(y) * F.silu(z)))


class Diagonal(nn.Module):
    """S4D: the kernel of a diagonal state space, by a Vandermonde product of parameters, in a causal sum over steps."""

    def __init__(self, width: int = 6, state: int = 3) -> None:
        super().__init__()
        self.enter, self.mix, self.leave = nn.Linear(4, width), nn.Linear(width, 2 * width), nn.Linear(width, 2)
        self.rates, self.c = nn.Parameter(torch.rand(width, state)), nn.Parameter(torch.rand(width, state))
        self.skip = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x, n = self.enter(x), x.shape[1]
        steps = torch.arange(n, dtype=x.dtype)
        kernel = (self.c[..., None] * torch.exp(-self.rates.exp()[..., None] * steps)).sum(1)
        y = F.conv1d(F.pad(x.transpose(1, 2), (n - 1, 0)), kernel.flip(-1)[:, None], groups=kernel.shape[0])
        return self.leave(x + F.glu(self.mix(F.gelu(y.transpose(1, 2) + self.skip * x))))


class Conformer(nn.Module):
    """Half-step MLPs around attention under lengths and a gated depthwise convolution."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.enter, self.leave = heads, nn.Linear(4, width), nn.Linear(width, 3)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(4)])
        self.first, self.last = (nn.Sequential(nn.Linear(width, 12), nn.SiLU(), nn.Linear(12, width)) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.point1, self.point2 = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.deep, self.batch = nn.Conv1d(width, width, 3, padding=1, groups=width), nn.BatchNorm1d(width)

    def attend(self, x: Tensor, valid: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None])
        return self.proj(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = torch.arange(x.shape[1]) < lengths[:, None]
        x = self.enter(x)
        x = x + 0.5 * self.first(self.norms[0](x))
        x = x + self.attend(self.norms[1](x), valid)
        y = F.glu(self.point1(self.norms[2](x).transpose(1, 2)), 1)
        y = self.deep(y.masked_fill(~valid[:, None], 0.0))
        x = x + self.point2(F.silu(self.batch(y))).transpose(1, 2)
        return self.leave(x + 0.5 * self.last(self.norms[3](x)))


class Temporal(nn.Module):
    """TCN: causal convolutions with normalised weights; what is padded too much is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.a = weight_norm(nn.Conv1d(4, 6, 3, padding=2))
        self.b = nn.Conv1d(6, 7, 3, padding=4, dilation=2)
        self.skip, self.leave = nn.Conv1d(4, 7, 1), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        y = self.b(self.a(x)[:, :, :-2].relu())[:, :, :-4].relu()
        return self.leave((y + self.skip(x)).relu()[:, :, -1])


class Wave(nn.Module):
    """WaveNet: gated dilated convolutions, a cropped residual stream, and a sum of skips."""

    def __init__(self, width: int = 6, skip: int = 5) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv1d(1, width, 1), nn.Conv1d(skip, 2, 1)
        self.filters, self.gates = (
            nn.ModuleList([nn.Conv1d(width, 7, 2, dilation=d) for d in (1, 2)]) for _ in range(2)
        )
        self.back, self.out = nn.Conv1d(7, width, 1), nn.ModuleList([nn.Conv1d(7, skip, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.enter(x), []
        for i in range(2):
            y = self.filters[i](x).tanh() * self.gates[i](x).sigmoid()
            skips.append(self.out[i](y)[:, :, -4:])
            if i == 0:  # nothing reads what the last layer would add to the stream
                x = x[:, :, -y.shape[2] :] + self.back(y)
        return self.leave((skips[0] + skips[1]).relu())


class FourierOperator(nn.Module):
    """FNO: low frequencies are mixed by complex weights, and a pointwise layer runs beside."""

    def __init__(self, width: int = 6, modes: int = 3) -> None:
        super().__init__()
        self.modes = modes
        self.enter, self.beside, self.leave = nn.Conv1d(1, width, 1), nn.Conv1d(width, width, 1), nn.Conv1d(width, 1, 1)
        self.real, self.imag = (nn.Parameter(torch.rand(width, width, modes)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        low = torch.fft.rfft(x)[..., : self.modes]
        low = torch.einsum("bim,iom->bom", low, torch.complex(self.real, self.imag))
        return self.leave(F.gelu(torch.fft.irfft(low, n=x.shape[-1]) + self.beside(x)))


class Latents(nn.Module):
    """Perceiver: learned queries read the input, and then each other."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.latents, self.enter = nn.Parameter(torch.rand(3, width)), nn.Linear(4, 6)
        self.q, self.kv, self.o = nn.Linear(width, 10), nn.Linear(6, 20), nn.Linear(10, width)
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, x: Tensor) -> Tensor:
        z = self.latents.expand(len(x), -1, -1)
        k, v = self.kv(self.enter(x)).chunk(2, -1)
        z = z + self.o((self.q(z) @ k.transpose(1, 2)).softmax(-1) @ v)
        return self.leave((z + self.mlp(self.norm(z))).mean(1))


class Slots(nn.Module):
    """Slots compete for the inputs, and a cell updates them."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.dim = 5
        self.start, self.q = nn.Parameter(torch.rand(3, width)), nn.Linear(width, self.dim)
        self.kv = nn.Linear(4, self.dim + width)
        self.cell, self.leave = nn.GRUCell(width, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        slots = self.start.expand(len(x), -1, -1)
        k, v = self.kv(x).split([self.dim, self.start.shape[-1]], -1)
        for _ in range(2):
            weights = (k @ self.q(slots).transpose(1, 2)).softmax(-1)
            read = (weights / weights.sum(1, keepdim=True)).transpose(1, 2) @ v
            slots = self.cell(read.flatten(0, 1), slots.flatten(0, 1)).unflatten(0, (len(x), -1))
        return self.leave(slots)


CASES = {
    "selective": Case(Selective, tokens(4)),
    "diagonal": Case(Diagonal, tokens(4)),
    "conformer": Case(Conformer, lambda n: (torch.randn(n, 5, 4), torch.arange(n) % 3 + 3)),
    "temporal": Case(Temporal, tokens(4)),
    "wave": Case(Wave, lambda n: (torch.randn(n, 1, 8),)),
    "fourier_operator": Case(FourierOperator, lambda n: (torch.randn(n, 1, 8),)),
    "latents": Case(Latents, tokens(4)),
    "slots": Case(Slots, tokens(4)),
}
