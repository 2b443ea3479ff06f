"""Reports of weight masks: the kept weights of each layer as numbers, a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..doors import door
from ..errors import MaskError
from ..report import plots
from ..spec.spec import Spec
from ..tables import Table, markdown
from ..types import Params
from .layouts import Masks, weights


class Kept(NamedTuple):
    """Numbers of weights of a layer: all, and kept ones."""

    shape: tuple[int, ...]
    weights: int
    kept: int

    @property
    def density(self) -> float:
        """Fraction of weights that is kept."""
        return self.kept / max(self.weights, 1)


@door
def counts(masks: Mapping[str, Tensor]) -> dict[str, Kept]:
    """Return parameter → how many of its weights are kept.

    >>> import torch
    >>> counts({"w": torch.tensor([[True, False, False, True]])})["w"].density
    0.5

    Raises:
        MaskError: a mask is not bool.
    """
    if not_bool := [n for n, m in masks.items() if m.dtype != torch.bool]:
        raise MaskError(
            f"the weight mask of {not_bool[0]!r} is {masks[not_bool[0]].dtype}; it must be bool, True = kept"
        )
    return {n: Kept(tuple(m.shape), m.numel(), int(m.sum())) for n, m in masks.items()}


@door
def masks_of(params: Params, *, spec: Spec) -> Masks:
    """Return the masks of zeros in the weights: True where a contraction's weight is not zero.

    Weights without a zero are left out. Use it for params read from a file, to keep their zeros in further training.

    >>> import torch, prunefn as pf
    >>> spec = pf.trace(torch.nn.Sequential(torch.nn.Linear(2, 1)), (torch.randn(2, 2),))
    >>> masks_of({"0.weight": torch.tensor([[0.0, 3.0]]), "0.bias": torch.zeros(1)}, spec=spec)
    {'0.weight': tensor([[False,  True]])}
    """
    nonzero = {n: params[n].detach() != 0 for n in weights(spec) if n in params}
    return {n: m for n, m in nonzero.items() if not bool(m.all())}


@door
def table(masks: Mapping[str, Tensor], *, spec: Spec) -> str:
    """Return a Markdown table with a line for each weight of a contraction and the total; without a mask, all weights are kept.

    Sparsity is the fraction of weights that are zero. It is not a saving of MACs, which only channel pruning or a kernel for
    sparse matrices reduces.

    Args:
        masks: parameter → bool of its shape.
        spec: of the masks.

    >>> import torch, prunefn as pf
    >>> spec = pf.trace(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)), (torch.randn(2, 2),))
    >>> print(table({"1.weight": torch.tensor([[True, False, False]])}, spec=spec))
    | weight | shape | weights | kept | sparsity |
    | :--- | ---: | ---: | ---: | ---: |
    | 0.weight | 3 × 2 | 6 | 6 | 0.0 % |
    | 1.weight | 1 × 3 | 3 | 1 | 66.7 % |
    | total |  | 9 | 7 | 22.2 % |
    """
    kept = _kept_by_weight(masks, spec)
    rows = [_row(n, " × ".join(map(str, k.shape)), k) for n, k in kept.items()]
    total = Kept((), sum(k.weights for k in kept.values()), sum(k.kept for k in kept.values()))
    columns = ("weight", "shape", "weights", "kept", "sparsity")
    return markdown(Table("sparsity", columns, (*rows, _row("total", "", total))))


@door
def picture(masks: Mapping[str, Tensor], path: Path | str, *, spec: Spec) -> None:
    """Draw horizontal bars of the fraction of weights kept in each layer, with their number; a line marks the whole network.

    Args:
        masks, spec: as in `table`.
        path: of the PNG.
    """
    kept = _kept_by_weight(masks, spec)
    total = sum(k.kept for k in kept.values()) / max(sum(k.weights for k in kept.values()), 1)
    figure = plots.canvas(8.0, 1.3 + 0.2 * len(kept))
    axes, positions = figure.add_subplot(1, 1, 1), range(len(kept))
    axes.barh(positions, [100.0] * len(kept), 0.8, color=plots.DENSE)
    axes.barh(positions, [100 * k.density for k in kept.values()], 0.8, color=plots.COLOURS[0])
    for i, k in enumerate(kept.values()):
        axes.text(101, i, f"{k.kept:,} of {k.weights:,}", va="center", fontsize=7, color=plots.INK)
    axes.axvline(100 * total, color=plots.INK, linestyle=":", linewidth=1.2)
    axes.set_yticks(positions, list(kept), fontsize=7)
    axes.set_ylim(len(kept) - 0.4, -0.6)
    axes.set_xlim(0, 130)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"weights kept (%); dotted: {100 * total:.1f} % of all")
    axes.spines[["top", "right"]].set_visible(False)
    plots.save(figure, path)


def _kept_by_weight(masks: Mapping[str, Tensor], spec: Spec) -> dict[str, Kept]:
    """Return the numbers of every weight of a contraction; without a mask, all are kept."""
    masked = counts(masks)
    return {n: masked.get(n, Kept(w.shape, prod(w.shape), prod(w.shape))) for n, w in weights(spec).items()}


def _row(name: str, shape: str, k: Kept) -> tuple[str, ...]:
    return name, shape, str(k.weights), str(k.kept), f"{100 * (1 - k.density):.1f} %"
