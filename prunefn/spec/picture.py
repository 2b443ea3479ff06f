"""A spec as a picture: groups as boxes, streams as bars, arrows from producers to consumers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

from ..drawing import svg
from ..errors import PruneError
from ..files import atomic
from .data import SpecData
from .interface import INTERFACES
from .layout import LETTER, Layout, Row, cut, fit, layout, modules, short
from .parts import EXPERTS, Group
from .views import explain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


ENDINGS = (".svg", ".png", ".pdf", ".html")
COLOURS = {
    "hidden": "#56B4E9",
    "residual": "#E69F00",
    "heads": "#009E73",
    "head_dim": "#CC79A7",
    "groups": "#D9C400",
    EXPERTS: "#D55E00",
    **dict.fromkeys(INTERFACES, "#0072B2"),
}
"""Okabe and Ito's palette, which colour-blind readers can tell apart; the box also names the kind."""
INK, GREY, LINE = "#222222", "#666666", "#777777"
TINT = 0.22
"""Opacity of a box's fill colour."""
DPI, MOST_PIXELS = 130, 60_000

# inches
WIDTH, HEIGHT, HEAD = 2.2, 0.67, 4.6
GAP, LEAD, BETWEEN, STACK = 0.6, 0.2, 0.24, 0.14
LANE, BAR, MARGIN, TITLE = 0.3, 0.1, 0.25, 1.0


class Box(NamedTuple):
    """The box of a group: left, top, width, height in inches."""

    x: float
    y: float
    w: float
    h: float = HEIGHT

    @property
    def middle(self) -> float:
        """Vertical centre."""
        return self.y + self.h / 2


class Place(NamedTuple):
    """The positions of everything in the picture, in inches."""

    boxes: dict[str, Box]
    rows: tuple[tuple[float, float], ...]
    """Top and bottom of each row."""
    row_of: dict[str, int]
    column_of: dict[str, int]
    last: frozenset[str]
    """Groups in the last column of their row."""
    lanes: dict[str, float]
    """Stream → x."""
    left: float
    """Left edge of all boxes."""
    size: tuple[float, float]


def picture(spec: SpecData, path: Path | str) -> None:
    """Draw a spec to a file; see `Spec.picture`."""
    path = Path(path)
    kind = path.suffix.lower()[1:]
    if path.suffix.lower() not in ENDINGS:
        raise PruneError(f"a picture cannot be written as {path.name!r}; its name must end in {', '.join(ENDINGS)}")
    if kind in ("svg", "html"):
        text = svg_text(spec)
        atomic.write_text(path, _render_html(spec, text) if kind == "html" else text)
    else:
        atomic.write_bytes(path, _render(spec, kind))


def svg_text(spec: SpecData) -> str:
    """Return the picture as SVG with tooltips."""
    titles = {_id(i): explain(spec, g) for i, g in enumerate(spec.widths)}
    return svg.titled(_render(spec, "svg").decode(), titles)


def _render(spec: SpecData, kind: str) -> bytes:
    """Return the picture in a format: svg, png or pdf."""
    try:
        import matplotlib
    except ImportError as error:
        raise PruneError('spec.picture needs matplotlib: pip install "prunefn[plot]"') from error
    from ..drawing.canvas import canvas

    plan = layout(spec)
    place = _place(plan)
    figure = canvas(*place.size, constrained=False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, place.size[0])
    axes.set_ylim(place.size[1], 0)
    _Drawing(axes, spec, plan, place).draw()
    metadata: dict[str, Any] = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}[kind]
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "prunefn", "svg.fonttype": "none"}):
        dpi = min(DPI, MOST_PIXELS / max(place.size))
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def themed(text: str) -> str:
    """Return an SVG picture of a spec for a page that defines the colours `--ink`, `--soft` and `--paper`."""
    names = {INK: "var(--ink)", GREY: "var(--soft)", LINE: "var(--soft)", "#ffffff": "var(--paper)"}
    tints = {_tint(c): f"color-mix(in srgb, {c} {TINT:.0%}, var(--paper))" for c in COLOURS.values()}
    return svg.inline(text, {k.lower(): v for k, v in {**names, **tints}.items()})


def _render_html(spec: SpecData, text: str) -> str:
    page = Template(files("prunefn.spec").joinpath("spec.html").read_text("utf-8"))
    return page.substitute(title=escape(repr(spec)), picture=themed(text))


def _id(number: int) -> str:
    """Return the id of a group's box by number, since names may contain characters that an id may not."""
    return f"group_{number}"


def _tint(colour: str) -> str:
    from matplotlib.colors import to_hex, to_rgb

    r, g, b = (1 - TINT * (1 - c) for c in to_rgb(colour))
    return to_hex((r, g, b))


def _place(plan: Layout) -> Place:
    labels = max((min(len(r.label), 34) for r in plan.rows if not r.stream), default=0)
    lanes = MARGIN + labels * 7.5 * LETTER + 0.15
    left = lanes + (max(plan.lanes.values(), default=-1) + 1) * LANE + GAP
    lane_x = {s: left - GAP - (lane + 0.5) * LANE for s, lane in plan.lanes.items()}
    boxes: dict[str, Box] = {}
    rows: list[tuple[float, float]] = []
    column_of: dict[str, int] = {}
    y = TITLE
    for row in plan.rows:
        top = y + (LEAD if not row.stream else 0)
        bottom = top + HEIGHT
        if row.stream:
            boxes[row.stream] = Box(left, top, HEAD)
        x = left
        for c, column in enumerate(row.columns):
            for k, team in enumerate(column):
                for i, name in enumerate(team):
                    boxes[name] = Box(x + i * WIDTH, top + k * (HEIGHT + STACK), WIDTH)
                    column_of[name] = c
                    bottom = max(bottom, boxes[name].y + HEIGHT)
            x += max(map(len, column)) * WIDTH + GAP
        rows.append((top, bottom))
        y = bottom + BETWEEN
    row_of = {n: i for i, r in enumerate(plan.rows) for n in ([r.stream] if r.stream else r.names)}
    last = frozenset(n for r in plan.rows for team in (r.columns[-1] if r.columns else ()) for n in team)
    width = max((b.x + b.w for b in boxes.values()), default=left) + GAP
    return Place(boxes, tuple(rows), row_of, column_of, last, lane_x, left, (max(width, 7.5), y + 0.35))


class _Drawing:
    """A drawing on one pair of axes, in inches from the top left."""

    def __init__(self, axes: Axes, spec: SpecData, plan: Layout, place: Place) -> None:
        self.axes, self.spec, self.plan, self.place = axes, spec, plan, place
        self.numbers = {g: i for i, g in enumerate(spec.widths)}

    def draw(self) -> None:
        """Draw everything, from the back to the front."""
        self.title()
        for stream in self.plan.lanes:
            self.bar(stream)
        # a team has one arrow, which starts and ends at its first factor
        first = {n: team[0] for r in self.plan.rows for c in r.columns for team in c for n in team}
        for a, b in dict.fromkeys(
            (first.get(f.source, f.source), first.get(f.target, f.target)) for f in self.plan.flows
        ):
            self.flow(a, b)
        for name in self.plan.starts:
            self.start(name)
        for name, sites in self.plan.ends.items():
            self.end(name, sites)
        for row, (top, bottom) in zip(self.plan.rows, self.place.rows, strict=True):
            if not row.stream:
                label = row.label if len(row.label) <= 34 else "…" + row.label[-33:]
                self.text(MARGIN, (top + bottom) / 2, label, 7.5, weight="bold", va="center")
            for name in [row.stream] if row.stream else row.names:
                self.group(self.spec.groups[name], self.place.boxes[name], row)

    # ---- text and lines

    def text(self, x: float, y: float, words: str, size: float, **style: Any) -> None:
        self.axes.text(x, y, words, **{"fontsize": size, "color": INK, "va": "top", "zorder": 6, **style})

    def line(self, *points: tuple[float, float], colour: str = LINE, arrow: bool = True) -> None:
        """Draw a polyline, with an arrowhead at its end."""
        xs, ys = zip(*points, strict=True)
        # a white line below, so that crossing lines can be told apart
        self.axes.plot(xs, ys, color="white", linewidth=2.6, zorder=2, solid_capstyle="butt")
        self.axes.plot(xs, ys, color=colour, linewidth=0.9, zorder=3, solid_joinstyle="round")
        if arrow:
            style = {
                "arrowstyle": "-|>",
                "color": colour,
                "linewidth": 0,
                "mutation_scale": 9,
                "shrinkA": 0,
                "shrinkB": 0,
            }
            self.axes.annotate("", points[-1], points[-2], arrowprops=style, zorder=4)

    def dot(self, x: float, y: float, colour: str) -> None:
        self.axes.plot(
            [x], [y], "o", color=colour, markersize=5.5, markeredgecolor="white", markeredgewidth=1, zorder=5
        )

    def title(self) -> None:
        groups, _, cost = repr(self.spec).removeprefix("Spec(").removesuffix(")").partition("; ")
        self.text(MARGIN, 0.15, groups, 9.0, weight="bold")
        self.text(MARGIN, 0.33, cost, 8.0)
        x = MARGIN
        for kind in dict.fromkeys(g.kind for g in self.spec.widths.values()):
            self.rectangle(Box(x, 0.555, 0.16, 0.13), COLOURS[kind])
            self.text(x + 0.22, 0.62, kind, 7.5, va="center")
            x += 0.45 + len(kind) * 7.5 * LETTER
        self.text(x, 0.62, "bars: streams · arrows: contractions · rings: frozen axes", 7.5, va="center", color=GREY)

    def rectangle(self, box: Box, colour: str, group: str | None = None) -> None:
        from matplotlib.patches import FancyBboxPatch

        style = "round,pad=0,rounding_size=0.05"
        patch = FancyBboxPatch((box.x, box.y), box.w, box.h, style, facecolor=_tint(colour), edgecolor=colour, zorder=4)
        patch.set_gid(None if group is None else _id(self.numbers[group]))
        self.axes.add_patch(patch)

    def group(self, g: Group, box: Box, row: Row) -> None:
        """Draw a group's box with four lines of text: name; units and kind; members; sites."""
        self.rectangle(box, COLOURS[g.kind], g.name)
        label = "" if row.stream else row.label
        mixed = [m.removeprefix("aten.").removesuffix(".default") for m in g.mixed_by]
        members = f"{len(g.members)} member{'s' * (len(g.members) > 1)}: "
        sites = "measured at " if g.sites else "not measured"
        x, room = box.x + 0.07, box.w - 0.14
        lines = (
            (cut(short(g.name, label), room, 8.0), 8.0, {"weight": "bold"}),
            (
                cut(f"{g.size} units · {g.kind}" + (f" · mixed by {', '.join(mixed)}" if mixed else ""), room, 7.0),
                7.0,
                {},
            ),
            (members + fit(modules(g, label), room, 6.5, len(members)), 6.5, {"color": GREY}),
            (sites + fit([short(s, label) for s in g.sites], room, 6.5, len(sites)), 6.5, {"color": GREY}),
        )
        for (words, size, style), y in zip(lines, (0.05, 0.205, 0.36, 0.5), strict=True):
            self.text(x, box.y + y, words, size, **style)

    # ---- streams and flows

    def bar(self, stream: str) -> None:
        """Draw a stream: a thin line down to its head, a bar from the head on, and a stub to the head."""
        x, head = self.place.lanes[stream], self.place.boxes[stream]
        first, last = self.plan.span(stream)
        top, bottom = self.place.rows[last]
        end = top + 0.16 if self.plan.rows[last].stream else bottom + 0.12
        colour = COLOURS["residual"]
        if first < self.place.row_of[stream]:
            self.axes.plot(
                [x, x], [self.place.rows[first][1] + 0.12, head.middle], color=colour, linewidth=1.2, zorder=1
            )
        self.axes.plot([x, head.x], [head.middle] * 2, color="white", linewidth=7, zorder=2, solid_capstyle="butt")
        style = {"color": colour, "linewidth": 72 * BAR * 0.55, "zorder": 2, "solid_capstyle": "round"}
        self.axes.plot([head.x, x, x], [head.middle, head.middle, max(end, head.middle)], **style)

    def flow(self, a: str, b: str) -> None:
        """Draw a flow: a line above a row leaves a stream, a line below a row enters one; neighbouring boxes are joined."""
        lanes, boxes, rows = self.place.lanes, self.place.boxes, self.place.rows
        if a in lanes and b in lanes:
            y = boxes[b].y + 0.16
            self.dot(lanes[a], y, COLOURS["residual"])
            self.line((lanes[a], y), (boxes[b].x, y))
        elif a in lanes:
            y, gap = rows[self.place.row_of[b]][0] - 0.13, boxes[b].x - 0.2
            self.dot(lanes[a], y, COLOURS["residual"])
            self.line((lanes[a], y), (gap, y), (gap, boxes[b].middle), (boxes[b].x, boxes[b].middle))
        elif b in lanes:
            y, gap = rows[self.place.row_of[a]][1] + 0.12, self._right_side(a) + 0.12
            self.line((self._right_side(a), boxes[a].middle), (gap, boxes[a].middle), (gap, y), (lanes[b], y))
        else:
            self.between(a, b)

    def between(self, a: str, b: str) -> None:
        """Draw a flow between neighbouring columns, backwards or across a wrap; boxes name the sites of longer flows."""
        place, box, other = self.place, self.place.boxes[a], self.place.boxes[b]
        down, right = place.row_of[b] - place.row_of[a], place.column_of[b] - place.column_of[a]
        start = (self._right_side(a), box.middle)
        if down == 0 and right == 1:
            gap = other.x - 0.3
            self.line(start, (gap, box.middle), (gap, other.middle), (other.x, other.middle))
        elif down == 0 and right == -1:
            y, target_y, gap = box.middle + 0.15, other.middle + 0.15, box.x - 0.12
            self.line((box.x, y), (gap, y), (gap, target_y), (self._right_side(b), target_y))
        elif down == 1 and a in place.last and not place.column_of[b]:
            y, gap = place.rows[place.row_of[a]][1] + 0.17, other.x - 0.3
            out = start[0] + 0.12
            self.line(start, (out, box.middle), (out, y), (gap, y), (gap, other.middle), (other.x, other.middle))

    def _right_side(self, name: str) -> float:
        """Return the right side of the team that contains a group."""
        last = self.place.boxes[self.plan.team(name)[-1]]
        return last.x + last.w

    def start(self, name: str) -> None:
        box = self.place.boxes[name]
        self.ring(box.x - 0.17, box.y + 0.13)
        self.line((box.x - 0.17, box.y + 0.13), (box.x, box.y + 0.13))

    def end(self, name: str, sites: Sequence[str]) -> None:
        if name in self.place.lanes:
            x, y = self.place.lanes[name], self.place.rows[self.plan.span(name)[1]][1] + 0.12
            self.line((x, y), (x, y + 0.2))
            self.ring(x, y + 0.24)
            self.text(x + 0.09, y + 0.24, fit(list(sites), HEAD, 6.5), 6.5, color=GREY, va="center")
        else:
            x, y = self._right_side(name), self.place.boxes[name].y + 0.13
            self.line((x, y), (x + 0.14, y))
            self.ring(x + 0.17, y)

    def ring(self, x: float, y: float) -> None:
        """Draw the ring that represents a frozen axis."""
        self.axes.plot([x], [y], "o", color="white", markersize=4, markeredgecolor=LINE, markeredgewidth=0.9, zorder=5)
