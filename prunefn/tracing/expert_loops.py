"""Run a model without loops over its experts, which read how many tokens each expert has, so that they cannot be exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from .caches import objects

FIELD = "_experts_implementation_internal"
"""Where a config of transformers says how its experts are computed; classes that have one way only do not read it."""
GROUPED = "grouped_mm"
CAPTURED = (None, GROUPED, "batched_mm")
"""Ways that a trace can follow."""


@contextlib.contextmanager
def without_expert_loops(model: nn.Module) -> Iterator[None]:
    """Compute experts by grouped matrix products for the block, and restore every config afterwards, even if the block raises.

    The loop over experts, `eager`, and the kernels of other packages compute the same.
    """
    changed = [x for x in objects(model) if vars(x).get(FIELD) not in CAPTURED]
    ways = [vars(x)[FIELD] for x in changed]
    try:
        for x in changed:
            setattr(x, FIELD, GROUPED)
        yield
    finally:
        for x, way in zip(changed, ways, strict=True):
            setattr(x, FIELD, way)
