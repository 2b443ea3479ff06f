"""What several criteria share: from positions of a tensor's dim or of a site to units of a group."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from ..errors import StatsError
from ..shapes import Float, Int64
from ..stats import Stats
from ..trace.expr import Axis, positions
from ..trace.spec import Spec
from ..types import FrozenDict


@lru_cache(maxsize=4096)
def index_map(axis: Axis, group: str, sizes: FrozenDict[str, int]) -> Int64[Tensor, "units k"]:
    """The k positions of an axis at which each unit of a group stands: int64 [units, k]."""
    return positions(axis, group, sizes)


def per_unit(values: Float[Tensor, " positions"], axis: Axis, group: str, spec: Spec) -> Float[Tensor, "units k"]:
    """Values at the positions of an axis → values of the units' positions: [units, k]."""
    return values[index_map(axis, group, spec.sizes).to(values.device)]


def spec_of(stats: Stats) -> Spec:
    """The spec of the statistics.

    Raises:
        StatsError: they are empty.
    """
    if stats.spec is None:
        raise StatsError("the statistics are empty; use collect_stats(params, batches, spec=spec)")
    return stats.spec
