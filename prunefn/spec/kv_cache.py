"""The keys and values that attention reads: what a cache holds for each position, as a polynomial in the sizes of groups.

They are found by their axes where they enter attention. Keys that were repeated for several queries on the way there count once, as
a cache holds them before that.
"""

from __future__ import annotations

from collections.abc import Iterator

from .axis import Axis, leaves, size
from .costs import Polynomial, polynomial
from .program import Instruction, Ref
from .spec import Spec

ATTENTION = "aten.scaled_dot_product_attention.default"
SAME_NUMBERS = tuple(
    f"aten.{op}"
    for op in (
        "reshape.default", "expand.default", "unsqueeze.default", "squeeze.dim", "slice.Tensor", "transpose.int", "permute.default",
        "clone.default", "contiguous.default", "repeat_interleave.self_int", "repeat.default", "to.dtype", "to.dtype_layout",
    )
)  # fmt: skip
"""Ops whose results are numbers of their first argument, some of them repeated."""


def cached_elements(spec: Spec) -> Polynomial:
    """Return the elements of all keys and values for one position of one sequence.

    Each of attention's calls has keys and values of its own; a model that shares them between layers keeps fewer.
    """
    by_name = {f"%{i.name}": i for i in spec.program.instructions}
    terms: list[tuple[int, tuple[Axis, ...]]] = []
    for instruction in spec.program.instructions:
        if instruction.op == ATTENTION:
            for argument in instruction.args[1:3]:
                terms += _per_position(argument, by_name, spec).terms
    return Polynomial(tuple(terms))


def _per_position(value: Ref, by_name: dict[str, Instruction], spec: Spec) -> Polynomial:
    """Return the elements of keys or values [batch, heads, positions, width] for one position, before any repetition."""
    positions = spec.program.axes[value.name][-2]
    sizes = {**spec.sizes, **spec.sample}
    stages = list(_stages(value.name, by_name, spec))
    fewest = min(stages, key=lambda axes: polynomial([axes])(sizes))
    bound = polynomial([fewest]).bind({**spec.sample, **dict.fromkeys(leaves(positions), 1)})
    if any(True for _ in leaves(positions)):
        return bound
    n = size(positions, sizes)  # fixed in the program: every term has it as a factor
    return Polynomial(tuple((c // n, axes) for c, axes in bound.terms))


def _stages(name: str, by_name: dict[str, Instruction], spec: Spec) -> Iterator[tuple[Axis, ...]]:
    """Yield the axes of a value, and of those that have the same numbers before it, the last first."""
    while name in spec.program.axes:
        yield spec.program.axes[name]
        instruction = by_name.get(name)
        if instruction is None or instruction.op not in SAME_NUMBERS or not isinstance(instruction.args[0], Ref):
            return
        name = instruction.args[0].name
