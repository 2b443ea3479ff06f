"""Slices: weights at one (input channel, position in the kernel) of a block of filters go together.

With A filters a block there are B = C_out / A blocks; block b has the filters b, b + B, b + 2B, …, so that a slice is a vector
of A weights that hardware with A lanes skips. Only convolutions have slices (transposed ones have not), whatever the kernel.
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
    """A weight that has slices: how it is cut, and which of its filters and inputs are there at all."""

    name: str
    block: int
    filters: Bool[Tensor, " filters"]
    inputs: Bool[Tensor, " inputs"]


@door
def slice_order(filters: int, block: int, *, short_blocks: bool = False) -> Order:
    """The filters in the order of their blocks: int64 [filters].

    Args:
        filters: C_out.
        block: A, filters of a block.
        short_blocks: where A does not divide C_out, the filters that are left are a shorter last block; else that is an error.

    Raises:
        PruneError: A does not divide C_out, or is below 1.

    >>> slice_order(6, 2).tolist()
    [0, 3, 1, 4, 2, 5]
    >>> slice_order(7, 2, short_blocks=True).tolist()
    [0, 3, 1, 4, 2, 5, 6]
    """
    if filters < 1:
        raise PruneError(f"filters is {filters}; there must be 1 or more")
    at = torch.arange(filters)
    return torch.cat([part.flatten() for part in blocks_of(at, block, short_blocks)])


@door
def slice_scores(weight: Tensor, block: int, *, short_blocks: bool = False) -> Tensor:
    """The L2 norm of every slice: [blocks, inputs, *kernel].

    Args:
        weight: [filters, inputs, *kernel].
        block, short_blocks: as for `slice_order`.

    Raises:
        PruneError: as for `slice_order`.

    >>> slice_scores(torch.tensor([[3.0], [1.0], [4.0], [0.0]]), 2)  # filters 0 and 2, 1 and 3
    tensor([[5.],
            [1.]])
    """
    return torch.cat([_norm(part.square().sum(-1)) for part in blocks_of(weight, block, short_blocks)])


@door
def slices(
    params: Params,
    rate: float,
    *,
    spec: Spec,
    block: int,
    depthwise_block: int = 2,
    mask: Mask | None = None,
    protect_first: bool = False,
    short_blocks: bool = False,
    weights: Sequence[str] | str | None = None,
) -> dict[str, Tensor]:
    """Mask the slices of least L2 norm: in each layer exactly ⌊rate · eligible slices⌋, ties by block, then by input.

    Args:
        params: of the spec.
        rate: share of each layer's eligible slices that goes, in [0, 1).
        spec: of the params; says which parameters are weights of convolutions.
        block: A, filters of a block.
        depthwise_block: A of depthwise convolutions.
        mask: group → bool [units], channels that are masked, not removed: their filters stand after all others and belong to no
            block; slices at masked inputs are not eligible.
        protect_first: slices at the first index of each kernel row are not eligible; of a 1 × 1 kernel, none is.
        short_blocks: as for `slice_order`.
        weights: only these: names, module paths, or globs for either; default: all convolutions.

    Returns:
        Weight masks, parameter → bool of its shape, True = kept; for every layer with slices, also where none goes. A warning
        names the convolutions whose weight is computed from parameters, and so stays dense.

    Raises:
        PruneError: a bad rate, or A does not divide the filters of a layer, which is named.
        ParamsError, MaskError: something does not fit the spec, or `weights` names what is no weight of a convolution.

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
    if not 0 <= rate < 1:
        raise PruneError(f"the rate of slices is {rate}; it is the share that goes and must be in [0, 1)")
    check_names(params, spec)
    if weights is None:
        warn_dense("sparse.slices", left_dense(spec, convolutions=True), UNFOLD)
    return {
        s.name: _kept(params[s.name].detach(), s, rate, protect_first, short_blocks)
        for s in sliced(spec, block=block, depthwise_block=depthwise_block, mask=mask, weights=weights)
    }


@door
def apply_sparse(params: Params, masks: Mapping[str, Tensor]) -> Params:
    """Set what weight masks remove to zero; all else is the same object. Tied tensors stay tied.

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


# ---- which weights, and how they are cut


def sliced(
    spec: Spec,
    *,
    block: int,
    depthwise_block: int = 2,
    mask: Mask | None = None,
    weights: Sequence[str] | str | None = None,
) -> list[Sliced]:
    """The weights of convolutions, in the order of the program; arguments and errors as for `slices`."""
    check_mask(mask or {}, spec)
    found = dict(_convolutions(spec))
    if weights is not None:
        wanted: set[str] = set()
        for pattern in [weights] if isinstance(weights, str) else weights:
            these = {n for n in picked(pattern, [n for n in spec.axes if n in spec.parameters]) if n in found}
            if not these:
                raise ParamsError(f"weights={pattern!r} names no weight of a convolution; there are {', '.join(found)}")
            wanted |= these
        found = {n: d for n, d in found.items() if n in wanted}
    kept = {n: [keep(a, mask or {}, spec.sizes) for a in spec.axes[n][:2]] for n in found}
    return [Sliced(n, depthwise_block if deep else block, *kept[n]) for n, deep in found.items()]


def pieces(weight: Tensor, of: Sliced, *, protect_first: bool, short_blocks: bool) -> Iterator[Tensor]:
    """The eligible slices of a weight, for blocks of one size at a time: [slices, weights]."""
    at = [m.nonzero()[:, 0].to(weight.device) for m in (of.filters, of.inputs)]
    live = weight.index_select(0, at[0]).index_select(1, at[1])
    for part in _named(of.name, lambda: blocks_of(live, of.block, short_blocks)):
        part = part[..., 1:, :] if protect_first and weight.ndim > 2 else part
        yield part.flatten(0, -2)


def _convolutions(spec: Spec) -> Iterator[tuple[str, bool]]:
    """Weights of convolutions that are parameters, and whether they are depthwise; tied ones once."""
    for name, weight in all_weights(spec).items():
        if weight.convolution:
            yield name, weight.depthwise


def _kept(weight: Tensor, of: Sliced, rate: float, protect_first: bool, short_blocks: bool) -> Tensor:
    """The mask of a weight: bool of its shape."""
    at = [m.nonzero()[:, 0] for m in (of.filters, of.inputs)]
    live = weight.cpu().index_select(0, at[0]).index_select(1, at[1]).double()
    scores = _named(of.name, lambda: slice_scores(live, of.block, short_blocks=short_blocks))
    if not bool(torch.isfinite(scores).all()):
        raise PruneError(f"the weight {of.name!r} is not finite")
    eligible = torch.ones_like(scores, dtype=torch.bool)
    if protect_first and weight.ndim > 2:
        eligible[..., 0] = False
    flat = scores.flatten().masked_fill(~eligible.flatten(), torch.inf)
    gone = flat.argsort(stable=True)[: int(rate * int(eligible.sum()) + 1e-9)]
    stay = torch.ones_like(flat, dtype=torch.bool).index_fill(0, gone, False).reshape(scores.shape)
    out = torch.ones(weight.shape, dtype=torch.bool)
    out[at[0][:, None], at[1]] = spread(stay, len(at[0]), of.block)
    return out.to(weight.device)


# ---- blocks


def blocks_of(t: Tensor, block: int, short_blocks: bool) -> list[Tensor]:
    """[filters, …] → [blocks, …, block], then the shorter last block, if there is one: [1, …, filters that are left].

    Raises:
        PruneError: the block does not divide the filters, or is below 1.
    """
    if block < 1:
        raise PruneError(f"a block has {block} filters; it must have at least 1")
    left = len(t) % block
    if left and not short_blocks:
        raise PruneError(
            f"{len(t)} filters are no multiple of the block size {block}; use a block size that divides them, or "
            "short_blocks=True for a shorter last block"
        )
    whole = len(t) - left
    parts = [rearrange(t[:whole], BLOCKS, a=block)] if whole else []
    return [*parts, rearrange(t[whole:], BLOCKS, a=left)] if left else parts


def spread(per_slice: Tensor, filters: int, block: int) -> Tensor:
    """[blocks, …] → [filters, …]: what holds for a slice holds for its weights."""
    whole = filters // block
    full = repeat(per_slice[:whole], "b ... -> (a b) ...", a=block)
    return torch.cat([full, repeat(per_slice[whole:], "b ... -> (a b) ...", a=filters % block)])


def _norm(squares: Tensor) -> Tensor:
    """Square root with a gradient of zero, not of infinity, at zero."""
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


def _named(weight: str, cut: Callable[[], Any]) -> Any:
    """An error that names the weight."""
    try:
        return cut()
    except PruneError as error:
        raise PruneError(f"the weight {weight!r}: {error}") from error
