"""The outputs of contractions in a pruned network and in the dense one, and the distance between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..distances import relative_error
from ..errors import PruneError
from ..program.batches import device_of, split
from ..spec.axis import leaves
from ..spec.spec import Spec
from ..stats.weights import position_weights
from ..types import Batch, Mask, Params
from .inner import Kept, Pair, check_leads, kept_positions, run_with_values
from .objective import check_scalar


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
        inputs, names = split(batch, spec=self.spec, device=device_of(self.params)).inputs, tuple(self.kept)
        weights = position_weights(spec, inputs, batch, True)
        with torch.no_grad():
            _, dense = run_with_values(self.params, self.spec, inputs, names, output=False)
        _, values = run_with_values(params, spec, inputs, names, output=False)
        errors = []
        for value, whole, (name, kept) in zip(values, dense, self.kept.items(), strict=True):
            errors.append(relative_error(*Pair(name, name, kept).compared(value, whole, weights)))
        return check_scalar(torch.stack(errors).mean())


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
    check_leads(mask, whole, spec)
    kept = {}
    for name in dict.fromkeys(f"%{call}" for site in spec.sites.values() for call in site.calls):
        axes = whole.program.axes.get(name, ())
        narrower = {g for a in axes for g in leaves(a) if g in spec.sizes and spec.sizes[g] != whole.sizes[g]}
        if axes and (mask is not None or not narrower):
            kept[name] = kept_positions(axes, mask or {}, whole)
    if not kept:
        raise PruneError("every contraction of the network lost outputs, so none can be compared by layers; give mask=")
    return Layers({n: t.detach() for n, t in params.items()}, whole, kept)
