"""Patterns: which elements of a weight are removed together.

A weight is divided into pieces that are kept or removed as a whole; or each group of m elements keeps n.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..doors import door
from ..errors import PruneError
from .layouts import Weight
from .slicing import blocks_of, spread

__all__ = ["Pattern", "blocks", "n_m", "slices", "unstructured"]


class Pattern(NamedTuple):
    """Division of a weight into pieces."""

    name: str
    pieces: Callable[[Weight], Tensor | None] | None = None
    """Weight → the piece number of each element, int64 of its shape; None for a weight without pieces, which is not pruned.

    Numbers start at 0; of pieces with equal scores, those of lower numbers are removed first. −1: the element is always kept.
    """
    mean: bool = True
    """Whether the score of a piece is the mean of its elements' scores, or their sum."""
    keep: Callable[[Tensor, Weight], Tensor] | None = None
    """Alternative to pieces: (scores of the weight's shape, weight) → its mask."""
    ratio: float | None = None
    """Fraction of weights that a pattern with `keep` removes."""
    is_choice = True

    def __repr__(self) -> str:
        return f"Pattern({self.name!r})"


def unstructured() -> Pattern:
    """Remove every weight on its own.

    This does not lower MACs: zeros are multiplied like other numbers, unless a kernel for sparse matrices is used.
    """
    return Pattern("unstructured", _number_elements)


@door
def n_m(n: int, m: int, *, taps_first: bool = False) -> Pattern:
    """Keep the n weights of highest score in each m consecutive weights of an output; of equal scores, the first are removed.

    Weights are consecutive along the axis that is summed over in the layer's matrix product: the inputs of a linear layer; the
    input channels × kernel of a convolution, in the order of `weight.flatten(1)` and `unfold` (all taps of the first channel
    come first). Each group of a grouped convolution has separate rows. A tail of fewer than m weights keeps at most n, as if
    zeros followed; a tail of n or fewer keeps all.

    Args:
        n, m: NVIDIA's sparse tensor cores support 2, 4 (from Ampere on); they read a convolution's weights with `taps_first`.
        taps_first: order the columns of convolutions by tap, then by channel, so that m channels at one tap are a group.

    Raises:
        PruneError: 1 ≤ n < m does not hold.
    """
    if not 1 <= n < m:
        raise PruneError(f"n_m({n}, {m}) keeps {n} of each {m}; it must hold that 1 ≤ n < m, such as n_m(2, 4)")
    keep = partial(_n_of_m, n=n, m=m, taps_first=taps_first)
    return Pattern(f"{n}:{m}", keep=keep, ratio=1 - n / m)


@door
def blocks(height: int, width: int) -> Pattern:
    """Remove tiles of height outputs × width inputs of the matrix (see `n_m` for its columns); those at its edges may be smaller.

    The score of a tile is the mean of its weights' scores, so that smaller tiles are comparable. Tiles of equal scores are
    removed by row, then by column.

    Raises:
        PruneError: a side is below 1.
    """
    if height < 1 or width < 1:
        raise PruneError(f"blocks(height={height}, width={width}) have no weights; both sides must be at least 1")
    return Pattern(f"blocks of {height} × {width}", partial(_number_tiles, height=height, width=width))


@door
def slices(block: int, *, depthwise_block: int = 2, protect_first: bool = False, short_blocks: bool = False) -> Pattern:
    """Remove the weights of convolutions at one (input channel, tap) of a block of filters together, as `sparse.slices` does.

    With `criteria.magnitude()` and `scope.layerwise()`, the result equals that function's. Other weights than those of
    convolutions are not pruned.

    Args:
        block: A, number of filters of a block; block b has the filters b, b + B, b + 2B, … with B = C_out / A.
        depthwise_block: A of depthwise convolutions.
        protect_first: keep the slices at the first index of each kernel row; of a 1 × 1 kernel, all.
        short_blocks: if A does not divide C_out, put the remaining filters into a shorter last block; False raises an error.
    """
    options = {"block": block, "depthwise_block": depthwise_block}
    pieces = partial(_number_slices, **options, protect_first=protect_first, short_blocks=short_blocks)
    return Pattern(f"slices of {block}", pieces, mean=False)


def _number_elements(w: Weight) -> Tensor:
    """Return a separate piece number for each element."""
    return torch.arange(torch.Size(w.shape).numel()).reshape(w.shape)


def _n_of_m(scores: Tensor, w: Weight, *, n: int, m: int, taps_first: bool) -> Tensor:
    """Return the mask that keeps n of each m columns."""
    matrix = w.matrix(scores, taps_first=taps_first)
    columns = matrix.shape[1]
    # Padding of −inf is removed first, as if zeros followed the tail.
    padded = F.pad(matrix, (0, -columns % m), value=-torch.inf).reshape(len(matrix), -1, m)
    kept = torch.ones_like(padded, dtype=torch.bool)
    kept.scatter_(2, padded.argsort(dim=2, stable=True)[:, :, : m - n], False)
    return w.weight(kept.flatten(1)[:, :columns], taps_first=taps_first)


def _number_tiles(w: Weight, *, height: int, width: int) -> Tensor:
    """Return the number of the tile that each element is in."""
    rows, columns = w.matrix(torch.empty(w.shape, device="meta")).shape
    down, along = torch.arange(rows) // height, torch.arange(columns) // width
    return w.weight(down[:, None] * -(-columns // width) + along)


def _number_slices(
    w: Weight, *, block: int, depthwise_block: int, protect_first: bool, short_blocks: bool
) -> Tensor | None:
    """Return the number of the slice that each element is in, −1 if protected; None if the weight is of no convolution."""
    if not w.convolution:
        return None
    size = depthwise_block if w.depthwise else block
    try:
        blocks = sum(len(part) for part in blocks_of(torch.empty(w.shape[0], device="meta"), size, short_blocks))
    except PruneError as error:
        raise PruneError(f"the weight {w.name!r}: {error}") from error
    eligible = torch.ones(blocks, *w.shape[1:], dtype=torch.bool)
    if protect_first:
        eligible[..., 0] = False
    numbers = torch.full(eligible.shape, -1)
    numbers[eligible] = torch.arange(int(eligible.sum()))
    return spread(numbers, w.shape[0], size)


def __dir__() -> list[str]:
    return __all__
