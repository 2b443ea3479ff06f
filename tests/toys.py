"""Small modules, one for each way in which channels can be wired, and `CASES`: name → how to build one and feed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS, DIM, WIDTH = 2, 4, 6  # heads, head_dim, embedding


class Case(NamedTuple):
    """How to build a toy and feed it."""

    factory: Callable[[], nn.Module]
    args: Callable[[int], tuple[Any, ...]]
    """Batch size → example inputs."""
    kwargs: Callable[[int], dict[str, Any]] = lambda n: {}

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A new one with random values, in eval mode; the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return randomised(self.factory()).to(dtype).eval()

    def inputs(self, batch: int = 2, dtype: torch.dtype = torch.float64) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Random (args, kwargs) of this batch size; the same at every call."""

        def cast(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch)
            return tuple(map(cast, self.args(batch))), {k: cast(v) for k, v in self.kwargs(batch).items()}


def randomised(model: nn.Module) -> nn.Module:
    """No value is 0 or 1 by construction: norms, running statistics and biases are random too."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.5 + 0.1)
        for name, b in model.named_buffers():
            if b.is_floating_point() and "running" in name:
                b.copy_(torch.rand(b.shape) + 0.5)
    return model


# ---- convolutions


class Residual(nn.Module):
    """A stream that two blocks add to, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down1, self.norm1, self.up1 = (
            nn.Conv2d(8, 5, 1, bias=False),
            nn.BatchNorm2d(5),
            nn.Conv2d(5, 8, 3, padding=1),
        )
        self.down2, self.up2 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.up1(F.relu(self.norm1(self.down1(x))))
        x = F.relu(x + self.up2(F.gelu(self.down2(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Concat(nn.Module):
    """Two branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


class CatTwice(nn.Module):
    """One value stands twice in a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(self.norm(torch.cat([x, x], 1)).relu())


class C2f(nn.Module):
    """YOLO's block: one half goes through a chain, and all steps are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 1)
        self.steps = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.leave = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.enter(x).chunk(2, 1))
        for step in self.steps:
            y.append(y[-1] + step(y[-1]).relu())
        return self.leave(torch.cat(y, 1))


class Dense(nn.Module):
    """DenseNet: each layer sees all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(3 + 4 * i), nn.ReLU(), nn.Conv2d(3 + 4 * i, 4, 3, padding=1)) for i in range(3)
        )
        self.head = nn.Conv2d(15, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x)


class SplitUnequal(nn.Module):
    """A dim is split into parts of different sizes, each with its own consumer; the third is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 10), nn.Linear(3, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right, _ = self.a(x).split([3, 5, 2], -1)
        return self.b(left.relu()) * self.c(right)


class Ghost(nn.Module):
    """GhostNet: cheap features are concatenated, and what is too much is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap, self.head = (
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.Conv2d(10, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return self.head(torch.cat([x, self.cheap(x)], 1)[:, :10])


class FlattenHW(nn.Module):
    """Flatten with more than one pixel: each channel is a run of columns of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6 * 2 * 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


class GroupedConv(nn.Module):
    """ResNeXt: a convolution in groups between two dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.norm, self.b = (
            nn.Conv2d(3, 12, 1),
            nn.Conv2d(12, 6, 3, padding=1, groups=3),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.g(self.a(x).relu())).relu())


class DepthwiseConv(nn.Module):
    """MobileNetV2: expand, depthwise, project; a depthwise multiplier as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.dw, self.project = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 4, 1),
        )
        self.multiply, self.head = nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(F.relu6(self.dw(F.relu6(self.expand(x)))))
        return self.head(self.multiply(x).relu())


class ConvTranspose(nn.Module):
    """A decoder, dense or grouped."""

    def __init__(self, groups: int = 1, mid: int = 6) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, mid, 3, stride=2, padding=1, output_padding=1, groups=groups)
        self.norm, self.b = nn.BatchNorm2d(mid), nn.Conv2d(mid, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.up(self.a(x).relu())).relu())


class DepthwiseTranspose(nn.Module):
    """A depthwise transposed convolution whose result is added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b = (
            nn.Conv2d(3, 4, 1),
            nn.ConvTranspose2d(4, 4, 3, padding=1, groups=4),
            nn.Conv2d(4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x + self.up(x))


class UNet(nn.Module):
    """Pool, upsample, and join the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Conv2d(10, 2, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        y = F.interpolate(self.inner(F.max_pool2d(x, 2)), scale_factor=2, mode="bilinear")
        return self.leave(torch.cat([y, x], 1))


class Conv1d3d(nn.Module):
    """Convolutions of other ranks, with `same` padding, stride and dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 6, 3, padding="same", dilation=2), nn.Conv1d(6, 4, 2, stride=2, bias=False)
        self.c, self.d = nn.Conv3d(4, 5, (1, 2, 2), padding=(0, 1, 1)), nn.Conv3d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        return self.d(self.c(x[:, :, :, None, None]).relu())


class SingleChannel(nn.Module):
    """Axes of size one are no groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 1, 1), nn.Conv2d(1, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x).relu()).sigmoid()).relu())


class SqueezeExcite(nn.Module):
    """A gate computed from pooled channels multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.reduce, self.expand, self.b = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(4, 8, 1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid())


class WeightStandardised(nn.Module):
    """The weight that convolves is computed from the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gain = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3), nn.Parameter(torch.ones(6, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        w = self.a.weight
        mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True)
        return self.b(F.conv2d(x, (w - mean) / (var + 1e-5).sqrt() * self.gain, self.a.bias).relu())


# ---- shuffles


class ChannelShuffle(nn.Module):
    """ShuffleNet: groups and channels change places, by reshape or by the op."""

    def __init__(self, op: bool = False) -> None:
        super().__init__()
        self.op = op
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        if self.op:
            return self.b(F.channel_shuffle(x, 2))
        n, c, h, w = x.shape
        return self.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3 * 4, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.pixel_shuffle(self.a(x), 2).relu())


class PixelUnshuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5 * 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.pixel_unshuffle(self.a(x).relu(), 2))


# ---- attention


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


# ---- linear layers, gates and norms


class SwiGLU(nn.Module):
    """Separate gate and value, or one fused layer."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused
        self.enter = nn.Linear(4, 16) if fused else nn.ModuleList([nn.Linear(4, 8), nn.Linear(4, 8)])
        self.leave = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.enter(x).chunk(2, -1) if self.fused else [f(x) for f in self.enter]
        return self.leave(F.silu(gate) * value)


class Gated(nn.Module):
    """nn.GLU over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.glu(self.a(x), 1))


class Between(nn.Module):
    """A layer under test between two convolutions."""

    def __init__(self, layer: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.a, self.layer, self.b = nn.Conv2d(3, width, 1), layer, nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.layer(self.a(x)).relu())


class NormMLP(nn.Module):
    """A pre-norm residual MLP over tokens, with layer scale."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.enter, self.norm, self.fc1, self.fc2, self.head = (
            nn.Linear(4, WIDTH),
            norm(WIDTH),
            nn.Linear(WIDTH, 8),
            nn.Linear(8, WIDTH),
            nn.Linear(WIDTH, 2),
        )
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(x + self.scale * self.fc2(F.gelu(self.fc1(self.norm(x)))))


class Moments(nn.Module):
    """A layer norm by hand, through var_mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gain, self.b = nn.Linear(4, 6), nn.Parameter(torch.ones(6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        var, mean = torch.var_mean(x, -1, keepdim=True)
        return self.b((x - mean) * (var + 1e-5).rsqrt() * self.gain)


class Bare(nn.Module):
    """Parameters without a layer: `@`, F.linear, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(6))
        self.w2, self.w3 = nn.Parameter(torch.zeros(5, 6)), nn.Parameter(torch.zeros(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear((x @ self.w1 + self.b1).relu(), self.w2).relu() @ self.w3


class Einsum(nn.Module):
    """Heads are made and put together again by einsum with parameters; attention by einsum without."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (
            nn.Parameter(torch.zeros(*s)) for s in ((6, 2, 4), (6, 2, 4), (6, 2, 3), (2, 3, 2))
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btc,chd->bhtd", x, w) for w in (self.wq, self.wk, self.wv))
        y = torch.einsum("bhts,bhsd->bhtd", torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1), v)
        return torch.einsum("bhtd,hdo->bto", y, self.wo)


class Batched(nn.Module):
    """bmm and baddbmm with parameters: one matrix per expert."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.b2 = (
            nn.Parameter(torch.zeros(3, 4, 6)),
            nn.Parameter(torch.zeros(3, 6, 2)),
            nn.Parameter(torch.zeros(3, 1, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.bmm(x.expand(3, *x.shape) if x.ndim == 2 else x.transpose(0, 1), self.w1).relu()
        return torch.baddbmm(self.b2, y, self.w2).transpose(0, 1)


class Transposed(nn.Module):
    """The parameter stands on the left: mixing over tokens (MLP-Mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.back, self.head = nn.Linear(5, 7), nn.Linear(7, 5), nn.Linear(4, 2)
        self.left = nn.Parameter(torch.zeros(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.back(self.mix(x.transpose(1, 2)).relu()).transpose(1, 2)
        return self.head(self.left @ x)


class Embedding(nn.Module):
    """Tokens in, a residual MLP, logits out; the output matrix is the embedding where tied."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(11, WIDTH), nn.Embedding(7, WIDTH)
        self.fc1, self.fc2, self.out = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), nn.Linear(WIDTH, 11, bias=False)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1]))
        return self.out(x + self.fc2(self.fc1(x).relu()))


class Lstm(nn.Module):
    """An op without a rule: all that it touches stays, the rest can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.lstm, self.fc1, self.fc2 = (
            nn.Linear(4, 6),
            nn.LSTM(6, 5, batch_first=True),
            nn.Linear(5, 8),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.lstm(self.enter(x))[0]).relu())


# ---- wiring


class SeveralIO(nn.Module):
    """Two inputs, one of them a keyword; a dict and a tuple as output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor, *, side: Tensor) -> dict[str, Any]:
        y = self.a(x).relu() * self.b(side).sigmoid()
        return {"out": self.c(y), "pair": (self.d(y), x)}


class Hidden(nn.Module):
    """A function of a hidden layer, under test between two linear layers."""

    def __init__(self, run: Callable[[Tensor], Tensor], width: int = 8, out: int | None = None) -> None:
        super().__init__()
        self.run = run
        self.a, self.b = nn.Linear(4, width), nn.Linear(out or width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.run(self.a(x)))


class Unused(nn.Module):
    """A layer that is never called, and a buffer that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.idle, self.b = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.register_buffer("nobody", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Shared(nn.Module):
    """One module is called twice, and stands under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.twice, self.leave = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.alias = self.twice

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.alias(self.twice(self.enter(x)).relu()).relu())


class FrozenParameters(nn.Module):
    """Parameters that do not train are pruned like any others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class InPlace(nn.Module):
    """relu_, add_ and mul_ on intermediates."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu_()
        y = self.b(x).sigmoid_()
        x += self.c(y)
        return self.head(x.mul_(2))


class WrittenView(nn.Module):
    """A view of an intermediate is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(4, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y[:, 2:5] = self.b(x)
        y[:, :2].mul_(2)
        return self.head(y.relu())


class OneHot(nn.Module):
    """Labels become a one-hot code, which is embedded and gates a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.code, self.b = nn.Linear(4, 8), nn.Linear(5, 8, bias=False), nn.Linear(8, 2)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.b(self.a(x).relu() * self.code(F.one_hot(label, 5).to(x.dtype)))


class Autocast(nn.Module):
    """A region with autocast switched off, and one without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = self.a(x).relu()
        with torch.no_grad():
            scale = x.abs().amax((0, 1), keepdim=True) * 0 + 2
        return self.b(x * scale)


def where(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def scatter(x: Tensor) -> Tensor:
    return x.slice_scatter(x[..., :3] * 2, -1, 2, 5)


def put(x: Tensor) -> Tensor:
    return x.index_put((torch.tensor([0]),), torch.zeros((), dtype=x.dtype))


def images(n: int) -> tuple[Tensor]:
    return (torch.randn(n, 3, 8, 8),)


def vectors(n: int) -> tuple[Tensor]:
    return (torch.randn(n, 4),)


def tokens(width: int) -> Callable[[int], tuple[Tensor]]:
    return lambda n: (torch.randn(n, 5, width),)


CASES: dict[str, Case] = {
    "residual": Case(Residual, images),
    "concat": Case(Concat, images),
    "cat_twice": Case(CatTwice, images),
    "c2f": Case(C2f, images),
    "dense": Case(Dense, images),
    "split_unequal": Case(SplitUnequal, vectors),
    "ghost": Case(Ghost, images),
    "flatten_hw": Case(FlattenHW, lambda n: (torch.randn(n, 3, 4, 5),)),
    "grouped_conv": Case(GroupedConv, images),
    "depthwise_conv": Case(DepthwiseConv, images),
    "conv_transpose": Case(ConvTranspose, images),
    "conv_transpose_grouped": Case(lambda: ConvTranspose(groups=2), images),
    "depthwise_transpose": Case(DepthwiseTranspose, images),
    "unet": Case(UNet, images),
    "conv1d_3d": Case(Conv1d3d, lambda n: (torch.randn(n, 2, 8),)),
    "single_channel": Case(SingleChannel, lambda n: (torch.randn(n, 1, 6, 6),)),
    "squeeze_excite": Case(SqueezeExcite, images),
    "weight_standardised": Case(WeightStandardised, images),
    "shuffle_reshape": Case(ChannelShuffle, images),
    "shuffle_op": Case(lambda: ChannelShuffle(op=True), images),
    "pixel_shuffle": Case(PixelShuffle, images),
    "pixel_unshuffle": Case(PixelUnshuffle, images),
    "attention": Case(Attention, tokens(3)),
    "attention_chunk": Case(lambda: Attention(chunk=True), tokens(3)),
    "attention_manual": Case(lambda: Attention(manual=True), tokens(3)),
    "gqa_expand": Case(lambda: GroupedQuery("expand"), tokens(WIDTH)),
    "gqa_interleave": Case(lambda: GroupedQuery("interleave"), tokens(WIDTH)),
    "gqa_native": Case(lambda: GroupedQuery("native"), tokens(WIDTH)),
    "attention_masked": Case(MaskedAttention, tokens(WIDTH)),
    "attention_torch": Case(TorchAttention, tokens(8)),
    "rotary": Case(Rotary, tokens(WIDTH)),
    "windows": Case(Windows, lambda n: (torch.randn(n, 4, 4, 3),)),
    "class_token": Case(ClassToken, images),
    "swiglu": Case(SwiGLU, vectors),
    "swiglu_fused": Case(lambda: SwiGLU(fused=True), vectors),
    "glu": Case(Gated, images),
    "prelu": Case(lambda: Between(nn.PReLU(8)), images),
    "group_norm": Case(lambda: Between(nn.GroupNorm(4, 8)), images),
    "instance_norm": Case(lambda: Between(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), images),
    "layer_norm": Case(lambda: NormMLP(nn.LayerNorm), vectors),
    "rms_norm": Case(lambda: NormMLP(nn.RMSNorm), vectors),
    "var_mean": Case(Moments, vectors),
    "bare": Case(Bare, vectors),
    "einsum": Case(Einsum, tokens(6)),
    "batched": Case(Batched, lambda n: (torch.randn(n, 3, 4),)),
    "mixer": Case(Transposed, tokens(4)),
    "embedding": Case(Embedding, lambda n: (torch.randint(11, (n, 7)),)),
    "tied": Case(lambda: Embedding(tied=True), lambda n: (torch.randint(11, (n, 7)),)),
    "lstm": Case(Lstm, tokens(4)),
    "several_io": Case(SeveralIO, vectors, lambda n: {"side": torch.randn(n, 3)}),
    "unused": Case(Unused, vectors),
    "shared": Case(Shared, vectors),
    "frozen_parameters": Case(FrozenParameters, vectors),
    "in_place": Case(InPlace, vectors),
    "written_view": Case(WrittenView, vectors),
    "one_hot": Case(OneHot, lambda n: (torch.randn(n, 4), torch.randint(5, (n,)))),
    "autocast": Case(Autocast, tokens(4)),
    "dropout": Case(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Dropout1d(), nn.Linear(8, 2)), vectors
    ),
    "stack": Case(lambda: Hidden(lambda x: torch.stack([x, x.relu()], 1).sum(1)), vectors),
    "roll": Case(lambda: Hidden(lambda x: x.roll(1, -1)), vectors),
    "roll_tokens": Case(lambda: Hidden(lambda x: x.roll(1, 1)), tokens(4)),
    "flip": Case(lambda: Hidden(lambda x: x.flip(-1)), vectors),
    "cumsum": Case(lambda: Hidden(lambda x: x.cumsum(1)), tokens(4)),
    "slice_scatter": Case(lambda: Hidden(scatter), vectors),
    "index_put": Case(lambda: Hidden(put), vectors),
    "where": Case(lambda: Hidden(where), vectors),
    "tile": Case(lambda: Hidden(lambda x: x.tile(1, 2), out=16), vectors),
    "repeat": Case(lambda: Hidden(lambda x: x.repeat(1, 3), out=24), vectors),
    "repeat_interleave": Case(lambda: Hidden(lambda x: x.repeat_interleave(2, -1), out=16), vectors),
    "softmax": Case(lambda: Hidden(lambda x: x.softmax(-1)), vectors),
    "pad": Case(lambda: Hidden(lambda x: F.pad(x, (1, 2)), out=11), vectors),
    "maximum": Case(lambda: Hidden(lambda x: torch.maximum(x, -x).clamp(max=2) ** 2), vectors),
}
"""Name → toy."""
