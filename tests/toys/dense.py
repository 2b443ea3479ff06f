"""Linear layers, gates, norms and bare parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Case, images, tokens, vectors

WIDTH = 6


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
        self.wq, self.wk = nn.Parameter(torch.zeros(6, 4, 5)), nn.Parameter(torch.zeros(6, 4, 5))
        self.wv, self.wo = nn.Parameter(torch.zeros(6, 4, 6)), nn.Parameter(torch.zeros(4, 6, 2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btc,chd->bhtd", x, w) for w in (self.wq, self.wk, self.wv))
        y = torch.einsum("bhts,bhsd->bhtd", torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1), v)
        return torch.einsum("bhtd,hdo->bto", y, self.wo)


class Experts(nn.Module):
    """bmm and baddbmm with parameters: a dense mixture, one matrix per expert, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.zeros(3, 4, 6)), nn.Parameter(torch.zeros(3, 6, 2))
        self.b2, self.gate = nn.Parameter(torch.zeros(3, 1, 2)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.bmm(x.expand(3, *x.shape), self.w1).relu()
        return (torch.baddbmm(self.b2, y, self.w2) * self.gate(x).sigmoid().t()[:, :, None]).sum(0)


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
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        return self.out(x + self.fc2(self.fc1(x).relu()))


@torch.library.custom_op("prunefn_tests::clip_columns", mutates_args=())
def clip_columns(x: Tensor) -> Tensor:
    """An op of a library, of whose inside nothing is known."""
    return torch.renorm(x, 2, 1, 1.0)


clip_columns.register_fake(torch.empty_like)


class NoRule(nn.Module):
    """An op without a rule: all that it touches stays, the rest can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(clip_columns(self.enter(x))).relu())


class Lstm(nn.Module):
    """A recurrent layer: the state is an axis, which the gates and the matrix that feeds it back share."""

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


class TiedTranspose(nn.Module):
    """An autoencoder whose decoder is the transpose of its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.back = nn.Linear(4, 6), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.enter(x).relu(), self.enter.weight.t(), self.back)


class Masked(nn.Module):
    """The weight is a parameter times a buffer; another is a product of two factors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.low, self.rank = nn.Linear(4, 6), nn.Parameter(torch.zeros(5, 3)), nn.Parameter(torch.zeros(3, 6))
        self.head = nn.Linear(5, 2)
        self.register_buffer("mask", (torch.arange(24).reshape(6, 4) % 3 > 0).float())

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.a.weight * self.mask, self.a.bias).relu()
        return self.head(F.linear(x, self.low @ self.rank).relu())


class WeightNorm(nn.Module):
    """torch's parametrisation: the direction and the length of each row are two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu())


class Vectors(nn.Module):
    """Products with vectors: a score per token, and a dot product over it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.score = nn.Linear(4, 8), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).relu() @ self.score


class Bilinear(nn.Module):
    """nn.Bilinear, and the same by an einsum of three."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both, self.head = nn.Linear(4, 5), nn.Linear(4, 6), nn.Bilinear(5, 6, 7), nn.Linear(7, 2)
        self.cube = nn.Parameter(torch.zeros(7, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.head(self.both(a, b) + torch.einsum("ni,oij,nj->no", a, self.cube, b))


class EinsumMLP(nn.Module):
    """Einsum as a linear layer: with an ellipsis, with a letter that is summed alone, with an implied output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(4, 8)), nn.Parameter(torch.zeros(6, 8))
        self.c, self.d = nn.Parameter(torch.zeros(6, 5, 3)), nn.Parameter(torch.zeros(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("...c,cd->...d", x, self.a).relu()
        x = torch.einsum("ni,ji->nj", x, self.b).relu()
        return torch.einsum("no,op", torch.einsum("nj,joz->no", x, self.c).relu(), self.d)


class Pooled(nn.Module):
    """Softmax over tokens as weights of a mean; a hidden layer of one unit makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.score, self.head = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).tanh()
        return self.head((self.score(x).softmax(1) * x).sum(1))


class MeanHead(nn.Module):
    """The mean over hidden units enters the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.b(x) + x.mean(-1, keepdim=True)


CASES = {
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
    "experts": Case(Experts, vectors),
    "mixer": Case(Transposed, tokens(4)),
    "embedding": Case(Embedding, lambda n: (torch.randint(11, (n, 7)),)),
    "tied": Case(lambda: Embedding(tied=True), lambda n: (torch.randint(11, (n, 7)),)),
    "lstm": Case(Lstm, tokens(4)),
    "no_rule": Case(NoRule, tokens(4)),
    "tied_transpose": Case(TiedTranspose, vectors),
    "masked": Case(Masked, vectors),
    "weight_norm": Case(WeightNorm, vectors),
    "vectors": Case(Vectors, tokens(4)),
    "bilinear": Case(Bilinear, vectors),
    "einsum_mlp": Case(EinsumMLP, vectors),
    "pooled": Case(Pooled, tokens(4)),
    "mean_head": Case(MeanHead, vectors),
}
