"""Draw a spec: every tensor with its axes in einops notation, coloured by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..spec.axis import Axis, Concat, Derived, Fixed, Leaf, Product
from ..spec.expressions import written
from ..spec.interface import INTERFACES
from ..spec.parts import EXPERTS
from ..spec.spec import Spec
from .plots import INK, canvas, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HUES = {
    "hidden": "#E8832A",
    "residual": "#3F83C4",
    "heads": "#3FA35B",
    "head_dim": "#9A6FC0",
    "groups": "#C9A227",
    EXPERTS: "#C4473F",
    **dict.fromkeys(INTERFACES, "#5F6B7A"),
}
"""Kind → colour; the groups of a kind have lighter and darker shades of it."""
FROZEN = "#E6E6E6"
MEANING = {
    "hidden": "inside a block",
    "residual": "a stream that blocks add to",
    "heads": "attention heads",
    "head_dim": "width of a head",
    "groups": "groups of a convolution",
    EXPERTS: "experts of a mixture",
    "vocabulary": "rows of an embedding",
    "classes": "outputs that are classes",
    "inputs": "channels of an input",
    "outputs": "channels of an output",
    "interface": "what others count on",
}
CHAR = 0.074
"""Width of a character in inches at the size of the labels."""
ROW = 0.34
"""Height of a row in inches."""
HEAD = 0.62
"""Inches above the first row, for the title."""
TAGS = 0.5
"""Inches below the last row, for the legend."""
MARGIN = 0.12
NOTE = "Boxes of one label are one axis: they shrink together. Below the label: its size. name.*: all tensors of a module with these axes."


class Row(NamedTuple):
    """Tensors of one module that have the same axes."""

    name: str
    axes: tuple[Axis, ...]


class Piece(NamedTuple):
    """A part of a drawn axis: a box with a label and a size, or a sign without a box."""

    text: str
    size: str = ""
    colour: str = ""
    """Colour of the box; empty for a sign between boxes."""

    @property
    def width(self) -> float:
        """Width in inches."""
        return CHAR * max(len(self.text), 2) + 0.14 if self.colour else CHAR


def axes(spec: Spec, path: Path | str, *, title: str, columns: int = 2) -> None:
    """Draw the tensors of a spec with their axes; each box shows the axis and its size.

    Tensors of a module with the same axes share a row, named `module.*`; tensors without axes are left out.

    Args:
        spec: a dense or pruned spec.
        path: path of the PNG.
        title: title of the picture.
        columns: number of columns of tensors.
    """
    rows = folded(spec)
    colours = _colours(spec)
    per_column = -(-len(rows) // columns)
    parts = [rows[i : i + per_column] for i in range(0, len(rows), per_column)]
    pieces = [[_row_pieces(row, spec, colours) for row in part] for part in parts]
    names = [max(len(row.name) for row in part) * CHAR + 0.15 for part in parts]
    widths = [n + max(_width(p) for p in column) + 0.35 for n, column in zip(names, pieces, strict=True)]
    tags = _legend_tags(spec)
    width = max(sum(widths), sum(_tag_width(label) for label in tags))
    height = HEAD + ROW * per_column + TAGS
    figure = canvas(width, height, constrained=False)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, width)
    ax.set_ylim(-height, 0)
    ax.set_axis_off()
    ax.text(MARGIN, -0.22, title, fontsize=12, fontweight="bold", color=INK, va="center")
    ax.text(MARGIN, -0.45, NOTE, fontsize=8.5, color=INK, va="center")
    left = MARGIN
    for part, column, indent, w in zip(parts, pieces, names, widths, strict=True):
        for i, (row, dims) in enumerate(zip(part, column, strict=True)):
            _draw_row(ax, left, -HEAD - ROW * (i + 0.5), indent, row, dims)
        left += w
    _draw_legend(ax, -height + TAGS / 2, tags)
    save(figure, path)


def folded(spec: Spec) -> list[Row]:
    """Return the rows of the picture: tensors of a module with the same axes share one.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    >>> [row.name for row in folded(pf.trace(model, (torch.randn(2, 4),)))]
    ['0.weight', '0.bias', '1.*', '2.weight', '2.bias']
    """
    slots = spec.slots
    by_axes: dict[tuple[str, tuple[Axis, ...]], list[str]] = {}
    for name, dims in spec.axes.items():
        if dims and name not in slots:
            by_axes.setdefault((name.rpartition(".")[0], dims), []).append(name)
    return [Row(f"{m}.*" if len(names) > 1 else names[0], dims) for (m, dims), names in by_axes.items()]


def _colours(spec: Spec) -> dict[str, str]:
    """Return group → colour: the hue of its kind, lighter from group to group."""
    out = {}
    for kind, hue in HUES.items():
        members = [g.name for g in spec.groups.values() if g.kind == kind]
        for i, name in enumerate(members):
            out[name] = _lighter(hue, 0.25 + 0.45 * i / max(len(members) - 1, 1))
    return out


def _lighter(colour: str, share: float) -> str:
    """Return the colour mixed with this share of white."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + (255 - c) * share):02x}" for c in channels)


def _row_pieces(row: Row, spec: Spec, colours: Mapping[str, str]) -> list[list[Piece]]:
    """Return the pieces of each axis of a row."""
    return [list(_pieces(a, spec, colours)) for a in row.axes]


def _pieces(axis: Axis, spec: Spec, colours: Mapping[str, str]) -> Iterator[Piece]:
    """Yield the boxes and signs of an axis, from left to right."""
    match axis:
        case Leaf(name):
            group = spec.groups.get(name)
            yield Piece(group.label if group else name, str(spec.sizes.get(name, "")), colours.get(name, FROZEN))
        case Fixed(n):
            yield Piece(str(n), colour=FROZEN)
        case Derived(expr):
            yield Piece(written(expr), colour=FROZEN)
        case Product(parts) | Concat(parts):
            yield Piece("(")
            for i, part in enumerate(parts):
                if i and isinstance(axis, Concat):
                    yield Piece("+")
                yield from _pieces(part, spec, colours)
            yield Piece(")")


def _width(dims: Sequence[Sequence[Piece]]) -> float:
    """Return the width of a row's axes in inches."""
    return sum(sum(p.width + 0.03 for p in dim) + 0.1 for dim in dims)


def _draw_row(ax: Axes, left: float, y: float, indent: float, row: Row, dims: Sequence[Sequence[Piece]]) -> None:
    """Draw the name and the axes of a row."""
    ax.text(left, y, row.name, fontsize=8.5, family="monospace", color=INK, va="center")
    x = left + indent
    for dim in dims:
        for piece in dim:
            _draw_piece(ax, x, y, piece)
            x += piece.width + 0.03
        x += 0.1


def _draw_piece(ax: Axes, x: float, y: float, piece: Piece) -> None:
    """Draw a box or a sign, with its left end at x and its middle at y."""
    from matplotlib.patches import FancyBboxPatch

    middle = x + piece.width / 2
    if piece.colour:
        half = 0.42 * ROW
        style = "round,pad=0,rounding_size=0.04"
        ax.add_patch(FancyBboxPatch((x, y - half), piece.width, 2 * half, style, facecolor=piece.colour, linewidth=0))
    raised = 0.055 if piece.size else 0.0
    ax.text(middle, y + raised, piece.text, fontsize=8, ha="center", va="center_baseline", color="black")
    if piece.size:
        ax.text(middle, y - 0.065, piece.size, fontsize=6.5, ha="center", va="center_baseline", color=INK)


def _legend_tags(spec: Spec) -> dict[str, str]:
    """Return text → colour of the legend's entries."""
    kinds = [k for k in HUES if any(g.kind == k for g in spec.groups.values())]
    return {**{f"{k}: {MEANING[k]}": _lighter(HUES[k], 0.4) for k in kinds}, "frozen": FROZEN}


def _tag_width(label: str) -> float:
    """Return the width of a legend's entry in inches: box, text and gap."""
    return 0.36 + 0.82 * CHAR * len(label) + 0.3


def _draw_legend(ax: Axes, y: float, tags: Mapping[str, str]) -> None:
    """Draw the legend in one line."""
    x = MARGIN
    for label, colour in tags.items():
        _draw_piece(ax, x, y, Piece("", colour=colour))
        ax.text(x + 0.36, y, label, fontsize=8.5, va="center", color=INK)
        x += _tag_width(label)
