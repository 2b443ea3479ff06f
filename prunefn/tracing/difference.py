"""Compare the results of a module with those of its program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative to the largest output. The program runs the module's own ops, so only fused kernels of the module round differently."""
Result = tuple[list[Any], dict[str, Tensor]]
"""(flattened outputs, updated buffers)."""


def difference(expected: Result, got: Result, *, values: bool = True) -> str:
    """Return what differs between two results; an empty text if nothing does."""
    if len(expected[0]) != len(got[0]):
        return f"the module gives {len(expected[0])} outputs, the program {len(got[0])}"
    outputs = [(f"output {i}", x, y) for i, (x, y) in enumerate(zip(expected[0], got[0], strict=True))]
    for name, x, y in [*outputs, *((f"buffer {n!r}", x, got[1][n]) for n, x in expected[1].items())]:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            text = tensors_differ(x, y, values=values)
        else:
            text = (
                ""
                if not isinstance(x, int | float | str) or x == y
                else f"is {x!r} of the module, {y!r} of the program"
            )
        if text:
            return f"{name} {text}"
    return ""


def tensors_differ(x: Tensor, y: Tensor, *, values: bool = True) -> str:
    """Return how two tensors differ beyond rounding; without `values`, compare only shape and dtype."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return f"is {x.dtype} {tuple(x.shape)} of the module, {y.dtype} {tuple(y.shape)} of the program"
    if not values or torch.equal(x, y) or not x.numel():
        return ""
    if not (x.is_floating_point() or x.is_complex()):
        return f"differs in {int((x != y).sum())} of {x.numel()} places"
    wide = torch.complex128 if x.is_complex() else torch.float64
    a, b = (torch.nan_to_num(t.to(wide)) for t in (x, y))
    error, scale = float((a - b).abs().max()), float(a.abs().max())
    if error <= TOLERANCE.get(x.dtype, 1e-4) * scale and torch.equal(x.isnan(), y.isnan()):
        return ""
    return f"differs by {error:.2g} (the module's largest is {scale:.2g})"
