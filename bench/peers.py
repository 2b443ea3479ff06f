"""Torch-Pruning, used as its documentation and examples say: a copy of the model and a pruner for each ratio."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIMM = ("timm.layers.attention", "timm.models.vision_transformer")
ATTENTION = ("qkv", "query", "key", "value")


def prune(model: nn.Module, x: Tensor, ratio: float) -> nn.Module:
    """Uniform ratio, group magnitude, all layers but the classifier; heads keep their number and lose width."""
    import torch_pruning as tp

    model = copy.deepcopy(model)
    heads = _attention(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MagnitudePruner(
            model,
            x,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000],
            num_heads=heads,
            prune_num_heads=False,
            prune_head_dims=True,
            **_options(model),
        )
    for group in pruner.step(interactive=True):
        group.prune()
    _narrow(model, pruner.num_heads)
    return model


def _options(model: nn.Module) -> dict[str, Any]:
    """What the peer's Swin example adds."""
    merging = {type(m) for m in model.modules() if type(m).__name__ == "SwinPatchMerging"}
    if not merging:
        return {}
    pruner = _merging_pruner()
    return {
        "output_transform": lambda out: out.logits.sum(),
        "customized_pruners": dict.fromkeys(merging, pruner),
        "root_module_types": (nn.Linear, nn.LayerNorm, *merging),
    }


def _merging_pruner() -> Any:
    """Patch merging reads four neighbours side by side: a channel stands at four places of its norm and reduction."""
    import torch_pruning as tp

    class PatchMerging(tp.BasePruningFunc):
        def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            tp.prune_linear_out_channels(layer.reduction, idxs)
            return layer

        def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            everywhere = [i + k * self.get_in_channels(layer) for k in range(4) for i in idxs]
            tp.prune_linear_in_channels(layer.reduction, everywhere)
            tp.prune_layernorm_out_channels(layer.norm, everywhere)
            return layer

        def get_out_channels(self, layer: nn.Module) -> int:
            return layer.reduction.out_features

        def get_in_channels(self, layer: nn.Module) -> int:
            return layer.reduction.in_features // 4

    return PatchMerging()


def _attention(model: nn.Module) -> dict[nn.Module, int]:
    """Projection → heads. timm's ViT attention gets another forward, as in the peer's example, so that it runs when narrower."""
    heads = {}
    for m in model.modules():
        count = getattr(m, "num_heads", getattr(m, "num_attention_heads", None))
        for name in ATTENTION:
            if count and isinstance(getattr(m, name, None), nn.Linear):
                heads[getattr(m, name)] = count
        if type(m).__name__ == "Attention" and type(m).__module__ in TIMM and isinstance(m.qkv, nn.Linear):
            m.forward = _forward.__get__(m)
    return heads


def _narrow(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    """Set the sizes that the peer leaves to the user."""
    for m in model.modules():
        if getattr(m, "qkv", None) in heads:
            m.num_heads = heads[m.qkv]
            m.head_dim = m.qkv.out_features // (3 * m.num_heads)
        elif getattr(m, "query", None) in heads:
            m.attention_head_size = m.query.out_features // m.num_attention_heads
            m.all_head_size = m.query.out_features


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
