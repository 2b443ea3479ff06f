"""How values are joined, picked, written to, shared and returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Case, tokens, vectors


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


class Dead(nn.Module):
    """A layer whose result nobody reads: it costs nothing, and couples nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.aside, self.b = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        (self.aside(x) + x).softmax(-1)
        return self.b(x)


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


class Aliased(nn.Module):
    """Views that are made before a write are read after it: of the whole, of a part, and of a view of a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x), self.b(x)
        heads, (left, right) = y.view(-1, 2, 4), z.chunk(2, -1)
        y.add_(1).relu_()
        left.mul_(3)
        z[:, 4:].view(-1, 2, 2)[:, 0].sub_(right[:, 2:])
        return self.head(heads.flatten(1) * z)


class OneHot(nn.Module):
    """Labels become a one-hot code, which is embedded and gates a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.label, self.b = nn.Linear(4, 8), nn.Linear(5, 8, bias=False), nn.Linear(8, 2)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.b(self.a(x).relu() * self.label(F.one_hot(label, 5).to(x.dtype)))


class Autocast(nn.Module):
    """A region with autocast switched off, and one without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = self.a(x).relu()
        with torch.no_grad():
            scale = x.abs().amax(1, keepdim=True)
        return self.b(x * scale)


def where(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def scatter(x: Tensor) -> Tensor:
    return x.slice_scatter(x[..., :3] * 2, -1, 3, 6)


def put(x: Tensor) -> Tensor:
    return x.index_put((torch.tensor([0]),), torch.zeros((), dtype=x.dtype))


class IndexPut(nn.Module):
    """Tokens are overwritten with the hidden layer of others; or a number is set where a mask is true."""

    def __init__(self, mask: bool = False) -> None:
        super().__init__()
        self.mask = mask
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x), self.b(x)
        if self.mask:
            y[z < 0] = 0.5
        else:
            y[:, torch.tensor([1, 3])] = z[:, :2]
        return self.head(y)


class BatchFold(nn.Module):
    """Both signs of the input go through as one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(torch.cat([x, -x], 0)).relu()
        left, right = self.b(y).chunk(2, 0)
        both = torch.stack([left, right], 1).reshape(-1, 6)
        return self.c(both).view(x.shape[0], 2, 2)


class SharedTables(nn.Module):
    """Two layers hold one non-persistent buffer and one persistent one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        table, kept = torch.rand(6), torch.rand(6)
        for layer in (self.a, self.b):
            layer.register_buffer("table", table, persistent=False)
            layer.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.a(x) * self.a.table).relu()
        return self.c((self.b(x) * self.b.table + self.b.kept).relu())


class State(nn.Module):
    """A recurrent cell by hand, from a state of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 6)
        for t in range(3):
            state = torch.tanh(self.enter(x[:, t]) + self.again(state))
        return self.head(state)


class Options(nn.Module):
    """Arguments that are no tensors; a number and None among the outputs; a hidden layer as output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, twice: bool, scale: float, other: Tensor | None = None) -> tuple[Any, ...]:
        y = self.a(x).relu()
        z = self.b(y).relu() * scale
        return self.c(z + z if twice else z), None, 3, y, z.sum()


class Short(nn.Module):
    """An index that is shorter than what it picks from, also along the other dim."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).gather(1, torch.tensor([[[0], [3], [1]]]).expand(x.shape[0], 3, 5)))


class Alike(nn.Module):
    """Only the dtype of one tensor is used, and only the shape of another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 12), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu().type_as(x)
        wide = self.b(y).unsqueeze(-1).expand(-1, -1, 4)
        return self.head(self.c(y).relu().view_as(wide).sum(-1))


def overlap(x: Tensor) -> Tensor:
    return x.slice_scatter(x[..., :3] * 2, -1, 2, 5)


def largest(x: Tensor) -> Tensor:
    return x * (x == x.max(-1, keepdim=True)[0]) + torch.topk(x, 1)[0]


CASES = {
    "several_io": Case(SeveralIO, vectors, lambda n: {"side": torch.randn(n, 3)}),
    "unused": Case(Unused, vectors),
    "dead": Case(Dead, vectors),
    "shared": Case(Shared, vectors),
    "frozen_parameters": Case(FrozenParameters, vectors),
    "in_place": Case(InPlace, vectors),
    "written_view": Case(WrittenView, vectors),
    "aliased": Case(Aliased, vectors),
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
    "index_put_values": Case(IndexPut, tokens(4)),
    "index_put_mask": Case(lambda: IndexPut(mask=True), tokens(4)),
    "batch_fold": Case(BatchFold, vectors),
    "shared_tables": Case(SharedTables, vectors),
    "state": Case(State, tokens(4)),
    "options": Case(Options, lambda n: (torch.randn(n, 4), True, 0.5)),
    "slice_scatter_overlap": Case(lambda: Hidden(overlap), vectors),
    "largest": Case(lambda: Hidden(largest), vectors),
    "short": Case(Short, tokens(4)),
    "alike": Case(Alike, vectors),
    "nested": Case(lambda: Hidden(lambda x: torch.cat([x[:, 2:5].repeat(1, 2), x[:, :2]], 1)), vectors),
}
