"""Units multiplied by numbers that a loss can be differentiated by: what removing a unit costs, in all that it is coupled to.

A mask of ones changes nothing; a zero takes the unit out of everything that reads it. The numbers multiply the inputs of all
contractions over the group (its sites), as an input of the program of its own, so that weights stay as they are, also computed
ones and those that serve others, and per-sample derivatives need no per-sample weights. What has no site is multiplied in the
parameters.
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
from ..spec.axis import Axis, Concat, Fixed, Leaf, Product, Sizes, leaves, size
from ..spec.parts import Group
from ..spec.program import Instruction, Ref
from ..spec.spec import Spec
from ..tracing.rules.families import CAST_AS, MULTIPLY
from ..types import Params


@lru_cache(maxsize=16)
def masked(spec: Spec) -> Spec:
    """The spec whose program multiplies the inputs of all sites by tensors of its own; for the params of `mask_params`."""
    at: dict[str, tuple[str, str]] = {}
    axes: dict[str, tuple[Axis, ...]] = {}
    for site in spec.sites.values():
        for (value, dim), call in zip(site.values, site.calls, strict=True):
            name = f"mask of {value} {dim}"
            at[call] = value, name
            axes[name] = (site.axis, *[Fixed(1)] * (-dim - 1))
    out: list[Instruction] = []
    there: set[str] = set()
    for i in spec.program.instructions:
        if i.name in at:
            value, name = at[i.name]
            if name not in there:
                there.add(name)
                out.append(Instruction(f"{name} cast", CAST_AS, (Ref(name), Ref(value)), (), i.module))
                out.append(Instruction(name, MULTIPLY, (Ref(value), Ref(f"%{name} cast")), (), i.module))
            args, kwargs = _instead((i.args, i.kwargs), Ref(value), Ref(f"%{name}"))
            i = i._replace(args=args, kwargs=kwargs)
        out.append(i)
    tensors = (*spec.program.tensors, *(n for n in axes if n in there))
    program = spec.program._replace(instructions=tuple(out), tensors=tensors)
    new = {n: a for n, a in axes.items() if n in there}
    return replace(spec, program=program, axes=FrozenDict({**spec.axes, **new}))


def _instead(args: Any, old: Ref, new: Ref) -> Any:
    """A nest of arguments with another value in the place of one."""
    if isinstance(args, tuple):
        return tuple(_instead(a, old, new) for a in args)
    return new if args == old else args


def ones(spec: Spec, device: torch.device | None = None) -> dict[str, Tensor]:
    """A mask of ones for every group that has members: group → float64 [units]."""
    return {g.name: torch.ones(g.size, dtype=torch.float64, device=device) for g in spec.groups.values() if g.members}


def mask_params(params: Params, masks: Mapping[str, Tensor], spec: Spec) -> Params:
    """Multiply units by numbers, differentiably: `forward(mask_params(params, masks, spec), x, spec=masked(spec))`.

    A unit's number multiplies it wherever it enters a contraction with parameters: at the sites of its group, and in the input
    dim of weights that are no site's (recurrent ones). A group that has neither (widths of queries and keys) is multiplied
    where it is first produced: in the weight and its bias; in the embedding or norm where no contraction produces it; heads in
    the last weight that has them. So a zero does what removing the unit does, as far as nothing is mixed over the group, and
    with two exceptions: of a fused query, key and value, whose widths are one group, it acts on the values; and it does not act
    where the weight of a contraction is made from the input (dynamic convolutions).

    Args:
        params: of the spec; biases created by a compensation are welcome.
        masks: group → float [units]; groups that are absent stay as they are.
        spec: of the params.

    Returns:
        Params of `masked(spec)`: those given, and the tensors that multiply the sites' inputs.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec, x = pf.trace(model, (torch.randn(2, 4),)), torch.randn(5, 4)
    >>> out = mask_params(pf.params(model), {"0": torch.tensor([1.0, 0.0, 1.0])}, spec)
    >>> zeroed = pf.zero(pf.params(model), {"0": torch.tensor([True, False, True])}, spec=spec)
    >>> torch.allclose(pf.forward(out, x, spec=masked(spec)), pf.forward(zeroed, x, spec=spec))
    True
    """
    out = dict(params)
    some = next(iter(masks.values()), torch.ones((), dtype=torch.float64))
    for name, (axis, *rest) in ((n, a) for n, a in masked(spec).axes.items() if n not in spec.axes):
        out[name] = spread(axis, masks, spec.sizes, some).reshape(-1, *(1,) * len(rest))
    scales: dict[tuple[str, int], Tensor] = {}
    for g, m in masks.items():
        for (tensor, dim), first in _elsewhere(spec.groups[g], spec, frozenset(params)).items():
            axis = spec.axes[tensor][dim]
            scale = spread(first_part(axis, g) if first else axis, {g: m}, spec.sizes, some)
            padded = torch.cat([scale, scale.new_ones(size(axis, spec.sizes) - len(scale))])
            scales[tensor, dim] = scales[tensor, dim] * padded if (tensor, dim) in scales else padded
    names = tied_names(params, spec)
    for (tensor, dim), scale in scales.items():
        old = out[tensor]
        out[tensor] = old * scale.to(old.dtype).reshape(-1, *(1,) * (old.ndim - dim - 1))
    touched = {t for t, _ in scales}
    for second, first_name in names.items():
        if source := next((t for t in (first_name, second) if t in touched), None):
            out[first_name] = out[second] = out[source]
    return out


def spread(axis: Axis, masks: Mapping[str, Tensor], sizes: Sizes, like: Tensor) -> Tensor:
    """The number at each position of an axis: the product of those of the units on its path; [size].

    >>> spread(Product((Fixed(2), Leaf("c"))), {"c": torch.tensor([0.5, 3.0])}, {"c": 2}, torch.ones(())).tolist()
    [0.5, 3.0, 0.5, 3.0]
    """
    match axis:
        case Leaf(name) if name in masks:
            return masks[name]
        case Leaf() | Fixed():
            return like.new_ones(size(axis, sizes))
        case Product(factors):
            out = like.new_ones(1)
            for f in factors:
                out = (out[:, None] * spread(f, masks, sizes, like)).flatten()
            return out
        case Concat(parts):
            return torch.cat([spread(p, masks, sizes, like) for p in parts])


def first_part(axis: Axis, group: str) -> Axis:
    """Of concatenated parts, those up to the first with the group: queries, where keys of the same width follow.

    >>> first_part(Concat((Fixed(1), Leaf("c"), Leaf("c"))), "c")
    Concat(parts=(Fixed(size=1), Leaf(name='c')))
    """
    if not isinstance(axis, Concat):
        return axis
    end = next(n for n, part in enumerate(axis.parts) if group in leaves(part))
    return Concat(axis.parts[: end + 1])


def _elsewhere(group: Group, spec: Spec, present: frozenset[str]) -> dict[tuple[str, int], bool]:
    """Where a group is multiplied that no site covers: (tensor, dim) → only where it first stands there."""
    weights = {_first_name(spec.sites[s].weight, spec) for s in group.sites}
    used = {e.name for e in effective(spec)}  # not what a weight is computed from, such as the vectors of spectral norm
    inputs = [
        m for m in group.members if m.role == "in" and m.tensor in present and _first_name(m.tensor, spec) in used
    ]
    left = [(m.tensor, m.dim) for m in inputs if _first_name(m.tensor, spec) not in weights]
    if group.sites or inputs:
        once = {(_first_name(t, spec), d): (t, d) for t, d in left}
        return dict.fromkeys(once.values(), False)
    last = group.members[-1]
    if group.kind == "heads" and last.tensor in present and len(spec.axes[last.tensor]) > 1:
        return {(last.tensor, last.dim): False}  # in queries and keys, a zero would leave the values
    made = [m for m in group.members if m.role == "out" and m.tensor in present]
    if not made:
        return dict.fromkeys([(m.tensor, m.dim) for m in group.members[:1]], True)
    call = next((i for i in spec.program.instructions if made[0].tensor in _reads(i)), None)
    if call is None:
        return {(made[0].tensor, made[0].dim): True}
    slots = [s.tensor for s in spec.program.slots if s.instruction == call.name and s.tensor in present]
    together = [(m.tensor, m.dim) for m in made if m.tensor in _reads(call)]
    together += [(t, 0) for t in slots if group.name in leaves(spec.axes[t][0])]
    return dict.fromkeys(together, True)


def _reads(i: Instruction) -> set[str]:
    return set(i.reads())


def _first_name(tensor: str, spec: Spec) -> str:
    return spec.tied.get(tensor, tensor)
