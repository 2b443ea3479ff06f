"""Patterns: what goes together. A weight is divided into pieces that are kept or removed whole; or each group of m keeps n."""

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
    """How a weight is divided."""

    name: str
    pieces: Callable[[Weight], Tensor | None] | None = None
    """Weight → the number of the piece that each element is in, from 0, in the order in which pieces of equal scores go: int64 of
    its shape; −1: the element stays whatever the ratio. None for a weight that has no pieces, and so stays whole."""
    mean: bool = True
    """Whether a piece scores the mean of its elements, or their sum."""
    keep: Callable[[Tensor, Weight], Tensor] | None = None
    """Instead of pieces: (scores of the weight's shape, weight) → its mask."""
    ratio: float | None = None
    """The share that such a pattern removes."""


def unstructured() -> Pattern:
    """Every weight by itself.

    It does not lower MACs: zeros are multiplied all the same, unless a kernel for sparse matrices is used.
    """
    return Pattern("unstructured", _each)


@door
def n_m(n: int, m: int, *, taps_first: bool = False) -> Pattern:
    """In each m consecutive weights of an output, the n of highest score stay; of equals, those that come first go.

    Consecutive is meant along the axis that is summed over, as in the matrix product that computes the layer: a linear layer's
    inputs; a convolution's input channels × kernel in the order of `weight.flatten(1)`, which is that of `unfold` (all taps of the
    first channel come first). Groups of a grouped convolution are rows of their own. In a tail of fewer than m, at most n stay, as
    if zeros followed: of a tail of n or less, all.

    Args:
        n, m: 2, 4 is what NVIDIA's sparse tensor cores take (from Ampere on); they read a convolution's weights with `taps_first`.
        taps_first: of convolutions, order columns by tap, then by channel, so that m channels at one tap are a group.

    Raises:
        PruneError: it does not hold that 1 ≤ n < m.
    """
    if not 1 <= n < m:
        raise PruneError(f"n_m({n}, {m}) keeps {n} of each {m}; it must hold that 1 ≤ n < m, such as n_m(2, 4)")
    keep = partial(_n_of_m, n=n, m=m, taps_first=taps_first)
    return Pattern(f"{n}:{m}", keep=keep, ratio=1 - n / m)


@door
def blocks(height: int, width: int) -> Pattern:
    """Tiles of so many outputs × inputs of the matrix (see `n_m` for its columns) go whole; those at its edges may be smaller.

    A tile scores the mean of its weights, so that smaller ones compare. Tiles of equal scores go by row, then by column.

    Raises:
        PruneError: a side is below 1.
    """
    if height < 1 or width < 1:
        raise PruneError(f"blocks(height={height}, width={width}) have no weights; both sides must be at least 1")
    return Pattern(f"blocks of {height} × {width}", partial(_tiles, height=height, width=width))


@door
def slices(block: int, *, depthwise_block: int = 2, protect_first: bool = False, short_blocks: bool = False) -> Pattern:
    """Of convolutions, weights at one (input channel, tap) of a block of filters go together, as in `sparse.slices`.

    With `criteria.magnitude()` and `scope.layerwise()` it is that function. Weights that are none of convolutions stay whole.

    Args:
        block: A, filters of a block; block b has the filters b, b + B, b + 2B, … with B = C_out / A.
        depthwise_block: A of depthwise convolutions.
        protect_first: slices at the first index of each kernel row stay; of a 1 × 1 kernel, all.
        short_blocks: where A does not divide C_out, the filters that are left are a shorter last block; else that is an error.
    """
    options = {"block": block, "depthwise_block": depthwise_block}
    pieces = partial(_slices, **options, protect_first=protect_first, short_blocks=short_blocks)
    return Pattern(f"slices of {block}", pieces, mean=False)


def _each(w: Weight) -> Tensor:
    return torch.arange(torch.Size(w.shape).numel()).reshape(w.shape)


def _n_of_m(scores: Tensor, w: Weight, *, n: int, m: int, taps_first: bool) -> Tensor:
    matrix = w.matrix(scores, taps_first=taps_first)
    columns = matrix.shape[1]
    padded = F.pad(matrix, (0, -columns % m), value=-torch.inf).reshape(len(matrix), -1, m)
    kept = torch.ones_like(padded, dtype=torch.bool)
    kept.scatter_(2, padded.argsort(dim=2, stable=True)[:, :, : m - n], False)
    return w.weight(kept.flatten(1)[:, :columns], taps_first=taps_first)


def _tiles(w: Weight, *, height: int, width: int) -> Tensor:
    rows, columns = w.matrix(torch.empty(w.shape, device="meta")).shape
    down, along = torch.arange(rows) // height, torch.arange(columns) // width
    return w.weight(down[:, None] * -(-columns // width) + along)


def _slices(w: Weight, *, block: int, depthwise_block: int, protect_first: bool, short_blocks: bool) -> Tensor | None:
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
