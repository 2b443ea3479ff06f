"""Results as the cells of a table on a page: a heading and a rounding for each name, with units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..display.units import quantity
from .goal import Goal


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    tone: str = ""
    """Class of its colour: `good`, `bad`."""
    link: str = ""
    """Address that it leads to."""


class Table(NamedTuple):
    """A table of formatted cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    more: int = 0
    """Number of rows that are left out."""
    note: str = ""
    """What the rows are, and their order."""


def _percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}%}".replace("%", " %")


def _points(value: float) -> str:
    """Return points with their sign; a loss is what the reader looks for, so it stays positive."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _count(value: float) -> str:
    return quantity(value, "")


def _time(value: float) -> str:
    return quantity(value, "s", 3)


FORMS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "macs": ("MACs", _count),
    "params": ("params", _count),
    "top1": ("top-1", partial(_percent, digits=2)),
    "macs_removed": ("MACs removed", _percent),
    "params_removed": ("params removed", _percent),
    "points_lost": ("points lost", _points),
    "macs_ratio": ("MACs to remove", lambda v: f"{100 * v:.3g} %"),
    "seconds": ("time", _time),
    "latency": ("latency", _time),
    "latency_ms": ("latency", lambda v: _time(v / 1e3)),
    "lr": ("lr", lambda v: f"{v:.3g}"),
    "loss": ("loss", lambda v: f"{v:.4f}"),
    "train_loss": ("training loss", lambda v: f"{v:.4f}"),
    "Method": ("method", str),
    "Params_Removed": ("params removed", _percent),
    "FLOPs_Reduction": ("MACs removed", lambda v: _percent(v / 100)),
    "Accuracy_Drop": ("points lost", _points),
    "Goal_Met": ("goal", str),
}
"""Name of a result → heading, and its rounding: no more digits than matter, and the unit that fits."""
MET, MISSED = Cell("met", "good"), Cell("missed", "bad")


def heading(name: str) -> str:
    """Return the heading of a column.

    >>> heading("macs_removed"), heading("some_metric")
    ('MACs removed', 'some metric')
    """
    return FORMS[name][0] if name in FORMS else name.replace("_", " ")


def shown(name: str, value: Any) -> str:
    """Return a value in the rounding of its name, or with four digits; text that is no number stays.

    >>> shown("macs_removed", 0.40052356), shown("macs", 410368), shown("x", "0.4674898234"), shown("x", 12), shown("x", None)
    ('40.1 %', '410.4 k', '0.4675', '12', '')
    """
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    number = _number(value)
    if number is None:
        return str(value)
    if name in FORMS:
        return FORMS[name][1](number)
    return f"{number:.4g}" if isinstance(number, float) else str(number)


def _number(value: Any) -> int | float | None:
    """Return a value, or the text of one, as a number; None if it is none."""
    if isinstance(value, int | float):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return None


def cell(name: str, value: Any, goal: Goal | None = None) -> Cell:
    """Return the cell of a result; what a goal asks for is coloured by it.

    >>> cell("points_lost", 2.0, Goal()), cell("Goal_Met", "True")
    (Cell(text='2.00', tone='bad', link=''), Cell(text='met', tone='good', link=''))
    >>> cell("points_lost", 1.5025, Goal()).text
    '1.5025'
    """
    if name == "Goal_Met":
        return {"True": MET, "False": MISSED}.get(str(value), Cell(str(value)))
    limits = {} if goal is None else goal._asdict()
    if name not in limits or not isinstance(value, int | float):
        return Cell(shown(name, value))
    met = value >= limits[name] if name == "macs_removed" else value <= limits[name]
    text = shown(name, value)
    if not met and text == shown(name, limits[name]):  # rounded, it would look as if it were met
        text = f"{100 * value:.3f} %" if name == "macs_removed" else f"{value:.4f}"
    return Cell(text, "good" if met else "bad")
