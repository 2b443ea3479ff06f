"""2:4 sparsity in hardware: linear layers with torch's semi-structured tensors, for NVIDIA's sparse tensor cores."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..doors import door
from ..errors import ParamsError, PruneError, nearest

CAPABILITY = (8, 0)
"""Compute capability of Ampere, the first with sparse tensor cores."""


@door
def to_semi_structured(module: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy whose linear weights are semi-structured if their mask is 2:4 and their shape and type allow it.

    Other weights are masked and stay dense; `why_dense` returns them with the reasons. The copy is for inference: it uses
    torch's backends (cuSPARSELt, else CUTLASS), works under `torch.compile`, and is faster if batches are large.

    Args:
        module: on a CUDA device, in float16 or bfloat16; the original model, or one of `to_module`.
        masks: parameter → bool of its shape, of `select(…, pattern=pattern.n_m(2, 4))`.

    Raises:
        PruneError: no weight can be semi-structured; the message says why.
        ParamsError: a mask fits no parameter.
    """
    why = why_dense(module, masks)
    if masks and not set(masks) - set(why):
        name, reason = next(iter(why.items()))
        raise PruneError(f"no weight can be semi-structured; {name!r}: {reason}")
    out = deepcopy(module)
    for name, kept in masks.items():
        path, _, attribute = name.rpartition(".")
        owner, dense = out.get_submodule(path), out.get_parameter(name).detach()
        zeroed = dense.where(kept.to(dense.device), 0)
        weight = zeroed if name in why else torch.sparse.to_sparse_semi_structured(zeroed.contiguous())
        setattr(owner, attribute, nn.Parameter(weight, requires_grad=False))
    return out


@door
def why_dense(module: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, str]:
    """Return parameter → the reason why it cannot be semi-structured; those that can are left out.

    Raises:
        ParamsError: a mask fits no parameter.

    >>> why_dense(nn.Linear(8, 8), {"weight": torch.ones(8, 8, dtype=torch.bool)})
    {'weight': 'of 4 weights next to each other, more than 2 are kept; use pattern.n_m(2, 4)'}
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    out = {}
    for name, kept in masks.items():
        if name not in parameters or parameters[name].shape != kept.shape:
            has = (
                f"has shape {tuple(parameters[name].shape)}"
                if name in parameters
                else f"is not there{nearest(name, parameters)}"
            )
            raise ParamsError(f"the weight mask of {name!r} has shape {tuple(kept.shape)}, but the parameter {has}")
        if reason := _pattern_problem(kept) or _device_problem(parameters[name]) or _shape_problem(parameters[name]):
            out[name] = reason
    return out


def _pattern_problem(kept: Tensor) -> str:
    """Return why a mask is not 2:4; empty if it is."""
    if kept.ndim != 2:
        return f"it has {kept.ndim} dims; torch takes weights of linear layers only"
    groups = F.pad(kept, (0, -kept.shape[1] % 4)).reshape(len(kept), -1, 4)
    if bool((groups.sum(2) > 2).any()):
        return "of 4 weights next to each other, more than 2 are kept; use pattern.n_m(2, 4)"
    return ""


def _device_problem(weight: Tensor) -> str:
    """Return why a weight's device has no sparse tensor cores; empty if it has."""
    if weight.device.type != "cuda":
        return f"it is on {weight.device}; sparse tensor cores need a CUDA device of compute capability 8.0 or more, such as module.cuda()"
    if torch.cuda.get_device_capability(weight.device) < CAPABILITY:
        has = ".".join(map(str, torch.cuda.get_device_capability(weight.device)))
        return f"{torch.cuda.get_device_name(weight.device)} has compute capability {has}; it takes 8.0 or more"
    return ""


def _shape_problem(weight: Tensor) -> str:
    """Return why the backend that torch would use does not support a weight's type or shape; empty if it does."""
    base = torch.sparse.SparseSemiStructuredTensor
    cutlass, cusparselt = (
        torch.sparse.SparseSemiStructuredTensorCUTLASS,
        torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
    )
    constraints = (cutlass if base._FORCE_CUTLASS else cusparselt)._DTYPE_SHAPE_CONSTRAINTS
    if weight.dtype not in constraints:
        types = ", ".join(str(t).removeprefix("torch.") for t in constraints)
        return f"its type is {weight.dtype}; torch takes {types}, such as module.half()"
    rows, columns = weight.shape
    least = constraints[weight.dtype]
    if rows % least.sparse_min_rows or columns % least.sparse_min_cols:
        return f"its shape is {rows} × {columns}; torch takes multiples of {least.sparse_min_rows} × {least.sparse_min_cols}"
    return ""
