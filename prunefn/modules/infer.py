"""Infer the sizes of the groups from the shapes of pruned tensors, if the shapes determine them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import ParamsError
from ..spec.axis import Axis, leaves, size
from ..spec.spec import Spec

Sizes = dict[str, int]
LIMIT = 1000
"""Number of partial solutions that the search looks at before it stops."""


Equation = tuple[str, Axis, int]
"""A place for messages, an axis there, and its number of positions."""


def infer_sizes(
    shapes: Mapping[str, tuple[int, ...]],
    spec: Spec,
    known: Mapping[str, int] | None = None,
    *,
    others: Sequence[Equation] = (),
) -> Sizes:
    """Return group → number of units, such that every tensor has its shape.

    Args:
        shapes: tensor → shape.
        spec: spec of the dense model.
        known: sizes of some groups.
        others: sizes of further axes, which tell apart what the shapes leave open.

    Raises:
        ParamsError: no pruning of this spec, or more than one, gives the shapes; names the tensor, or lists the candidates.

    >>> import torch, prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> infer_sizes({"0.weight": (5, 4), "0.bias": (5,), "1.weight": (2, 5), "1.bias": (2,)}, spec)
    {'0': 5}
    """
    equations = [
        *others,
        *(
            (f"{name!r} dim {d}", axis, n)
            for name, shape in shapes.items()
            for d, (axis, n) in enumerate(zip(spec.axes[name], shape, strict=True))
        ),
    ]
    solutions = _search(equations, _solve(equations, dict(known or {}), spec), spec)
    if not solutions:
        raise ParamsError("no pruning of this spec gives these shapes: no sizes of its groups fit all of them")
    if len(solutions) > 1:
        undetermined = [g for g in solutions[0] if len({s[g] for s in solutions}) > 1]
        listed = "; ".join(", ".join(f"{g!r}: {s[g]}" for g in undetermined) for s in solutions[:8])
        raise ParamsError(
            f"the shapes leave several sizes open ({listed}); load a file that pf.save wrote, or give sizes={{group: units}}"
        )
    return solutions[0]


def _solve(equations: list[Equation], known: Sizes, spec: Spec) -> Sizes:
    """Return the known sizes and all that follow from them, by solving equations with one unknown until none is left.

    Raises:
        ParamsError: an equation has no solution; names the tensor.
    """
    known, before = dict(known), -1
    while len(known) != before:
        before = len(known)
        for place, axis, n in equations:
            unknown = set(leaves(axis)) - set(known)
            if not unknown and (expected := size(axis, known)) != n:
                raise ParamsError(f"{place} has size {n}, but the other tensors say {expected}")
            if len(unknown) == 1:
                (leaf,) = unknown
                fits = [k for k in range(1, spec.traced[leaf] + 1) if size(axis, {**known, leaf: k}) == n]
                if not fits:
                    raise ParamsError(
                        f"{place} has size {n}: no size of group {leaf!r} up to {spec.traced[leaf]} gives that"
                    )
                known[leaf] = fits[0]
    return known


def _search(equations: list[Equation], known: Sizes, spec: Spec) -> list[Sizes]:
    """Return all solutions: the known sizes with every possible choice of the undetermined ones."""
    todo, solutions = [known], list[Sizes]()
    for _ in range(LIMIT):
        if not todo:
            break
        known = todo.pop()
        undetermined = [leaf for _, axis, _ in equations for leaf in leaves(axis) if leaf not in known]
        if not undetermined:
            solutions.append({g: known.get(g, n) for g, n in spec.traced.items() if g in spec.sizes})
            continue
        for k in range(spec.traced[undetermined[0]], 0, -1):
            try:
                todo.append(_solve(equations, {**known, undetermined[0]: k}, spec))
            except ParamsError:
                continue
    return solutions
