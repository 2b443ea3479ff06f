"""Torch-Pruning, used as its documentation and examples say: a copy of the model and a pruner for each ratio."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def prune(model: nn.Module, x: Tensor, ratio: float) -> nn.Module:
    """Uniform ratio, group magnitude, all layers but the classifier; heads keep their number and lose width."""
    import torch_pruning as tp

    model = copy.deepcopy(model)
    heads = attention(model)
    pruner = tp.pruner.MagnitudePruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000],
        num_heads=heads,
        prune_num_heads=False,
        prune_head_dims=True,
    )
    for group in pruner.step(interactive=True):
        group.prune()
    for m in model.modules():
        if getattr(m, "qkv", None) in heads:
            m.num_heads = pruner.num_heads[m.qkv]
            m.head_dim = m.qkv.out_features // (3 * m.num_heads)
    return model


def attention(model: nn.Module) -> dict[nn.Module, int]:
    """qkv → heads; the forward of timm's attention is replaced, as in the peer's example, so that it runs when narrower."""
    heads = {}
    for m in model.modules():
        if isinstance(getattr(m, "qkv", None), nn.Linear):
            heads[m.qkv] = m.num_heads
            if type(m).__module__.startswith("timm"):
                m.forward = _forward.__get__(m)
    return heads


def _forward(self: Any, x: Tensor, **_: Any) -> Tensor:
    """timm's attention without the assumption that qkv is three times as wide as x."""
    b, n, _c = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
    return self.proj_drop(self.proj(y.transpose(1, 2).reshape(b, n, -1)))


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def runs(model: nn.Module, x: Tensor) -> bool:
    """Whether the pruned model still runs."""
    try:
        with torch.no_grad():
            model(x)
    except (RuntimeError, ValueError):
        return False
    return True
