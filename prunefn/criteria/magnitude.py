"""Magnitude of a unit's weights: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (p = 1); p = 2 by default."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from .. import reduction as reductions
from ..doors import door
from ..errors import PruneError
from ..reduction import Reduction
from ..stats import Stats
from ..types import Criterion, Scores
from .base import member_sums, spec_of


@door
def magnitude(p: float = 2.0, *, bias: bool = False, reduction: Reduction = reductions.mean) -> Criterion:
    """Σ|w|^p over the unit's slice of every member (rows, columns, norm weights), averaged over members; needs no data.

    Args:
        p: power, above zero.
        bias: count biases, too.
        reduction: of the members' sums, such as `reduction.max`; members come in the order in which the program uses them.

    Raises:
        PruneError: p is not above zero.
    """
    if not p > 0:
        raise PruneError(f"magnitude's p is {p}; it must be above 0")
    return Criterion("magnitude", partial(_score, p=p, bias=bias, reduction=reduction), needs=())


def _score(stats: Stats, *, p: float, bias: bool, reduction: Reduction) -> Scores:
    powers = member_sums(spec_of(stats), lambda t: _power(stats.params[t].detach().double(), p), bias=bias)
    return {g: reduction(sums) for g, sums in powers.items()}


def _power(w: Tensor, p: float) -> Tensor:
    return w.square() if p == 2 else w.abs() if p == 1 else w.abs().pow(p)
