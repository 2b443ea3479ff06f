"""Other names of ops: torch keeps them in a graph, and each computes exactly what its canonical op computes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

ALIASES = {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "fix": "trunc",
    "ger": "outer",
    "greater": "gt",
    "greater_equal": "ge",
    "inverse": "linalg_inv",
    "less": "lt",
    "less_equal": "le",
    "linalg_matmul": "matmul",
    "linalg_matrix_exp": "matrix_exp",
    "matrix_power": "linalg_matrix_power",
    "moveaxis": "movedim",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "orgqr": "linalg_householder_product",
    "row_stack": "vstack",
    "subtract": "sub",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "true_divide": "div",
    "det": "linalg_det",
    "special_digamma": "digamma",
    "special_erf": "erf",
    "special_erfc": "erfc",
    "special_erfinv": "erfinv",
    "special_exp2": "exp2",
    "special_expit": "sigmoid",
    "special_expm1": "expm1",
    "special_gammainc": "igamma",
    "special_gammaincc": "igammac",
    "special_gammaln": "lgamma",
    "special_i0": "i0",
    "special_log1p": "log1p",
    "special_log_softmax": "log_softmax",
    "special_logit": "logit",
    "special_logsumexp": "logsumexp",
    "special_multigammaln": "mvlgamma",
    "special_polygamma": "polygamma",
    "special_psi": "digamma",
    "special_sinc": "sinc",
    "special_softmax": "softmax",
    "special_xlogy": "xlogy",
}
"""Other name of an aten op → its canonical name; in-place ops of the same names end with `_`."""


@cache
def canonical(op: Any) -> Any:
    """Return the op of the table for another name of it, or else the op itself.

    >>> canonical(torch.ops.aten.multiply.Tensor), canonical(torch.ops.aten.arctan_.default)
    (<OpOverload(op='aten.mul', overload='Tensor')>, <OpOverload(op='aten.atan_', overload='default')>)
    """
    if not isinstance(op, OpOverload) or not op._schema.name.startswith("aten::"):
        return op
    name = op._schema.name.removeprefix("aten::")
    plain = name.removesuffix("_")
    packet = getattr(torch.ops.aten, ALIASES[plain] + name[len(plain) :], None) if plain in ALIASES else None
    if packet is None:
        return op
    overloads = dict.fromkeys([o for o in (op._overloadname, *packet.overloads()) if o in packet.overloads()])
    return next((c for c in (getattr(packet, o) for o in overloads) if _types(c) == _types(op)), op)


def named(name: str) -> str:
    """Return the canonical name of an op without overload.

    >>> named("aten.multiply"), named("aten.multiply.Tensor"), named("mylib.multiply")
    ('aten.mul', 'aten.mul.Tensor', 'mylib.multiply')
    """
    namespace, packet, *overload = name.split(".") if name.count(".") else ("", name)
    if namespace != "aten" or packet not in ALIASES:
        return name
    op = getattr(getattr(torch.ops.aten, packet), overload[0], None) if overload else None
    return f"aten.{ALIASES[packet]}" if op is None else str(canonical(op))


def _types(op: OpOverload) -> list[str]:
    return [str(a.type) for a in op._schema.arguments]


def use_canonical(graph: fx.Graph) -> None:
    """Replace other names of ops in a graph by the canonical ones."""
    for n in graph.nodes:
        if n.op == "call_function" and (op := canonical(n.target)) is not n.target:
            names = {a.name: b.name for a, b in zip(n.target._schema.arguments, op._schema.arguments, strict=True)}
            n.target, n.kwargs = op, {names[k]: v for k, v in n.kwargs.items()}
