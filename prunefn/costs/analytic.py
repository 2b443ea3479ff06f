"""The exact cost of a network, from its spec alone."""

from __future__ import annotations

from ..doors import door
from ..parameters.transforms import check_mask
from ..spec.parts import Cost
from ..spec.spec import Spec
from ..types import Mask


@door
def cost(spec: Spec, mask: Mask | None = None) -> Cost:
    """Return the exact cost of one sample: MACs, parameters, activations. Nothing is built or run.

    Args:
        spec: spec of the network.
        mask: group → bool [units]; with it, the cost is that of the network after pruning.

    Raises:
        MaskError: the mask does not fit the spec.
    """
    check_mask(mask or {}, spec)
    return spec.costs({**spec.sizes, **{g: int(m.sum()) for g, m in (mask or {}).items()}})
