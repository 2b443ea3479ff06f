"""Which fields of a transformers config give a model the sizes of a pruned one.

A field is tried only if it is a size: a fresh model on `meta` with another number there has other shapes, at dims that lost
units. The number follows from these shapes, not from equal numbers elsewhere. Counts of heads may leave all shapes as they
are; they are known by their names and by the axes of heads.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ..spec.axis import Axis, Leaf, Product
from ..spec.spec import Spec
from .attributes import Resized, factors, found
from .confirm import Problem

HEADS = re.compile(r"heads?(_kv)?$")
"""Names of fields that count heads."""
HEAD_DIM = re.compile(r"head_?dim|head_size|^d_kv$|^d_head$|kv_channels")
"""Names of fields that are the width of a head."""
NO_SIZE = re.compile(r"_ids?$|layers?$|index|^_|^(transformers_version|dtype|id2label|label2id)$")
"""Names of fields that are no size of a channel axis, which saves a model each."""
WIDTH = re.compile(r"dim|size|inner|hidden|width|heads?(_kv)?$")
"""Names of fields whose None may stand for a size that the class computes."""
UNSAID = ("head_dim",)
"""Fields that many classes read where a config has them, though most configs do not."""
WAYS = 128
"""How many ways to set the fields are built on `meta`."""
TRIES = 12
"""How many of those with the right shapes are run."""
VALUES = 3
"""How many values of one field are tried."""

Shapes = Mapping[str, tuple[int, ...]]
_Point = tuple[int, Shapes]
"""A number of a field, and the shapes of a fresh model with it."""


class Field(NamedTuple):
    """A number in a config: `text_config.hidden_size`, `num_heads[2]`."""

    path: tuple[str, ...]
    name: str
    place: int | None = None
    """In a list of numbers."""

    def __str__(self) -> str:
        return ".".join((*self.path, self.name)) + ("" if self.place is None else f"[{self.place}]")

    def owner(self, config: Any) -> Any:
        """The config that has the field."""
        for name in self.path:
            config = getattr(config, name)
        return config

    def get(self, config: Any) -> Any:
        """What the config says; None where it says nothing."""
        value: Any = getattr(self.owner(config), self.name, None)
        return value if self.place is None else value[self.place]

    def set(self, config: Any, value: int) -> None:
        """Write to the config."""
        owner, new = self.owner(config), value
        if self.place is not None:
            row = getattr(owner, self.name)
            new = type(row)([*row[: self.place], value, *row[self.place + 1 :]])
        setattr(owner, self.name, new)


Changes = dict[Field, int]


class Fit(NamedTuple):
    """What a config has to say."""

    changes: Changes
    """The fewest that are right; empty where none are."""
    problem: str = ""
    """Why no config says the sizes; empty where the changes do."""


def changed(config: Any, changes: Mapping[Field, int]) -> Any:
    """A copy of the config with other numbers."""
    new = copy.deepcopy(config)
    for field, value in changes.items():
        field.set(new, value)
    return new


def find_fields(module: nn.Module, spec: Spec, check: Callable[[Any], Problem | None]) -> Fit:
    """The fewest changes to `module.config` after which a fresh model is the module.

    Args:
        module: at its new sizes, with the config of the old ones.
        spec: at the new sizes.
        check: builds a fresh model of a config and says what is wrong with it.
    """
    outline = _Outline(type(module), module.config, {n: tuple(t.shape) for n, t in module.state_dict().items()})
    options = dict(_options(module.config, outline, spec))
    likeliest = _drop(outline, _climb(outline, options))
    if gap := outline.gap(likeliest):
        tried = ", ".join(f"{f} = {' or '.join(map(str, v))}" for f, v in options.items()) or "none"
        return Fit({}, f"{gap} (fields that size what was pruned, and the values tried: {tried})")
    counts = {f: v for f, v in options.items() if HEADS.search(f.name) and f not in likeliest}
    ways = itertools.chain(({**likeliest, **extra} for extra in _combinations(counts)), _combinations(options))
    shaped = (way for way in itertools.islice(ways, WAYS) if not outline.gap(way))
    first = ""
    for changes in itertools.islice(shaped, TRIES):
        problem = check(changed(module.config, changes))
        if problem is None:
            return Fit(changes)
        said = ", ".join(f"{f} = {v}" for f, v in changes.items()) or "the config unchanged"
        first = first or f"a fresh model with {said} has the right shapes, but {problem.text}"
    return Fit({}, first)


class _Outline:
    """Shapes of fresh models on `meta`, by what is changed in their config."""

    def __init__(self, cls: type[nn.Module], config: Any, wanted: Shapes) -> None:
        self.cls, self.config, self.wanted = cls, config, wanted
        self._known: dict[frozenset[tuple[Field, int]], Shapes | str] = {}
        self.dense = self.shapes({})

    def shapes(self, changes: Mapping[Field, int]) -> Shapes | str:
        """By name of the tensor; a text where the class refuses its config."""
        key = frozenset(changes.items())
        if key not in self._known:
            try:
                with torch.device("meta"):
                    fresh = self.cls(changed(self.config, changes))
                self._known[key] = {n: tuple(t.shape) for n, t in fresh.state_dict().items()}
            except Exception as e:  # the class and its config check numbers in their own ways
                self._known[key] = f"{type(e).__name__}: {str(e)[:200]}"
        return self._known[key]

    def misses(self, changes: Mapping[Field, int]) -> float:
        """How many dims are not as wanted."""
        shapes = self.shapes(changes)
        if isinstance(shapes, str) or shapes.keys() != self.wanted.keys():
            return float("inf")
        return float(sum(a != b for n, s in self.wanted.items() for a, b in itertools.zip_longest(s, shapes[n])))

    def gap(self, changes: Mapping[Field, int]) -> str:
        """The first tensor that is not as wanted; empty if all are."""
        shapes = self.shapes(changes)
        if isinstance(shapes, str):
            return f"the class refuses its config ({shapes})"
        for n in dict.fromkeys([*self.wanted, *shapes]):
            if n not in shapes:
                return f"{n!r} was created, such as by a compensation, and a fresh model has no such tensor"
            if self.wanted.get(n) != shapes[n]:
                return f"{n!r} has shape {self.wanted.get(n)}, but would have {shapes[n]}"
        return ""

    def effect(self, field: Field, now: int | None) -> tuple[_Point, _Point] | None:
        """Shapes at two numbers of a field, the first of them what it is; None if no number is accepted or layers come and go."""
        if isinstance(self.dense, str):
            return None
        points: list[_Point] = [] if now is None else [(now, self.dense)]
        for probe in (24, 40, 56) if now is None else (2 * now, now // 2, 3 * now):
            shapes = self.shapes({field: probe})
            if probe not in (0, now) and not isinstance(shapes, str):
                points.append((probe, shapes))
            if len(points) == 2:
                (v, a), (w, b) = points
                alike = a.keys() == b.keys() and all(len(t) == len(b[n]) for n, t in a.items())
                return ((v, a), (w, b)) if alike else None
        return None


def _numbers(config: Any, path: tuple[str, ...] = ()) -> Iterator[Field]:
    """Every whole number of a config and of the configs in it, and every None that may stand for one."""
    own = vars(config)
    for name, value in [*own.items(), *((n, None) for n in UNSAID if n not in own)]:
        if hasattr(value, "to_dict"):
            yield from _numbers(value, (*path, name))
        elif NO_SIZE.search(name):
            continue
        elif type(value) is int or (value is None and WIDTH.search(name)):
            yield Field(path, name)
        elif type(value) in (list, tuple) and value and all(type(v) is int for v in value):
            yield from (Field(path, name, i) for i in range(len(value)))


def _options(config: Any, outline: _Outline, spec: Spec) -> Iterator[tuple[Field, tuple[int, ...]]]:
    """The fields that may have to change, each with its likeliest values."""
    every = found(_with_factors(a for axes in spec.axes.values() for a in axes), spec)
    for field in _numbers(config):
        now, effect = field.get(config), outline.effect(field, field.get(config))
        dims = _dims(effect) if effect is not None else []
        at = found(_with_factors(spec.axes[n][d] for n, d in dims if n in spec.axes), spec)
        if HEADS.search(field.name):
            at = every  # shapes may say nothing of them
        said = {r.new for r in at if _agree(field, r, spec) and now in (r.old, None)}
        shown = Counter(_implied(now, *effect, dims, outline) if effect is not None else ())
        if now is None or (not said and not HEADS.search(field.name)):
            said = (said & shown.keys()) or set(shown)
        if values := sorted((v for v in said if v != now), key=lambda v: -shown[v])[:VALUES]:
            yield field, tuple(values)


def _dims(effect: tuple[_Point, _Point]) -> list[tuple[str, int]]:
    """The dims of tensors that differ at two numbers of a field."""
    (_, a), (_, b) = effect
    return [(n, d) for n, s in a.items() for d, k in enumerate(s) if k != b[n][d]]


def _implied(
    now: int | None, first: _Point, second: _Point, dims: Iterable[tuple[str, int]], outline: _Outline
) -> Iterator[int]:
    """What the dims that a field sizes say that it is at the new sizes: a size is linear in its field."""
    (v, a), (w, b) = first, second
    for n, d in dims:
        shape = outline.wanted.get(n, ())
        wanted = shape[d] if len(shape) == len(a[n]) else a[n][d]
        if now is None or wanted != a[n][d]:
            step, rest = divmod((wanted - a[n][d]) * (w - v), b[n][d] - a[n][d])
            if rest == 0 and v + step > 0:
                yield v + step


def _agree(field: Field, r: Resized, spec: Spec) -> bool:
    """Whether the name of a field goes with an axis: counts of heads, widths of heads, or any other width."""
    parts = r.axis.factors if isinstance(r.axis, Product) else (r.axis,)
    kinds = {spec.groups[p.name].kind if isinstance(p, Leaf) and p.name in spec.groups else "" for p in parts}
    if HEADS.search(field.name):
        return kinds == {"heads"}
    if HEAD_DIM.search(field.name):
        return kinds == {"head_dim"}
    return kinds != {"heads"}


def _with_factors(axes: Iterable[Axis]) -> list[Axis]:
    own = list(dict.fromkeys(axes))
    return [*own, *factors(own)]


def _climb(outline: _Outline, options: Mapping[Field, tuple[int, ...]]) -> Changes:
    """Change one field after the other, or two at once, as long as fewer dims are wrong."""
    moves = [{f: v} for f, values in options.items() for v in values]
    best: Changes = {}
    misses = outline.misses(best)
    while misses:
        singles = [{**best, **m} for m in moves if not m.items() <= best.items()]
        nearest = min(singles, key=outline.misses, default=best)
        if outline.misses(nearest) >= misses:
            pairs = ({**best, **a, **b} for a, b in itertools.combinations(moves, 2) if a.keys() != b.keys())
            nearest = next((p for p in pairs if outline.misses(p) < misses), best)
        if nearest == best:
            break
        best, misses = nearest, outline.misses(nearest)
    return best


def _drop(outline: _Outline, changes: Changes) -> Changes:
    """The changes without those that make no difference to the shapes."""
    for field in list(changes):
        fewer = {f: v for f, v in changes.items() if f != field}
        if outline.misses(fewer) <= outline.misses(changes):
            changes = fewer
    return changes


def _combinations(options: Mapping[Field, tuple[int, ...]]) -> Iterator[Changes]:
    """All ways to set some of the fields, the fewest first, none before all."""
    for n in range(len(options) + 1):
        for fields in itertools.combinations(options, n):
            for values in itertools.product(*(options[f] for f in fields)):
                yield dict(zip(fields, values, strict=True))
