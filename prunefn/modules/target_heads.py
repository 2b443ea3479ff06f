"""Heads in targets: configs count them, but the shapes of tensors have only their products with the width of a head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import PruneError
from ..spec.axis import Axis, Concat, Leaf, Product, leaves, product, size
from ..spec.spec import Spec
from .fields import HEAD_DIM, HEADS, Field, Outline
from .target_fields import all_fields


def all_axes(spec: Spec) -> list[Axis]:
    """Return the different axes of all tensors."""
    return list(dict.fromkeys(a for axes in spec.axes.values() for a in axes))


def kept_widths(changes: Mapping[Field, int], outline: Outline, spec: Spec) -> dict[Field, int]:
    """Return the width of a head for configs that leave it to the class: it stays, whatever the width is divided by."""
    widths = dict.fromkeys(size(w, spec.sizes) for a in all_axes(spec) for w in head_dims_in(a, spec))
    for field in all_fields(outline.config):
        if HEAD_DIM.search(field.name) and field.get(outline.config) is None and field not in changes:
            effect = outline.effect(field, None)
            if effect is not None and changed_dims(effect[0][1], effect[1][1]):
                fitting = [w for w in widths if outline.shapes({field: w}) == outline.dense]
                return {field: fitting[0]} if fitting else {}
    return {}


def heads_in(axis: Axis, spec: Spec) -> Axis | None:
    """Return the product of the factors of an axis that count heads; None if there are none."""
    parts = axis.parts if isinstance(axis, Concat) else (axis,)
    for part in parts:
        factors = part.factors if isinstance(part, Product) else (part,)
        heads = [f for f in factors if isinstance(f, Leaf) and _kind(f, spec) == "heads"]
        if heads:
            return product([*heads])
    return None


def head_dims_in(axis: Axis, spec: Spec) -> list[Axis]:
    """Return the factors of an axis that are the width of a head."""
    parts = axis.parts if isinstance(axis, Concat) else (axis,)
    factors = [f for p in (axis, *parts) for f in (p.factors if isinstance(p, Product) else (p,))]
    return [f for f in factors if (names := list(leaves(f))) and all(_kind(Leaf(n), spec) == "head_dim" for n in names)]


def _kind(leaf: Leaf, spec: Spec) -> str:
    return spec.groups[leaf.name].kind if leaf.name in spec.groups else ""


def head_equations(changes: Mapping[Field, int], outline: Outline, spec: Spec) -> Iterator[tuple[Field, Axis, int]]:
    """Yield (field, axis, number) for each field that counts heads or is the width of a head: shapes have their products only."""
    for field in all_fields(outline.config):
        now = field.get(outline.config)
        is_count, is_width = bool(HEADS.search(field.name)), bool(HEAD_DIM.search(field.name))
        now = changes.get(field) if now is None and is_width else now
        if type(now) is not int or not (is_count or is_width):
            continue
        effect = outline.effect(field, now)
        dims = [] if effect is None else changed_dims(effect[0][1], effect[1][1])
        near = [spec.axes[n][d] for n, d in dims if n in spec.axes] or _axes_of_readers(field, outline, spec)
        found = (
            [h for a in near if (h := heads_in(a, spec)) is not None]
            if is_count
            else [w for a in near for w in head_dims_in(a, spec)]
        )
        for axis in dict.fromkeys(found):
            if size(axis, spec.sizes) == now:
                yield field, axis, changes.get(field, now)


def _axes_of_readers(field: Field, outline: Outline, spec: Spec) -> list[Axis]:
    """Return the axes of the tensors in modules that read a field which changes no shape; of all tensors if none does."""
    inside = (spec.axes[n] for n in _tensors_of_readers(field, outline, spec))
    return list(dict.fromkeys(a for axes in inside for a in axes))


def _tensors_of_readers(field: Field, outline: Outline, spec: Spec) -> list[str]:
    paths = tuple(f"{p}." for p in outline.readers(field) if p)
    return [n for n in outline.wanted if n.startswith(paths)] or list(outline.wanted)


def changed_dims(a: Mapping[str, tuple[int, ...]], b: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    return [(n, d) for n, shape in a.items() for d, k in enumerate(shape) if k != b[n][d]]


def check_heads(equations: list[tuple[Field, Axis, int]], changes: Mapping[Field, int], spec: Spec) -> None:
    """Check that counts of heads fit together: as many queries for each key as there can be.

    Raises:
        PruneError: they do not; lists the counts that work.
    """
    counts = [(f, a, n) for f, a, n in equations if HEADS.search(f.name)]
    for field, axis, n in counts:
        for other, inner, m in counts:
            if axis == inner and n != m:
                raise PruneError(
                    f"{field}={n} and {other}={m} count the same heads: every query has keys of its own in this model; give "
                    f"both the same number, such as {field}={min(n, m)}, {other}={min(n, m)}"
                )
            if isinstance(axis, Product) and inner == axis.factors[0]:
                most = size(axis, spec.sizes) // size(inner, spec.sizes)
                works = [m * r for r in range(1, most + 1)]
                if n not in works:
                    keys = [k for k in range(1, size(inner, spec.sizes) + 1) if n % k == 0 and n // k <= most]
                    raise PruneError(
                        f"{field}={n} does not fit {other}={m}: every key-value head keeps the same number of queries, 1 to "
                        f"{most}; with {other}={m}, give {field} of {works}"
                        + (f", or with {field}={n}, {other} of {keys}" if keys else "")
                    )


def width_hint(changes: Mapping[Field, int], outline: Outline, spec: Spec) -> str:
    """Return a hint if a class divides a width by its number of heads, so that fewer heads alone would be wider ones."""
    for field, n in changes.items():
        now = field.get(outline.config)
        if not HEADS.search(field.name) or type(now) is not int or n >= now:
            continue
        near = [f for f in all_fields(outline.config) if f.path == field.path]
        numbers = {f: k for f in near if type(k := f.get(outline.config)) is int}
        counts = {f: k * n // now for f, k in numbers.items() if HEADS.search(f.name) and k * n % now == 0}
        for other, width in numbers.items():
            if other not in changes and other not in counts and width % now == 0:
                together = {field: n, **counts, other: width * n // now}
                if _keep_widths(together, (now, n), _heads_of(field, outline, spec), outline, spec):
                    written = ", ".join(f"{f}={k}" for f, k in together.items())
                    return f". The class divides {other} by {field}: give both, such as {written}"
    return ""


def _heads_of(field: Field, outline: Outline, spec: Spec) -> list[tuple[str, int]]:
    """Return the dims, as (tensor, dim), that have a factor of heads, in the modules that read a field."""
    names = _tensors_of_readers(field, outline, spec)
    return [(n, d) for n in names for d, a in enumerate(spec.axes[n]) if heads_in(a, spec) is not None]


def _keep_widths(
    changes: Mapping[Field, int], counts: tuple[int, int], dims: list[tuple[str, int]], outline: Outline, spec: Spec
) -> bool:
    """Return whether a fresh model of these changes has fewer heads of the same width in these dims."""
    shapes, (now, n) = outline.shapes(changes), counts
    if isinstance(shapes, str) or not shapes.keys() >= {name for name, _ in dims}:
        return False
    return bool(dims) and all(shapes[name][d] * now == spec.shape(name)[d] * n for name, d in dims)
