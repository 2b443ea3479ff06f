"""Slices: the weights at one (input channel, position in the kernel) of a block of filters are removed together.

With A filters a block there are B = C_out / A blocks; block b has the filters b, b + B, b + 2B, …, so that a slice is a vector
of A weights that hardware with A lanes skips. Only convolutions have slices, whatever their kernel; transposed ones have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from .._shapes import Bool, Int64
from ..doors import door
from ..errors import ParamsError, PruneError
from ..parameters.transforms import check_mask, check_names
from ..spec.axis import keep
from ..spec.spec import Spec
from ..types import Mask, Params
from .layouts import UNFOLD, left_dense, picked, warn_dense
from .layouts import weights as all_weights

BLOCKS = "(a b) ... -> b ... a"
"""Filter i · B + b is the i-th of block b."""
Order = Int64[Tensor, " filters"]


class Sliced(NamedTuple):
    """A weight that has slices: its block size, and which of its filters and inputs are not masked."""

    name: str
    block: int
    filters: Bool[Tensor, " filters"]
    inputs: Bool[Tensor, " inputs"]


@door
def slice_order(filters: int, block: int, *, short_blocks: bool = False) -> Order:
    """Return the filters in the order of their blocks: int64 [filters].

    Args:
        filters: C_out.
        block: A, number of filters of a block.
        short_blocks: if A does not divide C_out, put the remaining filters into a shorter last block; False raises an error.

    Raises:
        PruneError: A does not divide C_out, or is below 1.

    >>> slice_order(6, 2).tolist()
    [0, 3, 1, 4, 2, 5]
    >>> slice_order(7, 2, short_blocks=True).tolist()
    [0, 3, 1, 4, 2, 5, 6]
    """
    if filters < 1:
        raise PruneError(f"filters is {filters}; there must be 1 or more")
    indices = torch.arange(filters)
    return torch.cat([part.flatten() for part in blocks_of(indices, block, short_blocks)])


@door
def slice_scores(weight: Tensor, block: int, *, short_blocks: bool = False) -> Tensor:
    """Return the L2 norm of every slice: [blocks, inputs, *kernel].

    Args:
        weight: [filters, inputs, *kernel].
        block, short_blocks: as in `slice_order`.

    Raises:
        PruneError: as in `slice_order`.

    >>> slice_scores(torch.tensor([[3.0], [1.0], [4.0], [0.0]]), 2)  # filters 0 and 2, 1 and 3
    tensor([[5.],
            [1.]])
    """
    return torch.cat([_norm(part.square().sum(-1)) for part in blocks_of(weight, block, short_blocks)])


@door
def slices(
    params: Params,
    ratio: float,
    *,
    spec: Spec,
    block: int,
    depthwise_block: int = 2,
    mask: Mask | None = None,
    protect_first: bool = False,
    short_blocks: bool = False,
    weights: Sequence[str] | str | None = None,
) -> dict[str, Tensor]:
    """Mask the slices of least L2 norm: in each layer exactly ⌊ratio · eligible slices⌋, ties by block, then by input.

    Args:
        params: of the spec.
        ratio: fraction of each layer's eligible slices to remove, in [0, 1).
        spec: of the params.
        block: A, number of filters of a block.
        depthwise_block: A of depthwise convolutions.
        mask: group → bool [units], channels that are masked, not removed: their filters belong to no block, and slices at
            masked inputs are not eligible.
        protect_first: slices at the first index of each kernel row are not eligible; of a 1 × 1 kernel, none is.
        short_blocks: as in `slice_order`.
        weights: weights to mask: names, module paths, or globs for either; default: all convolutions.

    Returns:
        Weight masks, parameter → bool of its shape, True = kept, for every layer with slices, even if none is removed. A warning
        names the convolutions whose weight is computed from parameters and stays dense.

    Raises:
        PruneError: a bad ratio, or A does not divide the filters of a layer, which is named.
        ParamsError, MaskError: params or mask do not fit the spec, or `weights` matches no weight of a convolution.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, (1, 2), bias=False))
    >>> spec = pf.trace(model, (torch.randn(1, 1, 4, 4),))
    >>> w = torch.tensor([[1.0, 4.0], [3.0, 1.0], [1.0, 4.0], [2.0, 1.0]]).reshape(4, 1, 1, 2)
    >>> slices({"0.weight": w}, 0.5, spec=spec, block=2)["0.weight"].int().flatten(1)  # norms √2, √32 and √13, √2
    tensor([[0, 1],
            [1, 0],
            [0, 1],
            [1, 0]], dtype=torch.int32)
    """
    if not 0 <= ratio < 1:
        raise PruneError(f"ratio is {ratio}; it is the fraction of the slices that is removed and must be in [0, 1)")
    check_names(params, spec)
    if weights is None:
        warn_dense("sparse.slices", left_dense(spec, convolutions=True), UNFOLD)
    return {
        s.name: _mask_weight(params[s.name].detach(), s, ratio, protect_first, short_blocks)
        for s in sliced(spec, block=block, depthwise_block=depthwise_block, mask=mask, weights=weights)
    }


@door
def apply_sparse(params: Params, masks: Mapping[str, Tensor]) -> Params:
    """Set the weights that masks remove to zero; all other tensors are the same objects. Tied tensors stay tied.

    Args:
        params: by name.
        masks: parameter → bool of its shape, True = kept; any weight masks.

    Raises:
        ParamsError: a mask fits no parameter.

    >>> apply_sparse({"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([True, False])})
    {'w': tensor([1., 0.])}
    """
    changed: dict[int, Tensor] = {}
    for name, kept in masks.items():
        if name not in params or params[name].shape != kept.shape or kept.dtype != torch.bool:
            has = f"shape {tuple(params[name].shape)}" if name in params else "no parameter of that name"
            raise ParamsError(
                f"the weight mask of {name!r} is {kept.dtype} of shape {tuple(kept.shape)}, but there is {has}; it must be "
                "bool of the parameter's shape"
            )
        t = params[name]
        changed[id(t)] = changed.get(id(t), t).where(kept.to(t.device), 0)
    return {n: changed.get(id(t), t) for n, t in params.items()}


# ---- the weights with slices


def sliced(
    spec: Spec,
    *,
    block: int,
    depthwise_block: int = 2,
    mask: Mask | None = None,
    weights: Sequence[str] | str | None = None,
) -> list[Sliced]:
    """Return the weights of convolutions, in the order of the program; arguments and errors as in `slices`."""
    check_mask(mask or {}, spec)
    depthwise = dict(_convolutions(spec))
    if weights is not None:
        chosen: set[str] = set()
        for pattern in [weights] if isinstance(weights, str) else weights:
            matched = {n for n in picked(pattern, [n for n in spec.axes if n in spec.parameters]) if n in depthwise}
            if not matched:
                raise ParamsError(
                    f"weights={pattern!r} names no weight of a convolution; there are {', '.join(depthwise)}"
                )
            chosen |= matched
        depthwise = {n: d for n, d in depthwise.items() if n in chosen}
    kept = {n: [keep(a, mask or {}, spec.sizes) for a in spec.axes[n][:2]] for n in depthwise}
    return [Sliced(n, depthwise_block if is_depthwise else block, *kept[n]) for n, is_depthwise in depthwise.items()]


def pieces(weight: Tensor, of: Sliced, *, protect_first: bool, short_blocks: bool) -> Iterator[Tensor]:
    """Yield the eligible slices of a weight, for blocks of one size at a time: [slices, weights]."""
    kept = [m.nonzero()[:, 0].to(weight.device) for m in (of.filters, of.inputs)]
    unmasked = weight.index_select(0, kept[0]).index_select(1, kept[1])
    for part in _name_weight_in_error(of.name, lambda: blocks_of(unmasked, of.block, short_blocks)):
        part = part[..., 1:, :] if protect_first and weight.ndim > 2 else part
        yield part.flatten(0, -2)


def _convolutions(spec: Spec) -> Iterator[tuple[str, bool]]:
    """Yield the weights of convolutions that are parameters, and whether they are depthwise; tied ones once."""
    for name, weight in all_weights(spec).items():
        if weight.convolution:
            yield name, weight.depthwise


def _mask_weight(weight: Tensor, of: Sliced, ratio: float, protect_first: bool, short_blocks: bool) -> Tensor:
    """Return the mask of a weight: bool of its shape."""
    unmasked = [m.nonzero()[:, 0] for m in (of.filters, of.inputs)]
    selected = weight.cpu().index_select(0, unmasked[0]).index_select(1, unmasked[1]).double()
    scores = _name_weight_in_error(of.name, lambda: slice_scores(selected, of.block, short_blocks=short_blocks))
    if not bool(torch.isfinite(scores).all()):
        raise PruneError(f"the weight {of.name!r} is not finite")
    eligible = torch.ones_like(scores, dtype=torch.bool)
    if protect_first and weight.ndim > 2:
        eligible[..., 0] = False
    flat = scores.flatten().masked_fill(~eligible.flatten(), torch.inf)
    removed = flat.argsort(stable=True)[: int(ratio * int(eligible.sum()) + 1e-9)]  # 1e-9: 0.29 of 100 is 29
    kept = torch.ones_like(flat, dtype=torch.bool).index_fill(0, removed, False).reshape(scores.shape)
    out = torch.ones(weight.shape, dtype=torch.bool)
    out[unmasked[0][:, None], unmasked[1]] = spread(kept, len(unmasked[0]), of.block)
    return out.to(weight.device)


# ---- blocks


def blocks_of(t: Tensor, block: int, short_blocks: bool) -> list[Tensor]:
    """Return t [filters, …] as [blocks, …, block], then the shorter last block, if there is one: [1, …, remaining filters].

    Raises:
        PruneError: the block does not divide the filters, or is below 1.
    """
    if block < 1:
        raise PruneError(f"a block has {block} filters; it must have at least 1")
    remainder = len(t) % block
    if remainder and not short_blocks:
        raise PruneError(
            f"{len(t)} filters are no multiple of the block size {block}; use a block size that divides them, or "
            "short_blocks=True for a shorter last block"
        )
    divisible = len(t) - remainder
    parts = [rearrange(t[:divisible], BLOCKS, a=block)] if divisible else []
    return [*parts, rearrange(t[divisible:], BLOCKS, a=remainder)] if remainder else parts


def spread(per_slice: Tensor, filters: int, block: int) -> Tensor:
    """Return values of slices [blocks, …] as values of their weights [filters, …]."""
    whole = filters // block
    full = repeat(per_slice[:whole], "b ... -> (a b) ...", a=block)
    return torch.cat([full, repeat(per_slice[whole:], "b ... -> (a b) ...", a=filters % block)])


def _norm(squares: Tensor) -> Tensor:
    """Return the square root, whose gradient at zero is zero instead of infinite."""
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


def _name_weight_in_error(weight: str, cut: Callable[[], Any]) -> Any:
    """Return `cut()`; a PruneError gets the name of the weight."""
    try:
        return cut()
    except PruneError as error:
        raise PruneError(f"the weight {weight!r}: {error}") from error
