"""Queries that look for objects: deformable attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..toys.base import Case, images


class DeformableAttention(nn.Module):
    """Each query reads values at a few places around its reference point, for each head by itself."""

    def __init__(self, width: int, heads: int = 2, points: int = 3) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.offsets, self.weights = nn.Linear(width, heads * points * 2), nn.Linear(width, heads * points)

    def forward(self, queries: Tensor, reference: Tensor, memory: Tensor, size: tuple[int, int]) -> Tensor:
        """queries [n, q, width], reference [n, q, 2] in 0 … 1, memory [n, h·w, width] → [n, q, width]."""
        n, q, _ = queries.shape
        values = self.value(memory).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1)
        values = values.flatten(0, 1).unflatten(-1, size)  # [n·heads, width / heads, h, w]
        offsets = self.offsets(queries).view(n, q, self.heads, self.points, 2)
        places = 2 * (reference[:, :, None, None] + 0.1 * offsets) - 1
        weights = self.weights(queries).view(n, q, self.heads, self.points).softmax(-1)
        grid = places.transpose(1, 2).flatten(0, 1)
        read = F.grid_sample(values, grid, align_corners=False)  # [n·heads, width / heads, q, points]
        read = (read * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        return self.out(read.view(n, -1, q).transpose(1, 2))


class Layer(nn.Module):
    """Deformable attention and an MLP, each added and normalised; with `own`, queries attend to each other first."""

    def __init__(self, width: int, own: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 + own)])
        self.qkv = nn.Linear(width, 3 * width) if own else None
        self.attention = DeformableAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 10), nn.ReLU(), nn.Linear(10, width))

    def forward(self, x: Tensor, at: Tensor, reference: Tensor, memory: Tensor | None, size: tuple[int, int]) -> Tensor:
        if self.qkv is not None:
            q, k, v = self.qkv(x + at).chunk(3, -1)
            x = self.norms[2](x + (q @ k.transpose(1, 2)).softmax(-1) @ v)
        x = self.norms[0](x + self.attention(x + at, reference, x if memory is None else memory, size))
        return self.norms[1](x + self.mlp(x))


class DeformableDetector(nn.Module):
    """A backbone, an encoder layer over its pixels, a decoder layer over learned queries, and classes and boxes."""

    def __init__(self, width: int = 8, queries: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, width, 3, 1, 1))
        self.pixels, self.at = nn.Parameter(torch.rand(16, width)), nn.Parameter(torch.rand(queries, width))
        self.queries, self.reference = nn.Parameter(torch.rand(queries, width)), nn.Linear(width, 2)
        self.encoder, self.decoder = Layer(width, own=False), Layer(width, own=True)
        self.classes, self.boxes = nn.Linear(width, 4), nn.Sequential(nn.Linear(width, 7), nn.ReLU(), nn.Linear(7, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.backbone(x)
        h, w = y.shape[-2:]
        memory, n = y.flatten(2).transpose(1, 2), len(x)
        down, across = (torch.linspace(0.5, k - 0.5, k, dtype=x.dtype) / k for k in (h, w))
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1).flatten(0, 1)
        memory = self.encoder(memory, self.pixels, grid.expand(n, -1, -1), None, (h, w))
        at = self.at.expand(n, -1, -1)
        reference = self.reference(at).sigmoid()
        found = self.decoder(self.queries.expand(n, -1, -1), at, reference, memory, (h, w))
        return self.classes(found), self.boxes(found).sigmoid()


CASES = {"deformable_detector": Case(DeformableDetector, images)}
