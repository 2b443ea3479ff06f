"""Pure functions on params and masks: read, remove, zero, expand, compose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from ..doors import door
from ..errors import MaskError, ParamsError, nearest
from ..program.sharded import changed, resharded, same_memory
from ..spec.axis import Leaf, keep
from ..spec.spec import Spec, check_params, resize, take
from ..types import Mask, Params
from .zeroing import check_zeroable, fill, zeroed_groups


@door
def params(model: nn.Module) -> Params:
    """Parameters and persistent buffers by name, as in `state_dict`; they share storage and are never written to.

    Tied tensors stand under all their names, as one and the same tensor object. Of a module under `fully_shard` they are
    DTensors (see `prunefn.program.sharded`).

    >>> sorted(params(nn.BatchNorm1d(2)))
    ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    resharded(model)
    hidden = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    once: dict[int, Tensor] = {}
    return {n: once.setdefault(id(t), t.detach()) for n, t in named if n not in hidden}


def check_mask(mask: Mapping[str, Tensor], spec: Spec) -> None:
    """Every mask is a bool vector of a known group's size and keeps a unit.

    Raises:
        MaskError: names the group, the value and the fix.
    """
    for name, m in mask.items():
        if name not in spec.groups:
            raise MaskError(f"the mask has a group {name!r} that the spec has not{nearest(name, spec.groups)}")
        n = spec.sizes[name]
        if m.dtype != torch.bool:
            raise MaskError(f"the mask of group {name!r} has dtype {m.dtype}; it must be bool, True = kept")
        if tuple(m.shape) != (n,):
            raise MaskError(
                f"the mask of group {name!r} has shape {tuple(m.shape)}, but the group has {n} units: it must be ({n},)"
            )
        if not bool(m.any()):
            raise MaskError(f"the mask of group {name!r} removes all {n} units; at least one must stay")


@door
def apply(params: Params, mask: Mask, *, spec: Spec) -> Params:
    """Remove units for real: every tensor loses the positions of removed units.

    Args:
        params: of the spec; biases created by a compensation are welcome.
        mask: group → bool [units].
        spec: what the params were traced to; the result goes with `shrink(spec, mask)`.

    Returns:
        New dict. Tensors without a removed unit are the same objects; tied tensors stay tied.

    Raises:
        MaskError, ParamsError: something does not fit the spec.

    >>> import prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> small = apply(pf.params(model), {"0": torch.tensor([True, False, True])}, spec=spec)
    >>> {name: tuple(t.shape) for name, t in small.items()}
    {'0.weight': (2, 4), '0.bias': (2,), '2.weight': (2, 2), '2.bias': (2,)}
    """
    check_mask(mask, spec)
    return _each(params, spec, lambda t, name: take(t, spec.axes[name], mask, spec.sizes))


@door
def zero(params: Params, mask: Mask, *, spec: Spec) -> Params:
    """Set removed units to zero in every parameter; shapes stay. Buffers are left alone.

    Where a weight is computed from several parameters, those are set to zero that make it zero and finite: under weight norm the
    gain, not the direction. The result computes what `apply(params, mask)` does, for groups that are `exact`.

    Args: as for `apply`.

    Raises:
        MaskError: as for `apply`.
        ParamsError: as for `apply`; or a weight is computed such that no zeros in its parameters make it zero (orthogonal
            ones, exponentials).
    """
    slots = spec.slots

    def zeroed(t: Tensor, name: str) -> Tensor:
        if name not in spec.parameters and name not in slots:
            return t
        return fill(t, spec.axes[name], zeroed_groups(spec, name, mask), spec)

    check_mask(mask, spec)
    check_zeroable(spec, mask)
    return _each(params, spec, zeroed)


def _each(params: Params, spec: Spec, change: Callable[[Tensor, str], Tensor]) -> Params:
    """Change every tensor of these params once, also where it stands under several names."""
    check_names(params, spec)
    first = tied_names(params, spec)
    out: Params = {}
    for name, t in params.items():
        out[name] = t if name in first else changed(t, lambda whole, name=name: change(whole, name))
    return {name: out[first.get(name, name)] for name in params}


def tied_names(params: Params, spec: Spec) -> dict[str, str]:
    """Second name → first name of the tensors that are tied in these params, too: the same object or the same memory."""
    both = [(second, name) for second, name in spec.tied.items() if second in params and name in params]
    return {b: a for b, a in both if params[b] is params[a] or same_memory(params[b], params[a])}


def check_names(params: Params, spec: Spec) -> None:
    """The params are those of the spec, all of them.

    Raises:
        ParamsError: names the tensor.
    """
    if foreign := [n for n in params if n not in spec.axes]:
        raise ParamsError(f"the spec has no tensor {foreign[0]!r}{nearest(foreign[0], spec.axes)}")
    slots = spec.slots
    check_params(params, spec, tuple(n for n in spec.axes if n not in slots or n in params))


@door
def shrink(spec: Spec, mask: Mask) -> Spec:
    """The spec of what a mask leaves: for `apply(params, mask)`.

    Raises:
        MaskError: the mask does not fit the spec.
    """
    check_mask(mask, spec)
    return resize(spec, mask)


@door
def compose(first: Mask, second: Mask, *more: Mask) -> Mask:
    """One mask for several rounds: each mask is over what those before it left.

    >>> compose({"a": torch.tensor([True, False, True])}, {"a": torch.tensor([False, True])})
    {'a': tensor([False, False,  True])}

    Masks of one group may be on different devices; the result is on that of the first.

    Raises:
        MaskError: a mask is no bool vector, is of another size than what those before it left, or removes all units of a group.
    """
    _check_vectors(first, "first")
    return reduce(_then, (second, *more), dict(first))


def _then(first: Mask, second: Mask) -> Mask:
    _check_vectors(second, "second")
    out = dict(first)
    for name, m in second.items():
        if name not in first:
            out[name] = m
            continue
        left = int(first[name].sum())
        if len(m) != left:
            raise MaskError(
                f"the second mask of group {name!r} has shape {tuple(m.shape)}, but the first leaves {left} units; a mask of a "
                "later round is over the units that are left"
            )
        out[name] = first[name].masked_scatter(first[name], m.to(first[name].device))
    return out


def _check_vectors(mask: Mask, which: str) -> None:
    """As far as it can be known without a spec, the mask is one."""
    for name, m in mask.items():
        if not isinstance(m, Tensor) or m.dtype != torch.bool:
            what = f"has dtype {m.dtype}" if isinstance(m, Tensor) else f"is a {type(m).__name__}"
            raise MaskError(f"the {which} mask of group {name!r} {what}; it must be a bool tensor, True = kept")
        if m.ndim != 1:
            raise MaskError(
                f"the {which} mask of group {name!r} has shape {tuple(m.shape)}; it must be a vector, [units]"
            )
        if not bool(m.any()):
            raise MaskError(f"the {which} mask of group {name!r} removes all {len(m)} units; at least one must stay")


@door
def kept(mask: Mask, spec: Spec) -> dict[str, Tensor]:
    """Which units are left: group → int64 [units left], the index of each in the groups of `spec`.

    After several rounds, `kept(compose(first, second, …), spec)` with the spec of the first counts in the dense network.

    Raises:
        MaskError: the mask does not fit the spec.

    >>> import prunefn as pf
    >>> spec = pf.trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.randn(2, 4),))
    >>> kept({"0": torch.tensor([True, False, True])}, spec)
    {'0': tensor([0, 2])}
    """
    check_mask(mask, spec)
    return {g: keep(Leaf(g), mask, spec.sizes).nonzero()[:, 0] for g in spec.groups}


@door
def kept_positions(mask: Mask, spec: Spec) -> dict[str, tuple[Tensor, ...]]:
    """Which positions of each tensor are left: tensor → one int64 vector per dim, in the positions of `spec`.

    `params[t][torch.meshgrid(*positions, indexing="ij")]` is the tensor that `apply` leaves. Biases that a compensation may
    create are included.

    Raises:
        MaskError: the mask does not fit the spec.

    >>> import prunefn as pf
    >>> spec = pf.trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.randn(2, 4),))
    >>> kept_positions({"0": torch.tensor([True, False, True])}, spec)["2.weight"]
    (tensor([0, 1]), tensor([0, 2]))
    """
    check_mask(mask, spec)
    return {t: tuple(keep(a, mask, spec.sizes).nonzero()[:, 0] for a in axes) for t, axes in spec.axes.items()}


@door
def expand(params: Params, mask: Mask, *, spec: Spec) -> Params:
    """Back to the dense shapes: the inverse of `apply`, with zeros where it removed something.

    Ones stand where zeros would make a computed weight infinite or NaN: in the direction of weight norm, whose gain is zero.

    Args:
        params: that `apply(…, mask, spec=spec)` left, trained further or not; biases created by a compensation are welcome.
        mask: group → bool [units] of `spec`; for several rounds, `compose` them.
        spec: the dense one, before `shrink`.

    Returns:
        New dict; it goes with `spec`. Tensors without a removed unit are the same objects; tied tensors stay tied.

    Raises:
        MaskError, ParamsError: something does not fit the spec, or, as for `zero`, a weight cannot be zero.

    >>> import prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec, mask = pf.trace(model, (torch.randn(2, 4),)), {"0": torch.tensor([True, False, True])}
    >>> dense = expand(apply(pf.params(model), mask, spec=spec), mask, spec=spec)
    >>> dense["2.weight"].shape, dense["2.weight"][:, 1].tolist()
    (torch.Size([2, 3]), [0.0, 0.0])
    """

    def spread(t: Tensor, name: str) -> Tensor:
        zeros = zeroed_groups(spec, name, mask, buffers=True)
        for d, axis in enumerate(spec.axes[name]):
            at = keep(axis, mask, spec.sizes)
            if not bool(at.all()):
                t = t.new_ones((*t.shape[:d], len(at), *t.shape[d + 1 :])).index_copy(
                    d, at.nonzero()[:, 0].to(t.device), t
                )
        return fill(t, spec.axes[name], zeros, spec)

    small = shrink(spec, mask)
    check_zeroable(spec, mask, buffers=True)
    return _each(params, small, spread)
