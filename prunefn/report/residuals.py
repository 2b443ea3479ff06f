"""Draw the predicted error of each site's output, under one or several compensations."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log10
from pathlib import Path

from ..drawing.canvas import COLOURS, DENSE, GRID, canvas, rows, save
from ..errors import PruneError
from ..types import Residual

LEAST = 1e-5
"""Smaller relative errors, zero included, are drawn at this value, because the axis is logarithmic."""


def residuals(found: Mapping[str, Mapping[str, Residual]], path: Path | str) -> None:
    """Draw the predicted relative error of each site as dots on a logarithmic axis, with a colour for each compensation.

    Args:
        found: compensation (or round) → site → residual, as in `pf.residual` or `info.residuals`.
        path: path of the PNG.

    Raises:
        PruneError: there are no residuals.
    """
    sites = list(dict.fromkeys(s for by_site in found.values() for s in by_site))
    if not sites:
        raise PruneError("there are no residuals to draw; nothing was compensated")
    figure = canvas(8.0, 1.3 + 0.2 * len(sites))
    axes = figure.add_subplot(1, 1, 1)
    for i, site in enumerate(sites):
        percents = [_percent(by_site[site]) for by_site in found.values() if site in by_site]
        axes.plot([min(percents), max(percents)], [i, i], color=DENSE, linewidth=1.5, zorder=1)
    row_of = {site: i for i, site in enumerate(sites)}
    for k, (method, by_site) in enumerate(found.items()):
        x, y = [_percent(r) for r in by_site.values()], [row_of[s] for s in by_site]
        colour = COLOURS[k % len(COLOURS)]
        axes.plot(x, y, "o", color=colour, markersize=5, label=method, zorder=2, clip_on=False)
    all_percents = [_percent(r) for by_site in found.values() for r in by_site.values()]
    axes.set_xscale("log")
    axes.set_xlim(10.0 ** floor(log10(min(all_percents))), 10.0 ** (floor(log10(max(all_percents))) + 1))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    rows(axes, sites, "predicted error of the site's output (% of its variance; logarithmic)")
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GRID)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=6, loc="outside upper right")
    save(figure, path)


def _percent(r: Residual) -> float:
    """Return the relative error in percent, at least that of `LEAST`."""
    return 100 * max(r.relative, LEAST)
