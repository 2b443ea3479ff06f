"""Draw the MACs and parameters of each layer, before and after pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..display.units import scale_word
from ..drawing.canvas import DENSE, INK, KEPT, canvas, rows, save
from ..spec.axis import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..spec.spec import Spec

SMALL = 0.01
"""Layers without MACs that have at most this share of the parameters (norms, mostly) are drawn as one."""


class Layer(NamedTuple):
    """The cost of a module itself, without its submodules."""

    macs: int
    """MACs of one sample."""
    params: int
    """Number of parameters; tied ones count where they come first."""


def layer_costs(spec: Spec) -> dict[str, Layer]:
    """Return module → its MACs and parameters, in the order of the program; they add up to `pf.cost(spec)`.

    The product of two activations counts for the module that computes it, such as the two products of an attention module.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    >>> layer_costs(pf.trace(model, (torch.randn(2, 4),)))
    {'0': Layer(macs=32, params=40), '1': Layer(macs=0, params=16), '2': Layer(macs=16, params=18)}
    """
    macs, params = {name: p(spec.sizes) for name, p in spec.layers.items()}, dict[str, int]()
    for name in spec.axes:
        if name in spec.parameters and name not in spec.tied:
            module = name.rpartition(".")[0]
            params[module] = params.get(module, 0) + prod(size(a, spec.sizes) for a in spec.axes[name])
    order = list(dict.fromkeys(i.module for i in spec.program.instructions))
    names = [n for n in order if n in macs or n in params]
    names += [n for n in (*macs, *params) if n not in set(order)]
    return {n: Layer(macs.get(n, 0), params.get(n, 0)) for n in dict.fromkeys(names)}


def layers(before: Spec, after: Spec, path: Path | str) -> None:
    """Draw bars of each layer's MACs and parameters, grey before, coloured after, with the share that is left.

    Args:
        before, after: a spec, and the spec after pruning it by a mask.
        path: path of the PNG.
    """
    costs_before, costs_after = layer_costs(before), layer_costs(after)
    names, series = _shown_layers(costs_before), {}
    for field in Layer._fields:
        dense, pruned = ({n: getattr(v, field) for n, v in costs.items()} for costs in (costs_before, costs_after))
        series[field] = _row_values(dense, names), _row_values({n: pruned.get(n, 0) for n in dense}, names)
    figure = canvas(11.0, 1.1 + 0.2 * (len(names) + 1))
    quantities = ("MACs per sample", "parameters")
    for i, (quantity, (dense, pruned)) in enumerate(zip(quantities, series.values(), strict=True)):
        axes = figure.add_subplot(1, 2, i + 1)
        labels = [n or "(the model itself)" for n in names] + ["all others"] * (len(dense) > len(names))
        _bars(axes, dense, pruned, quantity, [] if i else labels)
    legend = figure.axes[0].get_legend_handles_labels()
    figure.legend(*legend, frameon=False, fontsize=8, ncols=2, loc="outside upper right")
    save(figure, path)


def _shown_layers(costs: Mapping[str, Layer]) -> list[str]:
    """Return the layers that get a row: those with MACs, or with more than `SMALL` of the parameters."""
    small = SMALL * sum(v.params for v in costs.values())
    return [n for n, v in costs.items() if v.macs or v.params > small]


def _row_values(values: Mapping[str, int], names: Sequence[str]) -> list[int]:
    """Return the values of the names, followed by the sum of all other values if there are any."""
    listed = set(names)
    others = [v for n, v in values.items() if n not in listed]
    return [*(values[n] for n in names), *([sum(others)] if others else [])]


def _bars(axes: Axes, dense: Sequence[int], pruned: Sequence[int], quantity: str, labels: Sequence[str]) -> None:
    """Draw the bars of one quantity, each with the share that is left."""
    top = max(*dense, 1)
    unit, name = scale_word(top)
    at = range(len(dense))
    axes.barh(at, [v / unit for v in dense], 0.8, color=DENSE, label="before")
    axes.barh(at, [v / unit for v in pruned], 0.8, color=KEPT, label="after")
    for i, (a, b) in enumerate(zip(dense, pruned, strict=True)):
        text = f" {100 * b / a:.0f} % of {a / unit:.3g}" if a else ""
        axes.text(a / unit, i, text, va="center", fontsize=6.5, color=INK)
    share, total = sum(pruned) / max(sum(dense), 1), sum(dense) / unit
    label = f"{quantity} ({name or 'units'}); together {share:.1%} of {total:.4g} are left"
    rows(axes, labels or [""] * len(dense), label)
    axes.set_xlim(0, 1.28 * top / unit)
