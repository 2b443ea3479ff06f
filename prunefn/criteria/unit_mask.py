"""Masks on units that a loss can be differentiated by: they give the cost of removing a unit from all coupled tensors.

A mask of ones changes nothing; a zero takes the unit out of everything that reads it. The mask multiplies the inputs of all
contractions over the group (its sites) as a separate input of the program. So weights do not change, even computed or tied
ones, and per-sample derivatives need no per-sample weights. Groups without sites are multiplied in the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..frozen_dict import FrozenDict
from ..parameters.effective import effective
from ..parameters.transforms import tied_names
from ..spec.axis import AnyOf, Axis, Concat, Derived, Fixed, Leaf, Product, Sizes, leaves, product, size
from ..spec.parts import EXPERTS, Group, Term
from ..spec.program import Instruction, Ref
from ..spec.spec import Spec
from ..tracing.rules.families import ADD, CAST_AS, MULTIPLY
from ..types import Params, Where
from ..where import matches


@lru_cache(maxsize=16)
def masked(spec: Spec, *, replaced: bool = False, branches: bool = False) -> Spec:
    """Return the spec whose program multiplies the inputs of all sites by mask tensors; for the params of `mask_params`.

    Args:
        spec: of the params.
        branches: whether it multiplies what branches and layers add, too.
        replaced: whether the program also adds tensors there, so that a mask m makes m x + (1 − m) μ of an input x with mean μ.
    """
    masked_calls: dict[str, list[tuple[str, str]]] = {}
    axes: dict[str, tuple[Axis, ...]] = {}
    for site in spec.sites.values():
        for (value, dim), call in zip(site.values, site.calls, strict=True):
            name = _mask_name(value, dim)
            masked_calls.setdefault(call, []).append((value, name))
            axes[name] = (site.axis, *[Fixed(1)] * (-dim - 1))
    shifts = {n: _shift_name(n) for n in axes} if replaced else {}
    for term, axis in _branch_axes(spec).items() if branches else ():
        value = next(i for i in spec.program.instructions if i.name == term.addition).args[term.operand].name
        name = f"mask of {value} in {term.addition}"
        masked_calls.setdefault(term.addition, []).append((value, name))
        axes[name] = (axis,)
    out: list[Instruction] = []
    inserted: set[str] = set()
    for i in spec.program.instructions:
        for value, name in masked_calls.get(i.name, ()):
            if name not in inserted:
                inserted.add(name)
                out += _combine(name, MULTIPLY, value, name, i.module)
                out += _combine(shifts[name], ADD, f"%{name}", shifts[name], i.module) if name in shifts else []
            result = Ref(f"%{shifts.get(name, name)}")
            args, kwargs = _replace_reference((i.args, i.kwargs), Ref(value), result)
            i = i._replace(args=args, kwargs=kwargs)
        out.append(i)
    added = {n: axes[n] for n in axes if n in inserted}
    added |= {shifts[n]: a for n, a in added.items() if n in shifts}
    program = spec.program._replace(instructions=tuple(out), tensors=(*spec.program.tensors, *added))
    return replace(spec, program=program, axes=FrozenDict({**spec.axes, **added}))


def _branch_axes(spec: Spec) -> dict[Term, Axis]:
    """Return summand → the product of the branches and layers that it is part of, an axis of size 1."""
    parts: dict[Term, list[Axis]] = {}
    for name, branch in spec.branches.items():
        for term in branch.terms:
            parts.setdefault(term, []).append(Leaf(name))
    return {term: product(factors) for term, factors in parts.items()}


def _mask_name(value: str, dim: int) -> str:
    return f"mask of {value} {dim}"


def _shift_name(mask: str) -> str:
    return f"shift by {mask}"


def _combine(result: str, op: str, value: str, tensor: str, module: str) -> list[Instruction]:
    """Return the instructions for an op on a value and a tensor that is cast to the value's type."""
    cast = f"{tensor} cast"
    return [
        Instruction(cast, CAST_AS, (Ref(tensor), Ref(value)), (), module),
        Instruction(result, op, (Ref(value), Ref(f"%{cast}")), (), module),
    ]


def _replace_reference(args: Any, old: Ref, new: Ref) -> Any:
    """Return nested arguments with every reference `old` replaced by `new`."""
    if isinstance(args, tuple):
        return tuple(_replace_reference(a, old, new) for a in args)
    return new if args == old else args


def ones(spec: Spec, device: torch.device | None = None, where: Where | str | None = None) -> dict[str, Tensor]:
    """Return a mask of ones for every chosen group that a mask can multiply: group → float64 [units]."""
    chosen = [g for g in spec.groups.values() if matches(where, g) and can_be_masked(g, spec)]
    return {g.name: torch.ones(g.size, dtype=torch.float64, device=device) for g in chosen}


def can_be_masked(group: Group, spec: Spec) -> bool:
    """Return whether a mask can multiply a group: tensors that have it, or the summands of a branch or layer.

    No mask keeps an expert from being chosen: it would multiply what a router compares.
    """
    return (bool(group.members) and group.kind != EXPERTS) or (
        group.name in spec.branches and bool(spec.branches[group.name].terms)
    )


def mask_params(
    params: Params, masks: Mapping[str, Tensor], spec: Spec, means: Mapping[str, Tensor] | None = None
) -> Params:
    """Multiply units by masks, differentiably: `forward(mask_params(params, masks, spec), x, spec=masked(spec))`.

    A unit is multiplied wherever it enters a contraction with parameters: at the sites of its group, and in the input dim of
    weights without a site (recurrent ones). A group that has neither (widths of queries and keys) is multiplied where it is
    first produced: in the weight and its bias, or in the embedding or norm if no contraction produces it. Heads without sites
    are multiplied in the last weight that has them.

    A zero has the effect of removing the unit if no op mixes values over the group, with two exceptions. In a fused query, key
    and value whose widths are one group, it acts on the values. It does not act where the weight of a contraction is computed
    from the input (dynamic convolutions).

    Args:
        params: of the spec; may have biases that a compensation created.
        masks: group → float [units]; absent groups are not multiplied.
        spec: of the params.
        means: site → mean of its input, [size of the axis], that removed units are replaced by; for `masked(spec, replaced=True)`.

    Returns:
        Params of `masked(spec)`: `params`, with the mask tensors that multiply the sites' inputs.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec, x = pf.trace(model, (torch.randn(2, 4),)), torch.randn(5, 4)
    >>> out = mask_params(pf.params(model), {"0": torch.tensor([1.0, 0.0, 1.0])}, spec)
    >>> zeroed = pf.zero(pf.params(model), {"0": torch.tensor([True, False, True])}, spec=spec)
    >>> torch.allclose(pf.forward(out, x, spec=masked(spec)), pf.forward(zeroed, x, spec=spec))
    True
    """
    out = dict(params)
    like = next(iter(masks.values()), torch.ones((), dtype=torch.float64))
    program = masked(spec, branches=not spec.branches.keys().isdisjoint(masks))
    for name, (axis, *rest) in ((n, a) for n, a in program.axes.items() if n not in spec.axes):
        out[name] = spread(axis, masks, spec.sizes, like).reshape(-1, *(1,) * len(rest))
    if means is not None:
        for site in spec.sites.values():
            for mask in {_mask_name(*v) for v in site.values} & out.keys():
                mean = means[site.name].to(out[mask]).reshape(out[mask].shape)
                out[_shift_name(mask)] = (1 - out[mask]) * mean
    scales: dict[tuple[str, int], Tensor] = {}
    for g, m in ((g, m) for g, m in masks.items() if g not in spec.branches):
        for (tensor, dim), first in _weights_to_scale(spec.groups[g], spec, frozenset(params)).items():
            axis = spec.axes[tensor][dim]
            scale = spread(first_part(axis, g) if first else axis, {g: m}, spec.sizes, like)
            padded = torch.cat([scale, scale.new_ones(size(axis, spec.sizes) - len(scale))])
            scales[tensor, dim] = scales[tensor, dim] * padded if (tensor, dim) in scales else padded
    first_names = tied_names(params, spec)
    for (tensor, dim), scale in scales.items():
        unscaled = out[tensor]
        out[tensor] = unscaled * scale.to(unscaled.dtype).reshape(-1, *(1,) * (unscaled.ndim - dim - 1))
    scaled = {t for t, _ in scales}
    for second, first_name in first_names.items():
        if source := next((t for t in (first_name, second) if t in scaled), None):
            out[first_name] = out[second] = out[source]
    return out


def spread(axis: Axis, masks: Mapping[str, Tensor], sizes: Sizes, like: Tensor) -> Tensor:
    """Return the mask value at each position of an axis, [size]: the product over the units on its path.

    >>> spread(Product((Fixed(2), Leaf("c"))), {"c": torch.tensor([0.5, 3.0])}, {"c": 2}, torch.ones(())).tolist()
    [0.5, 3.0, 0.5, 3.0]
    """
    match axis:
        case Leaf(name) if name in masks:
            return masks[name]
        case Leaf() | Fixed() | Derived() | AnyOf():
            return like.new_ones(size(axis, sizes))
        case Product(factors):
            out = like.new_ones(1)
            for f in factors:
                out = (out[:, None] * spread(f, masks, sizes, like)).flatten()
            return out
        case Concat(parts):
            return torch.cat([spread(p, masks, sizes, like) for p in parts])


def first_part(axis: Axis, group: str) -> Axis:
    """Return the axis up to the first concatenated part with the group, such as the queries before keys of the same width.

    >>> first_part(Concat((Fixed(1), Leaf("c"), Leaf("c"))), "c")
    Concat(parts=(Fixed(size=1), Leaf(name='c')))
    """
    if not isinstance(axis, Concat):
        return axis
    end = next(n for n, part in enumerate(axis.parts) if group in leaves(part))
    return Concat(axis.parts[: end + 1])


def _weights_to_scale(group: Group, spec: Spec, present: frozenset[str]) -> dict[tuple[str, int], bool]:
    """Return the weights in which a group is multiplied where no site covers it.

    Returns:
        (tensor, dim) → whether only the first part of the axis with the group is multiplied.
    """
    weights = {_first_name(spec.sites[s].weight, spec) for s in group.sites}
    # Sources of computed weights are not used themselves, such as the vectors of spectral norm.
    used = {e.name for e in effective(spec)}
    inputs = [
        m for m in group.members if m.role == "in" and m.tensor in present and _first_name(m.tensor, spec) in used
    ]
    uncovered = [(m.tensor, m.dim) for m in inputs if _first_name(m.tensor, spec) not in weights]
    if group.sites or inputs:
        untied = {(_first_name(t, spec), d): (t, d) for t, d in uncovered}
        return dict.fromkeys(untied.values(), False)
    last = group.members[-1]
    if group.kind == "heads" and last.tensor in present and len(spec.axes[last.tensor]) > 1:
        return {(last.tensor, last.dim): False}  # in queries and keys, a zero would leave the values
    producers = [m for m in group.members if m.role == "out" and m.tensor in present]
    if not producers:
        return dict.fromkeys([(m.tensor, m.dim) for m in group.members[:1]], True)
    call = next((i for i in spec.program.instructions if producers[0].tensor in _reads(i)), None)
    if call is None:
        return {(producers[0].tensor, producers[0].dim): True}
    slots = [s.tensor for s in spec.program.slots if s.instruction == call.name and s.tensor in present]
    weight_and_bias = [(m.tensor, m.dim) for m in producers if m.tensor in _reads(call)]
    weight_and_bias += [(t, 0) for t in slots if group.name in leaves(spec.axes[t][0])]
    return dict.fromkeys(weight_and_bias, True)


def _reads(i: Instruction) -> set[str]:
    return set(i.reads())


def _first_name(tensor: str, spec: Spec) -> str:
    return spec.tied.get(tensor, tensor)
