"""Torch-Pruning's group norm: sparse training of the dense network with its regularizer, then its importance.

As in the peer's scripts: SGD with momentum, the regularizer adds to the gradients after each backward pass, its weight is 5e-4 and
alpha is 4; the importance is the group's L2 norm, divided by the largest of the layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch_pruning as tp
from safetensors.torch import load_file, save_file
from timm.layers.attention import Attention
from torch import Tensor, nn

from ..retention import torch_pruning as peer
from ..retention.networks import CLASSES
from ..rows import CACHE
from .tuning import batches, loss_of

SPARSE_STEPS = 500
"""Steps that this peer trains before pruning; no other method has these."""
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
REGULARIZER, ALPHA = 5e-4, 4
RANKINGS: Mapping[str, Mapping[str, bool]] = {"uniform": {}, "global": {"global_pruning": True}}


def methods() -> list[peer.Method]:
    """Return the peer's variants: the interior of blocks, every layer by the same share or in one ranking."""
    importance = lambda: tp.importance.GroupMagnitudeImportance(p=2, normalizer="max")  # noqa: E731
    return [
        peer.Method(f"group norm, {r}, interior", importance, False, ranking, peer.LAYERS["interior"])
        for r, ranking in RANKINGS.items()
    ]


def trained(name: str, dense: nn.Module, x: Tensor) -> nn.Module:
    """Return the sparsely trained network; trained now if it is not in the cache.

    Args:
        name: of the network.
        dense: in eval mode; is left as it is.
        x: example input.
    """
    path = CACHE / "after" / f"{name}-group-norm-{SPARSE_STEPS}.safetensors"
    model = copy.deepcopy(dense)
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    model = _train(name, model, x)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return model


def _train(name: str, model: nn.Module, x: Tensor) -> nn.Module:
    """Train with the peer's regularizer."""
    pruner = tp.pruner.GroupNormPruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
        reg=REGULARIZER,
        alpha=ALPHA,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES],
        num_heads={m.qkv: m.num_heads for m in model.modules() if isinstance(m, Attention)},
        in_channel_groups={},
        out_channel_groups={},
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SPARSE_STEPS)
    model.train()
    for images, labels in batches(name, SPARSE_STEPS, seed=0):
        optimizer.zero_grad()
        loss_of(model, images, labels, None).backward()
        pruner.regularize(model, alpha=2**ALPHA)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()
