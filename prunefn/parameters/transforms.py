"""Read, remove, zero, expand and compose: pure functions on params and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from ..doors import door
from ..errors import MaskError, ParamsError, nearest
from ..program.sharded import changed, resharded, same_memory
from ..spec.axis import Leaf, keep
from ..spec.branches import removed_tensors
from ..spec.spec import Spec, check_params, removed_branches, resize, take
from ..types import Mask, Params
from .branches import zeroed_by_branches
from .positions import check_named_units
from .zeroing import check_zeroable, fill, zeroed_groups


@door
def params(model: nn.Module) -> Params:
    """Return parameters and persistent buffers by name, as in `state_dict`; they share the model's memory and are never changed.

    A tied tensor occurs under all its names as the same object. For a module under `fully_shard`, the tensors are DTensors (see
    `prunefn.program.sharded`).

    >>> sorted(params(nn.BatchNorm1d(2)))
    ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    resharded(model)
    non_persistent = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    named_tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tensor_of_id: dict[int, Tensor] = {}
    return {n: tensor_of_id.setdefault(id(t), t.detach()) for n, t in named_tensors if n not in non_persistent}


def check_mask(mask: Mapping[str, Tensor], spec: Spec) -> None:
    """Check that every mask is a bool vector, has the size of a group of the spec, and keeps a unit and all units with a name.

    Raises:
        MaskError: a mask does not fit; the message names the group, the value and the fix.
    """
    for name, m in mask.items():
        if name not in spec.groups:
            raise MaskError(
                f"the mask has a group {name!r}, but the spec has no such group{nearest(name, spec.groups)}"
            )
        n = spec.sizes[name]
        if m.dtype != torch.bool:
            raise MaskError(f"the mask of group {name!r} has dtype {m.dtype}; it must be bool, True = kept")
        if tuple(m.shape) != (n,):
            raise MaskError(
                f"the mask of group {name!r} has shape {tuple(m.shape)}, but the group has {n} units: it must be ({n},)"
            )
        if int(m.sum()) < (floor := spec.groups[name].floor):
            if m.any():
                raise MaskError(
                    f"the mask of group {name!r} keeps {int(m.sum())} of {n} units, but {floor} are chosen at a time; keep at least "
                    f"{floor}"
                )
            raise MaskError(f"the mask of group {name!r} removes all {n} units; at least one must stay")
        if name in spec.program.interfaces:
            check_named_units(name, m, spec.program.interfaces[name])


@door
def apply(params: Params, mask: Mask, *, spec: Spec) -> Params:
    """Remove units physically: every tensor loses the positions of removed units, and those of removed branches go.

    Args:
        params: params of the spec; they may include biases created by a compensation.
        mask: group → bool [units].
        spec: the spec of the params; the result belongs to `shrink(spec, mask)`.

    Returns:
        A new dict. Tensors without a removed unit are the same objects; tied tensors stay tied.

    Raises:
        MaskError, ParamsError: the mask or the params do not fit the spec.

    >>> import prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> small = apply(pf.params(model), {"0": torch.tensor([True, False, True])}, spec=spec)
    >>> {name: tuple(t.shape) for name, t in small.items()}
    {'0.weight': (2, 4), '0.bias': (2,), '2.weight': (2, 2), '2.bias': (2,)}
    """
    check_mask(mask, spec)
    gone = removed_tensors(spec, removed_branches(spec, mask))
    small = _map_tensors(
        params, spec, lambda t, name: t if name in gone else take(t, spec.axes[name], mask, spec.sizes)
    )
    return {name: t for name, t in small.items() if name not in gone}


@door
def zero(params: Params, mask: Mask, *, spec: Spec) -> Params:
    """Set removed units to zero in every parameter; shapes and buffers do not change.

    If a weight is computed from several parameters, only parameters whose zeros make it zero and finite are set to zero: under
    weight norm the gain, not the direction. For `exact` groups, the result computes the same function as `apply(params, mask)`.

    Args: as for `apply`.

    Raises:
        MaskError: as for `apply`.
        ParamsError: as for `apply`; or no zeros in its parameters make a computed weight zero (orthogonal weights,
            exponentials); or experts are removed, which a router chooses even if its row is zero.
    """
    slots, last = spec.slots, zeroed_by_branches(spec, removed_branches(spec, mask))

    def set_zeros(t: Tensor, name: str) -> Tensor:
        if name in last:
            return torch.zeros_like(t)
        if name not in spec.parameters and name not in slots:
            return t
        return fill(t, spec.axes[name], zeroed_groups(spec, name, mask), spec)

    check_mask(mask, spec)
    check_zeroable(spec, mask)
    return _map_tensors(params, spec, set_zeros)


def _map_tensors(params: Params, spec: Spec, change: Callable[[Tensor, str], Tensor]) -> Params:
    """Return the params with every tensor changed once, even if it occurs under several names."""
    check_names(params, spec)
    first_name = tied_names(params, spec)
    changed_params: Params = {}
    for name, t in params.items():
        changed_params[name] = t if name in first_name else changed(t, lambda whole, name=name: change(whole, name))
    return {name: changed_params[first_name.get(name, name)] for name in params}


def tied_names(params: Params, spec: Spec) -> dict[str, str]:
    """Return second name → first name of the spec's tied tensors that share an object or memory in these params, too."""
    pairs = [(second, name) for second, name in spec.tied.items() if second in params and name in params]
    return {b: a for b, a in pairs if params[b] is params[a] or same_memory(params[b], params[a])}


def check_names(params: Params, spec: Spec) -> None:
    """Check that the params have exactly the spec's tensors, in its shapes; biases of a compensation are optional.

    Raises:
        ParamsError: a tensor is missing, unknown or has another shape; the message names it.
    """
    if foreign := [n for n in params if n not in spec.axes]:
        raise ParamsError(f"the spec has no tensor {foreign[0]!r}{nearest(foreign[0], spec.axes)}")
    slots = spec.slots
    check_params(params, spec, tuple(n for n in spec.axes if n not in slots or n in params))


@door
def shrink(spec: Spec, mask: Mask) -> Spec:
    """Return the spec after a mask, which belongs to `apply(params, mask)`.

    Raises:
        MaskError: the mask does not fit the spec.
    """
    check_mask(mask, spec)
    return resize(spec, mask)


@door
def compose(first: Mask, second: Mask, *more: Mask) -> Mask:
    """Return one mask for several rounds; each mask is over the units that the masks before it kept.

    >>> compose({"a": torch.tensor([True, False, True])}, {"a": torch.tensor([False, True])})
    {'a': tensor([False, False,  True])}

    Masks of one group may be on different devices; the result is on that of the first.

    Raises:
        MaskError: a mask is not a bool vector, does not have the size that the masks before it kept, or removes all units of
            a group.
    """
    _check_vectors(first, "first")
    return reduce(_compose_two, (second, *more), dict(first))


def _compose_two(first: Mask, second: Mask) -> Mask:
    _check_vectors(second, "second")
    composed = dict(first)
    for name, m in second.items():
        if name not in first:
            composed[name] = m
            continue
        kept_units = int(first[name].sum())
        if len(m) != kept_units:
            raise MaskError(
                f"the second mask of group {name!r} has shape {tuple(m.shape)}, but the first leaves {kept_units} units; a mask of a "
                "later round is over the units that are left"
            )
        composed[name] = first[name].masked_scatter(first[name], m.to(first[name].device))
    return composed


def _check_vectors(mask: Mask, which: str) -> None:
    """Check as far as possible without a spec that each mask is a bool vector that keeps at least one unit."""
    for name, m in mask.items():
        if not isinstance(m, Tensor) or m.dtype != torch.bool:
            what = f"has dtype {m.dtype}" if isinstance(m, Tensor) else f"is a {type(m).__name__}"
            raise MaskError(f"the {which} mask of group {name!r} {what}; it must be a bool tensor, True = kept")
        if m.ndim != 1:
            raise MaskError(
                f"the {which} mask of group {name!r} has shape {tuple(m.shape)}; it must be a vector, [units]"
            )
        if not bool(m.any()) and len(m) != 1:  # one unit alone may be a whole branch
            raise MaskError(f"the {which} mask of group {name!r} removes all {len(m)} units; at least one must stay")


@door
def kept(mask: Mask, spec: Spec) -> dict[str, Tensor]:
    """Return the units that are kept: group → int64 [units kept], the index of each unit in the groups of `spec`.

    After several rounds, `kept(compose(first, second, …), spec)` with the first spec gives indices in the dense network.

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
    """Return the positions of each tensor that are kept: tensor → one int64 vector per dim, in the positions of `spec`.

    `params[t][torch.meshgrid(*positions, indexing="ij")]` is the tensor that `apply` returns. Biases that a compensation may
    create are included.

    Raises:
        MaskError: the mask does not fit the spec.

    >>> import prunefn as pf
    >>> spec = pf.trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.randn(2, 4),))
    >>> kept_positions({"0": torch.tensor([True, False, True])}, spec)["2.weight"]
    (tensor([0, 1]), tensor([0, 2]))
    """
    check_mask(mask, spec)
    gone = removed_tensors(spec, removed_branches(spec, mask))
    kept_axes = {t: axes for t, axes in spec.axes.items() if t not in gone}
    return {t: tuple(keep(a, mask, spec.sizes).nonzero()[:, 0] for a in axes) for t, axes in kept_axes.items()}


@door
def expand(params: Params, mask: Mask, *, spec: Spec) -> Params:
    """Expand params to the dense shapes: the inverse of `apply`, with zeros at removed positions.

    Positions are ones where zeros would make a computed weight infinite or NaN: in the direction of weight norm, whose gain is
    zero.

    Args:
        params: result of `apply(…, mask, spec=spec)`, possibly trained further, possibly with biases of a compensation.
        mask: group → bool [units] of `spec`; `compose` the masks of several rounds.
        spec: the dense spec, before `shrink`.

    Returns:
        A new dict, which belongs to `spec`. Tensors without a removed unit are the same objects; tied tensors stay tied. The
        tensors of removed branches come last, as zeros.

    Raises:
        MaskError, ParamsError: the mask or the params do not fit the spec, or, as for `zero`, a weight cannot be zero.

    >>> import prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec, mask = pf.trace(model, (torch.randn(2, 4),)), {"0": torch.tensor([True, False, True])}
    >>> dense = expand(apply(pf.params(model), mask, spec=spec), mask, spec=spec)
    >>> dense["2.weight"].shape, dense["2.weight"][:, 1].tolist()
    (torch.Size([2, 3]), [0.0, 0.0])
    """

    def to_dense_shape(t: Tensor, name: str) -> Tensor:
        zero_mask = zeroed_groups(spec, name, mask, buffers=True)
        for d, axis in enumerate(spec.axes[name]):
            is_kept = keep(axis, mask, spec.sizes)
            if not bool(is_kept.all()):
                t = t.new_ones((*t.shape[:d], len(is_kept), *t.shape[d + 1 :])).index_copy(
                    d, is_kept.nonzero()[:, 0].to(t.device), t
                )
        return fill(t, spec.axes[name], zero_mask, spec)

    small = shrink(spec, mask)
    check_zeroable(spec, mask, buffers=True)
    dense = _map_tensors(params, small, to_dense_shape)
    lost = [n for n in spec.axes if n not in dense and n not in spec.slots]
    like = next((t for t in params.values() if t.is_floating_point()), torch.zeros(()))
    return {**dense, **{n: like.new_zeros(spec.shape(n)) for n in lost}}
