"""Where the groups of a spec stand in its picture: pure data, in rows and columns.

Streams (residual groups) become vertical lanes at the left. What is left falls into blocks: groups that feed each other, or are
factors of one axis. A block is a row of columns, a column a stack of teams, a team the factors of one axis side by side. A long
chain is wrapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .axis import Axis, Concat, Leaf, Product, leaves
from .data import SpecData
from .parts import Group

COLUMNS = 4
"""A row has at most so many."""
LETTER = 0.0083
"""Mean width of a letter in inches, for each point of its size."""
Team = tuple[str, ...]
"""Factors of one axis."""
Path = tuple[str, ...]


class Row(NamedTuple):
    """A block, a part of a long one, or several blocks of one module; or the head of a stream."""

    label: str
    """Path of the module that its groups are in."""
    columns: tuple[tuple[Team, ...], ...]
    stream: str = ""

    @property
    def names(self) -> list[str]:
        """Its groups, from left to right; none for the head of a stream."""
        return [name for column in self.columns for team in column for name in team]


class Flow(NamedTuple):
    """A contraction takes one group to another."""

    source: str
    target: str


class Layout(NamedTuple):
    """The whole picture."""

    rows: tuple[Row, ...]
    lanes: dict[str, int]
    """Stream → lane, counted from the right."""
    flows: tuple[Flow, ...]
    ends: dict[str, tuple[str, ...]]
    """Group → sites that take it to a frozen axis."""
    starts: frozenset[str]
    """Groups that a contraction makes of a frozen axis."""

    def team(self, name: str) -> Team:
        """The factors among which a group stands."""
        return next((t for r in self.rows for c in r.columns for t in c if name in t), (name,))

    def span(self, stream: str) -> tuple[int, int]:
        """The first and the last row that have to do with a stream."""
        return _span(self.rows, self.flows, stream)


def layout(spec: SpecData) -> Layout:
    """Blocks in the order in which the program comes to them."""
    groups = spec.groups
    streams = [g for g in groups if groups[g].kind == "residual"]
    flows, ends = _flows(spec)
    inner = [f for f in flows if f.source not in streams and f.target not in streams]
    order = {name: i for i, name in enumerate(groups)}
    teams = _teams(spec, streams)
    blocks = _merged([g for g in groups if g not in streams], [*teams, *([f.source, f.target] for f in inner)])
    found: list[tuple[int, Row]] = [(order[s], Row(_parent(s), (), s)) for s in streams]
    for block in blocks:
        columns = _columns(block, inner, teams, order)
        found.append((order[block[0]], Row(_label(block), columns)))
    rows = _joined([r for _, row in sorted(found, key=lambda x: x[0]) for r in _wrapped(row)])
    return Layout(rows, _lanes(rows, flows, streams), flows, ends, _starts(spec, flows))


def _flows(spec: SpecData) -> tuple[tuple[Flow, ...], dict[str, tuple[str, ...]]]:
    flows: dict[Flow, None] = {}
    ends: dict[str, list[str]] = {}
    for s in spec.sites.values():
        sources = [g for g in dict.fromkeys(leaves(s.axis)) if g in spec.groups]
        targets = [g for g in dict.fromkeys(leaves(s.out)) if g in spec.groups]
        flows.update((Flow(a, b), None) for a in sources for b in targets if a != b)
        for a in sources if not targets else ():
            ends.setdefault(a, []).append(s.name)
    return tuple(flows), {g: tuple(names) for g, names in ends.items()}


def _starts(spec: SpecData, flows: Sequence[Flow]) -> frozenset[str]:
    """A weight makes them, and no group that came before flows into them."""
    order = {name: i for i, name in enumerate(spec.groups)}
    fed = {f.target for f in flows if order[f.source] < order[f.target]}
    made = {g.name for g in spec.groups.values() for m in g.members if m.role == "out" and len(spec.axes[m.tensor]) > 1}
    return frozenset(made - fed)


def _teams(spec: SpecData, streams: Sequence[str]) -> list[Team]:
    """Groups that are factors of one axis, each group in one team."""
    together = []
    for axes in spec.axes.values():
        for axis in axes:
            together += [[g for g in p if g in spec.groups and g not in streams] for p in _products(axis)]
    return [tuple(t) for t in _merged([g for g in spec.groups if g not in streams], together)]


def _products(axis: Axis) -> Iterator[list[str]]:
    match axis:
        case Product(factors):
            yield [f.name for f in factors if isinstance(f, Leaf)]
            for f in factors:
                yield from _products(f)
        case Concat(parts):
            for p in parts:
                yield from _products(p)


def _merged(names: Sequence[str], together: Iterable[Sequence[str]]) -> list[list[str]]:
    """The names in classes of what belongs together, all in the given order."""
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


def _columns(
    block: Sequence[str], flows: Sequence[Flow], teams: Sequence[Team], order: dict[str, int]
) -> tuple[tuple[Team, ...], ...]:
    """A team stands right of all that feed it; what flows back is left out of account."""
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
    """The path that all names begin with; of each name, more than numbers are left."""
    paths = [tuple(n.split(".")) for n in names]
    shared = min(map(len, paths)) - 1
    shared = next((i for i in range(shared) if len({p[i] for p in paths}) > 1), shared)
    while shared and any(all(token.isdecimal() for token in p[shared:]) for p in paths):
        shared -= 1
    return paths[0][:shared]


def _label(names: Sequence[str]) -> str:
    return ".".join(_common(names))


def _joined(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Neighbours that are parts of one numbered block stand in one row."""
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


def _wrapped(row: Row) -> Iterator[Row]:
    """A row for each module of a chain, and for every few columns."""
    for run in _runs(row) if not row.stream else ():
        for i in range(0, len(run), COLUMNS):
            part = row._replace(columns=run[i : i + COLUMNS])
            yield part._replace(label=_label(part.names))
    if row.stream:
        yield row


def _runs(row: Row) -> list[tuple[tuple[Team, ...], ...]]:
    """The columns, cut where one has no module with the next in common."""
    runs: list[tuple[tuple[Team, ...], ...]] = []
    last: set[str] = set()
    for column in row.columns:
        paths = [short(name, row.label).split(".") for team in column for name in team]
        now = {p[0] if len(p) > 1 else "" for p in paths}
        if runs and last & now:
            runs[-1] = (*runs[-1], column)
        else:
            runs.append((column,))
        last = now
    return runs


# ---- lanes


def _span(rows: Sequence[Row], flows: Sequence[Flow], stream: str) -> tuple[int, int]:
    fed = {f.target for f in flows if f.source == stream} | {stream}
    near = {f.source for f in flows if f.target == stream} | fed
    touched = [i for i, r in enumerate(rows) if r.stream in fed or near.intersection(r.names)]
    return min(touched), max(touched)


def _lanes(rows: Sequence[Row], flows: Sequence[Flow], streams: Sequence[str]) -> dict[str, int]:
    """The first lane that is free over the whole span."""
    lanes: dict[str, int] = {}
    taken: list[list[tuple[int, int]]] = []
    for s in streams:
        low, high = _span(rows, flows, s)
        free = (i for i, spans in enumerate(taken) if all(high < a or b < low for a, b in spans))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((low, high))
        lanes[s] = lane
    return lanes


def modules(group: Group, label: str) -> list[str]:
    """The modules of a group's members, without the part of their path that the row's label says."""
    found = dict.fromkeys(_parent(m.tensor) or m.tensor for m in group.members)
    return [short(name, label) for name in found]


def short(name: str, label: str) -> str:
    """A name without the label that it begins with.

    >>> short("blocks.0.mlp.fc1", "blocks.0")
    'mlp.fc1'
    """
    return name.removeprefix(f"{label}.") if label else name


def cut(words: str, room: float, size: float) -> str:
    """Words that fit in so many inches at so many points; the start goes first, since the end of a path says more.

    >>> cut("backbone.stages.0.blocks.1", 1.0, 8.0)
    '…ges.0.blocks.1'
    """
    most = max(int(room / (size * LETTER)), 4)
    return words if len(words) <= most else "…" + words[len(words) - most + 1 :]


def fit(names: Sequence[str], room: float, size: float, used: int = 0) -> str:
    """As many names as fit, and how many more there are."""
    most = int(room / (size * LETTER)) - used
    for n in range(len(names), 0, -1):
        more = f" … {len(names) - n} more" if n < len(names) else ""
        words = ", ".join(names[:n]) + more
        if len(words) <= most:
            return words
    more = f" … {len(names) - 1} more" if len(names) > 1 else ""
    return cut(names[0], (most - len(more)) * size * LETTER, size) + more if names else ""
