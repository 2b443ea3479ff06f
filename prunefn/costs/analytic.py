"""The exact cost of a network, from its spec alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from ..doors import door
from ..parameters.transforms import check_mask
from ..selection.budget import cache_size, memory_bytes
from ..spec.parts import Cost
from ..spec.spec import Spec
from ..types import Mask


@door
def cost(spec: Spec, mask: Mask | None = None, *, sizes: Mapping[str, int] | None = None) -> Cost:
    """Return the exact cost of one sample: MACs, parameters, activations. Nothing is built or run.

    Args:
        spec: spec of the network.
        mask: group → bool [units]; with it, the cost is that of the network after pruning.
        sizes: sizes of the inputs, such as `{"length": 4096}`; default: those of the spec.

    Raises:
        MaskError: the mask does not fit the spec.
        TraceError: a size cannot change.

    >>> import torch, prunefn as pf
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> spec = pf.trace(layer, (torch.randn(2, 5, 8),))
    >>> [cost(spec, sizes={"length": n}).macs for n in (1, 10, 100)]  # attention takes length² · 16
    [528, 6720, 211200]
    """
    check_mask(mask or {}, spec)
    spec = spec.at(sizes) if sizes else spec
    return spec.costs({**spec.sizes, **{g: int(m.sum()) for g, m in (mask or {}).items()}})


class Memory(NamedTuple):
    """The bytes of a network in use."""

    parameters: int
    cache: int
    """Keys and values of all attention layers."""


@door
def memory(
    spec: Spec,
    mask: Mask | None = None,
    *,
    batch: int = 1,
    length: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    cache_dtype: torch.dtype | None = None,
) -> Memory:
    """Return the bytes of the parameters and of the cache of keys and values, exactly; `budget.memory` limits their sum.

    Args:
        spec: spec of the network.
        mask: group → bool [units]; with it, the bytes are those of the network after pruning.
        batch, length, dtype, cache_dtype: as in `budget.memory`.

    Raises:
        MaskError: the mask does not fit the spec.
        BudgetError: there is a length, but no attention.

    >>> import torch, prunefn as pf
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> spec = pf.trace(layer, (torch.randn(2, 5, 8),))
    >>> memory(spec, batch=3, length=100)  # 2 bytes · 3 · 100 · (keys and values of 8)
    Memory(parameters=1200, cache=9600)
    """
    check_mask(mask or {}, spec)
    sizes = {**spec.sizes, **{g: int(m.sum()) for g, m in (mask or {}).items()}}
    widths = (dtype.itemsize, (cache_dtype or dtype).itemsize)
    return Memory(*memory_bytes(sizes, spec, cache=cache_size(batch, length), widths=widths))
