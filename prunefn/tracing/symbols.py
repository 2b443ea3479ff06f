"""Sizes of the inputs that torch.export leaves symbolic: their names, and the axes whose sizes follow from them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sympy
import torch
from torch import Tensor
from torch.utils._sympy.functions import FloorDiv

from ..spec.axis import Axis, Derived, Leaf, size
from ..spec.domain import shape_environment
from ..spec.expressions import Unreadable, from_sympy
from .dynamic import Names

SOURCE = re.compile(r"L\['(\w+)'\](.*)\.size\(\)\[(\d+)\]")
"""How torch.export writes a size of an input."""
NEEDS = {
    **dict.fromkeys(("meta_mm", "meta_addmm", "meta_bmm", "meta_baddbmm", "meta_dot", "meta_mv"), "a matrix product"),
    "conv": "a convolution",
    "infer_size": "an op with a tensor of this size",
    "check_input": "a recurrent layer",
    "check_hidden_size": "a recurrent layer",
}
"""Function of torch that fixes a size → what it is for."""
BATCH, LENGTH = "batch", "length"
UNKNOWN = sympy.Symbol("unknown", integer=True, positive=True)


class Free(NamedTuple):
    """The sizes of the inputs that may change."""

    places: dict[str, tuple[str, int]]
    """Name → (input, dim) that has this size at run time."""
    name_of: dict[Any, str]
    """Symbol → name; several symbols have one name if their axes are the same."""
    leaves: dict[Any, str]
    """Leaf of the algebra → name."""
    batch: frozenset[str]
    """Names of sizes that count samples."""


def expression(n: Any) -> Any:
    """Return the sympy expression of a symbolic size; None for an int, also for a symbol that the export fixed."""
    expr = n.node.expr if isinstance(n, torch.SymInt) else None
    return None if expr is None or expr.is_Integer else expr


def name_sizes(dims: Iterator[tuple[str, int, Any, Any, str | None]], taken: Collection[str]) -> Free:
    """Name the sizes of the inputs that may change.

    Args:
        dims: (input, dim, size, leaf of the algebra or None, preferred name or None) of each dim.
        taken: names of groups.
    """
    free = Free({}, {}, {}, frozenset())
    batch: set[str] = set()
    for name, dim, n, leaf, preferred in dims:
        symbol = expression(n)
        is_symbol = symbol is not None and symbol.is_Symbol
        # a first dim that the export fixed may still change in the program, whose static sizes are those of axes
        if preferred is None or not (is_symbol or (symbol is None and dim == 0 and leaf is not None)):
            continue
        known = free.name_of.get(symbol) if is_symbol else None
        known = known or (free.leaves.get(leaf) if leaf is not None else None)
        chosen = known or _free_name(preferred, name, {*taken, *free.places})
        if is_symbol:
            free.name_of.setdefault(symbol, chosen)
        if leaf is not None:
            free.leaves.setdefault(leaf, chosen)
        if known is None:
            free.places[chosen] = name, dim
            batch |= {chosen} if preferred == BATCH else set()
    return free._replace(batch=frozenset(batch))


def _free_name(preferred: str, name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken: the preferred one, one with the input's name, or one with a number."""
    candidates = [preferred] if preferred == BATCH else [preferred, f"{name}_{preferred}"]
    number = 0
    while all(c in taken for c in candidates):
        number += 1
        candidates = [f"{preferred}_{number}"]
    return next(c for c in candidates if c not in taken)


def axis_of_expression(expr: Any, free: Free) -> Axis | None:
    """Return the axis of a symbolic size; None for no symbol, or if it does not follow from sizes of the inputs."""
    if expr is None:
        return None
    try:
        converted = from_sympy(expr, free.name_of)
    except Unreadable:
        return None
    return Leaf(converted) if isinstance(converted, str) else None if isinstance(converted, int) else Derived(converted)


def solved(expr: Any, total: Any) -> Any:
    """Return the size `UNKNOWN` for which `total`, which is linear in it, is `expr`; rounded down."""
    rest = total.subs(UNKNOWN, 0)
    return FloorDiv(expr - rest, sympy.expand(total - rest).coeff(UNKNOWN, 1))


def disagreeing(
    shapes: Iterable[tuple[str, Sequence[Any], tuple[Axis, ...]]], name_of: Mapping[Any, str], sizes: Mapping[str, int]
) -> dict[str, str]:
    """Return name of a size → value whose axes do not follow it; at other sizes, the axes would be wrong.

    Args:
        shapes: (value, symbolic shape, axes) of each tensor.
        name_of: symbol → name of the size.
        sizes: of all leaves; the free ones differ from those of the trace.
    """
    symbol_sizes = {symbol: sizes[name] for symbol, name in name_of.items()}
    agreed: dict[Any, bool] = {}
    wrong: dict[str, str] = {}
    for value, shape, axes in shapes:
        for n, axis in zip(shape, axes, strict=False):
            expr = expression(n)
            if expr is None or not expr.free_symbols <= symbol_sizes.keys():
                continue
            if (axis, expr) not in agreed:
                agreed[axis, expr] = size(axis, sizes) == int(expr.subs(symbol_sizes))
            if not agreed[axis, expr]:
                wrong |= {name_of[s]: value for s in expr.free_symbols if name_of[s] not in wrong}
    return wrong


def fixed_dims(inputs: Sequence[str], values: Sequence[Tensor], names: Sequence[Names]) -> dict[str, str]:
    """Return dim of an input that was asked to vary, but that the export fixed → its size and the reason."""
    fixed: dict[str, str] = {}
    for name, value, dims in zip(inputs, values, names, strict=True):
        for d, (n, asked) in enumerate(zip(value.shape, dims, strict=True)):
            if asked is not None and d > 0 and n == 1 and not isinstance(n, torch.SymInt):
                fixed[f"{name} dim {d}"] = "1: torch.export takes a size of one as broadcasting"
    env = shape_environment(values)
    for symbol, number in getattr(env, "replacements", {}).items():
        for source in getattr(env, "var_to_sources", {}).get(symbol, ()) if number.is_Integer else ():
            if (found := SOURCE.fullmatch(source.name if isinstance(source.name, str) else source.name())) is not None:
                name, path, dim = found.groups()
                fixed[f"{name}{path} dim {dim}"] = f"{number}: {_reason(env, symbol)}"
    return fixed


def _reason(env: Any, symbol: Any) -> str:
    """Return where the export fixed a symbol."""
    frame = getattr(getattr(env, "replacements_slocs", {}).get(symbol), "framework_loc", None)
    if frame is None:
        return "torch.export needs this size"
    if "/torch/" not in frame.filename:
        return f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} needs this size"
    return f"{NEEDS.get(frame.name, frame.name)} needs this size"
