"""Regularizers of sparse training: they make units or weights small before these are removed.

A regularizer is a value for `sparse_train` and `train`: a penalty on the parameters, weight masks that are renewed every epoch, or
both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from ..doors import door
from ..errors import PruneError
from ..sparse.iterative import renewed
from ..sparse.layouts import weights
from ..sparse.scope import global_
from ..spec.spec import Spec
from ..types import Where
from ..where import matches, sites_of
from . import losses
from .schedule import cubic

__all__ = ["Regularizer", "concentration", "gradual", "growing", "l1_group", "lasso", "slimming"]


Variances = Mapping[str, Tensor]
"""Site → variance of its input in this update [units], differentiable; empty if no sites are watched."""


class Regularizer(NamedTuple):
    """Penalty and masks of a sparse training.

    >>> halve = Regularizer("l2", lambda params, _: 1e-3 * sum(p.square().sum() for p in params.values()))
    >>> halve.masks is None
    True
    """

    name: str
    penalty: Callable[[Mapping[str, Tensor], Variances], Tensor] | None = None
    """(parameters, variances) → scalar that is added to the loss."""
    masks: Callable[[int, Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
    """(epoch, parameters) → parameter → bool of its shape, True = kept."""
    sites: Mapping[str, tuple[str, int]] = {}
    """Site → (path of the module whose input is measured, dim of its units)."""


@door
def l1_group(spec: Spec, *, weight: float = 1e-4, where: Where | str | None = None) -> Regularizer:
    """Return weight · Σ of the L2 norms of output rows: `losses.l21`.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> _ = [torch.nn.init.constant_(m.weight, w) for m, w in zip(model, (3.0, 4.0))]
    >>> regularizer = l1_group(pf.trace(model, (torch.randn(2, 1),)), weight=0.5)
    >>> float(regularizer.penalty(pf.params(model), {}))
    3.0
    """
    return Regularizer("l1_group", lambda params, _: weight * losses.l21(dict(params), spec=spec, where=where))


@door
def lasso(spec: Spec, *, weight: float = 1e-4, where: Where | str | None = None) -> Regularizer:
    """Return weight · Σ of the L2 norms of units with their coupled weights: `losses.group_lasso`.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> _ = [torch.nn.init.constant_(m.weight, w) for m, w in zip(model, (3.0, 4.0))]
    >>> regularizer = lasso(pf.trace(model, (torch.randn(2, 1),)), weight=0.5)
    >>> float(regularizer.penalty(pf.params(model), {}))
    5.0
    """
    return Regularizer("lasso", lambda params, _: weight * losses.group_lasso(dict(params), spec=spec, where=where))


@door
def slimming(spec: Spec, *, weight: float = 1e-4, where: Where | str | None = None) -> Regularizer:
    """Return weight · Σ |γ| over the scales of norms: `losses.bn_l1`.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1)).eval()
    >>> regularizer = slimming(pf.trace(model, (torch.randn(2, 1),)), weight=0.5)
    >>> float(regularizer.penalty(pf.params(model), {}))  # two scales of 1
    1.0
    """
    return Regularizer("slimming", lambda params, _: weight * losses.bn_l1(dict(params), spec=spec, where=where))


@door
def growing(spec: Spec, *, weight: float = 5e-4, alpha: float = 4.0, where: Where | str | None = None) -> Regularizer:
    """Return weight · `losses.growing`, scored by the mean square of each unit's coupled weights (DepGraph's sparse learning).

    Args:
        spec: of the model.
        weight: of the penalty in the loss.
        alpha: as for `losses.growing`.
        where: groups to shrink; None: all.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> _ = [torch.nn.init.ones_(m.weight) for m in model]
    >>> regularizer = growing(pf.trace(model, (torch.randn(2, 1),)), weight=0.5, alpha=0.0)
    >>> float(regularizer.penalty(pf.params(model), {}))  # 0.5 · ½ · 4
    1.0
    """

    def penalty(params: Mapping[str, Tensor], _: Variances) -> Tensor:
        own = dict(params)
        scores = {g: s.detach().mean(0) for g, s in losses.group_squares(own, spec, where).items()}
        return weight * losses.growing(own, scores, spec=spec, alpha=alpha, where=where)

    return Regularizer("growing", penalty)


@door
def concentration(spec: Spec, *, weight: float = 1e-3, where: Where | str | None = None) -> Regularizer:
    """Return weight · `losses.variance_concentration` of the inputs of layers, measured in the forward pass of the loss.

    Raises:
        PruneError: the input of a site is not that of a module: its weight is computed, or used by a function.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> list(concentration(pf.trace(model, (torch.randn(2, 4),))).sites.values())
    [('2', -1)]
    """
    sites = {}
    for s in sites_of(spec, where):
        if s.weight not in spec.parameters:
            raise PruneError(
                f"site {s.name!r} has no module whose input can be watched; leave its groups out by where="
            )
        sites[s.name] = s.weight.rpartition(".")[0], s.values[0][1]
    return Regularizer(
        "concentration", lambda _, variances: weight * losses.variance_concentration(variances), sites=sites
    )


@door
def gradual(
    spec: Spec, *, target: float = 0.5, initial: float = 0.0, epochs: int = 5, where: Where | str | None = None
) -> Regularizer:
    """Return masks of the smallest weights: a ratio of s_f + (s_i − s_f)(1 − e / (E − 1))³ in epoch e (Zhu and Gupta, arXiv 1710.01878).

    All weights of the chosen groups' contractions are ranked together. Masks are selected again every epoch, so weights may return;
    those of the last epoch stay zero. For other patterns, scopes and schedules, use `sparse.renewed`.

    Args:
        spec: of the model.
        target: s_f, sparsity after the last epoch.
        initial: s_i, sparsity in the first epoch.
        epochs: E, number of epochs.
        where: groups whose weights are masked; None: all.

    Raises:
        PruneError: it does not hold that 0 ≤ initial ≤ target < 1.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> masks = gradual(pf.trace(model, (torch.randn(2, 2),)), target=0.5, epochs=3).masks
    >>> [sum(int((~m).sum()) for m in masks(epoch, pf.params(model)).values()) for epoch in range(3)]  # of 8 weights
    [0, 3, 4]
    """
    if not 0 <= initial <= target < 1:
        raise PruneError(f"initial is {initial} and target is {target}; it must hold that 0 ≤ initial ≤ target < 1")
    own = {m.tensor for g in spec.groups.values() if matches(where, g) for m in g.members if m.role in ("in", "out")}
    names = [n for n in weights(spec) if n in own]
    ratios, first = cubic(target, max(1, epochs - 1), initial=initial), int(epochs == 1)
    masks = renewed(lambda epoch: ratios(epoch + first), spec=spec, scope=global_(), weights=names)
    return Regularizer("gradual", masks=masks)


def __dir__() -> list[str]:
    return __all__
