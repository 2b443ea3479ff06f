"""The exact cost of a network, from its spec alone."""

from __future__ import annotations

from ..doors import door
from ..parameters.transforms import check_mask
from ..spec.parts import Cost
from ..spec.spec import Spec
from ..types import Mask


@door
def cost(spec: Spec, mask: Mask | None = None) -> Cost:
    """Exact cost of one sample: MACs, parameters, activations; with a mask, of what it leaves. Nothing is built or run.

    Raises:
        MaskError: the mask does not fit the spec.
    """
    check_mask(mask or {}, spec)
    return spec.costs({**spec.sizes, **{g: int(m.sum()) for g, m in (mask or {}).items()}})
