"""Numbers of whole layers and experts as sizes of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

from ..errors import BudgetError, PruneError
from ..frozen_dict import FrozenDict
from ..spec import parts
from ..spec.axis import leaves, size
from ..spec.parts import LAYER
from ..spec.routing import routes_of
from ..spec.spec import Spec
from ..types import Among, Count, TargetSizes

LAYERS, EXPERTS = "layers", "experts"
KINDS = {LAYERS: LAYER, EXPERTS: parts.EXPERTS}
"""What is counted → the kind of its groups."""
T = TypeVar("T")


def counted(count: Count, spec: Spec) -> TargetSizes:
    """Return the sizes of groups at which so many layers or experts stay.

    Raises:
        PruneError: the spec has no such groups, or a glob matches no module of them.
        BudgetError: there are fewer, or so few cannot stay; states what can.
    """
    return _layer_sizes(count, spec) if count.what == LAYERS else _expert_sizes(count, spec)


# ---- layers


class _Container(NamedTuple):
    path: str
    layers: tuple[str, ...]
    """Groups of the layers that can go."""
    size: int
    """Number of children with tensors, those that cannot go included."""


def _layer_sizes(count: Count, spec: Spec) -> TargetSizes:
    """Return of which layers how many stay."""
    containers = _containers(spec)
    if not containers:
        raise PruneError(
            f"budget.{count!r}: the model has no group of kind 'layer', a child of a container that only adds to a stream; it has "
            f"groups of kind {_kinds(spec)}"
        )
    if isinstance(count.number, int):
        return TargetSizes(FrozenDict(), (_among(containers, count.number, count),))
    chosen = _by_glob(count, {c.path: c for c in containers})
    return TargetSizes(FrozenDict(), tuple(_among(found, n, count) for found, n in chosen))


def _containers(spec: Spec) -> list[_Container]:
    """Return the containers that have layers."""
    paths = {g: spec.branches[g].module for g, group in spec.groups.items() if group.kind == LAYER}
    out = []
    for parent in dict.fromkeys(path.rpartition(".")[0] for path in paths.values()):
        prefix = f"{parent}." if parent else ""
        inside = [t.removeprefix(prefix) for t in spec.axes if t.startswith(prefix) and t not in spec.slots]
        children = {t.partition(".")[0] for t in inside if "." in t}
        layers = tuple(g for g, path in paths.items() if path.rpartition(".")[0] == parent)
        out.append(_Container(parent, layers, len(children)))
    return out


def _among(containers: Sequence[_Container], number: int, count: Count) -> Among:
    """Return the layers of some containers, of which so many go that `number` stay."""
    layers, total = tuple(g for c in containers for g in c.layers), sum(c.size for c in containers)
    where = ", ".join(f"{c.size} in {c.path!r}" for c in containers)
    fixed = total - len(layers)
    if number > total:
        raise BudgetError(f"budget.{count!r} is more than there are: {where}; give at most {total}")
    if number < max(fixed, 1):
        more = f", of which {fixed} cannot go" if fixed else ""
        raise BudgetError(f"budget.{count!r}: there are {where}{more}; give at least {max(fixed, 1)}")
    return Among(layers, number - fixed)


# ---- experts


class _Mixture(NamedTuple):
    group: str
    """Group that shrinks."""
    experts: int
    per_unit: int
    """Experts of each of its units: routers may choose among groups of experts first, all of which stay."""
    chosen: int


def _expert_sizes(count: Count, spec: Spec) -> TargetSizes:
    """Return the number of units that each group of experts keeps."""
    mixtures = {m.group: m for m in _mixtures(spec)}
    if not mixtures:
        raise PruneError(
            f"budget.{count!r}: the model has no group of kind 'experts'; it has groups of kind {_kinds(spec)}, and explain() says "
            "why a dim is frozen"
        )
    numbers = (
        [([m], count.number) for m in mixtures.values()] if isinstance(count.number, int) else _by_glob(count, mixtures)
    )
    return TargetSizes(FrozenDict({m.group: _units(m, n, count) for found, n in numbers for m in found}))


def _mixtures(spec: Spec) -> list[_Mixture]:
    """Return the mixtures of a network."""
    routes, found = routes_of(spec), dict[str, _Mixture]()
    for name, group in spec.groups.items():
        if group.kind != KINDS[EXPERTS]:
            continue
        axis = routes[name].axis if name in routes else None
        last = name if axis is None else [leaf for leaf in leaves(axis) if leaf in spec.groups][-1]
        total = group.size if axis is None else size(axis, spec.sizes)
        found[last] = _Mixture(last, total, total // spec.sizes[last], spec.groups[last].floor)
    return list(found.values())


def _units(mixture: _Mixture, number: int, count: Count) -> int:
    """Return the units that stay."""
    m = mixture
    if number > m.experts:
        raise BudgetError(f"budget.{count!r} is more than the {m.experts} experts of {m.group!r}; give at most that")
    if number % m.per_unit or number < m.chosen * m.per_unit:
        multiples = f", a multiple of {m.per_unit}, as every group of experts keeps as many" if m.per_unit > 1 else ""
        raise BudgetError(
            f"budget.{count!r}: {m.group!r} has {m.experts} experts, of which {m.chosen * m.per_unit} or more must stay{multiples}"
        )
    return number // m.per_unit


# ---- both


def _by_glob(count: Count, known: Mapping[str, T]) -> list[tuple[list[T], int]]:
    """Return what each glob of a count matches first, with its number.

    Raises:
        PruneError: a glob matches nothing.
    """
    assert not isinstance(count.number, int)
    left, out = dict(known), []
    for pattern, number in count.number.items():
        names = [n for n in left if fnmatchcase(n, pattern)]
        if not names:
            raise PruneError(
                f"budget.{count!r}: {pattern!r} matches none of {', '.join(map(repr, left)) or 'what is left'}"
            )
        out.append(([left.pop(n) for n in names], number))
    return out


def _kinds(spec: Spec) -> str:
    return ", ".join(dict.fromkeys(g.kind for g in spec.groups.values())) or "none"
