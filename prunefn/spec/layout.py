"""The layout of a spec's picture: the row and column of each group, as pure data.

Streams (residual groups) become vertical lanes at the left. The other groups form blocks: groups that feed each other, or that
are factors of one axis. A block is a row of columns, a column is a stack of teams, and a team is the factors of one axis side by
side. A long chain is wrapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .axis import Axis, Concat, Leaf, Product, leaves
from .data import SpecData
from .parts import Group

COLUMNS = 4
"""Maximum number of columns in a row."""
LETTER = 0.0083
"""Mean width of a letter in inches, per point of font size."""
Team = tuple[str, ...]
"""Factors of one axis."""
Path = tuple[str, ...]


class Row(NamedTuple):
    """A block, a part of a long one, or several blocks of one module; or the head of a stream."""

    label: str
    """Path of the module that contains the row's groups."""
    columns: tuple[tuple[Team, ...], ...]
    stream: str = ""

    @property
    def names(self) -> list[str]:
        """Return the row's groups, from left to right; none for the head of a stream."""
        return [name for column in self.columns for team in column for name in team]


class Flow(NamedTuple):
    """An arrow of the picture: a contraction sums over `source` and produces `target`."""

    source: str
    target: str


class Layout(NamedTuple):
    """The whole picture."""

    rows: tuple[Row, ...]
    lanes: dict[str, int]
    """Stream → lane, counted from the right."""
    flows: tuple[Flow, ...]
    ends: dict[str, tuple[str, ...]]
    """Group → sites that contract it to a frozen axis."""
    starts: frozenset[str]
    """Groups that a contraction produces from a frozen axis."""

    def team(self, name: str) -> Team:
        """Return the team that contains a group."""
        return next((t for r in self.rows for c in r.columns for t in c if name in t), (name,))

    def span(self, stream: str) -> tuple[int, int]:
        """Return the first and the last row that a stream touches."""
        return _span(self.rows, self.flows, stream)


def layout(spec: SpecData) -> Layout:
    """Return the layout of a spec; blocks stand in the order in which the program reaches them."""
    groups = spec.widths
    streams = [g for g in groups if groups[g].kind == "residual"]
    flows, ends = _find_flows(spec)
    inner = [f for f in flows if f.source not in streams and f.target not in streams]
    order = {name: i for i, name in enumerate(groups)}
    teams = _find_teams(spec, streams)
    blocks = _merge_classes([g for g in groups if g not in streams], [*teams, *([f.source, f.target] for f in inner)])
    ordered_rows: list[tuple[int, Row]] = [(order[s], Row(_parent(s), (), s)) for s in streams]
    for block in blocks:
        columns = _assign_columns(block, inner, teams, order)
        ordered_rows.append((order[block[0]], Row(_label(block), columns)))
    rows = _join_rows([r for _, row in sorted(ordered_rows, key=lambda x: x[0]) for r in _wrap(row)])
    return Layout(rows, _assign_lanes(rows, flows, streams), flows, ends, _find_starts(spec, flows))


def _find_flows(spec: SpecData) -> tuple[tuple[Flow, ...], dict[str, tuple[str, ...]]]:
    flows: dict[Flow, None] = {}
    ends: dict[str, list[str]] = {}
    for s in spec.sites.values():
        sources = [g for g in dict.fromkeys(leaves(s.axis)) if g in spec.widths]
        targets = [g for g in dict.fromkeys(leaves(s.out)) if g in spec.widths]
        flows.update((Flow(a, b), None) for a in sources for b in targets if a != b)
        for a in sources if not targets else ():
            ends.setdefault(a, []).append(s.name)
    return tuple(flows), {g: tuple(names) for g, names in ends.items()}


def _find_starts(spec: SpecData, flows: Sequence[Flow]) -> frozenset[str]:
    """Return the groups that a weight produces and that no earlier group flows into."""
    order = {name: i for i, name in enumerate(spec.widths)}
    fed = {f.target for f in flows if order[f.source] < order[f.target]}
    produced = {
        g.name for g in spec.widths.values() for m in g.members if m.role == "out" and len(spec.axes[m.tensor]) > 1
    }
    return frozenset(produced - fed)


def _find_teams(spec: SpecData, streams: Sequence[str]) -> list[Team]:
    """Return the teams: groups that are factors of one axis; each group is in one team."""
    factor_lists = []
    for axes in spec.axes.values():
        for axis in axes:
            factor_lists += [[g for g in p if g in spec.widths and g not in streams] for p in _products(axis)]
    return [tuple(t) for t in _merge_classes([g for g in spec.widths if g not in streams], factor_lists)]


def _products(axis: Axis) -> Iterator[list[str]]:
    match axis:
        case Product(factors):
            yield [f.name for f in factors if isinstance(f, Leaf)]
            for f in factors:
                yield from _products(f)
        case Concat(parts):
            for p in parts:
                yield from _products(p)


def _merge_classes(names: Sequence[str], together: Iterable[Sequence[str]]) -> list[list[str]]:
    """Return the names split into classes, in the given order; names of one sequence of `together` share a class."""
    parent = {n: n for n in names}

    def root(n: str) -> str:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    for first, *rest in (t for t in together if t):
        for other in rest:
            parent[root(other)] = root(first)
    classes: dict[str, list[str]] = {}
    for n in names:
        classes.setdefault(root(n), []).append(n)
    return list(classes.values())


def _assign_columns(
    block: Sequence[str], flows: Sequence[Flow], teams: Sequence[Team], order: dict[str, int]
) -> tuple[tuple[Team, ...], ...]:
    """Return the columns of a block: a team stands right of all teams that feed it; flows backwards are ignored."""
    inside = [t for t in teams if t[0] in set(block)]
    team_of = {name: t for t in inside for name in t}
    sources: dict[Team, list[Team]] = {t: [] for t in inside}
    for f in flows:
        if f.target in team_of and order[team_of[f.source][0]] < order[team_of[f.target][0]]:
            sources[team_of[f.target]].append(team_of[f.source])
    column: dict[Team, int] = {}
    for t in sorted(inside, key=lambda t: order[t[0]]):
        column[t] = max((column[s] + 1 for s in sources[t]), default=0)
    return tuple(tuple(t for t in inside if column[t] == c) for c in range(max(column.values()) + 1))


# ---- names


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _common(names: Sequence[str]) -> Path:
    """Return the path that all names begin with; what remains of each name contains more than numbers."""
    paths = [tuple(n.split(".")) for n in names]
    length = min(map(len, paths)) - 1
    length = next((i for i in range(length) if len({p[i] for p in paths}) > 1), length)
    while length and any(all(token.isdecimal() for token in p[length:]) for p in paths):
        length -= 1
    return paths[0][:length]


def _label(names: Sequence[str]) -> str:
    return ".".join(_common(names))


def _join_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows, with neighbours joined that are parts of one numbered block."""
    out: list[Row] = []
    for row in rows:
        if out and _same_block(out[-1], row):
            names = [*out[-1].names, *row.names]
            out[-1] = Row(_label(names), out[-1].columns + row.columns)
        else:
            out.append(row)
    return tuple(out)


def _same_block(a: Row, b: Row) -> bool:
    if a.stream or b.stream or sum(len(max(c, key=len)) for c in a.columns + b.columns) > COLUMNS:
        return False
    common = _common([*a.names, *b.names])
    following = [n.split(".")[len(common)] for n in (a.names[0], b.names[0])]
    return bool(common) and _numbered(common[-1]) and not all(map(_numbered, following))


def _numbered(token: str) -> bool:
    return re.search(r"\d$", token) is not None


def _wrap(row: Row) -> Iterator[Row]:
    """Yield one row for each module of a chain; split rows of more than `COLUMNS` columns."""
    for run in _split_runs(row) if not row.stream else ():
        for i in range(0, len(run), COLUMNS):
            part = row._replace(columns=run[i : i + COLUMNS])
            yield part._replace(label=_label(part.names))
    if row.stream:
        yield row


def _split_runs(row: Row) -> list[tuple[tuple[Team, ...], ...]]:
    """Return the row's columns, split wherever neighbours have no module in common."""
    runs: list[tuple[tuple[Team, ...], ...]] = []
    modules_before: set[str] = set()
    for column in row.columns:
        paths = [short(name, row.label).split(".") for team in column for name in team]
        modules_here = {p[0] if len(p) > 1 else "" for p in paths}
        if runs and modules_before & modules_here:
            runs[-1] = (*runs[-1], column)
        else:
            runs.append((column,))
        modules_before = modules_here
    return runs


# ---- lanes


def _span(rows: Sequence[Row], flows: Sequence[Flow], stream: str) -> tuple[int, int]:
    fed = {f.target for f in flows if f.source == stream} | {stream}
    near = {f.source for f in flows if f.target == stream} | fed
    touched = [i for i, r in enumerate(rows) if r.stream in fed or near.intersection(r.names)]
    return min(touched), max(touched)


def _assign_lanes(rows: Sequence[Row], flows: Sequence[Flow], streams: Sequence[str]) -> dict[str, int]:
    """Return stream → the first lane that is free over the whole span of the stream."""
    lanes: dict[str, int] = {}
    spans_of_lane: list[list[tuple[int, int]]] = []
    for s in streams:
        low, high = _span(rows, flows, s)
        free_lanes = (i for i, spans in enumerate(spans_of_lane) if all(high < a or b < low for a, b in spans))
        lane = next(free_lanes, len(spans_of_lane))
        if lane == len(spans_of_lane):
            spans_of_lane.append([])
        spans_of_lane[lane].append((low, high))
        lanes[s] = lane
    return lanes


def modules(group: Group, label: str) -> list[str]:
    """Return the modules of a group's members, without the row's label at the start of their paths."""
    paths = dict.fromkeys(_parent(m.tensor) or m.tensor for m in group.members)
    return [short(name, label) for name in paths]


def short(name: str, label: str) -> str:
    """Return a name without the label that it begins with.

    >>> short("blocks.0.mlp.fc1", "blocks.0")
    'mlp.fc1'
    """
    return name.removeprefix(f"{label}.") if label else name


def cut(words: str, room: float, size: float) -> str:
    """Return the words cut to fit into `room` inches at `size` points; the start is cut, since the end of a path says more.

    >>> cut("backbone.stages.0.blocks.1", 1.0, 8.0)
    '…ges.0.blocks.1'
    """
    most = max(int(room / (size * LETTER)), 4)
    return words if len(words) <= most else "…" + words[len(words) - most + 1 :]


def fit(names: Sequence[str], room: float, size: float, used: int = 0) -> str:
    """Return as many names as fit into `room` inches at `size` points, and how many more there are."""
    most = int(room / (size * LETTER)) - used
    for n in range(len(names), 0, -1):
        more = f" … {len(names) - n} more" if n < len(names) else ""
        words = ", ".join(names[:n]) + more
        if len(words) <= most:
            return words
    more = f" … {len(names) - 1} more" if len(names) > 1 else ""
    return cut(names[0], (most - len(more)) * size * LETTER, size) + more if names else ""
