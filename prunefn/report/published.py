"""Published tables of results, with the numbers as they are printed, from `published.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any, NamedTuple

from ..errors import PruneError, nearest

COLUMNS: Mapping[str, tuple[str, int]] = {
    "units_removed": ("units removed (%)", 0),
    "macs_removed": ("MACs removed (%)", 2),
    "params_removed": ("params removed (%)", 2),
    "top1_before": ("top-1 before (%)", 2),
    "top1_after": ("top-1 after (%)", 2),
    "kept_before": ("before (% of dense)", 2),
    "kept_after": ("after (% of dense)", 2),
    "gmacs": ("GMACs", 2),
    "params_m": ("params (M)", 2),
    "speed_up": ("speed-up (×)", 2),
}
"""Column of numbers → heading with its unit, and the decimals that the papers print."""
DENSE = "dense"
"""Method of the row of the dense network."""


class Published(NamedTuple):
    """A published table."""

    name: str
    title: str
    source: str
    data: str
    """Data set."""
    columns: Sequence[str]
    """`model`, `method`, then names of `COLUMNS`."""
    rows: Sequence[Sequence[str]]
    """Cells as printed; empty: not reported."""
    epochs: int | None = None
    """Epochs of fine-tuning between `before` and `after`; None: there is none."""
    device: str = ""
    """Device of the speed-up."""
    line: bool = False
    """Whether the rows are one network at several ratios."""

    def numbers(self) -> list[dict[str, float]]:
        """Return the numbers of each row by column, with the shares that follow from those of its dense row."""
        out: list[dict[str, float]] = []
        for row in self.rows:
            cells = zip(self.columns, row, strict=True)
            out.append({c: float(text) for c, text in cells if c in COLUMNS and text})
        dense = next((n for n, row in zip(out, self.rows, strict=True) if row[1] == DENSE), {})
        pairs = (("gmacs", "macs_removed"), ("params_m", "params_removed"))
        for numbers in out if dense else ():
            numbers |= {share: 100 * (1 - numbers[n] / dense[n]) for n, share in pairs if n in numbers}
            for when in ("before", "after"):
                numbers[f"kept_{when}"] = 100 * numbers[f"top1_{when}"] / dense[f"top1_{when}"]
        return out

    @property
    def models(self) -> list[str]:
        """Return the names of its networks."""
        return list(dict.fromkeys(row[0] for row in self.rows))


@cache
def _content() -> dict[str, Any]:
    return json.loads(files("prunefn.report").joinpath("published.json").read_text("utf-8"))


def table_names() -> tuple[str, ...]:
    """Return the names of all published tables.

    >>> table_names()
    ('vbp_table_10', 'vbp_models', 'vbp_methods', 'without_training')
    """
    return tuple(_content()["tables"])


def published(name: str) -> Published:
    """Return a published table.

    Raises:
        PruneError: there is none of this name.

    >>> published("vbp_table_10").numbers()[-1]["macs_removed"].__round__(2)
    27.78
    """
    tables = _content()["tables"]
    if name not in tables:
        raise PruneError(f"there is no published table {name!r}{nearest(name, tables)}")
    return Published(name, **tables[name])


def model_name(name: str) -> str:
    """Return the papers' name of a model, or its own.

    >>> model_name("timm/deit_tiny_patch16_224.fb_in1k"), model_name("small_vit")
    ('DeiT-T', 'small_vit')
    """
    return _content()["models"].get(name.rpartition("/")[2].partition(".")[0], name)


def data_name(name: str) -> str:
    """Return the papers' name of a data set, or its own; of a folder, its last part.

    >>> data_name("/data/imagenet"), data_name("digits")
    ('ImageNet-1k', 'digits')
    """
    short = PurePath(name).name
    return _content()["data"].get(short.lower(), short)
