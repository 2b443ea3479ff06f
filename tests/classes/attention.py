"""Attentions: heads and widths under all sorts of names, scales from head_dim, streams that attend jointly."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from ..small import randn
from .case import Case, tokens


class TimmLike(nn.Module):
    def __init__(self, dim: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, 8, heads * 8
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * self.attn_dim), nn.Linear(self.attn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, self.attn_dim))


class RearrangeLayers(nn.Module):
    def __init__(self, d: int = 32, h: int = 4) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.split = Rearrange("b n (s h d) -> s b h n d", s=3, h=h)
        self.join = Rearrange("b h n d -> b n (h d)")
        self.scale = (d // h) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        return self.out(self.join((q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ v))


class RearrangeInSequential(nn.Module):
    """Layers of einops inside Sequentials, with both sizes given."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (
            nn.Sequential(nn.Linear(8, 24), Rearrange("b n (h d) -> b h n d", h=4, d=6)) for _ in range(3)
        )
        self.o = nn.Sequential(Rearrange("b h n d -> b n (h d)", h=4), nn.Linear(24, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class EinopsFunctions(nn.Module):
    def __init__(self, dim: int = 10, heads: int = 4, dim_head: int = 6) -> None:
        super().__init__()
        self.h, self.scale = heads, dim_head**-0.5
        self.to_q, self.to_kv = nn.Linear(dim, heads * dim_head), nn.Linear(dim, 2 * heads * dim_head)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.to_q(x), *self.to_kv(x).chunk(2, dim=-1))
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.h) for t in (q, k, v))
        a = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        return self.to_out(rearrange(a.softmax(-1) @ v, "b h n d -> b n (h d)"))


class Grouped(nn.Module):
    """Queries of several heads share keys; the number of repeats is computed in the constructor."""

    def __init__(self, d: int = 12, n_head: int = 8, n_kv: int = 4, hd: int = 6) -> None:
        super().__init__()
        self.n_head, self.n_kv, self.hd, self.n_rep = n_head, n_kv, hd, n_head // n_kv
        self.wq, self.wk, self.wv = nn.Linear(d, n_head * hd), nn.Linear(d, n_kv * hd), nn.Linear(d, n_kv * hd)
        self.wo = nn.Linear(n_head * hd, d)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.wq(x).view(b, n, self.n_head, self.hd).transpose(1, 2)
        k, v = (w(x).view(b, n, self.n_kv, self.hd).transpose(1, 2) for w in (self.wk, self.wv))
        k, v = (t.repeat_interleave(self.n_rep, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous().view(b, n, -1)
        return self.wo(y)


class FusedGrouped(nn.Module):
    """One projection for queries, keys and values, split by sizes that are kept."""

    def __init__(self, d: int = 12, heads: int = 8, kv_heads: int = 4, head_dim: int = 6) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q_size, self.kv_size = heads * head_dim, kv_heads * head_dim
        self.scaling = head_dim**-0.5
        self.qkv_proj, self.o_proj = nn.Linear(d, self.q_size + 2 * self.kv_size), nn.Linear(self.q_size, d)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv_proj(x).split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q = q.view(b, n, self.num_kv_heads, self.num_heads // self.num_kv_heads, self.head_dim)
        k, v = (t.view(b, n, self.num_kv_heads, self.head_dim) for t in (k, v))
        a = (torch.einsum("bnkgd,bmkd->bkgnm", q, k) * self.scaling).softmax(-1)
        return self.o_proj(torch.einsum("bkgnm,bmkd->bnkgd", a, v).reshape(b, n, self.q_size))


class Joint(nn.Module):
    """Two streams that attend jointly, as in MMDiT: the number of heads serves both."""

    def __init__(self, a: int = 12, b: int = 10, heads: int = 4, head_dim: int = 6) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.scale = head_dim**-0.5
        self.a_qkv, self.b_qkv = nn.Linear(a, 3 * inner), nn.Linear(b, 3 * inner)
        self.a_norm, self.b_norm = nn.RMSNorm(head_dim, eps=1e-6), nn.RMSNorm(head_dim, eps=1e-6)
        self.a_out, self.b_out = nn.Linear(inner, a), nn.Linear(inner, b)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        def split(t: Tensor) -> tuple[Tensor, ...]:
            return t.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

        (qx, kx, vx), (qy, ky, vy) = split(self.a_qkv(x)), split(self.b_qkv(y))
        q = torch.cat([self.a_norm(qx), self.b_norm(qy)], 2)
        k = torch.cat([self.a_norm(kx), self.b_norm(ky)], 2)
        v = torch.cat([vx, vy], 2)
        z = (q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ v
        z = z.transpose(1, 2).flatten(2)
        return x + self.a_out(z[:, : x.shape[1]]), y + self.b_out(z[:, x.shape[1] :])


class ScaleOfTensor(nn.Module):
    """The scale is a tensor that forward makes from the width of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 2, 8
        self.q, self.k, self.v, self.o = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        scale = torch.sqrt(torch.tensor(q.shape[-1], dtype=x.dtype))
        return self.o(((q @ k.transpose(-1, -2) / scale).softmax(-1) @ v).transpose(1, 2).flatten(2))


class ScaleBehindBias(nn.Module):
    """A bias of its own is added before the scale, as in DeBERTa."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.all_head_size = 2, 16
        self.q, self.k, self.v = (nn.Linear(6, 16, bias=False) for _ in range(3))
        self.o = nn.Linear(16, 6)
        self.q_bias = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        q = q + self.q_bias.view(1, 1, self.heads, -1).transpose(1, 2)
        q = q / torch.sqrt(torch.tensor(q.shape[-1], dtype=torch.float) * 3).to(q.dtype)
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(*x.shape[:2], self.all_head_size))


class ScaleOfPooled(nn.Module):
    """Queries are pooled by their maximum before they are scaled, as in Hiera."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 2, 8
        self.q, self.k, self.v, self.o = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        q = q.view(x.shape[0], self.heads, 2, -1, self.head_dim).amax(2)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ScaleOfKeys(nn.Module):
    """The queries are also read without the scale, as for the relative positions of SAM: only the keys can be scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 2, 8
        self.q, self.k, self.v, self.o = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 6)
        self.rel = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        bias = q @ self.rel.t()
        return self.o(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


class ScaleOfWidth(nn.Module):
    """The scale is that of the whole width, which the module keeps as a number."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.d_model = d
        self.inp, self.q, self.k, self.v, self.o = (
            nn.Linear(6, d),
            *(nn.Linear(d, d) for _ in range(3)),
            nn.Linear(d, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x) * math.sqrt(self.d_model)
        a = (self.q(h) @ self.k(h).transpose(-1, -2) / math.sqrt(self.d_model)).softmax(-1)
        return self.o(a @ self.v(h))


class MinGPT(nn.Module):
    """Sizes come from the shape at hand and one attribute: heads and head_dim must halve to a quarter of the width."""

    def __init__(self, d: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.n_head, self.n_embd = heads, d
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (z.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class MinGPTHidden(MinGPT):
    """The same before a wider network: only the hidden groups halve."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.fc(super().forward(x))))


class TorchMultihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.att, self.norm = nn.MultiheadAttention(16, 4, batch_first=True), nn.LayerNorm(16)
        self.fc1, self.fc2 = nn.Linear(16, 20), nn.Linear(20, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att(x, x, x, need_weights=False)[0]
        return x + self.fc2(self.fc1(self.norm(x)).relu())


class Rotary(nn.Module):
    """Rotates halves of heads by a table that is a buffer."""

    def __init__(self, d: int = 12, h: int = 2, hd: int = 8) -> None:
        super().__init__()
        self.h, self.hd, self.half = h, hd, hd // 2
        self.q, self.k, self.v, self.o = (
            nn.Linear(d, h * hd),
            nn.Linear(d, h * hd),
            nn.Linear(d, h * hd),
            nn.Linear(h * hd, d),
        )
        angles = torch.arange(5)[:, None] / 100 ** (torch.arange(hd // 2) / (hd // 2))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x.split(self.half, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).reshape(*x.shape[:2], self.h, self.hd).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        return self.o(y.transpose(1, 2).flatten(2))


class Memory(nn.Module):
    """Learned keys whose number of heads equals another size by coincidence."""

    def __init__(self, d: int = 8, h: int = 4, slots: int = 4) -> None:
        super().__init__()
        self.h, self.slots, self.c = h, slots, d
        self.q, self.kv, self.o = nn.Linear(d, h * 6), nn.Linear(d, 2 * h * 6), nn.Linear(h * 6, d)
        self.mem = nn.Parameter(torch.randn(slots, d))

    def forward(self, x: Tensor) -> Tensor:
        m = repeat(self.mem, "s c -> b s c", b=x.shape[0], s=self.slots, c=self.c)
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.h)
        k, v = rearrange(self.kv(torch.cat([m, x], 1)), "b n (two h d) -> two b h n d", two=2, h=self.h)
        return self.o(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


CASES = [
    Case(TimmLike, tokens(12)),
    Case(RearrangeLayers, tokens(32)),
    Case(RearrangeInSequential, tokens(8)),
    Case(EinopsFunctions, tokens(10)),
    Case(Grouped, tokens(12)),
    Case(FusedGrouped, tokens(12)),
    Case(Joint, lambda b: (randn(b, 5, 12), randn(b, 3, 10, seed=1))),
    Case(ScaleOfTensor, tokens(6)),
    Case(ScaleBehindBias, tokens(6)),
    Case(ScaleOfPooled, tokens(6, length=4)),
    Case(ScaleOfKeys, tokens(6, length=4)),
    Case(ScaleOfWidth, tokens(6)),
    Case(MinGPT, tokens(16), refused="z.view(b, t, self.n_head, c // self.n_head)"),
    Case(MinGPTHidden, tokens(16), with_kinds=("hidden",)),
    Case(TorchMultihead, tokens(16), with_kinds=("hidden",)),
    Case(Rotary, tokens(12)),
    Case(Memory, tokens(8)),
]
