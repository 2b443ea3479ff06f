"""Attention in its many spellings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Case, images, tokens

HEADS, DIM, WIDTH = 2, 4, 6  # heads, head_dim, embedding


class Attention(nn.Module):
    """A fused qkv in timm's way, or in chunks; by sdpa, or by hand."""

    def __init__(self, *, chunk: bool = False, manual: bool = False) -> None:
        super().__init__()
        self.chunk, self.manual, self.heads, self.dim = chunk, manual, HEADS, DIM
        self.enter, self.qkv, self.proj, self.head = (nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3 * HEADS * DIM), nn.Linear(HEADS * DIM, WIDTH),
                                                      nn.Linear(WIDTH, 2))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        n, t, _ = x.shape
        if self.chunk:
            q, k, v = (y.view(n, t, self.heads, self.dim).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        else:
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.manual:
            y = (q * self.dim**-0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.proj(y.transpose(1, 2).reshape(n, t, -1)))


class GroupedQuery(nn.Module):
    """Llama: several heads of queries share one of keys and values."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.kv, self.repeat, self.dim = way, 2, 3, 4
        self.q, self.k, self.v = (nn.Linear(WIDTH, n * 4, bias=False) for n in (6, 2, 2))
        self.o = nn.Linear(24, 2)

    def shared(self, x: Tensor) -> Tensor:
        if self.way == "expand":
            n, h, t, d = x.shape
            return x[:, :, None].expand(n, h, self.repeat, t, d).reshape(n, h * self.repeat, t, d)
        return x.repeat_interleave(self.repeat, 1) if self.way == "interleave" else x

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, self.shared(k), self.shared(v), enable_gqa=self.way == "native")
        return self.o(y.transpose(1, 2).flatten(2))


class MaskedAttention(nn.Module):
    """Separate projections, a mask that is made inside, and a bias per head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 6), nn.Linear(6, 2)
        self.bias = nn.Parameter(torch.zeros(HEADS, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        causal = torch.ones(5, 5, dtype=torch.bool).tril()
        scores = (q @ k.mT + self.bias).masked_fill(~causal, float("-inf"))
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class TorchAttention(nn.Module):
    """torch's own layer, whose parameter is a bare fused matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Rotary(nn.Module):
    """Rotary embedding with tables that are in no state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), nn.Linear(8, 2)
        angle = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.1]).repeat(2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (HEADS, DIM)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        return self.o(y.transpose(1, 2).flatten(2))


class InterleavedRotary(nn.Module):
    """GPT-J and EVA: even and odd positions turn together."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), nn.Linear(5, 2)
        angle = (torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.1])).repeat_interleave(2, -1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        return x * self.cos + turned * self.sin

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).unflatten(-1, (HEADS, DIM)).transpose(1, 2) for f in (self.q, self.k))
        return self.o((self.rotate(q) @ self.rotate(k).mT).sum(1))


class Windows(nn.Module):
    """Swin: attention in windows folded into the batch, after a roll, with a bias picked from a table."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv, self.proj, self.head = nn.Linear(3, 4), nn.Linear(4, 24), nn.Linear(8, 4), nn.Linear(4, 2)
        self.table = nn.Parameter(torch.zeros(9, HEADS))
        grid = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        offset = (grid[:, :, None] - grid[:, None] + 1).permute(1, 2, 0)
        self.register_buffer("index", offset[..., 0] * 3 + offset[..., 1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        n, h, w, c = x.shape
        y = x.roll((-1, -1), (1, 2)).view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, HEADS, DIM).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        y = ((q @ k.transpose(-2, -1) + bias).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, HEADS * DIM)
        y = self.proj(y).view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return self.head(x + y.roll((1, 1), (1, 2)))


class ClassToken(nn.Module):
    """ViT: patches, a token for the class, position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token, self.position = (
            nn.Conv2d(3, WIDTH, 4, stride=4),
            nn.Parameter(torch.zeros(1, 1, WIDTH)),
            nn.Parameter(torch.zeros(1, 5, WIDTH)),
        )
        self.fc1, self.fc2, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head((x + self.fc2(F.gelu(self.fc1(x))))[:, 0])


class MultiQuery(nn.Module):
    """One head of keys and values for all queries, which broadcasts; queries, keys and values in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * DIM + 2 * DIM), nn.Linear(3 * DIM, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([3 * DIM, DIM, DIM], -1)
        scores = q.unflatten(-1, (3, DIM)).transpose(1, 2) @ k[:, None].mT
        return self.o((scores.softmax(-1) @ v[:, None]).transpose(1, 2).flatten(2))


class Grouped(nn.Module):
    """InternLM2: each group of the fused layer holds its queries, then its key and its value."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 2 * (3 + 2) * DIM), nn.Linear(2 * 3 * DIM, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = self.qkv(x).view(n, t, 2, 5, DIM)
        q, k, v = y[..., :-2, :].flatten(2, 3), y[..., -2, :], y[..., -1, :]
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(y.transpose(1, 2).reshape(n, t, -1))


class CrossCovariance(nn.Module):
    """XCiT: channels attend to channels, so that head_dim is normalised and softmaxed."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o, self.temperature = (
            nn.Linear(WIDTH, 24),
            nn.Linear(8, 2),
            nn.Parameter(torch.ones(HEADS, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, DIM).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v
        return self.o(y.permute(0, 3, 1, 2).reshape(n, t, -1))


class Cosine(nn.Module):
    """Swin V2: queries and keys of length one, a temperature per head, and a bias per head by a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o, self.scale = nn.Linear(WIDTH, 24), nn.Linear(8, 2), nn.Parameter(torch.zeros(HEADS, 1, 1))
        self.bias = nn.Sequential(nn.Linear(1, 7), nn.ReLU(), nn.Linear(7, HEADS, bias=False))
        self.register_buffer("offset", torch.arange(25.0).reshape(5, 5, 1) / 25)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, DIM).permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.scale.clamp(max=4.6).exp()
        scores = scores + 16 * self.bias(self.offset).permute(2, 0, 1).sigmoid()
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))


class TalkingHeads(nn.Module):
    """CaiT: a linear layer mixes the heads' scores."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (
            nn.Linear(WIDTH, 8),
            nn.Linear(WIDTH, 8),
            nn.Linear(WIDTH, 12),
            nn.Linear(12, 2),
        )
        self.mix = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k))
        scores = self.mix((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.o((scores.softmax(-1) @ self.v(x).unflatten(-1, (3, 4)).transpose(1, 2)).transpose(1, 2).flatten(2))


class LinearAttention(nn.Module):
    """EfficientViT: keys meet values first; a column of ones is padded to the values for the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = q.relu() @ (k.relu().mT @ F.pad(v, (0, 1), value=1.0))
        return self.o((y[..., :-1] / (y[..., -1:] + 1.0)).transpose(1, 2).flatten(2))


class ComplexRotary(nn.Module):
    """Llama's own code: pairs of channels as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), nn.Linear(5, 2)
        self.register_buffer("table", torch.polar(torch.ones(5, 2), torch.arange(10.0).reshape(5, 2)), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.table.to(pairs.dtype)).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).unflatten(-1, (HEADS, DIM)).transpose(1, 2) for f in (self.q, self.k))
        return self.o((self.rotate(q) @ self.rotate(k).mT).sum(1))


class EncoderLayer(nn.Module):
    """torch's own transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.layer, self.head = (
            nn.Linear(3, 8),
            nn.TransformerEncoderLayer(8, 2, 6, batch_first=True),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.enter(x)))


class Memory(nn.Module):
    """Keys and values of learned tokens, which the softmax runs over: they are no units."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.q = nn.Parameter(torch.zeros(1, 7, WIDTH)), nn.Linear(WIDTH, 8)
        self.kv, self.o = nn.Linear(WIDTH, 16), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(self.memory).chunk(2, -1)
        q, k, v = (z.unflatten(-1, (HEADS, DIM)).transpose(1, 2) for z in (self.q(x), k, v))
        y = F.scaled_dot_product_attention(q, k.expand(x.shape[0], -1, -1, -1), v.expand(x.shape[0], -1, -1, -1))
        return self.o(y.transpose(1, 2).flatten(2))


class TokenPick(nn.Module):
    """The tokens with the largest scores go on."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.score, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        best = self.score(x)[..., 0].topk(2, 1)[1]
        return self.head(x.gather(1, best[..., None].expand(-1, -1, x.shape[-1])))


CASES = {
    "attention": Case(Attention, tokens(3)),
    "attention_chunk": Case(lambda: Attention(chunk=True), tokens(3)),
    "attention_manual": Case(lambda: Attention(manual=True), tokens(3)),
    "gqa_expand": Case(lambda: GroupedQuery("expand"), tokens(WIDTH)),
    "gqa_interleave": Case(lambda: GroupedQuery("interleave"), tokens(WIDTH)),
    "gqa_native": Case(lambda: GroupedQuery("native"), tokens(WIDTH)),
    "attention_masked": Case(MaskedAttention, tokens(WIDTH)),
    "attention_torch": Case(TorchAttention, tokens(8)),
    "rotary": Case(Rotary, tokens(WIDTH)),
    "rotary_interleaved": Case(InterleavedRotary, tokens(WIDTH)),
    "windows": Case(Windows, lambda n: (torch.randn(n, 4, 4, 3),)),
    "class_token": Case(ClassToken, images),
    "multi_query": Case(MultiQuery, tokens(WIDTH)),
    "gqa_fused": Case(Grouped, tokens(WIDTH)),
    "cross_covariance": Case(CrossCovariance, tokens(WIDTH)),
    "cosine": Case(Cosine, tokens(WIDTH)),
    "talking_heads": Case(TalkingHeads, tokens(WIDTH)),
    "linear_attention": Case(LinearAttention, tokens(WIDTH)),
    "rotary_complex": Case(ComplexRotary, tokens(WIDTH)),
    "memory": Case(Memory, tokens(WIDTH)),
    "token_pick": Case(TokenPick, tokens(3)),
    "encoder_layer": Case(EncoderLayer, tokens(3)),
}
