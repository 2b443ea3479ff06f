"""Target sizes by the names of a config: `intermediate_size=1152` instead of the sizes of each layer's groups."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from ..doors import door
from ..errors import ParamsError, PruneError, nearest
from ..frozen_dict import FrozenDict
from ..spec.axis import Axis, Concat, Leaf, Product, leaves, product, size
from ..spec.spec import Spec
from ..types import TargetSizes
from .fields import HEAD_DIM, HEADS, UNSAID, Field, Outline
from .infer import Equation, infer_sizes
from .libraries import TRANSFORMERS, Library, fresh_model, library_of
from .rebuild import check_model
from .target_layers import layers_among

LAYERS = "a model with this number has other tensors, which removing units and layers does not give"
"""Why a field is refused that changes which tensors there are."""


class Source(NamedTuple):
    """What builds fresh models of a config."""

    config: Any
    library: Library
    cls: type[nn.Module]

    def build(self, config: Any) -> nn.Module:
        """Return a fresh model on `meta`."""
        return fresh_model(self.library, self.cls, config)


@door
def target(spec: Spec, model: Any, **sizes: Any) -> TargetSizes:
    """Return the sizes of groups that a config with these numbers states, for `select` and `pipeline` in place of a ratio.

    The numbers are checked by a fresh model on `meta`, whose shapes must be those of the pruned model: fields that are not given
    keep their values, so that the pruned model loads into its class with a config that differs in these fields only.

    Args:
        spec: of the model.
        model: the traced model of transformers, diffusers or huggingface_hub's mixin; or the config of a transformers model, with
            `architectures` that name its class.
        sizes: field of the config → new number, such as `intermediate_size=1152, num_key_value_heads=2`; a field of a config
            inside the config by its path, `**{"text_config.hidden_size": 512}`, or by its name if it is in no other.

    Raises:
        PruneError: a field is unknown, or states no size of a group (such as a frozen size); a number is
            larger than the model's; the numbers of heads do not fit together; or no pruning gives these sizes. Says what works.

    Shapes alone are checked here. A class that computes a scale or a table from the width of a head (`head_dim`) computes other
    numbers at another width, so that its config cannot state the pruned model; `to_module` confirms that it computes the same.

    >>> import torch, prunefn as pf
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    >>> model = LlamaForCausalLM(config).eval()
    >>> spec = pf.trace(model, {"input_ids": torch.ones(1, 5, dtype=torch.long)})
    >>> narrow = target(spec, model, intermediate_size=40)
    >>> narrow.sizes
    FrozenDict({'model.layers.0.mlp.gate_proj': 40, 'model.layers.1.mlp.gate_proj': 40})
    >>> scores = pf.score(pf.collect_stats(pf.params(model), None, spec=spec), criterion=pf.criteria.magnitude())
    >>> pf.cost(spec, pf.select(scores, narrow, spec=spec)).params - pf.cost(spec).params  # 2 layers · 8 units · 3 · 32
    -1536
    """
    if not sizes:
        raise PruneError("there are no sizes; write fields of the config: target(spec, model, intermediate_size=1152)")
    source = _source_of(model, spec)
    changes = {_field(name, source.config): value for name, value in sizes.items()}
    for field, value in changes.items():
        _check_number(field, value, source.config)
    outline = Outline(source.build, source.config, {n: spec.shape(n) for n in spec.axes if n not in spec.slots})
    _check_config(outline, spec)
    found = {f: among for f, n in changes.items() if (among := layers_among(f, n, outline, spec)) is not None}
    changes = {f: n for f, n in changes.items() if f not in found}
    for field, value in changes.items():
        _check_stated(field, value, outline, spec)
    if not changes:
        return TargetSizes(FrozenDict(), tuple(found.values()))
    changes = {**_kept_widths(changes, outline, spec), **changes}
    equations = list(_head_equations(changes, outline, spec))
    _check_heads(equations, changes, spec)
    sizes = _solve(changes, outline, [(str(f), a, n) for f, a, n in equations], spec)
    return TargetSizes(FrozenDict(sizes), tuple(found.values()))


def stated_numbers(spec: Spec, model: nn.Module, sizes: Mapping[str, int]) -> dict[Field, int]:
    """Return the fields of a target that is possible, and the width of a head where the class would compute another one."""
    source = _source_of(model, spec)
    changes = {_field(name, source.config): value for name, value in sizes.items()}
    outline = Outline(source.build, source.config, {n: spec.shape(n) for n in spec.axes if n not in spec.slots})
    whole = {**_kept_widths(changes, outline, spec), **changes}
    return changes if outline.shapes(whole) == outline.shapes(changes) else whole


def _check_config(outline: Outline, spec: Spec) -> None:
    """Check that a fresh model of the config has the spec's sizes; raise PruneError if not."""
    if isinstance(outline.dense, str):
        raise PruneError(f"the class refuses its own config: {outline.dense}")
    for name, shape in outline.wanted.items():
        if name in outline.dense and outline.dense[name] != shape:
            raise PruneError(
                f"the config gives {name!r} the shape {outline.dense[name]}, but the spec says {shape}: it does not state the sizes "
                "of this model; give the spec and the model of one network, whose layers have the sizes of its config"
            )


def _source_of(model: Any, spec: Spec) -> Source:
    """Return what builds the model.

    Raises:
        PruneError: the model or config is of no library, or its class is unknown.
    """
    if isinstance(model, nn.Module):
        library = library_of(model)
        if library is None:
            raise PruneError(
                f"{type(model).__name__} has no config of transformers, diffusers or huggingface_hub; select with "
                "scope=pf.scope.uniform(), or list the units by pf.mask"
            )
        check_model(model, spec)
        return Source(library.config(model), library, type(model))
    base = getattr(sys.modules.get("transformers"), "PreTrainedConfig", None)
    if base is None or not isinstance(model, base):
        raise PruneError(f"model is a {type(model).__name__}; write the traced model, or its config of transformers")
    names = model.architectures or []
    cls = getattr(sys.modules["transformers"], names[0], None) if names else None
    if cls is None:
        raise PruneError(
            f"the config names no class of transformers (architectures={names}); give the model itself, or set "
            "config.architectures = ['LlamaForCausalLM'] or the like"
        )
    return Source(model, TRANSFORMERS, cls)


# ---- fields


def _all_fields(config: Any, path: tuple[str, ...] = ()) -> Iterator[Field]:
    """Yield every field of a config and of the configs in it."""
    own, aliases = vars(config), getattr(config, "attribute_map", {})
    for name in dict.fromkeys([*own, *(n for n in UNSAID if not path and n not in aliases)]):
        if hasattr(own.get(name), "to_dict"):
            yield from _all_fields(own[name], (*path, name))
        elif not name.startswith("_"):
            yield Field(path, name)


def _field(name: str, config: Any) -> Field:
    """Return the field of a name, which may be an alias or a path.

    Raises:
        PruneError: the config has no such field, or several in configs inside it.
    """
    fields = list(_all_fields(config))
    *path, last = name.split(".")
    owners = {f.path: f.owner(config) for f in fields}
    aliases = {p: getattr(owner, "attribute_map", {}) for p, owner in owners.items()}
    found = [f for f in fields if f.name == aliases[f.path].get(last, last) and (not path or f.path == tuple(path))]
    outer = [f for f in found if not f.path]
    if len(outer or found) == 1:
        return (outer or found)[0]
    if found:
        raise PruneError(
            f"several configs have the field {name!r}; write one of {', '.join(map(repr, map(str, found)))}"
        )
    known = [*map(str, fields), *(a for names in aliases.values() for a in names)]
    raise PruneError(f"the config {type(config).__name__} has no field {name!r}{nearest(name, known)}")


def _check_number(field: Field, value: Any, config: Any) -> None:
    """Check that a field holds a whole number or None, and that the new one is not larger; raise PruneError if not."""
    now = field.get(config)
    if type(value) is not int or value < 1:
        raise PruneError(f"{field}={value!r}; write a whole number, at least 1")
    if now is not None and type(now) is not int:
        raise PruneError(f"{field} is {now!r} in the config, which is no size of a group")
    if now is not None and value > now:
        raise PruneError(f"{field}={value} is larger than the model's, {now}; give at most {now}")


def _check_stated(field: Field, value: int, outline: Outline, spec: Spec) -> None:
    """Check that a field sizes groups: the one place that says which fields cannot be targets, and why.

    Raises:
        PruneError: the field changes which tensors there are, sizes something frozen, or sizes nothing.
    """
    now, dense = field.get(outline.config), outline.dense
    assert not isinstance(dense, str)
    if value == now or (HEADS.search(field.name) and any(_heads_in(a, spec) for a in _axes(spec))):
        return
    effect = outline.effect(field, now)
    shapes = outline.shapes({field: value})
    if not isinstance(shapes, str) and shapes.keys() != dense.keys():
        raise PruneError(f"{field}={value} is no target: {LAYERS}; give sizes of channels or heads")
    if effect is None:
        return  # the class refuses this number without others; the shapes of all together decide
    (_, first), (_, second) = effect
    dims = [(n, d) for n, s in first.items() for d, k in enumerate(s) if k != second[n][d] and n in spec.axes]
    if not dims:
        raise PruneError(f"{field} states no size of a group: no tensor's shape depends on it")
    if not any(g in spec.groups for n, d in dims for g in leaves(spec.axes[n][d])):
        name, d = dims[0]
        reasons = "; ".join(spec.frozen.get((name, d), ())) or "it is no prunable axis"
        raise PruneError(f"{field}={value} is no target: it sizes {name!r} dim {d}, which is frozen ({reasons})")


def _axes(spec: Spec) -> list[Axis]:
    """Return the different axes of all tensors."""
    return list(dict.fromkeys(a for axes in spec.axes.values() for a in axes))


# ---- heads


def _kept_widths(changes: Mapping[Field, int], outline: Outline, spec: Spec) -> dict[Field, int]:
    """Return the width of a head for configs that leave it to the class: it stays, whatever the width is divided by."""
    widths = dict.fromkeys(size(w, spec.sizes) for a in _axes(spec) for w in _head_dims_in(a, spec))
    for field in _all_fields(outline.config):
        if HEAD_DIM.search(field.name) and field.get(outline.config) is None and field not in changes:
            effect = outline.effect(field, None)
            if effect is not None and _changed_dims(effect[0][1], effect[1][1]):
                fitting = [w for w in widths if outline.shapes({field: w}) == outline.dense]
                return {field: fitting[0]} if fitting else {}
    return {}


def _heads_in(axis: Axis, spec: Spec) -> Axis | None:
    """Return the product of the factors of an axis that count heads; None if there are none."""
    parts = axis.parts if isinstance(axis, Concat) else (axis,)
    for part in parts:
        factors = part.factors if isinstance(part, Product) else (part,)
        heads = [f for f in factors if isinstance(f, Leaf) and _kind(f, spec) == "heads"]
        if heads:
            return product([*heads])
    return None


def _head_dims_in(axis: Axis, spec: Spec) -> list[Axis]:
    """Return the factors of an axis that are the width of a head."""
    parts = axis.parts if isinstance(axis, Concat) else (axis,)
    factors = [f for p in (axis, *parts) for f in (p.factors if isinstance(p, Product) else (p,))]
    return [f for f in factors if (names := list(leaves(f))) and all(_kind(Leaf(n), spec) == "head_dim" for n in names)]


def _kind(leaf: Leaf, spec: Spec) -> str:
    return spec.groups[leaf.name].kind if leaf.name in spec.groups else ""


def _head_equations(changes: Mapping[Field, int], outline: Outline, spec: Spec) -> Iterator[tuple[Field, Axis, int]]:
    """Yield (field, axis, number) for each field that counts heads or is the width of a head: shapes have their products only."""
    for field in _all_fields(outline.config):
        now = field.get(outline.config)
        is_count, is_width = bool(HEADS.search(field.name)), bool(HEAD_DIM.search(field.name))
        now = changes.get(field) if now is None and is_width else now
        if type(now) is not int or not (is_count or is_width):
            continue
        effect = outline.effect(field, now)
        dims = [] if effect is None else _changed_dims(effect[0][1], effect[1][1])
        near = [spec.axes[n][d] for n, d in dims if n in spec.axes] or _axes(spec)
        found = (
            [h for a in near if (h := _heads_in(a, spec)) is not None]
            if is_count
            else [w for a in near for w in _head_dims_in(a, spec)]
        )
        for axis in dict.fromkeys(found):
            if size(axis, spec.sizes) == now:
                yield field, axis, changes.get(field, now)


def _changed_dims(a: Mapping[str, tuple[int, ...]], b: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    return [(n, d) for n, shape in a.items() for d, k in enumerate(shape) if k != b[n][d]]


def _check_heads(equations: list[tuple[Field, Axis, int]], changes: Mapping[Field, int], spec: Spec) -> None:
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


def _solve(changes: Mapping[Field, int], outline: Outline, equations: list[Equation], spec: Spec) -> dict[str, int]:
    """Return the groups that shrink and their sizes.

    Raises:
        PruneError: the class refuses the numbers, or no pruning gives its shapes.
    """
    written = ", ".join(
        f"{f}={n}" for f, n in changes.items() if f.get(outline.config) is not None or not HEAD_DIM.search(f.name)
    )
    shapes = outline.shapes(changes)
    if isinstance(shapes, str):
        raise PruneError(f"the class has no model with {written}: {shapes}")
    same = {n: s for n, s in shapes.items() if n in outline.wanted}
    whole = {
        g: spec.sizes[g]
        for n, shape in same.items()
        for axis, k in zip(spec.axes[n], shape, strict=True)
        if k == size(axis, spec.sizes)
        for g in leaves(axis)
        if g in spec.groups
    }
    try:
        sizes = infer_sizes(same, spec, whole, others=equations)
    except ParamsError as error:
        raise PruneError(
            f"no pruning of this model gives {written}: {error}{_width_hint(changes, outline, spec)}"
        ) from error
    return {g: n for g, n in sizes.items() if n != spec.sizes[g]}


def _width_hint(changes: Mapping[Field, int], outline: Outline, spec: Spec) -> str:
    """Return a hint if a class divides a width by its number of heads, so that fewer heads alone would be wider ones."""
    for field, n in changes.items():
        now = field.get(outline.config)
        if not HEADS.search(field.name) or outline.shapes({field: n}) != outline.dense:
            continue
        widths = {size(a, spec.sizes) for a in _axes(spec) if _heads_in(a, spec) is not None}
        for other in _all_fields(outline.config):
            width = other.get(outline.config)
            if type(width) is int and width in widths and other not in changes and not HEADS.search(other.name):
                fits = width * n // now
                return f". The class divides {other} by {field}: give both, such as {field}={n}, {other}={fits}"
    return ""
