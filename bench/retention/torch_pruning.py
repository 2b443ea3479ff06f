"""Torch-Pruning 1.6.1 on the networks of this bench, as its documentation and examples say, at a given share of the MACs.

Its ratio says nothing of the cost, so that the ratio is searched; each trial prunes a fresh copy. From its examples: the
classifier is ignored; attention gets a forward that can be narrower than its input; heads keep their number and lose width;
Taylor adds up the gradients of clean calibration batches of 64 in eval mode.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

import prunefn as pf
from prunefn.costs.counted import flop_counter

from .data import Images
from .networks import CLASSES

TOLERANCE = 0.01
"""How far the MACs may be from the wanted ones, as a share of these."""
NEAR = 0.002
"""So near, the search stops."""
RATIOS = (0.5, 0.75, 0.85, 0.92, 0.96)
"""Tried as upper ends of the search; above, layers of 16 channels would lose all of them, and the peer leaves these whole."""
TRIALS = 14
BATCH = 64


class Method(NamedTuple):
    """An importance of the peer, what is ranked against what, and which layers may lose outputs."""

    name: str
    importance: Callable[[], Any]
    gradients: bool
    ranking: Mapping[str, bool]
    """Options of its pruner: uniform (its default), one global order, or one per class of isomorphic groups."""
    kinds: frozenset[str] | None
    """Kinds of prunefn's groups; None: everything but the classifier, its default."""


class Pruned(NamedTuple):
    """A pruned copy in eval mode and its MACs for one image."""

    module: nn.Module
    macs: int


IMPORTANCES: dict[str, tuple[Callable[[], Any], bool]] = {
    "magnitude": (lambda: tp.importance.GroupMagnitudeImportance(p=2), False),
    "Taylor": (tp.importance.GroupTaylorImportance, True),
}
RANKINGS: dict[str, dict[str, bool]] = {
    "uniform": {},
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
}
LAYERS: dict[str, frozenset[str] | None] = {
    "everything": None,
    "interior": frozenset({"hidden", "heads", "head_dim"}),
    "hidden": frozenset({"hidden"}),
}
"""`interior`: all but the residual streams. `hidden`: neither these nor attention; on networks without attention the same."""


def methods(
    importances: Sequence[str] = tuple(IMPORTANCES),
    rankings: Sequence[str] = tuple(RANKINGS),
    layers: Sequence[str] = tuple(LAYERS),
) -> list[Method]:
    """All combinations; the name says which."""
    return [
        Method(f"{i}, {r}, {w}", *IMPORTANCES[i], RANKINGS[r], LAYERS[w])
        for i in importances
        for r in rankings
        for w in layers
    ]


def prune(model: nn.Module, keep: float, method: Method, calibration: Images) -> Pruned:
    """A pruned copy with `keep` of the model's MACs, to within `TOLERANCE`.

    Args:
        model: in eval mode; is left as it is.
        keep: share of the dense MACs, between 0 and 1.
        method: what of the peer is used.
        calibration: images with labels, for Taylor's gradients; the first image is the example input.

    Raises:
        ValueError: the layers that may be pruned do not reach that, or no ratio comes near enough; says what was reached.
    """
    x = calibration.images[:1]
    target = keep * macs(model, x)
    ignored = _ignored(model, method.kinds, x)
    gradients = _gradients(model, calibration) if method.gradients else {}

    def at(low: float, high: float = 0.0, first: int = 0) -> Pruned:
        """The first so many layers lose the share `high`, the others `low`."""
        return _once(model, x, method, ignored, gradients, low, high, first)

    best = _search(at, target)
    if abs(best.macs / target - 1) > TOLERANCE:
        raise ValueError(
            f"Torch-Pruning ({method.name}): wanted {keep:.0%} of the MACs, {target:.0f}; the nearest it came was {best.macs}"
        )
    return best


def _search(at: Callable[..., Pruned], target: float) -> Pruned:
    """Bisection over the ratio; where one step of all layers is too long, over how many layers take it."""
    trials = [at(0.0)]
    high = 1.0
    for high in RATIOS:
        trials.append(at(high))
        if trials[-1].macs <= target:
            break
    low = 0.0
    for _ in range(TRIALS):
        if _nearest(trials, target, NEAR):
            break
        middle = (low + high) / 2
        trials.append(at(middle))
        low, high = (middle, high) if trials[-1].macs > target else (low, middle)
    few, many = 0, len(_layers(trials[0].module))
    while many - few > 1 and not _nearest(trials, target, TOLERANCE):
        middle = (few + many) // 2
        trials.append(at(low, high, middle))
        few, many = (middle, many) if trials[-1].macs > target else (few, middle)
    return min(trials, key=lambda t: abs(t.macs - target))


def _nearest(trials: Sequence[Pruned], target: float, within: float) -> bool:
    return any(abs(t.macs / target - 1) <= within for t in trials)


def _once(
    model: nn.Module,
    x: Tensor,
    method: Method,
    ignored: Sequence[str],
    gradients: Mapping[str, Tensor],
    ratio: float,
    other: float,
    first: int,
) -> Pruned:
    """A copy, pruned at a ratio."""
    model = copy.deepcopy(model)
    for name, gradient in gradients.items():
        model.get_parameter(name).grad = gradient.clone()
    attention = [m for m in model.modules() if isinstance(m, Attention)]
    for m in attention:
        m.forward = _forward.__get__(m)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            x,
            importance=method.importance(),
            pruning_ratio=ratio,
            pruning_ratio_dict=dict.fromkeys(_layers(model)[:first], other),
            ignored_layers=[model.get_submodule(name) for name in ignored],
            num_heads={m.qkv: m.num_heads for m in attention},
            in_channel_groups={},  # the defaults are shared by all pruners, and would keep every copy alive
            out_channel_groups={},
            **method.ranking,
        )
        for group in pruner.step(interactive=True):
            group.prune()
    for m in attention:
        m.num_heads = pruner.num_heads[m.qkv]
        m.head_dim = m.qkv.out_features // (3 * m.num_heads)
    model.zero_grad()
    return Pruned(model, macs(model, x))


def _layers(model: nn.Module) -> list[nn.Module]:
    """What the peer starts groups from."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def _ignored(model: nn.Module, kinds: frozenset[str] | None, x: Tensor) -> list[str]:
    """Names of the layers whose outputs stay: the classifier, and what writes into groups of other kinds."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    names = {n for n, m in layers.items() if isinstance(m, nn.Linear) and m.out_features == CLASSES}
    if kinds is not None:
        others = [g for g in pf.trace(model, (x,)).groups.values() if g.kind not in kinds]
        names |= {m.tensor.removesuffix(".weight") for g in others for m in g.members if m.role == "out"}
    return sorted(names & layers.keys())


def _gradients(model: nn.Module, calibration: Images) -> dict[str, Tensor]:
    """Of the loss of each batch, added up."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for images, labels in calibration.batches(BATCH):
        loss = F.cross_entropy(model(images), labels)
        for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            total[name] += gradient
    return total


def _forward(self: Any, x: Tensor, **_: Any) -> Tensor:
    """timm's attention without the assumption that qkv is three times as wide as x, as in the peer's ViT example.

    The scale follows the narrower heads, as in the example; with the dense network's scale fewer of the answers survive.
    """
    b, n, _c = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
    return self.proj_drop(self.proj(y.transpose(1, 2).reshape(b, n, -1)))


def macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one forward pass, by torch's own counter."""
    with flop_counter() as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2
