"""Values inside of a pruned network and of the dense one, which distances compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .. import trees
from ..errors import MaskError, PruneError, nearest
from ..frozen_dict import FrozenDict
from ..names import ancestors
from ..parameters.transforms import check_mask
from ..program.compiled import compiled, result
from ..spec.axis import Axis, keep, leaves
from ..spec.program import Program
from ..spec.spec import Spec
from ..stats.weights import PositionWeights
from ..types import Mask, Params

Kept = Mapping[int, Tensor]
"""Dim of a dense value → indices of the positions that the pruned network has."""
Affine = tuple[Tensor, Tensor]
"""Matrix [units, dense units] and offset [dense units]."""
RIDGE = 1e-6
"""Ridge of a least-squares map, as a fraction of the mean variance of the units: it decides where they are collinear."""


class Pair(NamedTuple):
    """A value of the pruned network, and that of the dense one which it is compared with."""

    name: str
    dense: str
    kept: Kept = FrozenDict()
    fitted: Affine | None = None
    """Map from the value to the dense one; None: both have the same shape."""

    def compared(self, value: Tensor, dense: Tensor, weights: PositionWeights | None) -> tuple[Tensor, Tensor]:
        """Return both values at the positions that count and the units that both have.

        Args:
            value: of the pruned network, [samples, …, units].
            dense: of the dense network.
            weights: of the positions, for the pruned spec; None: all count.
        """
        for dim, positions in self.kept.items():
            dense = dense.index_select(dim, positions.to(dense.device))
        counted = None if weights is None else weights.of(self.name, -1, value.shape)
        if counted is not None:
            at = counted.to(value.device) > 0
            value, dense = value[at], dense[at]
        if self.fitted is not None:
            matrix, offset = (t.to(value) for t in self.fitted)
            value = value @ matrix + offset
        return value, dense


def pairs(
    patterns: Iterable[str], whole: Spec, spec: Spec, mask: Mask | None, project: bool
) -> tuple[tuple[Pair, ...], tuple[bool, ...]]:
    """Return the values to compare, and which of them need a map.

    Args:
        patterns: paths of modules, or names of values.
        whole: spec of the dense network.
        spec: of the pruned network.
        mask: units that it lost; None: unknown.
        project: whether narrower values may have a map.

    Raises:
        PruneError: a pattern matches no value of floating point, or none is left to compare.
    """
    out: dict[str, tuple[Pair, bool]] = {}
    for pattern in patterns:
        for name, dense in _matches(pattern, whole.program, spec.program):
            axes = whole.program.axes.get(dense, ())
            narrower = [any(_is_narrower(g, whole, spec) for g in leaves(a)) for a in axes]
            if not any(narrower):
                out[name] = Pair(name, dense), False
            elif project and not any(narrower[:-1]):
                out[name] = Pair(name, dense), True
            elif mask is not None:
                out[name] = Pair(name, dense, kept_positions(axes, mask, whole)), False
    if not out:
        raise PruneError(
            f"no value of {', '.join(map(repr, patterns))} has the dense size, so none can be compared; give mask=, or "
            "distances.inner(…, project=True)"
        )
    return tuple(p for p, _ in out.values()), tuple(needed for _, needed in out.values())


def kept_positions(axes: tuple[Axis, ...], mask: Mask, spec: Spec) -> Kept:
    """Return the kept positions of each dim that has a masked group."""
    return {
        dim: keep(axis, mask, spec.sizes).nonzero().flatten()
        for dim, axis in enumerate(axes)
        if any(g in mask for g in leaves(axis))
    }


def check_leads(mask: Mask | None, whole: Spec, spec: Spec) -> None:
    """Check that a mask leads from the dense network to the pruned one; raise MaskError if not."""
    check_mask(mask or {}, whole)
    for g, n in spec.sizes.items() if mask is not None else ():
        left = int(mask[g].sum()) if mask is not None and g in mask else whole.sizes.get(g)
        if left != n:
            raise MaskError(
                f"the mask leaves {left} units of group {g!r} of the dense network, but the pruned network has {n}; give the mask "
                "over the dense network's units, of all rounds: pf.compose(first, second)"
            )


def run_with_values(
    params: Params, spec: Spec, inputs: Sequence[Any], names: tuple[str, ...], *, output: bool
) -> tuple[Any, tuple[Tensor, ...]]:
    """Return the output of a network, None if it is not asked for, and values inside of it by name."""

    def emit(_: fx.Graph, env: Mapping[str, Any]) -> Any:
        return result(spec, env) if output else (), tuple(env[name] for name in names)

    run = compiled(spec, params, ("inner", names, output), emit, only=None if output else names)
    flat, values = run(params, inputs)
    return trees.unflatten(flat, spec.program.out_spec) if output else None, values


# ---- names of values


def _is_narrower(group: str, whole: Spec, spec: Spec) -> bool:
    return group in spec.sizes and spec.sizes[group] != whole.sizes[group]


def _matches(pattern: str, whole: Program, program: Program) -> Iterator[tuple[str, str]]:
    """Yield (value of the pruned program, value of the dense program) of a pattern; those that were removed are left out.

    Raises:
        PruneError: there are none in the dense program, or in the pruned one.
    """
    if pattern.startswith("%"):
        names = {f"%{i.name}" for i in program.instructions}
        found = [(n, n) for i in whole.instructions if fnmatchcase(n := f"%{i.name}", pattern) and n in whole.axes]
        left = [pair for pair in found if pair[0] in names]
    else:
        results, dense = module_results(program), module_results(whole)
        found = [(path, name) for path, name in dense.items() if _is_path(path, pattern)]
        left = [
            (results[path], name) for path, name in found if path in results and not _is_removed(path, whole, program)
        ]
    if not found:
        known = [f"%{i.name}" for i in whole.instructions] if pattern.startswith("%") else list(module_results(whole))
        raise PruneError(f"the dense network has no value {pattern!r}{nearest(pattern, known)}")
    if not left:
        raise PruneError(f"the pruned network has no value {pattern!r}: it was removed")
    yield from left


def _is_path(path: str, pattern: str) -> bool:
    """Return whether a path matches a pattern step by step.

    >>> [_is_path(p, "layers.*") for p in ("layers.0", "layers.0.mlp")]
    [True, False]
    """
    steps, parts = path.split("."), pattern.split(".")
    return len(steps) == len(parts) and all(map(fnmatchcase, steps, parts))


def module_results(program: Program) -> dict[str, str]:
    """Return path of a module → its result: the last of its values that the rest of the program reads."""
    readers: dict[str, list[str | None]] = {}
    for i in program.instructions:
        for name in i.reads():
            readers.setdefault(name, []).append(i.module)
    for ref in program.outputs:
        readers.setdefault(getattr(ref, "name", ""), []).append(None)
    out = {}
    for i in program.instructions:
        name = f"%{i.name}"
        if i.is_size or name not in program.axes:
            continue
        for path in (*ancestors(i.module)[1:], i.module) if i.module else ():
            if any(m is None or not _is_inside(m, path) for m in readers.get(name, ())):
                out[path] = name
    return out


def _is_removed(path: str, whole: Program, program: Program) -> bool:
    """Return whether the pruned program has no parameter of a module left: its result is then just its input."""
    before, after = (
        any(name in p.tensors for i in p.instructions if _is_inside(i.module, path) for name in i.reads())
        for p in (whole, program)
    )
    return before and not after


def _is_inside(module: str, path: str) -> bool:
    return module == path or module.startswith(f"{path}.")


# ---- maps


class Fit:
    """Least squares from values of the pruned network to dense values, over many batches: sums in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, value: Tensor, dense: Tensor) -> None:
        """Add the positions of a batch: [… units] and [… dense units]."""
        x, y = (t.detach().double().flatten(0, -2) for t in (value, dense))
        new = [x.sum(0), y.sum(0), x.mT @ x, x.mT @ y]
        self.count += len(x)
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new

    def solve(self) -> Affine:
        """Return the matrix and the offset."""
        n = max(self.count, 1)
        mean, target = self.sums[0] / n, self.sums[1] / n
        scatter = self.sums[2] / n - torch.outer(mean, mean)
        cross = self.sums[3] / n - torch.outer(mean, target)
        ridge = RIDGE * scatter.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        matrix = torch.linalg.solve(scatter + ridge * torch.eye(len(scatter)).to(scatter), cross)
        return matrix, target - mean @ matrix
