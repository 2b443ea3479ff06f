"""Torch-Pruning and torch-kirigami on one model, used as their documentation says."""

from __future__ import annotations

import inspect
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..peers import prune as torch_pruning
from .cases import Case
from .check import fitting

Result = dict[str, Any]


def check_other(case: Case, peer: str) -> Result:
    """Half of every group that the peer finds: does the model run afterwards, and how many of its parameters are gone?"""
    torch.manual_seed(0)
    model = case.build().eval()
    attempt, (args, kwargs) = fitting(model, case)
    before = sum(p.numel() for p in model.parameters())
    start = time.process_time()
    small = {"torch-pruning": _torch_pruning, "torch-kirigami": _kirigami}[peer](model, args, kwargs)
    seconds = round(time.process_time() - start, 2)
    removed = round(1 - sum(p.numel() for p in small.parameters()) / before, 4)
    args, kwargs = case.inputs(3, attempt)
    with torch.no_grad():
        out = small(*args, **kwargs)
    finite = all(bool(t.isfinite().all()) for t in pytree.tree_leaves(out) if isinstance(t, Tensor))
    return {f"{peer}": "runs" if finite else "not finite", f"{peer} removed": removed, f"{peer} s": seconds}


def _torch_pruning(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    return torch_pruning(model, {**_named(model, args), **kwargs} if kwargs or len(args) > 1 else args[0], 0.5)


def _named(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False))


def _kirigami(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import ChannelRatio, Greedy, GroupMagnitude, Pruner

    pruner = Pruner(model, graph=DependencyGraph.build(model, args=args, kwargs=kwargs))
    budget, strategy = ChannelRatio(0.5), Greedy(GroupMagnitude(p=2))
    return pruner.prune(pruner.discover_candidates(), budget=budget, strategy=strategy)[0]
