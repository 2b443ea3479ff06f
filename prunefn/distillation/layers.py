"""The outputs of contractions in a pruned network and in the dense one, and the distance between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..distances import relative_error
from ..errors import MaskError, PruneError
from ..parameters.transforms import check_mask
from ..program.batches import device_of, split
from ..program.compiled import compiled
from ..spec.axis import Axis, keep, leaves
from ..spec.spec import Spec
from ..types import Batch, Mask, Params
from .objective import check_scalar

Kept = Mapping[int, Tensor]
"""Dim of a dense value → indices of the positions that the pruned network has."""


class Layers(NamedTuple):
    """The distance of layers: the mean over contractions of the relative error of their outputs."""

    params: Params
    """Of the dense network."""
    spec: Spec
    """Of the dense network."""
    kept: Mapping[str, Kept]
    """Output of a contraction → positions that the pruned network has."""

    def __call__(self, params: Params, spec: Spec, batch: Batch) -> Tensor:
        """Return the distance of a pruned network.

        Raises:
            BatchError: the batch does not fit, or the distance is not finite.
        """
        inputs = split(batch, spec=self.spec, device=device_of(self.params)).inputs
        with torch.no_grad():
            dense = self._values(self.params, self.spec)(inputs)
        errors = []
        for value, whole, kept in zip(self._values(params, spec)(inputs), dense, self.kept.values(), strict=True):
            for dim, positions in kept.items():
                whole = whole.index_select(dim, positions.to(whole.device))
            errors.append(relative_error(value, whole))
        return check_scalar(torch.stack(errors).mean())

    def _values(self, params: Params, spec: Spec) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
        names = tuple(self.kept)

        def emit(_: fx.Graph, env: Mapping[str, Any]) -> Any:
            return tuple(env[name] for name in names)

        run = compiled(spec, params, ("layers", names), emit, only=names)
        return lambda inputs: run(params, inputs)


def layers(dense: tuple[Params, Spec], spec: Spec, mask: Mask | None) -> Layers:
    """Return the distance of layers of a pruned network.

    Args:
        dense: params and spec of the dense network.
        spec: of the pruned network.
        mask: units that it lost. None: outputs of contractions that lost units are left out.

    Raises:
        MaskError: the mask does not lead from the dense network to this one.
        PruneError: no contraction has an output of the dense size.
    """
    params, whole = dense
    check_mask(mask or {}, whole)
    for g, n in spec.sizes.items() if mask is not None else ():
        left = int(mask[g].sum()) if mask is not None and g in mask else whole.sizes.get(g)
        if left != n:
            raise MaskError(
                f"the mask leaves {left} units of group {g!r} of the dense network, but the pruned network has {n}; give the mask "
                "over the dense network's units, of all rounds: pf.compose(first, second)"
            )
    kept = {}
    for name in dict.fromkeys(f"%{call}" for site in spec.sites.values() for call in site.calls):
        axes = whole.program.axes.get(name, ())
        narrower = {g for a in axes for g in leaves(a) if g in spec.sizes and spec.sizes[g] != whole.sizes[g]}
        if axes and (mask is not None or not narrower):
            kept[name] = _kept_positions(axes, mask or {}, whole)
    if not kept:
        raise PruneError("every contraction of the network lost outputs, so none can be compared by layers; give mask=")
    return Layers({n: t.detach() for n, t in params.items()}, whole, kept)


def _kept_positions(axes: tuple[Axis, ...], mask: Mask, spec: Spec) -> Kept:
    """Return the kept positions of each dim that has a masked group."""
    return {
        dim: keep(axis, mask, spec.sizes).nonzero().flatten()
        for dim, axis in enumerate(axes)
        if any(g in mask for g in leaves(axis))
    }
