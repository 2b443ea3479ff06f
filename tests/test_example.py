"""The example of a spec: integers are those of the traced call, and a class is confirmed on them first."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from pytest import mark, raises
from torch import Tensor, nn

import prunefn as pf
from prunefn.spec.example import KEPT, Like

from .small import randn

WHOLE = {
    "ids": torch.tensor([[5, 3], [2, 9], [0, 7]]),
    "flags": torch.tensor([[True], [False], [True]]),
    "bytes": torch.arange(6, dtype=torch.uint8).view(3, 2),
    "none": torch.zeros(3, 0, dtype=torch.int32),
    "strided": torch.arange(12, dtype=torch.int16).view(2, 6).T[:3],
}


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) + words.sum(1, keepdim=True)


@mark.parametrize("kind", WHOLE)
def test_whole_numbers_are_kept(kind: str) -> None:
    words = WHOLE[kind]
    spec = pf.trace(Words().eval(), (randn(3, 4).float(), words))
    (x, drawn), _ = spec.example.draw()
    assert drawn.dtype == words.dtype and torch.equal(drawn, words) and x.shape == (3, 4)
    for seed in (0, 1):
        (x, drawn), _ = spec.example.draw(seed=seed, batch=5)
        assert x.shape == (5, 4) and torch.equal(drawn, words[[0, 1, 2, 0, 1]])
    again = pickle.loads(pickle.dumps(spec))
    assert (
        again == spec
        and again.example == spec.example
        and hash(again.example.leaves[1]) == hash(spec.example.leaves[1])
    )
    assert torch.equal(again.example.draw()[0][1], words)


def test_specs_stay_small_and_equal() -> None:
    model, x = Words().eval(), randn(3, 4).float()
    large = torch.randint(0, 50, (3, KEPT // 8))
    one, two = (pf.trace(model, (x, w)) for w in (WHOLE["ids"], WHOLE["ids"] + 1))
    assert one == two and hash(one) == hash(two)
    spec = pf.trace(model, (x, large))
    like = spec.example.leaves[1]
    assert isinstance(like, Like) and like.packed is None and (like.low, like.high) == (0, 49)
    ones = pf.trace(model, (x, torch.ones(3, KEPT // 32, dtype=torch.int64)))
    assert len(pickle.dumps(ones)) - len(pickle.dumps(one)) < 200
    (_, drawn), _ = spec.example.draw(seed=1)
    assert drawn.shape == large.shape and int(drawn.max()) == 49 and not torch.equal(drawn, large)


class Nodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]) + h)


class Rows(Nodes):
    def forward(self, table: Tensor, rows: Tensor) -> Tensor:
        return self.c(self.a(table)[rows].relu())


class Pictures(Nodes):
    """The module checks what words mean before it runs: as many of them as there are pictures stand for one."""

    def forward(self, words: Tensor, pictures: Tensor) -> Tensor:
        h = self.a(pictures).relu()
        if not torch.compiler.is_compiling() and int((words == 9).sum()) != len(pictures):
            raise ValueError("words and pictures do not match")
        return self.c(h)[:, None] + words[..., None]


EDGES = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
RELATED: dict[str, tuple[type[nn.Module], tuple[Tensor, ...]]] = {
    "edges": (Nodes, (randn(5, 4).float(), EDGES)),
    "rows of a table": (Rows, (randn(7, 4).float(), torch.tensor([6, 2, 3]))),
    "words for pictures": (Pictures, (torch.tensor([[1, 9, 3], [9, 4, 2]]), randn(2, 4).float())),
}


@mark.parametrize("kind", RELATED)
def test_classes_are_confirmed_on_the_traced_inputs(kind: str) -> None:
    cls, inputs = RELATED[kind]
    torch.manual_seed(0)
    model = cls().eval().requires_grad_(False)
    spec = pf.trace(model, inputs)
    mask = pf.mask(spec, {"a": range(3)})
    params, small = pf.apply(pf.params(model), mask, spec=spec), pf.shrink(spec, mask)
    module: Any = pf.to_module(params, spec=small, model=model)
    assert module.a.out_features == 5 and model.a.out_features == 8
    torch.testing.assert_close(module(*inputs), pf.forward(params, *inputs, spec=small))


def test_a_class_that_is_right_at_the_traced_sizes_only_is_refused() -> None:
    """The model runs at other sizes, so that an error of the rebuilt class there is its own."""

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            rows = len(x) if self.a.out_features == 6 else 3
            return self.b(h.view(rows, -1))

    model = Folded().eval()
    spec = pf.trace(model, (torch.randn(3, 4),))
    mask = pf.mask(spec, {"a": range(2)})
    small = pf.shrink(spec, mask)
    with raises(pf.PruneError, match="cannot be rebuilt"):
        pf.to_module(pf.apply(pf.params(model), mask, spec=spec), spec=small, model=model)
