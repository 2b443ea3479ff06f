"""The effects of pruning each group alone, as a table, a CSV file and a picture."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from math import isfinite, isnan
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from ..report.heat_maps import HeatMap, heat_maps
from ..tables import Table, aligned, write_csv


class Effect(NamedTuple):
    """What removing a fraction of the units of one group does, while all other groups stay whole."""

    group: str
    kind: str
    units: int
    """Units of the group."""
    ratio: float
    """Fraction of the units to remove."""
    removed: int
    """Number of units removed: the ratio, rounded down."""
    macs_saved: int
    """MACs of the dense network less those of the pruned one, for one sample."""
    predicted: float | None
    """Expected squared error of the outputs of the layers that read the units, after compensation, each as a fraction of the
    output's variance, summed over these layers; None: no layer reads them where they could be measured."""
    estimated: float | None
    """Sum of the scores of the removed units, if the criterion's scores are increments of a loss; else None."""
    measured: float | None
    """Metric of the pruned network less that of the dense one, or the distance between their outputs; None: not measured."""

    @property
    def size(self) -> float:
        """Magnitude of the effect: the measured, or else the estimated, or else the predicted one; infinite if not a number."""
        value = next((v for v in (self.measured, self.estimated, self.predicted) if v is not None), 0.0)
        return float("inf") if isnan(value) else abs(value)


class Sensitivity(NamedTuple):
    """The effects of pruning each group alone, the most sensitive group first."""

    effects: tuple[Effect, ...]
    """The effects on a group are together, at rising ratios; groups are in the order of the mean size of their effects."""
    macs: int
    """MACs of the dense network, for one sample."""
    criterion: str
    """Name of the criterion in whose order the units were removed."""
    compensation: str
    metric: str = ""
    """What was measured; empty: nothing."""
    dense: float | None = None
    """Metric of the dense network; None for a distance."""
    unscored: tuple[str, ...] = ()
    """Groups without a score, which were not pruned."""

    def table(self) -> Table:
        """Return a row for each group and ratio; columns without any value are left out."""
        rows = [self._cells(e) for e in self.effects]
        columns = [name for name in rows[0] if any(row[name] for row in rows)]
        return Table(self._title(), columns, [[row[name] for name in columns] for row in rows])

    def __str__(self) -> str:
        table = self.table()
        return f"{table.title}\n{aligned(table)}"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a dict for each group and ratio, with the fields of `Effect`."""
        return [e._asdict() for e in self.effects]

    def write_csv(self, path: Path | str) -> None:
        """Write a CSV file with the fields of `Effect` as columns; missing values are empty."""
        write_csv(Path(path), Effect._fields, self.effects)

    def picture(self, path: Path | str) -> None:
        """Draw heat maps of group × ratio, the most sensitive group on top: MACs saved, and what is predicted, estimated, measured.

        Orange is worse, blue is better. Colours follow the logarithm of the numbers, except for MACs.

        Args:
            path: path of the PNG.
        """
        by_group = {g: list(effects) for g, effects in groupby(self.effects, attrgetter("group"))}
        names = [f"{g}  ({effects[0].kind}, {effects[0].units})" for g, effects in by_group.items()]
        columns = [f"{e.ratio:.0%}" for e in next(iter(by_group.values()))]

        def panel(title: str, value: Callable[[Effect], float | None], form: str, **style: Any) -> HeatMap:
            return HeatMap(title, [[value(e) for e in effects] for effects in by_group.values()], form, **style)

        panels = [
            panel("MACs saved (% of dense)", lambda e: 100 * e.macs_saved / self.macs, ".1f", worse=-1, log=False),
            panel("predicted error of next layers", lambda e: e.predicted, ".2g"),
        ]
        if any(e.estimated is not None for e in self.effects):
            panels.append(panel("estimated: sum of scores", lambda e: e.estimated, ".2g"))
        if self.metric:
            title = self.metric if self.dense is None else f"{self.metric}, less {self.dense:.4g}"
            form = ".2g" if self.dense is None else "+.2g"
            # Pruning makes most networks worse, so that most changes have the sign of what is worse.
            worse = -1 if sum(v for e in self.effects if isfinite(v := e.measured or 0.0)) < 0 else 1
            panels.append(panel(f"measured: {title}", lambda e: e.measured, form, worse=worse))
        heat_maps(names, columns, panels, path, label="units of the group removed")

    def _title(self) -> str:
        """Return how the effects came about."""
        parts = [f"units removed in the order of {self.criterion}", f"compensation {self.compensation}"]
        if self.metric:
            less = "" if self.dense is None else f", less {self.dense:.4g} of the dense network"
            parts.append(f"measured: {self.metric}{less}")
        if self.unscored:
            parts.append(f"without a score: {', '.join(self.unscored)}")
        return "; ".join(parts)

    def _cells(self, e: Effect) -> dict[str, str]:
        """Return column → cell; empty where there is no value."""
        form = "{:.3g}" if self.dense is None else "{:+.3g}"
        numbers = {
            "predicted": (e.predicted, "{:.3g}"),
            "estimated": (e.estimated, "{:.3g}"),
            "measured": (e.measured, form),
        }
        return {
            "group": e.group,
            "kind": e.kind,
            "ratio": f"{e.ratio:g}",
            "removed": f"{e.removed} of {e.units}",
            "MACs saved": f"{e.macs_saved / self.macs:.1%}",
            **{name: "" if v is None else text.format(v) for name, (v, text) in numbers.items()},
        }


def most_sensitive_first(effects: list[list[Effect]]) -> tuple[Effect, ...]:
    """Return the effects on groups, in the order of their mean size."""
    return tuple(e for group in sorted(effects, key=lambda g: -fmean(e.size for e in g)) for e in group)
