"""Which fields of a transformers config give a model the sizes of a pruned one.

A field is tried only if it is a size: a fresh model on `meta` with another number in it has other shapes, at dims that lost
units. The new number follows from these shapes, not from equal numbers elsewhere. Counts of heads may leave all shapes
unchanged; they are recognized by their names and by the axes of heads.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..spec.axis import Axis, Leaf, Product
from ..spec.spec import Spec
from .attributes import Resized, factors, found
from .problem import Problem

HEADS = re.compile(r"heads?(_kv)?$")
"""Names of fields that count heads."""
HEAD_DIM = re.compile(r"head_?dim|head_size|^d_kv$|^d_head$|kv_channels")
"""Names of fields that are the width of a head."""
NO_SIZE = re.compile(r"_ids?$|layers?$|index|^_|^(transformers_version|dtype|id2label|label2id)$")
"""Names of fields that are no size of a channel axis; skipping one saves building a model."""
WIDTH = re.compile(r"dim|size|inner|hidden|width|heads?(_kv)?$")
"""Names of fields whose None may stand for a size that the class computes."""
UNSAID = ("head_dim",)
"""Fields that many classes read if a config has them, though most configs do not."""
WAYS = 128
"""Maximal number of ways to set the fields that are built on `meta`."""
TRIES = 12
"""Maximal number of the ways with the right shapes that are run."""
VALUES = 3
"""Maximal number of values that are tried for one field."""

ALIKE = "A model whose layers are pruned alike (scope=pf.scope.uniform(), or pf.target) may have a config"
"""Advice where no config states the sizes."""
NO_BIAS = (
    "To have a config, compensate without new biases: compensation=pf.compensation.affine(intercept=False), or "
    "pf.compensation.none()"
)
"""Advice where a compensation created biases."""

Shapes = Mapping[str, tuple[int, ...]]
Numbers = Mapping[str, Mapping[str, float]]
"""Path of a module → its own attributes that are numbers."""
_Point = tuple[int, Shapes]
"""A number of a field, and the shapes of a fresh model with this number."""


class Field(NamedTuple):
    """A number in a config: `text_config.hidden_size`, `num_heads[2]`."""

    path: tuple[str, ...]
    name: str
    place: int | None = None
    """Index in a list of numbers; None if the field is a single number."""

    def __str__(self) -> str:
        return ".".join((*self.path, self.name)) + ("" if self.place is None else f"[{self.place}]")

    def owner(self, config: Any) -> Any:
        """Return the config that has the field: the whole, or one inside it."""
        for name in self.path:
            config = getattr(config, name)
        return config

    def get(self, config: Any) -> Any:
        """Return the value in the config; None if the config does not have the field."""
        value: Any = getattr(self.owner(config), self.name, None)
        return value if self.place is None else value[self.place]

    def set(self, config: Any, value: int) -> None:
        """Write a number to the config."""
        owner, field_value = self.owner(config), value
        if self.place is not None:
            row = getattr(owner, self.name)
            field_value = type(row)([*row[: self.place], value, *row[self.place + 1 :]])
        setattr(owner, self.name, field_value)


Changes = dict[Field, int]


class Fit(NamedTuple):
    """The changes of a config for the sizes of a pruned model."""

    changes: Changes
    """The fewest changes that are right; empty if none are needed or none are right."""
    problem: str = ""
    """Why no config has the sizes; empty if the changes are right."""
    advice: str = ALIKE
    """How to prune so that there may be one."""


def changed(config: Any, changes: Mapping[Field, int]) -> Any:
    """Return a copy of the config with other numbers."""
    changed_config = copy.deepcopy(config)
    for field, value in changes.items():
        field.set(changed_config, value)
    return changed_config


def find_fields(
    module: nn.Module,
    config: Any,
    spec: Spec,
    build: Callable[[Any], nn.Module],
    check: Callable[[Any], Problem | None],
) -> Fit:
    """Return the fewest changes to a config that make a fresh model of it the same as the module.

    Args:
        module: the module at its new sizes.
        config: the config of the module at the traced sizes.
        spec: the spec at the new sizes, with the module's names of tensors.
        build: builds a fresh model of a config on `meta`.
        check: builds a fresh model of a config and returns its problem, or None.
    """
    outline = Outline(build, config, {n: tuple(t.shape) for n, t in module.state_dict().items()})
    if created := [n for n in outline.wanted if n in spec.slots]:
        return Fit({}, _created_text(created), NO_BIAS)
    options = dict(_options(config, outline, spec))
    likeliest = _drop_needless(outline, _search_greedily(outline, options))
    if gap := outline.gap(likeliest):
        tried = ", ".join(f"{f} = {' or '.join(map(str, v))}" for f, v in options.items()) or "none"
        return Fit({}, f"{gap} (fields that size what was pruned, and the values tried: {tried})")
    counts = {f: v for f, v in options.items() if HEADS.search(f.name) and f not in likeliest}
    ways = itertools.chain(({**likeliest, **extra} for extra in _combinations(counts)), _combinations(options))
    shaped = (way for way in itertools.islice(ways, WAYS) if not outline.gap(way))
    first_problem = ""
    for changes in itertools.islice(shaped, TRIES):
        problem = check(changed(config, changes))
        if problem is None:
            return Fit(changes)
        settings = ", ".join(f"{f} = {v}" for f, v in changes.items()) or "the config unchanged"
        first_problem = first_problem or f"a fresh model with {settings} has the right shapes, but {problem.text}"
    return Fit({}, first_problem)


def _created_text(created: Sequence[str]) -> str:
    """Return a text about the biases that a compensation created."""
    more = f" (in all, {len(created)} biases)" if len(created) > 1 else ""
    return f"a compensation created {created[0]!r}{more}, and a fresh model has no such tensor"


class _Fresh(NamedTuple):
    """What is kept of a fresh model."""

    shapes: Shapes
    numbers: Numbers


class Outline:
    """The shapes of fresh models on `meta`, by the changes in their config."""

    def __init__(self, build: Callable[[Any], nn.Module], config: Any, wanted: Shapes) -> None:
        self.build, self.config, self.wanted = build, config, wanted
        self._fresh_by_changes: dict[frozenset[tuple[Field, int]], _Fresh | str] = {}
        self.dense = self.shapes({})

    def shapes(self, changes: Mapping[Field, int]) -> Shapes | str:
        """Return the shapes by name of the tensor; the text of the error if the class rejects its config."""
        fresh = self._fresh(changes)
        return fresh if isinstance(fresh, str) else fresh.shapes

    def _fresh(self, changes: Mapping[Field, int]) -> _Fresh | str:
        key = frozenset(changes.items())
        if key not in self._fresh_by_changes:
            try:
                self._fresh_by_changes[key] = _outline(self.build(changed(self.config, changes)))
            except Exception as e:  # the class and its config may raise anything for wrong numbers
                self._fresh_by_changes[key] = f"{type(e).__name__}: {str(e)[:200]}"
        return self._fresh_by_changes[key]

    def readers(self, field: Field) -> list[str]:
        """Return the paths of the innermost modules with an attribute that changes with a field, such as a number of heads."""
        now = field.get(self.config)
        if (effect := self.effect(field, now)) is None:
            return []
        fresh = [self._fresh({} if v == now else {field: v}) for v, _ in effect]
        first, second = (f.numbers for f in fresh if not isinstance(f, str))
        paths = [p for p, numbers in first.items() if numbers != second.get(p)]
        return [p for p in paths if not any(other.startswith(f"{p}.") for other in paths)]

    def misses(self, changes: Mapping[Field, int]) -> float:
        """Return how many dims differ from the wanted ones; infinity if the tensors have other names."""
        shapes = self.shapes(changes)
        if isinstance(shapes, str) or shapes.keys() != self.wanted.keys():
            return float("inf")
        return float(sum(a != b for n, s in self.wanted.items() for a, b in itertools.zip_longest(s, shapes[n])))

    def gap(self, changes: Mapping[Field, int]) -> str:
        """Return a text about the first tensor whose shape differs from the wanted one; empty if none does."""
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
        """Return the shapes at two numbers of a field, the present number first if the config has one.

        None if the class does not accept two numbers, or if the number changes which tensors exist or how many dims they have.
        """
        if isinstance(self.dense, str):
            return None
        points: list[_Point] = [] if now is None else [(now, self.dense)]
        for probe in (24, 40, 56) if now is None else (2 * now, now // 2, 3 * now):
            shapes = self.shapes({field: probe})
            if probe not in (0, now) and not isinstance(shapes, str):
                points.append((probe, shapes))
            if len(points) == 2:
                (v, a), (w, b) = points
                comparable = a.keys() == b.keys() and all(len(s) == len(b[n]) for n, s in a.items())
                return ((v, a), (w, b)) if comparable else None
        return None


def _outline(model: nn.Module) -> _Fresh:
    """Return the shapes and the numbers of a fresh model."""
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    own = {  # layers of torch have the sizes of their tensors, which say nothing more
        path: {n: v for n, v in vars(m).items() if type(v) in (int, float)}
        for path, m in model.named_modules()
        if not type(m).__module__.startswith("torch.nn") or any(m.children())
    }
    return _Fresh(shapes, own)


def _numbers(config: Any, path: tuple[str, ...] = ()) -> Iterator[Field]:
    """Yield every whole number of a config and of the configs in it, and every None that may stand for a number."""
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


def _options(config: Any, outline: Outline, spec: Spec) -> Iterator[tuple[Field, tuple[int, ...]]]:
    """Yield the fields that may have to change, each with its likeliest values."""
    all_sizes = found(_with_factors(a for axes in spec.axes.values() for a in axes), spec)
    for field in _numbers(config):
        now, effect = field.get(config), outline.effect(field, field.get(config))
        dims = _dims(effect) if effect is not None else []
        sizes = found(_with_factors(spec.axes[n][d] for n, d in dims if n in spec.axes), spec)
        if HEADS.search(field.name):
            sizes = all_sizes  # a count of heads may change no shape
        by_axis = {r.new for r in sizes if _fits_name(field, r, spec) and now in (r.old, None)}
        by_shape = Counter(_implied_values(now, *effect, dims, outline) if effect is not None else ())
        if now is None or (not by_axis and not HEADS.search(field.name)):
            by_axis = (by_axis & by_shape.keys()) or set(by_shape)
        if values := sorted((v for v in by_axis if v != now), key=lambda v: -by_shape[v])[:VALUES]:
            yield field, tuple(values)


def _dims(effect: tuple[_Point, _Point]) -> list[tuple[str, int]]:
    """Return the dims of tensors, as (name, dim), that differ at two numbers of a field."""
    (_, a), (_, b) = effect
    return [(n, d) for n, s in a.items() for d, k in enumerate(s) if k != b[n][d]]


def _implied_values(
    now: int | None, first: _Point, second: _Point, dims: Iterable[tuple[str, int]], outline: Outline
) -> Iterator[int]:
    """Yield the number of a field that each of its dims implies at the new sizes, as a size is linear in its field."""
    (v, a), (w, b) = first, second
    for n, d in dims:
        shape = outline.wanted.get(n, ())
        wanted = shape[d] if len(shape) == len(a[n]) else a[n][d]
        if now is None or wanted != a[n][d]:
            step, remainder = divmod((wanted - a[n][d]) * (w - v), b[n][d] - a[n][d])
            if remainder == 0 and v + step > 0:
                yield v + step


def _fits_name(field: Field, r: Resized, spec: Spec) -> bool:
    """Return whether the name of a field fits an axis: a count of heads, the width of a head, or any other width."""
    parts = r.axis.factors if isinstance(r.axis, Product) else (r.axis,)
    kinds = {spec.groups[p.name].kind if isinstance(p, Leaf) and p.name in spec.groups else "" for p in parts}
    if HEADS.search(field.name):
        return kinds == {"heads"}
    if HEAD_DIM.search(field.name):
        return kinds == {"head_dim"}
    return kinds != {"heads"}


def _with_factors(axes: Iterable[Axis]) -> list[Axis]:
    """Return the different axes, followed by their factors and parts."""
    own = list(dict.fromkeys(axes))
    return [*own, *factors(own)]


def _search_greedily(outline: Outline, options: Mapping[Field, tuple[int, ...]]) -> Changes:
    """Change one field after the other, or two at once, as long as that leaves fewer wrong dims."""
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


def _drop_needless(outline: Outline, changes: Changes) -> Changes:
    """Drop the changes that make no difference to the shapes."""
    for field in list(changes):
        fewer = {f: v for f, v in changes.items() if f != field}
        if outline.misses(fewer) <= outline.misses(changes):
            changes = fewer
    return changes


def _combinations(options: Mapping[Field, tuple[int, ...]]) -> Iterator[Changes]:
    """Yield all ways to set some of the fields, those with the fewest fields first, beginning with no field."""
    for n in range(len(options) + 1):
        for fields in itertools.combinations(options, n):
            for values in itertools.product(*(options[f] for f in fields)):
                yield dict(zip(fields, values, strict=True))
