"""Points, graphs, sets, tables: what is not a sequence and not an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..toys.base import Case

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 0]])


class GraphConvolution(nn.Module):
    """Two layers that multiply with a normalised adjacency, and a self-connection beside each."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.own, self.b = nn.Linear(3, width), nn.Linear(3, width, bias=False), nn.Linear(width, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        adjacency = adjacency / adjacency.sum(-1, keepdim=True)
        y = (adjacency @ self.a(x) + self.own(x)).relu()
        return adjacency @ self.b(y)


class GraphAttention(nn.Module):
    """Heads score every edge by a vector for either end; scores of what is no edge are masked."""

    def __init__(self, heads: int = 2, width: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.enter, self.leave = nn.Linear(3, heads * width, bias=False), nn.Linear(heads * width, 2)
        self.left, self.right = (nn.Parameter(torch.ones(heads, width)) for _ in range(2))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.enter(x).unflatten(-1, (self.heads, -1))
        left, right = (h * self.left).sum(-1), (h * self.right).sum(-1)
        scores = F.leaky_relu(left[:, :, None] + right[:, None], 0.2)
        scores = scores.masked_fill(adjacency[..., None] < 0.5, -1e9).softmax(2)
        return self.leave(F.elu(torch.einsum("bijh,bjhd->bihd", scores, h).flatten(2)))


class Messages(nn.Module):
    """Messages along a list of edges are summed at their targets, and what arrives updates a node."""

    edges: Tensor

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.register_buffer("edges", EDGES)
        self.enter = nn.Linear(3, width)
        self.message = nn.Sequential(nn.Linear(2 * width, 7), nn.ReLU(), nn.Linear(7, 5))
        self.update, self.leave = nn.Linear(width + 5, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, (source, target) = self.enter(x), self.edges
        m = self.message(torch.cat([h[:, source], h[:, target]], -1))
        arrived = m.new_zeros(len(x), x.shape[1], m.shape[-1]).index_add(1, target, m)
        return self.leave(h + self.update(torch.cat([h, arrived], -1)).relu())


class Equivariant(nn.Module):
    """E(n): messages see distances alone, and positions move along their differences."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.enter = nn.Linear(2, width)
        self.edge = nn.Sequential(nn.Linear(2 * width + 1, 8), nn.SiLU(), nn.Linear(8, 7), nn.SiLU())
        self.move = nn.Sequential(nn.Linear(7, 5), nn.SiLU(), nn.Linear(5, 1, bias=False))
        self.node = nn.Sequential(nn.Linear(width + 7, 8), nn.SiLU(), nn.Linear(8, width))
        self.leave = nn.Linear(width, 1)

    def forward(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h, n = self.enter(h), h.shape[1]
        apart = x[:, :, None] - x[:, None]
        ends = h[:, :, None].expand(-1, -1, n, -1), h[:, None].expand(-1, n, -1, -1)
        m = self.edge(torch.cat([*ends, (apart**2).sum(-1, keepdim=True)], -1))
        x = x + (apart * self.move(m)).mean(2)
        return self.leave(h + self.node(torch.cat([h, m.sum(2)], -1))), x


class PointCloud(nn.Module):
    """One MLP for every point, a maximum over all of them, and the whole beside each point."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.Conv1d(6, 8, 1)
        self.c, self.d = nn.Conv1d(14, 7, 1), nn.Conv1d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        points = self.norm(self.a(x)).relu()
        whole = self.b(points).max(2, keepdim=True).values
        return self.d(self.c(torch.cat([points, whole.expand(-1, -1, x.shape[2])], 1)).relu())


class Recommender(nn.Module):
    """DLRM: bags of embeddings, a dense MLP, and their dot products with each other."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.bags = nn.ModuleList([nn.EmbeddingBag(11, width, mode="sum") for _ in range(2)])
        self.bottom = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, width), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(width + 3, 7), nn.ReLU(), nn.Linear(7, 1))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        dense = self.bottom(x)
        z = torch.stack([dense, *(bag(ids[:, i]) for i, bag in enumerate(self.bags))], 1)
        dots = z @ z.transpose(1, 2)
        return self.top(torch.cat([dense, dots[:, [1, 2, 2], [0, 0, 1]]], 1))


class Experts(nn.Module):
    """A router's softmax weighs all experts."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.enter, self.router, self.leave = nn.Linear(3, width), nn.Linear(width, 3), nn.Linear(width, 2)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width)) for _ in range(3)]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        weights = self.router(x).softmax(-1)
        return self.leave(x + sum(weights[..., i, None] * expert(x) for i, expert in enumerate(self.experts)))


def graph(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 5, 3), ((torch.rand(n, 5, 5) > 0.5) | torch.eye(5, dtype=torch.bool)).float()


CASES = {
    "graph_convolution": Case(GraphConvolution, graph),
    "graph_attention": Case(GraphAttention, graph),
    "messages": Case(Messages, lambda n: (torch.randn(n, 5, 3),)),
    "equivariant": Case(Equivariant, lambda n: (torch.randn(n, 5, 2), torch.randn(n, 5, 3))),
    "point_cloud": Case(PointCloud, lambda n: (torch.randn(n, 3, 9),)),
    "recommender": Case(Recommender, lambda n: (torch.randn(n, 4), torch.randint(11, (n, 2, 3)))),
    "experts": Case(Experts, lambda n: (torch.randn(n, 4, 3),)),
}
