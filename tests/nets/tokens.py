"""Blocks of tokens [b, n, c]."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layers, activation, norm, some


class Linear(NamedTuple):
    """A linear layer, a norm, an activation."""

    width: int
    norm: str = "none"
    act: str = "gelu"
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        return {
            "fc": nn.Linear(c, self.width),
            "norm": norm(self.norm, self.width, "tokens"),
            "act": activation(self.act, self.width, "tokens"),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        return m.act(m.norm(m.fc(x)))

    def expects(self, *shape: int) -> dict[str, int]:
        return {}


class FeedForward(NamedTuple):
    """A residual MLP: plain, or with a gate of its own or one half of a fused layer (SwiGLU)."""

    hidden: int
    norm: str = "layer"
    pre: bool = True
    gate: str = "none"
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        fused = self.gate not in ("none", "apart")
        layers = {"up": nn.Linear(c, self.hidden * (1 + fused)), "down": nn.Linear(self.hidden, c)}
        layers |= {"gate": nn.Linear(c, self.hidden, bias=False)} if self.gate == "apart" else {}
        return layers | {"norm": norm(self.norm, c, "tokens")}

    def run(self, m: Any, x: Tensor) -> Tensor:
        y = m.up(m.norm(x) if self.pre else x)
        gates = {
            "none": lambda: F.gelu(y),
            "apart": lambda: F.silu(m.gate(x)) * y,
            "glu": lambda: F.glu(y),
            "chunk": lambda: F.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1],
            "slice": lambda: F.silu(y[..., : self.hidden]) * y[..., self.hidden :],
            "halves": lambda: F.silu(y.unflatten(-1, (2, -1))[..., 0, :]) * y.unflatten(-1, (2, -1))[..., 1, :],
            "pairs": lambda: F.silu(y.unflatten(-1, (-1, 2))[..., 0]) * y.unflatten(-1, (-1, 2))[..., 1],
            "steps": lambda: F.silu(y[..., ::2]) * y[..., 1::2],
        }
        x = x + m.down(gates[self.gate]())
        return x if self.pre else m.norm(x)

    def expects(self, *shape: int) -> dict[str, int]:
        cut = self.gate in ("glu", "chunk", "slice")
        name = "up.0" if cut else "up" if self.gate in ("none", "apart") else "up.hidden"
        return {name: self.hidden}


QKV = {
    "kind": "b n (k h d) -> k b h n d",
    "head": "b n (h k d) -> k b h n d",
    "unit": "b n (h d k) -> k b h n d",
}


class Attention(NamedTuple):
    """Self-attention with queries, keys and values in one layer, laid out in three ways."""

    heads: int
    dim: int
    layout: str = "kind"
    how: str = "sdpa"
    norm: str = "layer"
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        width = self.heads * self.dim
        return {
            "qkv": nn.Linear(c, 3 * width),
            "proj": nn.Linear(width, c),
            "norm": norm(self.norm, c, "tokens"),
            "before": nn.Conv2d(self.heads, self.heads, 1),
            "after": nn.Conv2d(self.heads, self.heads, 1),
            "scale": nn.Parameter(torch.ones(self.heads, 1, 1)),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        q, k, v = rearrange(m.qkv(m.norm(x)), QKV[self.layout], k=3, h=self.heads).unbind(0)
        return x + m.proj(rearrange(attend(self.how, m, q, k, v), "b h n d -> b n (h d)"))

    def expects(self, *shape: int) -> dict[str, int]:
        if self.how == "talking":
            return some(qkv__head_dim=self.dim)
        return some(qkv__heads=self.heads, **({} if self.how == "across" else {"qkv__head_dim": self.dim}))


def attend(how: str, m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of [b, h, n, d] by torch, by hand, by cosine, over channels, with talking heads, linear, or by einsum."""
    if how == "sdpa":
        return F.scaled_dot_product_attention(q, k, v)
    if how == "einsum":
        return torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)
    if how == "across":
        q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
        return v @ ((k.transpose(-2, -1) @ q) * m.scale).softmax(-2)
    if how == "linear":
        return F.elu(q) @ (k.softmax(-2).transpose(-2, -1) @ v)
    if how == "cosine":
        return ((F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * m.scale).softmax(-1) @ v
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return m.after(m.before(scores).softmax(-1)) @ v if how == "talking" else scores.softmax(-1) @ v


class Queries(NamedTuple):
    """Attention with layers of their own; `shared` queries per key (GQA), values of another width, a norm of the heads."""

    heads: int
    dim: int
    value: int
    shared: int = 1
    how: str = "repeat"
    norm: bool = False
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        h, r = self.heads, self.shared
        return {
            "q": nn.Linear(c, h * r * self.dim),
            "kv": nn.Linear(c, h * (self.dim + self.value)),
            "norm": nn.LayerNorm(self.dim) if self.norm else nn.Identity(),
            "proj": nn.Linear(h * r * self.value, c, bias=False),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        h, r, keys = self.heads, self.shared, self.heads * self.dim
        q = rearrange(m.q(x), "b n (h d) -> b h n d", h=h * r)
        k, v = (rearrange(t, "b n (h d) -> b h n d", h=h) for t in m.kv(x).split([keys, h * self.value], -1))
        q, k = m.norm(q), m.norm(k)
        if self.how == "native":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        elif self.how == "repeat":
            y = F.scaled_dot_product_attention(q, k.repeat_interleave(r, 1), v.repeat_interleave(r, 1))
        else:
            k, v = (t[:, :, None].expand(-1, -1, r, -1, -1).flatten(1, 2) for t in (k, v))
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + m.proj(rearrange(y, "b h n d -> b n (h d)"))

    def expects(self, *shape: int) -> dict[str, int]:
        """The heads, the queries of each head, and two widths."""
        return some(q__heads=self.heads)


class Mixer(NamedTuple):
    """MLP-Mixer: a hidden layer over the tokens."""

    hidden: int
    norm: str = "layer"
    einsum: bool = False
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        return {
            "up": nn.Linear(n, self.hidden),
            "down": nn.Linear(self.hidden, n),
            "norm": norm(self.norm, c, "tokens"),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        if self.einsum:
            y = torch.einsum("bnc,hn->bch", m.norm(x), m.up.weight)
            return x + torch.einsum("bch,nh->bnc", y.relu(), m.down.weight)
        return x + m.down(m.up(m.norm(x).transpose(1, 2)).relu()).transpose(1, 2)

    def expects(self, *shape: int) -> dict[str, int]:
        return some(up=self.hidden)


class PerHead(NamedTuple):
    """Every head of the channels has a matrix of its own."""

    heads: int
    dim: int
    out: int
    norm: bool = False
    swap: bool = False
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        return {
            "enter": nn.Linear(c, self.heads * self.dim),
            "matrix": nn.Parameter(torch.ones(self.heads, self.dim, self.out)),
            "norm": nn.LayerNorm(self.out) if self.norm else nn.Identity(),
            "leave": nn.Linear(self.heads * self.out, c),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        y = rearrange(m.enter(x), "b n (h d) -> b n h d", h=self.heads).relu()
        y = m.norm(torch.einsum("bnhd,hde->bnhe", y, m.matrix))
        return x + m.leave(rearrange(y, "b n h e -> b n (e h)") if self.swap else y.flatten(2))

    def expects(self, *shape: int) -> dict[str, int]:
        return {}


class Tied(NamedTuple):
    """An autoencoder whose decoder is its encoder, transposed."""

    hidden: int
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        return {"code": nn.Linear(c, self.hidden)}

    def run(self, m: Any, x: Tensor) -> Tensor:
        return x + m.code(x).relu() @ m.code.weight

    def expects(self, *shape: int) -> dict[str, int]:
        return some(code=self.hidden)


class Twins(NamedTuple):
    """Two branches whose second layers are one parameter."""

    hidden: int
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        a, b = nn.Linear(self.hidden, c), nn.Linear(self.hidden, c)
        b.weight = a.weight
        return {"up1": nn.Linear(c, self.hidden), "up2": nn.Linear(c, self.hidden), "down1": a, "down2": b}

    def run(self, m: Any, x: Tensor) -> Tensor:
        return m.down1(m.up1(x).relu()) + x * m.down2(m.up2(x).tanh())

    def expects(self, *shape: int) -> dict[str, int]:
        return some(up1=self.hidden)


class Along(NamedTuple):
    """A depthwise convolution over the tokens, between two pointwise ones."""

    hidden: int
    kernel: int = 3
    form = "tokens"

    def layers(self, n: int, c: int) -> Layers:
        h = self.hidden
        return {
            "enter": nn.Conv1d(c, h, 1),
            "along": nn.Conv1d(h, h, self.kernel, padding=self.kernel // 2, groups=h, bias=False),
            "norm": nn.BatchNorm1d(h),
            "leave": nn.Conv1d(h, c, 1),
        }

    def run(self, m: Any, x: Tensor) -> Tensor:
        return x + m.leave(m.norm(m.along(m.enter(x.mT))).relu()).mT

    def expects(self, *shape: int) -> dict[str, int]:
        return some(enter=self.hidden)
