"""Target sizes by the names of a config: `intermediate_size=1152` instead of the sizes of each layer's groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..doors import door
from ..errors import ParamsError, PruneError
from ..frozen_dict import FrozenDict
from ..spec.axis import leaves, size
from ..spec.spec import Spec
from ..types import TargetSizes
from .fields import HEAD_DIM, HEADS, Field, Outline, Shapes
from .infer import Equation, infer_sizes
from .target_fields import check_number, field_of, source_of
from .target_heads import all_axes, check_heads, head_equations, heads_in, kept_widths, width_hint
from .target_layers import layers_among

LAYERS = "a model with this number has other tensors, which removing units and layers does not give"
"""Why a field is refused that changes which tensors there are."""


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
    source = source_of(model, spec)
    changes = {field_of(name, source.config): value for name, value in sizes.items()}
    for field, value in changes.items():
        check_number(field, value, source.config)
    outline = Outline(source.build, source.config, {n: spec.shape(n) for n in spec.axes if n not in spec.slots})
    _check_config(outline, spec)
    found = {f: among for f, n in changes.items() if (among := layers_among(f, n, outline, spec)) is not None}
    changes = {f: n for f, n in changes.items() if f not in found}
    for field, value in changes.items():
        _check_stated(field, value, outline, spec)
    if not changes:
        return TargetSizes(FrozenDict(), tuple(found.values()))
    changes = {**kept_widths(changes, outline, spec), **changes}
    equations = list(head_equations(changes, outline, spec))
    check_heads(equations, changes, spec)
    sizes = _solve(changes, outline, [(str(f), a, n) for f, a, n in equations], spec)
    return TargetSizes(FrozenDict(sizes), tuple(found.values()))


def stated_numbers(spec: Spec, model: nn.Module, sizes: Mapping[str, int]) -> dict[Field, int]:
    """Return the fields of a target that is possible, and the width of a head where the class would compute another one."""
    source = source_of(model, spec)
    changes = {field_of(name, source.config): value for name, value in sizes.items()}
    outline = Outline(source.build, source.config, {n: spec.shape(n) for n in spec.axes if n not in spec.slots})
    whole = {**kept_widths(changes, outline, spec), **changes}
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


def _check_stated(field: Field, value: int, outline: Outline, spec: Spec) -> None:
    """Check that a field sizes groups: the one place that says which fields cannot be targets, and why.

    Raises:
        PruneError: the field changes which tensors there are, sizes something frozen, or sizes nothing.
    """
    now, dense = field.get(outline.config), outline.dense
    assert not isinstance(dense, str)
    if value == now or (HEADS.search(field.name) and any(heads_in(a, spec) for a in all_axes(spec))):
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
            f"no pruning of this model gives {written}: {error}{_frozen_text(same, spec)}{width_hint(changes, outline, spec)}"
        ) from error
    return {g: n for g, n in sizes.items() if n != spec.sizes[g]}


def _frozen_text(shapes: Shapes, spec: Spec) -> str:
    """Return a text about the first dim that would have another size and is frozen, as a whole or in part; empty if there is none."""
    for name, shape in shapes.items():
        for d, (axis, n) in enumerate(zip(spec.axes[name], shape, strict=True)):
            if n != size(axis, spec.sizes) and (reasons := spec.frozen.get((name, d))):
                part = " in part" if any(g in spec.groups for g in leaves(axis)) else ""
                return f"; {name!r} dim {d} is frozen{part} ({'; '.join(map(str, reasons))})"
    return ""
