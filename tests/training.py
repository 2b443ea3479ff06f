"""A little network and data for tests of training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import prunefn as pf
from prunefn.train import Recipe, Setup


def points(n: int = 203, seed: int = 0) -> TensorDataset:
    """Two classes that a line in four dimensions separates; an odd number, so that shares are uneven."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long())


def net(*, norm: bool | None = True, drop: float = 0.1) -> nn.Sequential:
    """Two hidden layers, all prunable; norm: BatchNorm, LayerNorm, or (None) neither."""
    torch.manual_seed(0)
    middle = nn.Identity() if norm is None else nn.BatchNorm1d(8) if norm else nn.LayerNorm(8)
    return nn.Sequential(
        nn.Linear(4, 8), middle, nn.ReLU(), nn.Dropout(drop), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
    )


def spec_of(model: nn.Module) -> pf.Spec:
    return pf.trace(model.eval(), (torch.randn(3, 4),))


def calibration() -> list[tuple[Tensor, Tensor]]:
    """Five batches: an odd number."""
    x, y = points().tensors
    return list(zip(x[:100].split(20), y[:100].split(20), strict=True))


ALL = Recipe(
    epochs=3,
    lr=0.03,
    batch_size=16,
    accumulate=2,
    drop_last=False,
    save_every=2,
    warmup=1,
    ema=0.9,
    mixup=0.2,
    cutmix=0.0,
    label_smoothing=0.1,
    precision="bf16",
)
"""As many options at once as go together."""
PLAIN = Recipe(epochs=2, lr=0.03, batch_size=16, grad_clip=None)
SETUP = Setup(points(), device="cpu")
MEASURED = SETUP._replace(held_out=points(61, 1))
"""`SETUP` with held-out data."""


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """To the bit."""
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "tfevents" not in p.name)
