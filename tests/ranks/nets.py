"""Networks, batches and criteria that are the same in every process."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunefn as pf

from ..small import Traced, cnn, mlp, randn, traced

SIZES = (3, 1, 4, 2, 5, 2)
"""Samples of each batch."""


class Shared(nn.Module):
    """Three layers read the same value."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 5)
        self.q, self.k, self.v = (nn.Linear(5, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.q(h) + self.k(h) * self.v(h)


@cache
def net(name: str) -> Traced:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if name == "cnn":
            return traced(cnn(), randn(2, 3, 6, 6))
        return traced(
            {"shared": Shared, "mlp": lambda: mlp(3, 5, 2), "wide": lambda: mlp(3, 6, 2)}[name](), randn(2, 3)
        )


def batches(name: str) -> list[Tensor]:
    shape = (3, 6, 6) if name == "cnn" else (3,)
    return [1 + randn(n, *shape, seed=i) for i, n in enumerate(SIZES)]


def sums() -> pf.Criterion:
    """Sums of several types; what is collected under `late` comes from large batches only."""

    def collect(params: pf.Params, batch: Any, spec: pf.Spec) -> dict[str, Tensor]:
        out = {
            "count": torch.tensor(len(batch)),
            "float": batch.float().sum(0),
            "narrow": (batch[0] / 3).bfloat16(),
        }
        return out | ({"late": batch.sum(0)} if len(batch) > 4 else {})

    return pf.Criterion("sums", lambda stats: {}, needs=("absolute",), collectors=(pf.Collector("some", collect),))


def collect(name: str, data: list[Tensor], *, params: pf.Params | None = None, **kwargs: Any) -> pf.Stats:
    t = net(name)
    kwargs = {"covariance": True, "criterion": sums()} | kwargs
    return pf.collect_stats(params or t.params, data, spec=t.spec, **kwargs) if data else pf.Stats()


def tensors(stats: pf.Stats) -> dict[str, Tensor]:
    """All tensors that were measured, by name."""
    out = {f"{site}/{field}": v for site, m in stats.sites.items() for field, v in m._asdict().items() if v is not None}
    out |= {f"{c}/{g}": t for c, groups in stats.sums.items() for g, t in groups.items()}
    return {n: v if isinstance(v, Tensor) else torch.tensor(v) for n, v in out.items()}


def sharing(stats: pf.Stats) -> list[list[str]]:
    """Sites with the same covariance, the same object."""
    ids: dict[int, list[str]] = {}
    for name, m in stats.sites.items():
        if m.scatter is not None:
            ids.setdefault(id(m.scatter), []).append(name)
    return list(ids.values())


def identical(a: pf.Stats, b: pf.Stats) -> None:
    """The same names, types and bits, in the same order; the same sharing."""
    assert (a.spec, a.batches, a.samples) == (b.spec, b.batches, b.samples)
    assert list(a.params) == list(b.params) and all(torch.equal(a.params[n], b.params[n]) for n in a.params)
    assert sharing(a) == sharing(b)
    x, y = tensors(a), tensors(b)
    assert list(x) == list(y)
    for name, t in x.items():
        assert t.dtype == y[name].dtype and t.shape == y[name].shape, name
        assert torch.equal(t.reshape(-1).view(torch.uint8), y[name].reshape(-1).view(torch.uint8)), name
