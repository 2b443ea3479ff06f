"""What each site's output is predicted to lose, under one or several compensations."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log10
from pathlib import Path

from ..drawing.canvas import COLOURS, DENSE, GRID, canvas, rows, save
from ..errors import PruneError
from ..types import Residual

LEAST = 1e-5
"""Smaller shares, zero included, stand at the left end."""


def residuals(found: Mapping[str, Mapping[str, Residual]], path: Path | str) -> None:
    """Dots on a logarithmic axis: the predicted relative error of each site, a colour for each compensation.

    Args:
        found: compensation (or round) → site → what its output loses; as `pf.residual` or `info.residuals` give it.
        path: of the PNG.

    Raises:
        PruneError: there are no residuals.
    """
    sites = list(dict.fromkeys(s for one in found.values() for s in one))
    if not sites:
        raise PruneError("there are no residuals to draw; nothing was compensated")
    figure = canvas(8.0, 1.3 + 0.2 * len(sites))
    axes = figure.add_subplot(1, 1, 1)
    for i, site in enumerate(sites):
        shares = [_percent(one[site]) for one in found.values() if site in one]
        axes.plot([min(shares), max(shares)], [i, i], color=DENSE, linewidth=1.5, zorder=1)
    at = {site: i for i, site in enumerate(sites)}
    for k, (method, one) in enumerate(found.items()):
        x, y, colour = [_percent(r) for r in one.values()], [at[s] for s in one], COLOURS[k % len(COLOURS)]
        axes.plot(x, y, "o", color=colour, markersize=5, label=method, zorder=2, clip_on=False)
    every = [_percent(r) for one in found.values() for r in one.values()]
    axes.set_xscale("log")
    axes.set_xlim(10.0 ** floor(log10(min(every))), 10.0 ** (floor(log10(max(every))) + 1))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    rows(axes, sites, "predicted error of the site's output (% of its variance; logarithmic)")
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GRID)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=6, loc="outside upper right")
    save(figure, path)


def _percent(r: Residual) -> float:
    return 100 * max(r.relative, LEAST)
