"""Magnitude of a unit's weights: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (p = 1); p = 2 by default."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..doors import door
from ..errors import PruneError
from ..types import Criterion, Scores, Stats
from . import reduction as reductions
from .base import member_sums, spec_of, weight_reader
from .reduction import Reduction


@door
def magnitude(p: float = 2.0, *, bias: bool = False, reduction: Reduction = reductions.mean) -> Criterion:
    """Score units by Σ|w|^p over their slice of every effective tensor (rows, columns, norm weights), averaged over these.

    The criterion needs no data. An effective tensor is the value that an op of the program uses: a parameter, or a tensor
    computed from parameters (under weight norm, spectral norm, a mask of `nn.utils.prune` or any other parametrization,
    standardised or summed weights). So two ways to write the same function get the same scores. Buffers and parameters that
    only enter such a computation do not count by themselves. A group that occurs in no effective tensor (such as the ranks of
    factors that are multiplied to a weight) has no score.

    Args:
        p: power, above zero.
        bias: count biases, too.
        reduction: of the tensors' sums, such as `reduction.max`; tensors are in the order in which the program uses them.

    Raises:
        PruneError: p is not above zero.
    """
    if not p > 0:
        raise PruneError(f"magnitude's p is {p}; it must be above 0")
    return Criterion("magnitude", partial(_score, p=p, bias=bias, reduction=reduction), needs=())


def _score(stats: Stats, *, p: float, bias: bool, reduction: Reduction) -> Scores:
    value = weight_reader(stats)
    powers = member_sums(spec_of(stats), lambda t: _abs_power(value(t), p), bias=bias)
    return {g: reduction(sums) for g, sums in powers.items()}


def _abs_power(w: Tensor, p: float) -> Tensor:
    return w.square() if p == 2 else w.abs() if p == 1 else w.abs().pow(p)
