"""What several criteria share: from positions of a tensor's dim or of a site to units of a group."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..errors import StatsError
from ..stats import Stats, check_stats
from ..trace.expr import Axis, positions
from ..trace.spec import Spec
from ..types import Criterion, FrozenDict, Scores


@lru_cache(maxsize=4096)
def index_map(axis: Axis, group: str, sizes: FrozenDict[str, int]) -> Tensor:
    """The k positions of an axis at which each unit of a group stands: int64 [units, k]."""
    return positions(axis, group, sizes)


def per_unit(values: Tensor, axis: Axis, group: str, spec: Spec) -> Tensor:
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


def score(stats: Stats, *, criterion: Criterion | None = None) -> Scores:
    """Score every unit that the statistics cover; higher = keep.

    Args:
        stats: of `collect_stats`.
        criterion: default `criteria.variance()`.

    Returns:
        Group → float [units]. Groups without a site (query and key widths, say) have no activation score; they are not in
        the result, and so stay whole.

    Raises:
        StatsError: what the criterion needs was not collected, or a score is not finite.

    >>> import prunefn as pf
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1))
    >>> model[0].weight.data = torch.tensor([[1.0], [3.0]])
    >>> spec = pf.trace(model, (torch.randn(2, 1),))
    >>> stats = pf.collect_stats(pf.params(model), [torch.tensor([[-1.0], [0.0], [1.0]])], spec=spec)
    >>> pf.score(stats)
    {'0': tensor([1., 9.], dtype=torch.float64)}
    """
    from .variance import variance

    criterion = variance() if criterion is None else criterion
    check_stats(stats, spec_of(stats))
    scores = criterion.score(stats)
    for name, s in scores.items():
        if not bool(torch.isfinite(s).all()):
            raise StatsError(
                f"criterion {criterion.name!r} gives group {name!r} scores that are not finite; look for NaN in the statistics or weights"
            )
    return scores
