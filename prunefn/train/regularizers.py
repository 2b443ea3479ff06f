"""Sparse training: what makes units, or weights, small before they are removed.

Each is a value for `sparse_train`: a penalty on the parameters, masks on the weights that are renewed every epoch, or both.
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
"""Site → variance of its input in this update [units], with a gradient; empty where no sites are watched."""


class Regularizer(NamedTuple):
    """How a training becomes sparse."""

    name: str
    penalty: Callable[[Mapping[str, Tensor], Variances], Tensor] | None = None
    """(parameters, variances) → what is added to the loss."""
    masks: Callable[[int, Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
    """(epoch, parameters) → parameter → bool of its shape, True = kept."""
    sites: Mapping[str, tuple[str, int]] = {}
    """Site → (the module whose input is measured, the dim of its units)."""


@door
def l1_group(spec: Spec, *, weight: float = 1e-4, where: Where | str | None = None) -> Regularizer:
    """weight · Σ of the L2 norms of output rows: `losses.l21`."""
    return Regularizer("l1_group", lambda params, _: weight * losses.l21(dict(params), spec=spec, where=where))


@door
def lasso(spec: Spec, *, weight: float = 1e-4, where: Where | str | None = None) -> Regularizer:
    """weight · Σ of the L2 norms of units with all that is coupled: `losses.group_lasso`."""
    return Regularizer("lasso", lambda params, _: weight * losses.group_lasso(dict(params), spec=spec, where=where))


@door
def slimming(spec: Spec, *, weight: float = 1e-4, where: Where | str | None = None) -> Regularizer:
    """weight · Σ |γ| of the norms: `losses.bn_l1`."""
    return Regularizer("slimming", lambda params, _: weight * losses.bn_l1(dict(params), spec=spec, where=where))


@door
def growing(spec: Spec, *, weight: float = 5e-4, alpha: float = 4.0, where: Where | str | None = None) -> Regularizer:
    """weight · `losses.growing`, with the mean square of each unit's coupled weights as its score (DepGraph's sparse learning).

    Args:
        spec: of the model that is trained.
        weight: of the penalty in the loss.
        alpha: base of the growth, as for `losses.growing`.
        where: which groups; default all.
    """

    def penalty(params: Mapping[str, Tensor], _: Variances) -> Tensor:
        own = dict(params)
        scores = {g: s.detach().mean(0) for g, s in losses.group_squares(own, spec, where).items()}
        return weight * losses.growing(own, scores, spec=spec, alpha=alpha, where=where)

    return Regularizer("growing", penalty)


@door
def concentration(spec: Spec, *, weight: float = 1e-3, where: Where | str | None = None) -> Regularizer:
    """weight · `losses.variance_concentration` of the inputs of layers, measured in the same pass as the loss.

    Raises:
        PruneError: a site is not the input of a module of its own (its weight is computed, or used by a function).
    """
    sites = {}
    for s in sites_of(spec, where):
        if s.weight not in spec.parameters:
            raise PruneError(
                f"site {s.name!r} has no module whose input can be watched; leave its groups out by `where`"
            )
        sites[s.name] = s.weight.rpartition(".")[0], s.values[0][1]
    return Regularizer(
        "concentration", lambda _, variances: weight * losses.variance_concentration(variances), sites=sites
    )


@door
def gradual(
    spec: Spec, *, target: float = 0.5, initial: float = 0.0, epochs: int = 5, where: Where | str | None = None
) -> Regularizer:
    """Weights of the lowest magnitude are zero: s_f + (s_i − s_f)(1 − e / (E − 1))³ of them in epoch e (Zhu and Gupta, arXiv 1710.01878).

    All weights of the chosen groups' contractions are ranked together; masks are drawn anew each epoch, and the last ones are
    left in the weights. Other patterns, scopes and schedules: `sparse.renewed`.

    Args:
        spec: of the network.
        target: s_f, share of weights that are zero at the end.
        initial: s_i, in the first epoch.
        epochs: E.
        where: only groups that match.

    Raises:
        PruneError: a share is not in [0, 1), or the start is above the target.
    """
    if not 0 <= initial <= target < 1:
        raise PruneError(
            f"gradual goes from {initial} to {target} of the weights; it must hold that 0 ≤ initial ≤ target < 1"
        )
    own = {m.tensor for g in spec.groups.values() if matches(where, g) for m in g.members if m.role in ("in", "out")}
    names = [n for n in weights(spec) if n in own]
    shares, first = cubic(target, max(1, epochs - 1), initial=initial), int(epochs == 1)
    masks = renewed(lambda epoch: shares(epoch + first), spec=spec, scope=global_(), weights=names)
    return Regularizer("gradual", masks=masks)


def __dir__() -> list[str]:
    return __all__
